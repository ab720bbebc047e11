/* SPDX-License-Identifier: Apache-2.0 */
/* kv_pull: what is known of the peer's blocks: from the answer of the prefill, and from what the peer
 * tells while it runs. */
#include <string.h>

#include "base/alloc.h"
#include "kvstore/transfer/kv_transfer_priv.h"

/* ---- what the peer has ----------------------------------------------------------------------- */

static bool reserve(kv_pull_rank_t *rank, uint32_t n)
{
    if (n <= rank->capacity) {
        return true;
    }
    uint32_t capacity = rank->capacity < 64 ? 64 : rank->capacity;
    while (capacity < n) {
        capacity *= 2;
    }
    uint32_t *blocks = weft_realloc(rank->blocks, capacity * sizeof(*blocks), "kv_pull.blocks");
    if (blocks == NULL) {
        return false;
    }
    for (uint32_t i = rank->capacity; i < capacity; i++) {
        blocks[i] = KV_BLOCK_NONE;
    }
    rank->blocks = blocks;
    rank->capacity = capacity;
    return true;
}

static void count_known(kv_pull_rank_t *rank)
{
    while (rank->n_known < rank->capacity && rank->blocks[rank->n_known] != KV_BLOCK_NONE) {
        rank->n_known++;
    }
}

/* Of the answer: logical blocks, each so many of the peer's; the last ones of the prompt. */
static weft_status_t take_params(kv_pull_t *pull, uint32_t index)
{
    const kv_transfer_params_t *params = &pull->params;
    const kv_agent_meta_t *agent = &pull->peer->ranks[index].handshake.agent;
    const uint32_t parts = (uint32_t)agent->physical_blocks_per_logical_kv_block;
    const uint32_t tokens = pull->end_tokens;
    kv_pull_rank_t *rank = &pull->ranks[index];
    const uint64_t n = (uint64_t)params->n_blocks * parts;
    const uint32_t needed = (uint32_t)((tokens + agent->block_size - 1) / agent->block_size);
    const uint32_t skipped = needed > n ? needed - (uint32_t)n : 0;
    if (n + skipped > KV_TRANSFER_MAX_BLOCKS || !reserve(rank, skipped + (uint32_t)n)) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t block = (uint64_t)params->blocks[i / parts] * parts + i % parts;
        if (block >= agent->num_blocks) {
            return WEFT_ERR_INVALID;
        }
        rank->blocks[skipped + i] = (uint32_t)block;
    }
    rank->n_known = skipped + (uint32_t)n;
    rank->n_skipped = skipped;
    rank->tokens = tokens;
    rank->is_final = true;
    rank->has_lease = !pull->peer->is_weft;
    const uint32_t lease = pull->peer->ranks[index].rank.tp_rank;
    if (pull->peer->is_weft && lease < params->n_leases) {
        rank->lease = params->leases[lease];
        rank->has_lease = rank->lease.slot < pull->peer->ranks[index].handshake.weft.lease_slots;
    }
    return WEFT_OK;
}

void kv_pull_meet(kv_pull_t *pull, uint64_t now_ns)
{
    const kv_transfer_params_t *params = &pull->params;
    const kv_peer_t *peer = pull->peer;
    weft_status_t status = WEFT_OK;
    if (params->remote_engine_id != NULL &&
        strcmp(params->remote_engine_id, peer->engine_id) != 0) {
        kv_pull_fail(pull, WEFT_ERR_INVALID, "another engine answers at that address");
        return;
    }
    if (!peer->is_weft && !params->has_block_ids) {
        kv_pull_fail(pull, WEFT_ERR_UNSUPPORTED, "the peer cannot be asked for a transfer_id");
        return;
    }
    if (params->has_num_tokens && params->remote_num_tokens < pull->end_tokens) {
        pull->end_tokens = params->remote_num_tokens;
    }
    pull->ranks = weft_calloc(peer->n_ranks, sizeof(*pull->ranks), "kv_pull.ranks");
    if (pull->ranks == NULL) {
        kv_pull_fail(pull, WEFT_ERR_NO_MEMORY, "no memory");
        return;
    }
    for (uint32_t i = 0; i < peer->n_ranks && status >= 0; i++) {
        pull->ranks[i].heard_ns = now_ns;
        status = params->has_block_ids ? take_params(pull, i) : WEFT_OK;
    }
    pull->has_met = true;
    if (status < 0) {
        kv_pull_fail(pull, status,
                     status == WEFT_ERR_INVALID ? "remote_block_ids: a block the peer does not have"
                                                : "no memory");
    }
}

/* ---- asking for more ------------------------------------------------------------------------- */

/* Final as it may be, without knowing all blocks nobody would tell us more. */
static bool is_uncertain_rank(const kv_pull_t *pull, uint32_t index)
{
    const kv_peer_rank_t *peer = &pull->peer->ranks[index];
    const kv_pull_rank_t *rank = &pull->ranks[index];
    const bool is_all_known = rank->n_known * peer->handshake.agent.block_size >= pull->end_tokens;
    return peer->is_source && (!rank->has_lease || !rank->is_final || !is_all_known);
}

bool kv_pull_is_uncertain(const kv_pull_t *pull)
{
    for (uint32_t i = 0; i < pull->peer->n_ranks; i++) {
        if (is_uncertain_rank(pull, i)) {
            return true;
        }
    }
    return false;
}

static void watch(kv_pull_t *pull, uint32_t index)
{
    kv_transfer_t *transfer = pull->transfer;
    weft_buffer_t notice = {0};
    kv_watch_t message = {.version = KV_NOTICE_VERSION,
                          .first_block = pull->ranks[index].n_known,
                          .agent = {transfer->blob.data, (uint32_t)transfer->blob.length}};
    if (pull->request_id != NULL) {
        message.request_id = kv_wire_text(pull->request_id);
    } else {
        message.transfer_id = kv_wire_text(pull->transfer_id);
    }
    kv_notice_encode_watch(&message, &notice);
    kv_transfer_notify(transfer, pull->peer->ranks[index].xfer, &notice);
    weft_buffer_free(&notice);
}

void kv_pull_ask_again(kv_pull_t *pull, uint64_t now_ns)
{
    const uint64_t patience = (uint64_t)(pull->transfer->config.transfer_wait * 1e9);
    for (uint32_t i = 0; i < pull->peer->n_ranks; i++) {
        if (!is_uncertain_rank(pull, i)) {
            continue;
        }
        if (now_ns > pull->ranks[i].heard_ns + patience) {
            kv_pull_fail(pull, WEFT_ERR_TIMEOUT, "the prefill did not begin in time");
            return;
        }
        watch(pull, i);
    }
    pull->watch_ns = now_ns + pull->transfer->lease_ns / 6;
}

static void learn_request_id(kv_pull_t *pull, kv_msgpack_span_t id)
{
    if (pull->request_id == NULL && id.length > 0 && id.length <= KV_TRANSFER_MAX_ID_BYTES &&
        memchr(id.data, '\0', id.length) == NULL) {
        pull->request_id = weft_strndup(id.data, id.length, "kv_pull.id");
    }
}

/* What it says of blocks that we were told of in the answer only adds the lease. */
static void take_progress(kv_pull_t *pull, uint32_t index, const kv_progress_t *progress)
{
    const kv_handshake_t *handshake = &pull->peer->ranks[index].handshake;
    kv_pull_rank_t *rank = &pull->ranks[index];
    if (progress->slot >= handshake->weft.lease_slots ||
        progress->first_block + progress->blocks.n > KV_TRANSFER_MAX_BLOCKS ||
        !reserve(rank, (uint32_t)progress->first_block + progress->blocks.n)) {
        return;
    }
    if (progress->epoch < rank->lease.epoch) {
        return; /* overtaken by a later one */
    }
    if (progress->epoch > rank->lease.epoch && !pull->params.has_block_ids) {
        kv_pull_rank_cancel(rank);
        kv_pull_rank_forget(rank);
    }
    rank->has_lease = true;
    rank->lease = (kv_lease_ref_t){(uint32_t)progress->slot, progress->epoch};
    if (pull->params.has_block_ids) {
        return;
    }
    for (uint32_t i = 0; i < progress->blocks.n; i++) {
        const uint64_t block = progress->blocks.items[i];
        if (block >= handshake->agent.num_blocks) {
            kv_pull_fail(pull, WEFT_ERR_MALFORMED, "a block the peer does not have");
            return;
        }
        rank->blocks[progress->first_block + i] = (uint32_t)block;
    }
    count_known(rank);
    rank->tokens = progress->tokens > rank->tokens ? (uint32_t)progress->tokens : rank->tokens;
    if (progress->state == KV_PROGRESS_HELD) {
        rank->is_final = true;
        pull->end_tokens = rank->tokens < pull->end_tokens ? rank->tokens : pull->end_tokens;
    }
}

static void take_state(kv_pull_t *pull, uint32_t index, const kv_progress_t *progress,
                       uint64_t now_ns)
{
    switch ((kv_progress_state_t)progress->state) {
    case KV_PROGRESS_UNKNOWN:
        break;
    case KV_PROGRESS_GONE:
        kv_pull_fail(pull, WEFT_ERR_CANCELLED, "the prefill was given up, or its lease is over");
        break;
    case KV_PROGRESS_OPEN:
    case KV_PROGRESS_HELD:
        pull->ranks[index].heard_ns = now_ns;
        take_progress(pull, index, progress);
        if (progress->state == KV_PROGRESS_HELD) {
            learn_request_id(pull, progress->request_id);
        }
        break;
    }
}

static bool is_about(const kv_pull_t *pull, const kv_progress_t *progress)
{
    return pull->has_met && pull->status == WEFT_PENDING &&
           (kv_wire_text_is(progress->transfer_id, pull->transfer_id) ||
            kv_wire_text_is(progress->request_id, pull->request_id));
}

void kv_pulls_progress(kv_transfer_t *transfer, const char *agent, const kv_progress_t *progress,
                       uint64_t now_ns)
{
    for (kv_pull_t *pull = transfer->pulls; pull != NULL; pull = pull->next) {
        for (uint32_t i = 0; is_about(pull, progress) && i < pull->peer->n_ranks; i++) {
            if (strcmp(xfer_peer_name(pull->peer->ranks[i].xfer), agent) == 0) {
                take_state(pull, i, progress, now_ns);
            }
        }
    }
}
