/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "kv-transfer"
#include "kvstore/transfer/kv_transfer.h"

#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_priv.h"

/* ---- create ---------------------------------------------------------------------------------- */

static uint32_t at_least_one(uint32_t n)
{
    return n == 0 ? 1 : n;
}

static weft_status_t set_text(char **place, const char *text)
{
    *place = weft_strdup(text == NULL ? "" : text, "kv_transfer.text");
    return *place == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

static weft_status_t copy_setup(kv_transfer_t *transfer, const kv_transfer_setup_t *setup)
{
    transfer->setup = *setup;
    transfer->setup.tp_size = at_least_one(setup->tp_size);
    transfer->setup.pp_size = at_least_one(setup->pp_size);
    memcpy(transfer->fingerprint, setup->fingerprint, sizeof(transfer->fingerprint));
    weft_status_t status = kv_transfer_config_copy(setup->config, &transfer->config);
    if (status >= 0) {
        status = set_text(&transfer->model, setup->model);
    }
    if (status >= 0) {
        status = set_text(&transfer->dtype, setup->dtype);
    }
    if (status >= 0) {
        status = set_text(&transfer->model_dtype, setup->model_dtype);
    }
    transfer->lease_ns =
        (uint64_t)(transfer->config.kv_lease_duration * (double)WEFT_NS_PER_SECOND);
    const uint32_t layers = kv_pool_layout(setup->pool)->groups[0].layers;
    transfer->layer_addrs =
        weft_calloc(layers, sizeof(*transfer->layer_addrs), "kv_transfer.layers");
    return transfer->layer_addrs == NULL ? WEFT_ERR_NO_MEMORY : status;
}

static void on_event(void *user)
{
    const kv_transfer_t *transfer = user;
    if (transfer->setup.wake != NULL) {
        transfer->setup.wake(transfer->setup.user);
    }
}

static weft_status_t open_agent(kv_transfer_t *transfer, weft_diag_t *diag)
{
    const xfer_agent_config_t config = {.backends = transfer->config.backends,
                                        .params = transfer->config.fabric_params,
                                        .has_thread = true,
                                        .on_event = on_event,
                                        .user = transfer};
    return xfer_agent_create(&config, diag, &transfer->agent);
}

static weft_status_t register_memory(kv_transfer_t *transfer, const weft_device_t *device,
                                     const weft_mem_t *mem, weft_diag_t *diag,
                                     xfer_region_t **region_out)
{
    const xfer_memory_t memory = {.space = kv_staging_space(device),
                                  .addr = (uint64_t)(uintptr_t)mem->addr,
                                  .bytes = mem->bytes,
                                  .device = (uint64_t)device->index,
                                  .fd = mem->fd};
    return xfer_register(transfer->agent, &memory, diag, region_out);
}

/* The words that say which leases are good lie in memory of their own, that peers read. */
static weft_status_t open_words(kv_transfer_t *transfer, weft_diag_t *diag)
{
    const size_t bytes = KV_TRANSFER_LEASE_SLOTS * sizeof(uint64_t);
    weft_status_t status = weft_device_open("cpu", 0, diag, &transfer->host);
    if (status >= 0) {
        status = transfer->host->ops->alloc(transfer->host, bytes, WEFT_MEM_EXPORTABLE,
                                            &transfer->words);
    }
    return status;
}

static weft_status_t open_memory(kv_transfer_t *transfer, weft_diag_t *diag)
{
    weft_status_t status = open_words(transfer, diag);
    if (status >= 0) {
        kv_pool_t *pool = transfer->setup.pool;
        status = register_memory(transfer, kv_pool_device(pool), kv_pool_memory(pool), diag,
                                 &transfer->pool_region);
    }
    if (status >= 0) {
        status = register_memory(transfer, transfer->host, &transfer->words, diag,
                                 &transfer->words_region);
    }
    if (status >= 0) { /* no regions: whoever is asked to answer need not read from us */
        status = xfer_export(transfer->agent, &transfer->pool_region, 0, true, &transfer->blob);
    }
    return status;
}

/* Copies for vLLM, when it could not read our blocks. */
static weft_status_t open_export(kv_transfer_t *transfer, weft_diag_t *diag)
{
    kv_head_form_t form;
    if (!kv_transfer_vllm_form(transfer, &form)) {
        return WEFT_OK;
    }
    if (transfer->setup.crew != NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "vllm_version: copies of blocks, which vLLM workers would need of this "
                         "cache, are made by one rank alone");
    }
    if (!kv_pool_device(transfer->setup.pool)->ops->is_host) {
        return weft_diag(
            diag, WEFT_ERR_UNSUPPORTED,
            "KV transfer: a vLLM worker of this configuration could not read our blocks, "
            "and copies for it are not made on a GPU");
    }
    uint64_t n = transfer->config.vllm_blocks;
    if (n == 0) {
        n = transfer->shape.n_blocks * transfer->shape.block_tokens / 4 / form.block_tokens + 1;
    }
    weft_status_t status = kv_export_create(transfer->host, &transfer->shape, &transfer->form,
                                            &form, (uint32_t)n, diag, &transfer->export);
    if (status >= 0) {
        status = register_memory(transfer, transfer->host,
                                 kv_pool_memory(kv_export_pool(transfer->export)), diag,
                                 &transfer->export_region);
    }
    return status;
}

static weft_status_t serve(kv_transfer_t *transfer, weft_diag_t *diag)
{
    const kv_transfer_setup_t *setup = &transfer->setup;
    const kv_side_client_config_t client = {.wake = setup->wake, .user = setup->user};
    const kv_meta_request_t rank = {setup->pp_rank, setup->tp_rank};
    weft_buffer_t payload = {0};
    weft_status_t status = WEFT_OK;
    transfer->channel = setup->side_channel;
    const bool is_asked = !kv_ranks_follow(transfer);
    if (transfer->channel == NULL) {
        status = kv_side_channel_create(is_asked ? transfer->config.side_channel_host : NULL,
                                        transfer->config.side_channel_port, diag,
                                        &transfer->own_channel);
        transfer->channel = transfer->own_channel;
    }
    if (status >= 0) {
        status = kv_side_client_open(transfer->channel, &client, &transfer->client);
    }
    if (status >= 0 && is_asked) {
        status = kv_transfer_payload(transfer, &payload);
    }
    if (status >= 0 && is_asked) {
        status = kv_side_client_serve(transfer->client, rank, payload.data, payload.length);
    }
    weft_buffer_free(&payload);
    return status;
}

static weft_status_t open_all(kv_transfer_t *transfer, const kv_transfer_setup_t *setup,
                              weft_diag_t *diag)
{
    weft_status_t status = copy_setup(transfer, setup);
    if (status >= 0) {
        status = open_agent(transfer, diag);
    }
    if (status >= 0) {
        status = open_memory(transfer, diag);
    }
    if (status >= 0) {
        status = kv_transfer_identify(transfer, diag);
    }
    if (status >= 0) {
        status = open_export(transfer, diag);
    }
    if (status >= 0) {
        status = kv_prefill_init(transfer);
    }
    return status < 0 ? status : serve(transfer, diag);
}

weft_status_t kv_transfer_set_engine_id(kv_transfer_t *transfer, const char *engine_id)
{
    weft_free(transfer->config.engine_id);
    transfer->config.engine_id = NULL;
    return set_text(&transfer->config.engine_id, engine_id);
}

weft_status_t kv_transfer_export(kv_transfer_t *transfer, weft_buffer_t *out)
{
    return kv_transfer_payload(transfer, out);
}

weft_status_t kv_transfer_create(const kv_transfer_setup_t *setup, weft_diag_t *diag,
                                 kv_transfer_t **transfer_out)
{
    kv_transfer_t *transfer = weft_zalloc(sizeof(*transfer), "kv_transfer");
    if (transfer == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    pthread_mutex_init(&transfer->stats_lock, NULL);
    transfer->wake_ns = UINT64_MAX;
    transfer->next_tag = 1;
    const weft_status_t status = open_all(transfer, setup, diag);
    if (status < 0) {
        kv_transfer_destroy(transfer);
        return status;
    }
    weft_log_info("transfers engine=%s role=%s agent=%s", transfer->config.engine_id,
                  transfer->config.kv_role, xfer_agent_name(transfer->agent));
    *transfer_out = transfer;
    return WEFT_OK;
}

static void close_memory(kv_transfer_t *transfer)
{
    if (transfer->pool_region != NULL) {
        xfer_deregister(transfer->agent, transfer->pool_region);
    }
    if (transfer->words_region != NULL) {
        xfer_deregister(transfer->agent, transfer->words_region);
    }
    if (transfer->export_region != NULL) {
        xfer_deregister(transfer->agent, transfer->export_region);
    }
    xfer_agent_destroy(transfer->agent);
    kv_landing_destroy(transfer->landing);
    kv_export_destroy(transfer->export);
    if (transfer->words.addr != NULL) {
        transfer->host->ops->free(transfer->host, &transfer->words);
    }
    weft_device_close(transfer->host);
}

void kv_transfer_destroy(kv_transfer_t *transfer)
{
    if (transfer == NULL) {
        return;
    }
    kv_side_client_close(transfer->client);
    kv_pulls_destroy(transfer);
    kv_prefill_fini(transfer);
    kv_ranks_fini(transfer);
    kv_peers_destroy(transfer);
    kv_side_channel_destroy(transfer->own_channel);
    close_memory(transfer);
    kv_transfer_config_fini(&transfer->config);
    weft_buffer_free(&transfer->blob);
    weft_free(transfer->layer_addrs);
    weft_free(transfer->model);
    weft_free(transfer->dtype);
    weft_free(transfer->model_dtype);
    pthread_mutex_destroy(&transfer->stats_lock);
    weft_free(transfer);
}

const kv_transfer_config_t *kv_transfer_config(const kv_transfer_t *transfer)
{
    return &transfer->config;
}

const char *kv_transfer_engine_id(const kv_transfer_t *transfer)
{
    return transfer->config.engine_id;
}

uint16_t kv_transfer_port(const kv_transfer_t *transfer)
{
    return kv_side_channel_port(transfer->channel);
}

uint32_t kv_transfer_tp_size(const kv_transfer_t *transfer)
{
    return transfer->setup.tp_size;
}

uint32_t kv_transfer_pp_size(const kv_transfer_t *transfer)
{
    return transfer->setup.pp_size;
}

kv_side_channel_t *kv_transfer_side_channel(kv_transfer_t *transfer)
{
    return transfer->channel;
}

/* ---- poll ------------------------------------------------------------------------------------ */

weft_status_t kv_transfer_notify(kv_transfer_t *transfer, xfer_peer_t *peer,
                                 const weft_buffer_t *notice)
{
    const weft_status_t status =
        notice->is_failed ? WEFT_ERR_NO_MEMORY : xfer_notify(peer, notice->data, notice->length);
    if (status < 0) {
        transfer->counts.notifications_failed++;
        weft_log_debug("a notification is not sent agent=%s: %s", xfer_peer_name(peer),
                       weft_strerror(status));
    }
    return status;
}

static void take_notice(kv_transfer_t *transfer, const xfer_notification_t *notification,
                        uint64_t now_ns)
{
    weft_arena_t arena = {0};
    kv_notice_t notice;
    if (kv_notice_decode(notification->data, notification->bytes, &arena, &notice) < 0) {
        transfer->counts.bad_notifications++;
        weft_log_warn("a notification that means nothing agent=%s bytes=%zu", notification->peer,
                      notification->bytes);
        weft_arena_free(&arena);
        return;
    }
    switch (notice.kind) {
    case KV_NOTICE_READ:
        kv_prefill_read(transfer, &notice);
        break;
    case KV_NOTICE_HEARTBEAT:
        kv_prefill_heartbeat(transfer, &notice, now_ns);
        break;
    case KV_NOTICE_WATCH:
        kv_prefill_watch(transfer, notification->peer, &notice.watch, now_ns);
        break;
    case KV_NOTICE_PROGRESS:
        kv_pulls_progress(transfer, notification->peer, &notice.progress, now_ns);
        break;
    }
    weft_arena_free(&arena);
}

static void take_notices(kv_transfer_t *transfer, uint64_t now_ns)
{
    xfer_notification_t *notification;
    while ((notification = xfer_next_notification(transfer->agent)) != NULL) {
        take_notice(transfer, notification, now_ns);
        xfer_notification_free(notification);
    }
}

void kv_transfer_publish(kv_transfer_t *transfer)
{
    kv_transfer_stats_t *counts = &transfer->counts;
    const kv_lease_stats_t leases = kv_lease_table_stats(transfer->leases);
    const kv_side_channel_stats_t channel = kv_side_channel_stats(transfer->channel);
    counts->leases = leases.held;
    counts->leases_open = leases.open_now + leases.held_now + kv_ranks_held_elsewhere(transfer);
    counts->blocks_held = leases.blocks_now;
    counts->leases_released = leases.released;
    counts->leases_expired = leases.expired;
    counts->late_notifications = leases.late;
    counts->heartbeats_received = leases.heartbeats;
    counts->requests = channel.answered;
    counts->bad_requests = channel.refused;
    for (uint32_t i = 0; i < counts->n_peers; i++) {
        counts->peers[i].is_connected = false;
    }
    for (const kv_peer_t *peer = transfer->peers; peer != NULL; peer = peer->next) {
        if (peer->state == KV_PEER_READY) {
            peer->stats->is_connected = true;
        }
    }
    pthread_mutex_lock(&transfer->stats_lock);
    transfer->stats = *counts;
    pthread_mutex_unlock(&transfer->stats_lock);
}

void kv_transfer_plan_wake(kv_transfer_t *transfer)
{
    const uint64_t peers = kv_peers_next_ns(transfer);
    const uint64_t prefill = kv_prefill_next_ns(transfer);
    const uint64_t pulls = kv_pulls_next_ns(transfer);
    uint64_t next = peers < prefill ? peers : prefill;
    next = pulls < next ? pulls : next;
    if (next != transfer->wake_ns) {
        transfer->wake_ns = next;
        kv_side_client_wake_at(transfer->client, next);
    }
}

bool kv_transfer_poll(kv_transfer_t *transfer)
{
    const uint64_t now = weft_clock_ns();
    take_notices(transfer, now);
    kv_prefill_poll(transfer, now); /* behind heartbeats that waited */
    kv_peers_poll(transfer, now);
    kv_pulls_poll(transfer, now);
    kv_obey_report(transfer);
    if (now >= transfer->wake_ns) {
        transfer->wake_ns = UINT64_MAX; /* the client has used it up */
    }
    kv_transfer_plan_wake(transfer);
    kv_transfer_publish(transfer);
    const bool has_changed = transfer->has_changed;
    transfer->has_changed = false;
    return has_changed;
}

/* ---- what happened --------------------------------------------------------------------------- */

void kv_transfer_stats(kv_transfer_t *transfer, kv_transfer_stats_t *stats_out)
{
    pthread_mutex_lock(&transfer->stats_lock);
    *stats_out = transfer->stats;
    pthread_mutex_unlock(&transfer->stats_lock);
}

void kv_transfer_count_held(const kv_transfer_t *transfer, uint32_t *users)
{
    if (transfer->export == NULL) {
        kv_lease_table_count(transfer->leases, users);
    }
    kv_ranks_count_held(transfer, users);
    for (const kv_pull_t *pull = transfer->pulls; pull != NULL; pull = pull->next) {
        for (uint32_t i = 0; i < pull->n_blocks; i++) {
            users[pull->blocks[i]]++;
        }
    }
}
