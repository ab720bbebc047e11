/* SPDX-License-Identifier: Apache-2.0 */
/* kv_pull: reading from one rank of the peer, as its blocks fill. */
#define WEFT_LOG_MODULE "kv-transfer"
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_priv.h"

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static kv_pull_read_t *read_at(kv_pull_rank_t *rank, uint32_t i)
{
    return &rank->reads[(rank->first_read + i) % KV_PULL_MAX_READS];
}

/* ---- post ------------------------------------------------------------------------------------ */

/* Units, from the prompt's start, that may be read now: whole ones, and the last at the end. */
static uint32_t readable_units(const kv_pull_t *pull, const kv_pull_rank_t *rank,
                               const kv_slices_t *slices)
{
    const uint32_t unit = slices->unit_tokens;
    const uint64_t in_known = (uint64_t)rank->n_known * slices->peer_chunks * unit;
    const uint32_t known = in_known < rank->tokens ? (uint32_t)in_known : rank->tokens;
    return known >= pull->end_tokens ? (pull->end_tokens + unit - 1) / unit : known / unit;
}

typedef struct pairs {
    uint32_t *local;
    uint32_t *peer;
    size_t n;
} pairs_t;

static bool make_pairs(const kv_pull_t *pull, const kv_pull_rank_t *rank, const kv_slices_t *slices,
                       uint32_t first, uint32_t n, const uint32_t *slots, pairs_t *pairs)
{
    pairs->n = (size_t)n * slices->n_pieces;
    pairs->local = weft_alloc(2 * pairs->n * sizeof(*pairs->local), "kv_pull.pairs");
    if (pairs->local == NULL) {
        return false;
    }
    pairs->peer = pairs->local + pairs->n;
    if (slots != NULL) {
        kv_slices_pairs(slices, first, n, slots, first, rank->blocks, 0, pairs->local, pairs->peer);
    } else {
        kv_slices_pairs(slices, first, n, pull->blocks, pull->first * slices->local_chunks,
                        rank->blocks, 0, pairs->local, pairs->peer);
    }
    return true;
}

static weft_status_t create_request(kv_pull_t *pull, uint32_t index, const pairs_t *pairs,
                                    weft_diag_t *diag, xfer_request_t **request_out)
{
    const kv_peer_rank_t *peer = &pull->peer->ranks[index];
    const kv_pull_rank_t *rank = &pull->ranks[index];
    const xfer_guard_t guard = {.addr = peer->handshake.weft.lease_addr +
                                        rank->lease.slot * sizeof(uint64_t),
                                .expected = rank->lease.epoch};
    const xfer_request_config_t config = {.direction = XFER_READ,
                                          .local = peer->local_list,
                                          .peer = peer->peer_list,
                                          .local_ids = pairs->local,
                                          .peer_ids = pairs->peer,
                                          .n = pairs->n,
                                          .guard = pull->peer->is_weft ? &guard : NULL};
    return xfer_request_create(pull->transfer->agent, &config, diag, request_out);
}

static weft_status_t post(kv_pull_t *pull, uint32_t index, uint32_t first, uint32_t n,
                          uint32_t *slots, weft_diag_t *diag)
{
    const kv_slices_t *slices = &pull->peer->ranks[index].slices;
    const uint64_t begin = weft_clock_ns();
    kv_pull_rank_t *rank = &pull->ranks[index];
    pairs_t pairs;
    xfer_request_t *request = NULL;
    if (!make_pairs(pull, rank, slices, first, n, slots, &pairs)) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = create_request(pull, index, &pairs, diag, &request);
    weft_free(pairs.local);
    if (status >= 0) {
        status = xfer_post(request);
    }
    if (status < 0) {
        xfer_request_destroy(request);
        return status;
    }
    *read_at(rank, rank->n_reads++) = (kv_pull_read_t){.request = request,
                                                       .first = first,
                                                       .n = n,
                                                       .slots = slots,
                                                       .bytes = n * slices->unit_bytes,
                                                       .epoch = rank->lease.epoch,
                                                       .posted_ns = begin,
                                                       .is_overlapped = !rank->is_final};
    rank->posted = first + n;
    pull->descriptors += pairs.n;
    pull->post_ns += weft_clock_ns() - begin;
    return WEFT_OK;
}

/* As post, into slots: as many units as there are slots for. */
static weft_status_t post_staged(kv_pull_t *pull, uint32_t index, uint32_t first, uint32_t n,
                                 weft_diag_t *diag)
{
    kv_staging_t *staging = &pull->peer->ranks[index].staging;
    if (staging->n_free == 0) {
        pull->transfer->is_starved = true;
        return WEFT_PENDING;
    }
    uint32_t *slots = weft_alloc(n * sizeof(*slots), "kv_pull.slots");
    if (slots == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const uint32_t taken = kv_staging_take(staging, n, slots);
    const weft_status_t status = post(pull, index, first, taken, slots, diag);
    if (status < 0) {
        kv_staging_give(staging, slots, taken);
        weft_free(slots);
    }
    return status;
}

void kv_pull_rank_post(kv_pull_t *pull, uint32_t index, uint64_t now_ns)
{
    const kv_peer_rank_t *peer = &pull->peer->ranks[index];
    kv_pull_rank_t *rank = &pull->ranks[index];
    const uint32_t ready = readable_units(pull, rank, &peer->slices);
    const uint64_t most = KV_PULL_READ_BYTES / peer->slices.unit_bytes + 1;
    while (rank->posted < ready && rank->n_reads < KV_PULL_MAX_READS && !rank->is_cut) {
        weft_diag_t diag = {0};
        const uint32_t n = ready - rank->posted < most ? ready - rank->posted : (uint32_t)most;
        const weft_status_t status = peer->staging.n_slots > 0
                                         ? post_staged(pull, index, rank->posted, n, &diag)
                                         : post(pull, index, rank->posted, n, NULL, &diag);
        if (status == WEFT_PENDING) {
            return;
        }
        if (status < 0) {
            kv_pull_fail(pull, status, diag.text[0] != '\0' ? diag.text : weft_strerror(status));
            return;
        }
        if (pull->posted_ns == 0) {
            pull->posted_ns = now_ns;
            pull->transfer->counts.queue_seconds +=
                (double)(now_ns - pull->expected_ns) / (double)WEFT_NS_PER_SECOND;
        }
    }
}

/* ---- poll ------------------------------------------------------------------------------------ */

/* benchmarks/bench_split.py makes its picture of these lines. */
static void trace(const kv_pull_t *pull, const kv_pull_read_t *read, uint32_t unit_tokens)
{
    weft_log_trace("request=%s read tokens=%u bytes=%" PRIu64 " us=%" PRIu64,
                   pull->transfer_id == NULL ? pull->request_id : pull->transfer_id,
                   (read->first + read->n) * unit_tokens, read->bytes,
                   (weft_clock_ns() - read->posted_ns) / 1000);
}

static void take_bytes(kv_pull_t *pull, const kv_pull_read_t *read)
{
    kv_transfer_stats_t *counts = &pull->transfer->counts;
    pull->bytes += read->bytes;
    pull->peer->stats->bytes += read->bytes;
    counts->bytes_read += read->bytes;
    counts->overlapped_bytes += read->is_overlapped ? read->bytes : 0;
}

/*
 * Without epochs there is only the time: a vLLM worker may have used the blocks for somebody else when
 * it has not heard of us for as long as a heartbeat is good for.
 */
static bool is_too_late(const kv_pull_t *pull, uint64_t now_ns)
{
    const kv_peer_t *peer = pull->peer;
    const uint64_t alive = peer->alive_ns > pull->expected_ns ? peer->alive_ns : pull->expected_ns;
    return !peer->is_weft && now_ns > alive + pull->transfer->lease_ns / 3 * 2;
}

/*
 * The blocks were given to somebody else. Of a request that still runs there (it was preempted) they
 * will fill again: with a lease that has another epoch by now, or will be told.
 */
static void read_again(kv_pull_t *pull, kv_pull_rank_t *rank, uint64_t epoch)
{
    pull->transfer->counts.stale_reads++;
    if (rank->is_final || pull->transfer_id == NULL || rank->n_retries >= KV_PULL_MAX_RETRIES) {
        kv_pull_fail(pull, WEFT_ERR_STALE, "the peer no longer has the blocks");
        return;
    }
    rank->n_retries++;
    kv_pull_rank_cancel(rank);
    if (rank->lease.epoch == epoch) {
        kv_pull_rank_forget(rank);
        rank->has_lease = false;
        pull->watch_ns = 0;
    }
}

/* Tokens of one slot that are wanted, to the blocks they belong in. */
static void unpack(const kv_pull_t *pull, const kv_peer_rank_t *peer, uint32_t unit, uint32_t slot)
{
    const kv_transfer_t *transfer = pull->transfer;
    const uint32_t here = pull->first * transfer->shape.block_tokens;
    const uint32_t begin = unit * peer->slices.unit_tokens;
    const uint32_t end = smaller(begin + peer->slices.unit_tokens, pull->end_tokens);
    uint32_t token = begin > here ? begin : here;
    while (token < end) {
        const uint32_t block = token / transfer->shape.block_tokens;
        const uint32_t n = smaller(end, (block + 1) * transfer->shape.block_tokens) - token;
        kv_staging_unpack(&peer->staging, slot, token - begin, &peer->form, &transfer->shape,
                          pull->blocks[block - pull->first], token % transfer->shape.block_tokens,
                          &transfer->form, n, transfer->landing);
        token += n;
    }
}

static void unpack_all(const kv_pull_t *pull, const kv_peer_rank_t *peer,
                       const kv_pull_read_t *read)
{
    for (uint32_t i = 0; read->slots != NULL && i < read->n; i++) {
        unpack(pull, peer, read->first + i, read->slots[i]);
    }
}

static void pop(kv_pull_t *pull, kv_peer_rank_t *peer, kv_pull_rank_t *rank)
{
    kv_pull_read_t *read = read_at(rank, 0);
    xfer_request_destroy(read->request);
    if (read->is_landing) {
        (void)kv_landing_wait(pull->transfer->landing, read->landing);
    }
    if (read->slots != NULL) {
        kv_staging_give(&peer->staging, read->slots, read->n);
        weft_free(read->slots);
    }
    *read = (kv_pull_read_t){0};
    rank->first_read = (rank->first_read + 1) % KV_PULL_MAX_READS;
    rank->n_reads--;
    if (rank->n_reads == 0) {
        rank->posted = rank->done; /* what was cancelled is posted anew */
    }
}

static void take(kv_pull_t *pull, uint32_t index, const kv_pull_read_t *read, weft_status_t status,
                 uint64_t now_ns)
{
    kv_pull_rank_t *rank = &pull->ranks[index];
    if (status == WEFT_OK && is_too_late(pull, now_ns)) {
        status = WEFT_ERR_STALE;
    }
    if (status == WEFT_OK) {
        trace(pull, read, pull->peer->ranks[index].slices.unit_tokens);
        take_bytes(pull, read);
        if (!read->is_landing) {
            unpack_all(pull, &pull->peer->ranks[index], read);
        }
        rank->done = read->first + read->n;
        pull->transfer->has_changed = true;
    } else if (status == WEFT_ERR_STALE) {
        read_again(pull, rank, read->epoch);
    } else {
        kv_pull_fail(pull, status, weft_strerror(status));
    }
}

/*
 * Its status. What is read into slots of a device is converted behind it, which takes its time, too;
 * also of one that was cut meanwhile.
 */
static weft_status_t read_state(kv_pull_t *pull, uint32_t index, kv_pull_read_t *read)
{
    kv_transfer_t *transfer = pull->transfer;
    weft_status_t status = xfer_poll(read->request);
    if (status != WEFT_OK || read->slots == NULL || transfer->landing == NULL) {
        return status;
    }
    if (!read->is_landing && !pull->ranks[index].is_cut) {
        unpack_all(pull, &pull->peer->ranks[index], read);
        read->landing = kv_landing_commit(transfer->landing);
        read->is_landing = true;
    }
    if (read->is_landing) {
        status = kv_landing_state(transfer->landing, read->landing);
        transfer->is_starved |= status == WEFT_PENDING;
    }
    return status;
}

/* Reads count in order: one that was cut leaves those behind it for nothing. */
void kv_pull_rank_poll(kv_pull_t *pull, uint32_t index, uint64_t now_ns)
{
    kv_pull_rank_t *rank = &pull->ranks[index];
    while (rank->n_reads > 0) {
        kv_pull_read_t *read = read_at(rank, 0);
        const weft_status_t status = read_state(pull, index, read);
        if (status == WEFT_PENDING) {
            return;
        }
        if (!rank->is_cut) {
            take(pull, index, read, status, now_ns);
        }
        if (pull->status != WEFT_PENDING) {
            return; /* the rest is cancelled */
        }
        pop(pull, &pull->peer->ranks[index], rank);
    }
    rank->is_cut = false;
}

void kv_pull_rank_forget(kv_pull_rank_t *rank)
{
    for (uint32_t i = 0; i < rank->capacity; i++) {
        rank->blocks[i] = KV_BLOCK_NONE;
    }
    rank->n_known = 0;
    rank->tokens = 0;
    rank->is_final = false;
}

void kv_pull_rank_cancel(kv_pull_rank_t *rank)
{
    for (uint32_t i = 0; i < rank->n_reads; i++) {
        xfer_cancel(read_at(rank, i)->request);
    }
    rank->is_cut = rank->n_reads > 0;
}

bool kv_pull_rank_is_quiet(const kv_pull_t *pull, kv_pull_rank_t *rank)
{
    for (uint32_t i = 0; i < rank->n_reads; i++) {
        const kv_pull_read_t *read = read_at(rank, i);
        if (xfer_poll(read->request) == WEFT_PENDING ||
            (read->is_landing &&
             kv_landing_state(pull->transfer->landing, read->landing) == WEFT_PENDING)) {
            return false;
        }
    }
    return true;
}

void kv_pull_rank_destroy(kv_pull_t *pull, uint32_t index)
{
    kv_pull_rank_t *rank = &pull->ranks[index];
    while (rank->n_reads > 0) {
        pop(pull, &pull->peer->ranks[index], rank);
    }
    weft_free(rank->blocks);
    rank->blocks = NULL;
}
