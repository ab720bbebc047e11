/* SPDX-License-Identifier: Apache-2.0 */
/* kv_transfer: what a prefill worker keeps for others, and tells those who watch. */
#define WEFT_LOG_MODULE "kv-transfer"
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_priv.h"

#define UNSENT_RETRY_NS (5 * WEFT_NS_PER_MS)

static kv_transfer_t *transfer_of(const kv_lease_t *lease)
{
    return kv_lease_table_user(lease->table);
}

/* ---- watchers -------------------------------------------------------------------------------- */

static void free_watcher(kv_transfer_t *transfer, kv_watcher_t *watcher)
{
    transfer->n_watchers--;
    weft_free(watcher->id);
    weft_free(watcher->agent);
    weft_free(watcher);
}

static bool is_of(const kv_watcher_t *watcher, kv_msgpack_span_t id, const char *agent)
{
    return kv_wire_text_is(id, watcher->id) &&
           (agent == NULL || strcmp(watcher->agent, agent) == 0);
}

static kv_watcher_t *find_watcher(kv_watcher_t *watchers, kv_msgpack_span_t id, const char *agent)
{
    while (watchers != NULL && !is_of(watchers, id, agent)) {
        watchers = watchers->next;
    }
    return watchers;
}

/* Those asked for longest ago, when there are too many: somebody invents names. */
static void drop_oldest_early(kv_transfer_t *transfer)
{
    kv_watcher_t **at = &transfer->early;
    if (*at == NULL) {
        return;
    }
    while ((*at)->next != NULL) {
        at = &(*at)->next;
    }
    kv_watcher_t *oldest = *at;
    *at = NULL;
    free_watcher(transfer, oldest);
}

static kv_watcher_t *add_watcher(kv_transfer_t *transfer, kv_watcher_t **list, kv_msgpack_span_t id,
                                 const char *agent)
{
    if (transfer->n_watchers >= KV_TRANSFER_MAX_WATCHERS) {
        drop_oldest_early(transfer);
    }
    kv_watcher_t *watcher = transfer->n_watchers >= KV_TRANSFER_MAX_WATCHERS
                                ? NULL
                                : weft_zalloc(sizeof(*watcher), "kv_transfer.watcher");
    if (watcher == NULL) {
        return NULL;
    }
    watcher->id = weft_strndup(id.data, id.length, "kv_transfer.watcher");
    watcher->agent = weft_strdup(agent, "kv_transfer.watcher");
    transfer->n_watchers++;
    if (watcher->id == NULL || watcher->agent == NULL) {
        free_watcher(transfer, watcher);
        return NULL;
    }
    watcher->next = *list;
    *list = watcher;
    return watcher;
}

static void free_watchers(kv_transfer_t *transfer, kv_watcher_t **list)
{
    while (*list != NULL) {
        kv_watcher_t *watcher = *list;
        *list = watcher->next;
        free_watcher(transfer, watcher);
    }
}

/* ---- telling them ---------------------------------------------------------------------------- */

static weft_status_t send_progress(kv_transfer_t *transfer, const char *agent,
                                   const kv_progress_t *progress)
{
    weft_buffer_t notice = {0};
    xfer_peer_t *peer = xfer_find_peer(transfer->agent, agent);
    kv_notice_encode_progress(progress, &notice);
    const weft_status_t status =
        peer == NULL ? WEFT_ERR_PEER_GONE : kv_transfer_notify(transfer, peer, &notice);
    weft_buffer_free(&notice);
    return status;
}

static kv_progress_t progress_of(const kv_watcher_t *watcher, const kv_lease_t *lease,
                                 kv_progress_state_t state)
{
    kv_progress_t progress = {.version = KV_NOTICE_VERSION, .state = state};
    static const uint64_t none[1];
    progress.blocks.items = none;
    if (watcher->is_by_request) {
        progress.request_id = kv_wire_text(watcher->id);
    } else {
        progress.transfer_id = kv_wire_text(watcher->id);
    }
    if (lease != NULL) {
        progress.slot = lease->ref.slot;
        progress.epoch = lease->ref.epoch;
        progress.tokens = lease->tokens;
        progress.request_id = kv_wire_text(
            lease->request_id == NULL && watcher->is_by_request ? watcher->id : lease->request_id);
    }
    return progress;
}

/* The blocks it does not know yet, in as many notices as they take. False: it is gone. */
static bool tell(kv_watcher_t *watcher, const kv_lease_t *lease, kv_progress_state_t state)
{
    kv_transfer_t *transfer = transfer_of(lease);
    uint64_t ids[KV_NOTICE_PROGRESS_BLOCKS];
    watcher->has_unsent = false;
    do {
        kv_progress_t progress = progress_of(watcher, lease, state);
        uint32_t n = 0;
        while (n < KV_NOTICE_PROGRESS_BLOCKS && watcher->sent_blocks + n < lease->n_blocks) {
            ids[n] = lease->blocks[watcher->sent_blocks + n];
            n++;
        }
        progress.first_block = watcher->sent_blocks;
        progress.blocks = (kv_wire_COUNTS_t){ids, n};
        const weft_status_t status = send_progress(transfer, watcher->agent, &progress);
        if (status < 0) {
            watcher->has_unsent = status != WEFT_ERR_PEER_GONE;
            transfer->has_unsent |= watcher->has_unsent;
            return watcher->has_unsent;
        }
        watcher->sent_blocks += n;
    } while (watcher->sent_blocks < lease->n_blocks);
    return true;
}

static kv_progress_state_t state_of(const kv_lease_t *lease)
{
    return lease->state == KV_LEASE_HELD ? KV_PROGRESS_HELD : KV_PROGRESS_OPEN;
}

static void tell_all(kv_lease_t *lease, bool only_unsent)
{
    kv_transfer_t *transfer = transfer_of(lease);
    kv_watcher_t **at = (kv_watcher_t **)&lease->user;
    while (*at != NULL) {
        kv_watcher_t *watcher = *at;
        if ((only_unsent && !watcher->has_unsent) || tell(watcher, lease, state_of(lease))) {
            at = &watcher->next;
        } else {
            *at = watcher->next;
            free_watcher(transfer, watcher);
        }
    }
}

static bool is_read_by_all(const kv_lease_t *lease)
{
    return lease->readers > 0 && lease->readers_done >= lease->readers;
}

static void on_gone(void *user, kv_lease_t *lease)
{
    kv_transfer_t *transfer = user;
    for (const kv_watcher_t *watcher = lease->user; watcher != NULL && !is_read_by_all(lease);
         watcher = watcher->next) {
        const kv_progress_t progress = progress_of(watcher, lease, KV_PROGRESS_GONE);
        send_progress(transfer, watcher->agent, &progress);
    }
    free_watchers(transfer, (kv_watcher_t **)&lease->user);
    if (lease->transfer_id != NULL) {
        kv_gone_add(transfer, lease->transfer_id);
    }
    if (lease->request_id != NULL && kv_ranks_follow(transfer)) {
        kv_gone_add(transfer, lease->request_id);
    }
    kv_ranks_gone(transfer, lease);
    transfer->has_changed |= lease->state == KV_LEASE_HELD;
}

/* ---- what they say --------------------------------------------------------------------------- */

/*
 * Whether a reader may know of it before we do: of a transfer that is yet to begin; and of any request
 * on a rank whose rank 0 has answered it, where the order to hold it is still on its way.
 */
static bool may_be_ahead(const kv_transfer_t *transfer, bool is_by_request)
{
    return !is_by_request || kv_ranks_follow(transfer);
}

static void answer_unknown(kv_transfer_t *transfer, const char *agent, kv_msgpack_span_t id,
                           bool is_by_request)
{
    const kv_watcher_t nobody = {.is_by_request = is_by_request};
    const bool is_over = !may_be_ahead(transfer, is_by_request) || kv_gone_has(transfer, id);
    kv_progress_t progress =
        progress_of(&nobody, NULL, is_over ? KV_PROGRESS_GONE : KV_PROGRESS_UNKNOWN);
    if (is_by_request) {
        progress.request_id = id;
    } else {
        progress.transfer_id = id;
    }
    send_progress(transfer, agent, &progress);
}

/* A reader is done with a request that has only a transfer id, or does not run yet. */
static void take_done(kv_transfer_t *transfer, const char *agent, const kv_watch_t *watch,
                      uint64_t now_ns)
{
    const kv_msgpack_span_t id = watch->transfer_id;
    transfer->counts.watches_done++;
    if (kv_lease_table_find(transfer->leases, id.data, id.length) != NULL) {
        kv_lease_table_read(transfer->leases, id.data, id.length, (uint32_t)watch->done);
        return;
    }
    kv_watcher_t *early = find_watcher(transfer->early, id, agent);
    early = early == NULL ? add_watcher(transfer, &transfer->early, id, agent) : early;
    if (early != NULL) { /* else: what it does not read is held until it expires */
        early->is_done = true;
        early->readers = (uint32_t)watch->done;
        early->since_ns = now_ns;
    }
}

void kv_prefill_watch(kv_transfer_t *transfer, const char *agent, const kv_watch_t *watch,
                      uint64_t now_ns)
{
    const bool is_by_request = watch->transfer_id.length == 0;
    const kv_msgpack_span_t id = is_by_request ? watch->request_id : watch->transfer_id;
    if (id.length > KV_TRANSFER_MAX_ID_BYTES || memchr(id.data, '\0', id.length) != NULL ||
        (watch->done > 0 && is_by_request)) {
        transfer->counts.bad_notifications++;
        return;
    }
    if (watch->done > 0) {
        take_done(transfer, agent, watch, now_ns);
        return;
    }
    if (!kv_readers_know(transfer, agent, watch->agent, now_ns)) {
        transfer->counts.bad_notifications++;
        return;
    }
    kv_lease_t *lease = kv_lease_table_find(transfer->leases, id.data, id.length);
    kv_watcher_t **list = lease == NULL ? &transfer->early : (kv_watcher_t **)&lease->user;
    kv_watcher_t *watcher = find_watcher(*list, id, agent);
    const bool may_wait = may_be_ahead(transfer, is_by_request) && !kv_gone_has(transfer, id);
    if (watcher == NULL && (lease != NULL || !is_by_request || may_wait)) {
        watcher = add_watcher(transfer, list, id, agent);
    }
    if (watcher == NULL || lease == NULL) {
        answer_unknown(transfer, agent, id, is_by_request);
    }
    if (watcher == NULL) {
        return;
    }
    watcher->since_ns = now_ns;
    watcher->is_by_request = is_by_request;
    if (lease != NULL) {
        watcher->sent_blocks =
            watch->first_block < lease->n_blocks ? (uint32_t)watch->first_block : lease->n_blocks;
        tell(watcher, lease, state_of(lease));
    }
}

/* One that is not read from may hear that it was read before it hears that it is held. */
static bool take_early_read(kv_transfer_t *transfer, const kv_notice_t *notice)
{
    const kv_msgpack_span_t id = notice->ids;
    if (!kv_ranks_follow(transfer) || kv_gone_has(transfer, id) ||
        kv_lease_table_find(transfer->leases, id.data, id.length) != NULL ||
        id.length > KV_TRANSFER_MAX_ID_BYTES || memchr(id.data, '\0', id.length) != NULL) {
        return false;
    }
    kv_watcher_t *early = add_watcher(transfer, &transfer->early, id, "");
    if (early != NULL) {
        early->is_by_request = true;
        early->is_done = true;
        early->readers = notice->readers;
        early->since_ns = weft_clock_ns();
    }
    return early != NULL;
}

void kv_prefill_read(kv_transfer_t *transfer, const kv_notice_t *notice)
{
    if (take_early_read(transfer, notice)) {
        return;
    }
    if (!kv_lease_table_read(transfer->leases, notice->ids.data, notice->ids.length,
                             notice->readers)) {
        weft_log_warn("request=%.*s was read, and is not leased: it expired before",
                      (int)notice->ids.length, notice->ids.data);
    }
}

void kv_prefill_heartbeat(kv_transfer_t *transfer, const kv_notice_t *notice, uint64_t now_ns)
{
    kv_msgpack_span_t ids = notice->ids;
    kv_msgpack_span_t id;
    while (kv_notice_next_id(&ids, &id)) {
        kv_lease_table_heartbeat(transfer->leases, id.data, id.length, now_ns);
    }
}

/* ---- leases ---------------------------------------------------------------------------------- */

/* Who was done before the lease came. It may be over with the last of them. */
static void take_early_done(kv_transfer_t *transfer, const char *id)
{
    kv_watcher_t **at = &transfer->early;
    while (*at != NULL) {
        kv_watcher_t *watcher = *at;
        if (!watcher->is_done || strcmp(watcher->id, id) != 0) {
            at = &watcher->next;
            continue;
        }
        *at = watcher->next;
        kv_lease_table_read(transfer->leases, watcher->id, strlen(watcher->id), watcher->readers);
        free_watcher(transfer, watcher);
    }
}

/* Watchers that came before the lease are its own now. */
void kv_prefill_adopt(kv_transfer_t *transfer, kv_lease_t *lease, const char *id)
{
    kv_watcher_t **at = &transfer->early;
    while (*at != NULL) {
        kv_watcher_t *watcher = *at;
        if (watcher->is_done || strcmp(watcher->id, id) != 0) {
            at = &watcher->next;
            continue;
        }
        *at = watcher->next;
        watcher->next = lease->user;
        lease->user = watcher;
    }
    take_early_done(transfer, id);
}

kv_lease_t *kv_transfer_open(kv_transfer_t *transfer, const char *transfer_id)
{
    kv_lease_t *lease = NULL;
    if (transfer->export != NULL) {
        return NULL; /* copies are made at the end */
    }
    const weft_status_t status = kv_lease_table_open(transfer->leases, transfer_id, &lease);
    if (status < 0) {
        weft_log_warn("transfer_id=%s: nobody can follow it: %s", transfer_id,
                      weft_strerror(status));
        return NULL;
    }
    kv_gone_remove(transfer, transfer_id);
    kv_ranks_open(lease);
    kv_prefill_adopt(transfer, lease, transfer_id);
    tell_all(lease, false);
    return lease;
}

void kv_prefill_tell(kv_lease_t *lease)
{
    tell_all(lease, false);
}

void kv_lease_progress(kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                       uint32_t n_tokens)
{
    if (n_tokens > lease->tokens) {
        kv_ranks_fill(lease, blocks, n, n_tokens);
    }
    if (n_tokens > lease->tokens && kv_lease_table_fill(lease, blocks, n, n_tokens) >= 0) {
        weft_log_trace("request=%s filled tokens=%u", lease->transfer_id, n_tokens);
        tell_all(lease, false); /* without memory they learn of it at the end */
    }
}

void kv_lease_retract(kv_lease_t *lease)
{
    kv_ranks_order_lease(lease, KV_ORDER_LEASE_RETRACT);
    kv_lease_table_retract(lease);
    for (kv_watcher_t *watcher = lease->user; watcher != NULL; watcher = watcher->next) {
        watcher->sent_blocks = 0;
    }
    tell_all(lease, false);
}

void kv_lease_drop(kv_lease_t *lease)
{
    kv_ranks_order_lease(lease, KV_ORDER_LEASE_DROP);
    kv_lease_table_drop(lease);
}

static weft_status_t set_text(char **place, const char *text)
{
    *place = weft_strdup(text, "kv_transfer_params.text");
    return *place == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

static weft_status_t set_blocks(kv_transfer_params_t *params, const kv_lease_t *lease)
{
    const uint32_t n = lease == NULL ? 0 : lease->n_blocks;
    params->has_block_ids = true;
    params->n_blocks = n;
    params->n_groups = n > 0;
    params->group_blocks[0] = n;
    if (lease == NULL) {
        return WEFT_OK;
    }
    params->blocks = weft_alloc((n + 1) * sizeof(*params->blocks), "kv_transfer_params.blocks");
    if (params->blocks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    memcpy(params->blocks, lease->blocks, n * sizeof(*params->blocks));
    params->remote_num_tokens = lease->tokens;
    return WEFT_OK;
}

static weft_status_t fill_params(const kv_transfer_t *transfer, const char *request_id,
                                 const kv_lease_t *lease, kv_transfer_params_t *params)
{
    const kv_transfer_config_t *config = &transfer->config;
    params->do_remote_prefill = true;
    params->has_port = true;
    params->remote_port = kv_side_channel_port(transfer->channel);
    params->tp_size = transfer->setup.tp_size;
    params->pp_size = transfer->setup.pp_size;
    params->dcp_size = 1;
    params->has_num_tokens = true;
    /* Of one rank alone are they known here; readers ask the others for theirs. */
    if (lease != NULL && transfer->export == NULL && transfer->setup.tp_size == 1 &&
        transfer->setup.pp_size == 1) {
        params->n_leases = 1;
        params->leases[0] = lease->ref;
    }
    weft_status_t status = set_text(&params->remote_engine_id, config->engine_id);
    if (status >= 0) {
        status = set_text(&params->remote_request_id, request_id);
    }
    if (status >= 0) {
        status = set_text(&params->remote_host, config->side_channel_host);
    }
    if (status >= 0 && lease != NULL && lease->transfer_id != NULL) {
        status = set_text(&params->transfer_id, lease->transfer_id);
    }
    return status < 0 ? status : set_blocks(params, lease);
}

static weft_status_t hold_copy(kv_transfer_t *transfer, const char *request_id,
                               const kv_block_id_t *blocks, uint32_t n_tokens,
                               kv_lease_t **lease_out)
{
    kv_block_id_t *copies = NULL;
    uint32_t n = 0;
    weft_status_t status = kv_export_copy(transfer->export, blocks, n_tokens, &copies, &n);
    if (status >= 0) {
        status = kv_lease_table_hold(transfer->leases, request_id, copies, n, n_tokens,
                                     weft_clock_ns(), lease_out);
        kv_pool_release(kv_export_pool(transfer->export), copies, n);
    }
    weft_free(copies);
    return status;
}

/* lease_io: of the request, or NULL; NULL: nothing is held. An error drops it. */
static weft_status_t hold(kv_transfer_t *transfer, const char *request_id,
                          const kv_block_id_t *blocks, uint32_t n, uint32_t n_tokens,
                          kv_lease_t **lease_io)
{
    kv_held_t *held = NULL;
    if (transfer->export != NULL) {
        return hold_copy(transfer, request_id, blocks, n_tokens, lease_io);
    }
    weft_status_t status = kv_ranks_hold(transfer, *lease_io, blocks, n, &held);
    if (status < 0) {
        kv_lease_drop(*lease_io);
        *lease_io = NULL;
        return status;
    }
    if (*lease_io != NULL) {
        (*lease_io)->id = 0; /* it is the record's now */
    }
    status = kv_lease_table_hold(transfer->leases, request_id, blocks, n, n_tokens, weft_clock_ns(),
                                 lease_io);
    if (status < 0) {
        kv_ranks_drop_held(transfer, held);
    } else {
        kv_ranks_held(transfer, held, *lease_io, request_id, n_tokens);
    }
    return status;
}

weft_status_t kv_transfer_hold(kv_transfer_t *transfer, kv_lease_t *lease, const char *request_id,
                               const kv_block_id_t *blocks, uint32_t n, uint32_t n_tokens,
                               kv_transfer_params_t *params_out)
{
    kv_transfer_params_t params = {0};
    if (n == 0) {
        kv_lease_drop(lease);
        lease = NULL;
    } else {
        const weft_status_t held = hold(transfer, request_id, blocks, n, n_tokens, &lease);
        if (held < 0) {
            return held;
        }
    }
    const weft_status_t status = fill_params(transfer, request_id, lease, &params);
    if (status < 0) {
        kv_lease_drop(lease);
        kv_transfer_params_fini(&params);
        return status;
    }
    if (lease != NULL) {
        tell_all(lease, false);
    }
    *params_out = params;
    return WEFT_OK;
}

/* ---- time ------------------------------------------------------------------------------------ */

static void expire_early(kv_transfer_t *transfer, uint64_t now_ns)
{
    kv_watcher_t **at = &transfer->early;
    while (*at != NULL) {
        kv_watcher_t *watcher = *at;
        if (now_ns >= watcher->since_ns + 2 * transfer->lease_ns) {
            *at = watcher->next;
            free_watcher(transfer, watcher);
        } else {
            at = &watcher->next;
        }
    }
}

static void send_unsent(kv_transfer_t *transfer)
{
    transfer->has_unsent = false;
    kv_lease_t *next;
    for (kv_lease_t *lease = kv_lease_table_first(transfer->leases); lease != NULL; lease = next) {
        next = lease->next;
        tell_all(lease, true);
    }
}

void kv_prefill_poll(kv_transfer_t *transfer, uint64_t now_ns)
{
    if (transfer->has_unsent) {
        send_unsent(transfer);
    }
    const uint32_t n_expired = kv_lease_table_expire(transfer->leases, now_ns);
    if (n_expired > 0) {
        weft_log_warn("leases expired, nobody read them: leases=%u", n_expired);
    }
    if (transfer->early != NULL) {
        expire_early(transfer, now_ns);
    }
    kv_readers_expire(transfer, now_ns);
}

uint64_t kv_prefill_next_ns(const kv_transfer_t *transfer)
{
    const uint64_t retry = transfer->has_unsent ? weft_clock_ns() + UNSENT_RETRY_NS : UINT64_MAX;
    const uint64_t expiry = kv_lease_table_next_expiry(transfer->leases);
    return retry < expiry ? retry : expiry;
}

weft_status_t kv_prefill_init(kv_transfer_t *transfer)
{
    const kv_lease_table_config_t config = {
        .pool = transfer->export == NULL ? transfer->setup.pool : kv_export_pool(transfer->export),
        .words = transfer->words.addr,
        .n_slots = KV_TRANSFER_LEASE_SLOTS,
        .lease_ns = transfer->lease_ns,
        .on_gone = on_gone,
        .user = transfer};
    return kv_lease_table_create(&config, &transfer->leases);
}

void kv_prefill_forget_early(kv_transfer_t *transfer)
{
    free_watchers(transfer, &transfer->early);
}

void kv_prefill_fini(kv_transfer_t *transfer)
{
    kv_lease_table_destroy(transfer->leases);
    transfer->leases = NULL;
    free_watchers(transfer, &transfer->early);
    kv_readers_destroy(transfer);
}
