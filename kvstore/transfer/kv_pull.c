/* SPDX-License-Identifier: Apache-2.0 */
/* kv_transfer: what a decode worker reads from others. */
#define WEFT_LOG_MODULE "kv-transfer"
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_priv.h"

#define STARVED_NS WEFT_NS_PER_MS /* until a pull looks again for a slot that another has let go */

static const char *name_of(const kv_pull_t *pull)
{
    return pull->request_id != NULL ? pull->request_id : pull->transfer_id;
}

static uint32_t block_tokens(const kv_pull_t *pull)
{
    return pull->transfer->shape.block_tokens;
}

/* ---- begin ----------------------------------------------------------------------------------- */

static weft_status_t check_params(const kv_transfer_t *transfer, const kv_transfer_params_t *params,
                                  weft_diag_t *diag)
{
    if ((transfer->config.role & KV_TRANSFER_CONSUMER) == 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "kv_transfer_params: this is a kv_producer");
    }
    if (kv_ranks_lead(transfer) && !kv_crew_has_met(transfer->setup.crew)) {
        return weft_diag(diag, WEFT_ERR_PEER_GONE, "a rank of this worker is missing");
    }
    if (params->n_groups > 1) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "kv_transfer_params: remote_block_ids of %u groups: only one is served",
                         params->n_groups);
    }
    return WEFT_OK;
}

static weft_status_t copy_params(kv_pull_t *pull, const kv_transfer_params_t *params)
{
    const weft_status_t status = kv_transfer_params_copy(params, &pull->params);
    if (status < 0) {
        return status;
    }
    pull->transfer_id = pull->params.transfer_id;
    if (pull->params.remote_request_id == NULL) {
        return WEFT_OK;
    }
    pull->request_id = weft_strdup(pull->params.remote_request_id, "kv_pull.id");
    return pull->request_id == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

weft_status_t kv_transfer_expect(kv_transfer_t *transfer, const kv_transfer_params_t *params,
                                 uint32_t n_prompt, weft_diag_t *diag, kv_pull_t **pull_out)
{
    kv_peer_t *peer = NULL;
    weft_status_t status = check_params(transfer, params, diag);
    if (status >= 0) {
        status = kv_peer_get(transfer, params, diag, &peer);
    }
    if (status < 0) {
        return status;
    }
    kv_pull_t *pull = weft_zalloc(sizeof(*pull), "kv_pull");
    if (pull == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    pull->transfer = transfer;
    status = copy_params(pull, params);
    if (status < 0) {
        kv_transfer_params_fini(&pull->params);
        weft_free(pull);
        return status;
    }
    pull->peer = peer;
    peer->n_pulls++;
    pull->status = WEFT_PENDING;
    pull->n_prompt = n_prompt;
    pull->end_tokens = n_prompt;
    pull->expected_ns = weft_clock_ns();
    pull->next = transfer->pulls;
    transfer->pulls = pull;
    transfer->counts.pulls_open++;
    status = kv_ranks_expect(pull);
    if (status < 0) {
        kv_pull_end(pull);
        return status;
    }
    *pull_out = pull;
    kv_transfer_plan_wake(transfer);
    return WEFT_OK;
}

void kv_transfer_decline(kv_transfer_t *transfer, const kv_transfer_params_t *params)
{
    kv_pull_t *pull = NULL;
    weft_diag_t diag = {0};
    if (kv_transfer_params_check(params, NULL) >= 0) {
        if (kv_transfer_expect(transfer, params, 0, &diag, &pull) < 0) {
            weft_log_debug("a prefill was for nothing: %s", diag.text);
            return;
        }
        kv_pull_end(pull);
    }
}

weft_status_t kv_pull_start(kv_pull_t *pull, uint32_t first, const kv_block_id_t *blocks,
                            uint32_t n)
{
    if (pull->is_started) {
        return WEFT_ERR_INVALID;
    }
    pull->blocks = weft_alloc((n + 1) * sizeof(*pull->blocks), "kv_pull.blocks");
    if (pull->blocks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < n; i++) {
        pull->blocks[i] = blocks[i];
    }
    kv_pool_acquire(pull->transfer->setup.pool, blocks, n);
    pull->n_blocks = n;
    pull->first = first;
    pull->is_started = true;
    kv_ranks_start(pull);
    kv_pulls_poll(pull->transfer, weft_clock_ns());
    kv_transfer_plan_wake(pull->transfer);
    return WEFT_OK;
}

/* ---- what became of it ----------------------------------------------------------------------- */

bool kv_pull_is_started(const kv_pull_t *pull)
{
    return pull->is_started;
}

/* A failure is one only once nothing is written any more: the caller computes in those blocks then. */
weft_status_t kv_pull_state(const kv_pull_t *pull)
{
    return kv_ranks_state(pull, pull->is_settled || pull->status == WEFT_OK ? pull->status
                                                                            : WEFT_PENDING);
}

const char *kv_pull_reason(const kv_pull_t *pull)
{
    return pull->reason;
}

static uint32_t done_tokens(const kv_pull_t *pull)
{
    uint64_t least = pull->end_tokens;
    for (uint32_t i = 0; i < pull->peer->n_ranks; i++) {
        const kv_peer_rank_t *peer = &pull->peer->ranks[i];
        if (peer->is_source) {
            const uint64_t done = (uint64_t)pull->ranks[i].done * peer->slices.unit_tokens;
            least = done < least ? done : least;
        }
    }
    return (uint32_t)least;
}

uint32_t kv_pull_tokens(const kv_pull_t *pull)
{
    const uint32_t here = pull->first * block_tokens(pull);
    if (!pull->is_started || !pull->is_placed) {
        return pull->is_started ? here : 0;
    }
    const uint32_t done = kv_ranks_tokens(pull, done_tokens(pull));
    return done > here ? done : here;
}

uint32_t kv_pull_tokens_in_the_end(const kv_pull_t *pull)
{
    return pull->end_tokens;
}

static bool is_quiet(kv_pull_t *pull)
{
    for (uint32_t i = 0; pull->ranks != NULL && i < pull->peer->n_ranks; i++) {
        if (!kv_pull_rank_is_quiet(pull, &pull->ranks[i])) {
            return false;
        }
    }
    return true;
}

void kv_pull_fail(kv_pull_t *pull, weft_status_t status, const char *reason)
{
    if (pull->status != WEFT_PENDING) {
        return;
    }
    pull->status = status;
    snprintf(pull->reason, sizeof(pull->reason), "%.380s", reason);
    pull->transfer->has_changed = true;
    pull->transfer->counts.pulls_failed += !pull->is_ended;
    if (!pull->is_ended) {
        kv_peer_count_failure(pull->peer);
    }
    for (uint32_t i = 0; pull->ranks != NULL && i < pull->peer->n_ranks; i++) {
        kv_pull_rank_cancel(&pull->ranks[i]);
    }
    pull->is_settled = is_quiet(pull);
    kv_ranks_cancel(pull);
    if (!pull->is_ended) { /* whoever runs the request says so in its log */
        weft_log_debug("request=%s peer=%s: no blocks from it: %s", name_of(pull),
                       pull->peer->address, reason);
    }
}

/* Once; what is lost on its way lets the lease expire there. */
static void tell_peer(kv_pull_t *pull)
{
    kv_peer_t *peer = pull->peer;
    if (pull->is_told || peer->state != KV_PEER_READY) {
        return;
    }
    if (pull->request_id == NULL && !peer->is_weft) {
        return;
    }
    for (uint32_t i = 0; i < peer->n_ranks; i++) {
        weft_buffer_t notice = {0};
        if (pull->request_id != NULL) {
            kv_notice_encode_read(pull->request_id, peer->ranks[i].readers, &notice);
        } else { /* the peer may not know of the request yet */
            const kv_watch_t done = {.version = KV_NOTICE_VERSION,
                                     .transfer_id = kv_wire_text(pull->transfer_id),
                                     .done = peer->ranks[i].readers,
                                     .agent = {"", 0}};
            kv_notice_encode_watch(&done, &notice);
        }
        kv_transfer_notify(pull->transfer, peer->ranks[i].xfer, &notice);
        weft_buffer_free(&notice);
    }
    pull->is_told = true;
}

static void report(const kv_pull_t *pull, double seconds)
{
    const kv_transfer_setup_t *setup = &pull->transfer->setup;
    const kv_pull_report_t what = {.seconds = seconds,
                                   .post_seconds =
                                       (double)pull->post_ns / (double)WEFT_NS_PER_SECOND,
                                   .bytes = pull->bytes,
                                   .descriptors = pull->descriptors};
    if (setup->on_pulled != NULL && pull->posted_ns != 0) {
        setup->on_pulled(setup->user, &what);
    }
}

static void succeed(kv_pull_t *pull, uint64_t now_ns)
{
    kv_transfer_stats_t *counts = &pull->transfer->counts;
    kv_transfer_peer_stats_t *peer = pull->peer->stats;
    const double seconds =
        pull->posted_ns == 0 ? 0 : (double)(now_ns - pull->posted_ns) / (double)WEFT_NS_PER_SECOND;
    pull->status = WEFT_OK;
    pull->transfer->has_changed = true;
    counts->pulls++;
    counts->blocks_read += pull->n_blocks;
    counts->read_seconds += seconds;
    peer->pulls++;
    peer->seconds += seconds;
    tell_peer(pull);
    report(pull, seconds);
    weft_log_debug("request=%s peer=%s tokens=%u bytes=%llu seconds=%.6f", name_of(pull),
                   pull->peer->address, kv_pull_tokens(pull), (unsigned long long)pull->bytes,
                   seconds);
}

/* ---- end ------------------------------------------------------------------------------------- */

static void give_blocks(kv_pull_t *pull)
{
    kv_pool_release(pull->transfer->setup.pool, pull->blocks, pull->n_blocks);
    pull->n_blocks = 0;
}

/* Waits for what still runs. */
static void destroy_pull(kv_pull_t *pull)
{
    kv_transfer_t *transfer = pull->transfer;
    kv_pull_t **at = &transfer->pulls;
    while (*at != pull) {
        at = &(*at)->next;
    }
    *at = pull->next;
    for (uint32_t i = 0; pull->ranks != NULL && i < pull->peer->n_ranks; i++) {
        kv_pull_rank_destroy(pull, i);
    }
    give_blocks(pull);
    if (pull->owes_quiet) {
        kv_obey_quiet(transfer, pull->id);
    }
    pull->peer->n_pulls--;
    weft_free(pull->others);
    weft_free(pull->ranks);
    weft_free(pull->blocks);
    weft_free(pull->request_id);
    kv_transfer_params_fini(&pull->params);
    weft_free(pull);
}

/* On any rank. */
static bool is_written(kv_pull_t *pull)
{
    return !is_quiet(pull) || !kv_ranks_are_quiet(pull);
}

/* True: the pull is no more. */
static bool finish(kv_pull_t *pull)
{
    if (pull->peer->state == KV_PEER_ASKING || is_written(pull)) {
        return false;
    }
    tell_peer(pull);
    if (pull->is_landing) {
        pull->transfer->landing_blocks -= pull->n_blocks;
        pull->transfer->has_changed = true;
    }
    destroy_pull(pull);
    return true;
}

void kv_pull_end(kv_pull_t *pull)
{
    if (pull == NULL) {
        return;
    }
    kv_transfer_t *transfer = pull->transfer;
    pull->is_ended = true;
    kv_ranks_end(pull);
    transfer->counts.pulls_open--;
    kv_pull_fail(pull, WEFT_ERR_CANCELLED, "given up");
    if (finish(pull)) {
        return;
    }
    if (!is_written(pull)) { /* it waits for the peer's answer alone, to tell it that we are done */
        give_blocks(pull);
    } else {
        pull->is_landing = true;
        transfer->landing_blocks += pull->n_blocks;
    }
    kv_transfer_plan_wake(transfer);
}

bool kv_transfer_is_pulling(const kv_transfer_t *transfer)
{
    return transfer->pulls != NULL;
}

uint32_t kv_transfer_landing_blocks(const kv_transfer_t *transfer)
{
    return transfer->landing_blocks;
}

void kv_pulls_destroy(kv_transfer_t *transfer)
{
    while (transfer->pulls != NULL) {
        destroy_pull(transfer->pulls);
    }
}

/* ---- on its way ------------------------------------------------------------------------------ */

/* Where reading begins: what the caller has, and what the answer's list leaves out, is not read. */
static void place(kv_pull_t *pull)
{
    const uint32_t here = pull->first * block_tokens(pull);
    const uint64_t room = (uint64_t)(pull->first + pull->n_blocks) * block_tokens(pull);
    pull->end_tokens = pull->end_tokens < room ? pull->end_tokens : (uint32_t)room;
    pull->is_placed = true;
    for (uint32_t i = 0; i < pull->peer->n_ranks; i++) {
        const kv_peer_rank_t *peer = &pull->peer->ranks[i];
        if (peer->is_source) {
            pull->ranks[i].done = here / peer->slices.unit_tokens;
            pull->ranks[i].posted = pull->ranks[i].done;
            const uint64_t skipped =
                (uint64_t)pull->ranks[i].n_skipped * peer->handshake.agent.block_size;
            if (skipped > here) {
                kv_pull_fail(pull, WEFT_ERR_INVALID, "remote_block_ids: fewer than are needed");
                return;
            }
        }
    }
}

static void move(kv_pull_t *pull, uint64_t now_ns)
{
    if (!pull->is_placed) {
        place(pull);
    }
    for (uint32_t i = 0; i < pull->peer->n_ranks && pull->status == WEFT_PENDING; i++) {
        if (pull->peer->ranks[i].is_source) {
            kv_pull_rank_poll(pull, i, now_ns);
        }
        if (pull->peer->ranks[i].is_source && pull->ranks[i].has_lease &&
            pull->status == WEFT_PENDING) {
            kv_pull_rank_post(pull, i, now_ns);
        }
    }
    if (pull->status == WEFT_PENDING && done_tokens(pull) >= pull->end_tokens) {
        succeed(pull, now_ns);
    }
}

static void advance(kv_pull_t *pull, uint64_t now_ns)
{
    const kv_peer_t *peer = pull->peer;
    if (peer->state == KV_PEER_FAILED) {
        kv_pull_fail(pull, peer->error, peer->reason);
    } else if (peer->state == KV_PEER_READY) {
        if (!pull->has_met) {
            kv_pull_meet(pull, now_ns);
        }
        if (pull->status == WEFT_PENDING && now_ns >= pull->watch_ns &&
            kv_pull_is_uncertain(pull)) {
            kv_pull_ask_again(pull, now_ns);
        }
        if (pull->status == WEFT_PENDING && pull->is_started) {
            move(pull, now_ns);
        }
    }
}

void kv_pulls_poll(kv_transfer_t *transfer, uint64_t now_ns)
{
    kv_pull_t *next;
    transfer->is_starved = false;
    for (kv_pull_t *pull = transfer->pulls; pull != NULL; pull = next) {
        next = pull->next;
        if (pull->is_ended) {
            finish(pull);
        } else if (pull->status == WEFT_PENDING) {
            advance(pull, now_ns);
        } else if (pull->status < 0 && !pull->is_settled && is_quiet(pull)) {
            pull->is_settled = true;
            transfer->has_changed = true;
        }
    }
}

uint64_t kv_pulls_next_ns(const kv_transfer_t *transfer)
{
    uint64_t next = transfer->is_starved ? weft_clock_ns() + STARVED_NS : UINT64_MAX;
    for (const kv_pull_t *pull = transfer->pulls; pull != NULL; pull = pull->next) {
        if (pull->has_met && pull->status == WEFT_PENDING && kv_pull_is_uncertain(pull)) {
            next = pull->watch_ns < next ? pull->watch_ns : next;
        }
    }
    return next;
}
