/* SPDX-License-Identifier: Apache-2.0 */
/* kv_transfer: the workers that blocks are read from: met once, kept while they are used. */
#define WEFT_LOG_MODULE "kv-transfer"
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_priv.h"

/* ---- one peer -------------------------------------------------------------------------------- */

static void fini_rank(kv_peer_rank_t *rank)
{
    xfer_list_destroy(rank->local_list);
    xfer_list_destroy(rank->peer_list);
    kv_staging_close(&rank->staging);
    kv_slices_fini(&rank->slices);
    kv_handshake_fini(&rank->handshake);
}

/* Two peers may be one agent: after another tp_size was asked for, or while a replaced one is read. */
bool kv_peers_use(const kv_transfer_t *transfer, const kv_peer_t *by, const xfer_peer_t *agent)
{
    for (const kv_peer_t *peer = transfer->peers; peer != NULL; peer = peer->next) {
        for (uint32_t i = 0; peer != by && i < peer->n_ranks; i++) {
            if (peer->ranks[i].xfer == agent) {
                return true;
            }
        }
    }
    return false;
}

static void forget_ranks(kv_peer_t *peer)
{
    kv_transfer_t *transfer = peer->transfer;
    for (uint32_t i = 0; i < peer->n_ranks; i++) {
        kv_peer_rank_t *rank = &peer->ranks[i];
        xfer_peer_t *agent = rank->xfer;
        fini_rank(rank);
        if (agent != NULL && !kv_peers_use(transfer, peer, agent)) {
            xfer_forget(transfer->agent, agent);
        }
    }
    weft_free(peer->ranks);
    peer->ranks = NULL;
    peer->n_ranks = 0;
}

static void destroy_peer(kv_peer_t *peer)
{
    kv_peer_t **at = &peer->transfer->peers;
    while (*at != peer) {
        at = &(*at)->next;
    }
    forget_ranks(peer);
    *at = peer->next;
    weft_free(peer->host);
    weft_free(peer);
}

static weft_status_t add_ranks(kv_peer_t *peer, weft_diag_t *diag)
{
    const kv_transfer_setup_t *setup = &peer->transfer->setup;
    kv_target_t targets[KV_TRANSFER_MAX_RANKS];
    const uint32_t n =
        kv_targets(setup->total_heads, setup->tp_size, setup->tp_rank, peer->tp_size, targets);
    if (n == 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "tp_size: %u there and %u here do not go with %u KV heads", peer->tp_size,
                         setup->tp_size, setup->total_heads);
    }
    peer->ranks = weft_calloc((size_t)n * peer->pp_size, sizeof(*peer->ranks), "kv_transfer.ranks");
    if (peer->ranks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t stage = 0; stage < peer->pp_size; stage++) {
        for (uint32_t i = 0; i < n; i++) {
            peer->ranks[peer->n_ranks++] =
                (kv_peer_rank_t){.rank = {stage, targets[i].tp_rank},
                                 .is_source = targets[i].is_source,
                                 .readers = targets[i].readers * setup->pp_size};
        }
    }
    return WEFT_OK;
}

static weft_status_t ask(kv_peer_t *peer, weft_diag_t *diag)
{
    kv_transfer_t *transfer = peer->transfer;
    weft_status_t status = add_ranks(peer, diag);
    peer->state = KV_PEER_ASKING;
    peer->asked_ns = weft_clock_ns();
    peer->tag = transfer->next_tag;
    transfer->next_tag += KV_TRANSFER_MAX_RANKS * KV_TRANSFER_MAX_RANKS;
    for (uint32_t i = 0; i < peer->n_ranks && status >= 0; i++) {
        status = kv_side_client_ask(transfer->client, peer->host, peer->port, peer->ranks[i].rank,
                                    peer->tag + i);
        if (status < 0) {
            weft_diag(diag, status, "remote_host: \"%s\": no address to connect to", peer->host);
        }
    }
    return status;
}

/* Requests name them: somebody may invent hosts. The one that was of no use for longest goes. */
static void make_room(kv_transfer_t *transfer)
{
    kv_peer_t *unused = NULL;
    uint32_t n = 0;
    for (kv_peer_t *peer = transfer->peers; peer != NULL; peer = peer->next) {
        const bool is_idle = peer->n_pulls == 0 && peer->state != KV_PEER_ASKING;
        if (is_idle && (unused == NULL || peer->used_ns < unused->used_ns)) {
            unused = peer;
        }
        n++;
    }
    if (n >= KV_TRANSFER_MAX_PEERS && unused != NULL) {
        destroy_peer(unused);
    }
}

static kv_transfer_peer_stats_t *find_stats(kv_transfer_t *transfer, const char *address)
{
    kv_transfer_stats_t *counts = &transfer->counts;
    for (uint32_t i = 0; i < counts->n_peers; i++) {
        if (strcmp(counts->peers[i].address, address) == 0) {
            return &counts->peers[i];
        }
    }
    return NULL;
}

/* Whoever may send requests could invent addresses: only one that was met gets a place of its own. */
static kv_transfer_peer_stats_t *stats_of(kv_transfer_t *transfer, const char *address, bool is_met)
{
    kv_transfer_stats_t *counts = &transfer->counts;
    kv_transfer_peer_stats_t *stats = find_stats(transfer, address);
    if (stats == NULL && (!is_met || counts->n_peers >= KV_TRANSFER_MAX_PEER_STATS - 1)) {
        address = KV_TRANSFER_OTHER_PEERS;
        stats = find_stats(transfer, address);
    }
    if (stats == NULL) {
        stats = &counts->peers[counts->n_peers++];
        snprintf(stats->address, sizeof(stats->address), "%s", address);
    }
    return stats;
}

void kv_peer_count_failure(const kv_peer_t *peer)
{
    stats_of(peer->transfer, peer->address, peer->stats != NULL)->failures++;
}

static weft_status_t add_peer(kv_transfer_t *transfer, const kv_transfer_params_t *params,
                              kv_peer_t **peer_out)
{
    kv_peer_t *peer = weft_zalloc(sizeof(*peer), "kv_transfer.peer");
    char *host = weft_strdup(params->remote_host, "kv_transfer.host");
    if (peer == NULL || host == NULL) {
        weft_free(peer);
        weft_free(host);
        return WEFT_ERR_NO_MEMORY;
    }
    peer->transfer = transfer;
    peer->host = host;
    peer->port = params->remote_port;
    peer->tp_size = params->tp_size;
    peer->pp_size = params->pp_size;
    peer->state = KV_PEER_FAILED; /* until asked */
    snprintf(peer->address, sizeof(peer->address), "%.80s:%u", host, peer->port);
    peer->next = transfer->peers;
    transfer->peers = peer;
    *peer_out = peer;
    return WEFT_OK;
}

static kv_peer_t *find_peer(kv_transfer_t *transfer, const kv_transfer_params_t *params)
{
    for (kv_peer_t *peer = transfer->peers; peer != NULL; peer = peer->next) {
        if (!peer->is_replaced && peer->port == params->remote_port &&
            peer->tp_size == params->tp_size && peer->pp_size == params->pp_size &&
            strcmp(peer->host, params->remote_host) == 0) {
            return peer;
        }
    }
    return NULL;
}

/* Another engine answers there now, as the request knows. */
static bool is_another(const kv_peer_t *peer, const kv_transfer_params_t *params)
{
    return peer->state == KV_PEER_READY && params->remote_engine_id != NULL &&
           strcmp(peer->engine_id, params->remote_engine_id) != 0;
}

/* It failed, and pulls that ended with it have not let go. */
static bool is_in_ruins(const kv_peer_t *peer)
{
    return peer->state == KV_PEER_FAILED && peer->n_ranks > 0;
}

static weft_status_t replace(kv_peer_t *old, const kv_transfer_params_t *params,
                             kv_peer_t **peer_out)
{
    const weft_status_t status = add_peer(old->transfer, params, peer_out);
    if (status >= 0) {
        (*peer_out)->failures = old->failures;
        old->is_replaced = true;
    }
    return status;
}

static weft_status_t check_sizes(const kv_transfer_params_t *params, weft_diag_t *diag)
{
    if (params->tp_size == 0 || params->tp_size > KV_TRANSFER_MAX_RANKS || params->pp_size == 0 ||
        params->pp_size > KV_TRANSFER_MAX_RANKS) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "kv_transfer_params: tp_size %u, pp_size %u: 1 to %d are possible",
                         params->tp_size, params->pp_size, KV_TRANSFER_MAX_RANKS);
    }
    if (params->dcp_size > 1) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "kv_transfer_params: dcp_size %u: only 1",
                         params->dcp_size);
    }
    return WEFT_OK;
}

static weft_status_t start(kv_peer_t *peer, weft_diag_t *diag)
{
    const weft_status_t status = ask(peer, diag);
    if (status < 0) {
        kv_peer_fail(peer, status, diag->text);
    }
    return status;
}

weft_status_t kv_peer_get(kv_transfer_t *transfer, const kv_transfer_params_t *params,
                          weft_diag_t *diag, kv_peer_t **peer_out)
{
    weft_diag_t own = {0};
    weft_status_t status = check_sizes(params, diag);
    if (status < 0) {
        return status;
    }
    diag = diag == NULL ? &own : diag;
    kv_peer_t *peer = find_peer(transfer, params);
    const uint64_t now = weft_clock_ns();
    if (peer != NULL && peer->state == KV_PEER_FAILED && now < peer->retry_ns) {
        kv_peer_count_failure(peer);
        return weft_diag(diag, WEFT_ERR_PEER_GONE, "%s", peer->reason);
    }
    if (peer != NULL && (is_another(peer, params) || is_in_ruins(peer))) {
        status = replace(peer, params, &peer);
    } else if (peer == NULL) {
        make_room(transfer);
        status = add_peer(transfer, params, &peer);
    }
    if (status < 0) {
        return status;
    }
    if (peer->state == KV_PEER_FAILED) {
        status = start(peer, diag);
        if (status < 0) {
            kv_peer_count_failure(peer);
        }
    }
    peer->used_ns = now;
    *peer_out = peer;
    return status;
}

/*
 * Pulls that use it see the state and fail by themselves; what the fabric knows of it stays until the
 * last of them has let go, which is why a peer that had ranks is replaced and not asked again.
 */
void kv_peer_fail(kv_peer_t *peer, weft_status_t status, const char *reason)
{
    const uint64_t now = weft_clock_ns();
    uint64_t backoff = WEFT_NS_PER_SECOND;
    for (uint32_t i = 0; i < peer->failures && backoff < KV_PEER_MAX_BACKOFF_NS; i++) {
        backoff *= 2;
    }
    if (peer->state == KV_PEER_FAILED) {
        return;
    }
    peer->transfer->counts.handshakes_failed += peer->state == KV_PEER_ASKING;
    peer->state = KV_PEER_FAILED;
    peer->failures++;
    peer->retry_ns = now + (backoff < KV_PEER_MAX_BACKOFF_NS ? backoff : KV_PEER_MAX_BACKOFF_NS);
    peer->error = status;
    snprintf(peer->reason, sizeof(peer->reason), "peer %s: %.200s", peer->address, reason);
    weft_log_warn("%s", peer->reason);
}

/* ---- its ranks ------------------------------------------------------------------------------- */

static weft_status_t make_lists(kv_peer_t *peer, kv_peer_rank_t *rank, weft_diag_t *diag)
{
    kv_transfer_t *transfer = peer->transfer;
    const kv_slices_t *slices = &rank->slices;
    const uint32_t n_local = slices->local_chunks * slices->n_pieces;
    const uint32_t n_peer = slices->peer_chunks * slices->n_pieces;
    xfer_run_t *runs =
        weft_calloc(n_local > n_peer ? n_local : n_peer, sizeof(*runs), "kv_transfer.runs");
    if (runs == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_device_t *device = kv_pool_device(transfer->setup.pool);
    const bool is_vram = xfer_peer_has(rank->xfer, XFER_VRAM, slices->pieces[0].peer, 1);
    kv_slices_local_runs(slices, (uint64_t)device->index, runs);
    weft_status_t status = xfer_list_create(transfer->agent, NULL, kv_staging_space(device), runs,
                                            n_local, diag, &rank->local_list);
    if (status >= 0) {
        kv_slices_peer_runs(slices, rank->handshake.agent.device_id, runs);
        status = xfer_list_create(transfer->agent, rank->xfer, is_vram ? XFER_VRAM : XFER_DRAM,
                                  runs, n_peer, diag, &rank->peer_list);
    }
    weft_free(runs);
    return status;
}

/* Where blocks of unlike peers wait; on a device, with what converts them there. */
static weft_status_t open_staging(kv_transfer_t *transfer, kv_peer_rank_t *rank,
                                  const kv_shape_t *shape, weft_diag_t *diag)
{
    const kv_transfer_setup_t *setup = &transfer->setup;
    weft_device_t *device = kv_pool_device(setup->pool);
    weft_status_t status = WEFT_OK;
    if (!device->ops->is_host && setup->convert == NULL) {
        status = weft_diag(diag, WEFT_ERR_UNSUPPORTED, "this device does not convert KV blocks");
    } else if (!device->ops->is_host && transfer->landing == NULL) {
        status = kv_landing_create(device, setup->convert, setup->user, &transfer->form,
                                   &transfer->landing);
    }
    return status < 0 ? status
                      : kv_staging_open(transfer->agent, device, &transfer->shape, shape, diag,
                                        &rank->staging);
}

static weft_status_t make_source(kv_peer_t *peer, kv_peer_rank_t *rank, weft_diag_t *diag)
{
    kv_transfer_t *transfer = peer->transfer;
    kv_shape_t shape;
    weft_status_t status = kv_transfer_peer_shape(transfer, peer, rank, diag, &shape);
    const bool is_same = kv_head_form_is_same(&transfer->form, &rank->form);
    if (status >= 0 && !is_same) {
        status = open_staging(transfer, rank, &shape, diag);
    }
    if (status >= 0) {
        status = kv_slices_init(is_same ? &transfer->shape : &rank->staging.shape, &shape, diag,
                                &rank->slices);
    }
    if (status == WEFT_ERR_NOT_FOUND) { /* another stage's layers */
        rank->is_source = false;
        return WEFT_OK;
    }
    return status < 0 ? status : make_lists(peer, rank, diag);
}

static weft_status_t check_engine(kv_peer_t *peer, const kv_handshake_t *handshake,
                                  weft_diag_t *diag)
{
    const kv_msgpack_span_t id = handshake->agent.engine_id;
    if (peer->engine_id[0] == '\0') {
        snprintf(peer->engine_id, sizeof(peer->engine_id), "%.*s", (int)id.length, id.data);
    }
    return kv_wire_text_is(id, peer->engine_id)
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID, "its ranks are of different engines");
}

static weft_status_t import_agent(kv_peer_t *peer, kv_peer_rank_t *rank, weft_diag_t *diag)
{
    xfer_agent_t *agent = peer->transfer->agent;
    const kv_msgpack_span_t blob = rank->handshake.agent.agent_metadata;
    const weft_status_t status = xfer_import(agent, blob.data, blob.length, diag, &rank->xfer);
    if (status >= 0) {
        xfer_connect(rank->xfer); /* whether it can be is seen when it is used */
    }
    return status;
}

static weft_status_t meet(kv_peer_t *peer, kv_peer_rank_t *rank, const kv_side_answer_t *answer,
                          weft_diag_t *diag)
{
    if (answer->status < 0) {
        return weft_diag(diag, answer->status, "handshake: %s", answer->reason);
    }
    weft_status_t status =
        kv_handshake_decode(answer->payload, answer->bytes, diag, &rank->handshake);
    if (status >= 0) {
        status = kv_transfer_check_peer(peer->transfer, peer, rank, &rank->handshake, diag);
    }
    if (status >= 0) {
        status = check_engine(peer, &rank->handshake, diag);
    }
    if (status >= 0) {
        status = import_agent(peer, rank, diag);
    }
    if (status >= 0 && rank->is_source) {
        status = make_source(peer, rank, diag);
    }
    peer->is_weft = rank->handshake.is_weft;
    rank->has_answered = status >= 0;
    return status;
}

static bool is_whole(const kv_peer_t *peer)
{
    for (uint32_t i = 0; i < peer->n_ranks; i++) {
        if (!peer->ranks[i].has_answered) {
            return false;
        }
    }
    return true;
}

static void take_answer(kv_peer_t *peer, const kv_side_answer_t *answer)
{
    weft_diag_t diag = {0};
    kv_peer_rank_t *rank = &peer->ranks[answer->tag - peer->tag];
    if (peer->state != KV_PEER_ASKING || rank->has_answered) {
        return;
    }
    const weft_status_t status = meet(peer, rank, answer, &diag);
    if (status < 0) {
        kv_peer_fail(peer, status, diag.text[0] != '\0' ? diag.text : weft_strerror(status));
        return;
    }
    if (is_whole(peer)) {
        peer->state = KV_PEER_READY;
        peer->stats = stats_of(peer->transfer, peer->address, true);
        snprintf(peer->stats->engine_id, sizeof(peer->stats->engine_id), "%.63s", peer->engine_id);
        peer->failures = 0;
        peer->heartbeat_ns = 0;
        peer->transfer->counts.handshakes++;
        weft_log_info("met peer=%s engine=%s ranks=%u kind=%s", peer->address, peer->engine_id,
                      peer->n_ranks, peer->is_weft ? "weft" : "vllm");
    }
}

static void take_answers(kv_transfer_t *transfer)
{
    kv_side_answer_t *answer;
    while ((answer = kv_side_client_next(transfer->client)) != NULL) {
        for (kv_peer_t *peer = transfer->peers; peer != NULL; peer = peer->next) {
            if (answer->tag >= peer->tag && answer->tag - peer->tag < peer->n_ranks) {
                take_answer(peer, answer);
                break;
            }
        }
        kv_side_answer_free(answer);
    }
}

/* ---- heartbeats ------------------------------------------------------------------------------ */

static void send_heartbeat(kv_peer_t *peer, weft_buffer_t *ids, uint64_t now_ns)
{
    bool is_sent = ids->length > 0;
    for (uint32_t i = 0; ids->length > 0 && i < peer->n_ranks; i++) {
        is_sent &= kv_transfer_notify(peer->transfer, peer->ranks[i].xfer, ids) >= 0;
    }
    if (is_sent) {
        peer->alive_ns = now_ns;
        peer->transfer->counts.heartbeats_sent++;
    }
    weft_buffer_clear(ids);
}

static void beat(kv_peer_t *peer, uint64_t now_ns)
{
    weft_buffer_t ids = {0};
    for (const kv_pull_t *pull = peer->transfer->pulls; pull != NULL; pull = pull->next) {
        if (pull->peer == peer && !pull->is_told && !pull->is_ended && pull->request_id != NULL) {
            kv_notice_add_heartbeat(pull->request_id, &ids);
            if (ids.length > XFER_MAX_NOTIFICATION - 2 * KV_TRANSFER_MAX_ID_BYTES) {
                send_heartbeat(peer, &ids, now_ns);
            }
        }
    }
    send_heartbeat(peer, &ids, now_ns);
    weft_buffer_free(&ids);
    peer->heartbeat_ns = now_ns + peer->transfer->lease_ns / 6;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static bool is_gone(const kv_peer_t *peer)
{
    for (uint32_t i = 0; i < peer->n_ranks; i++) {
        if (xfer_peer_status(peer->ranks[i].xfer) == WEFT_ERR_PEER_GONE) {
            return true;
        }
    }
    return false;
}

static void look_at(kv_peer_t *peer, uint64_t now_ns)
{
    if (peer->state == KV_PEER_ASKING && now_ns >= peer->asked_ns + KV_PEER_TIMEOUT_NS) {
        kv_peer_fail(peer, WEFT_ERR_TIMEOUT, "handshake: no answer");
    } else if (peer->state == KV_PEER_READY && is_gone(peer)) {
        kv_peer_fail(peer, WEFT_ERR_PEER_GONE, "connection lost");
    } else if (peer->state == KV_PEER_READY && peer->n_pulls > 0 && now_ns >= peer->heartbeat_ns) {
        beat(peer, now_ns);
    }
}

/* One that failed keeps what is known of its failure, not what the fabric knows of it. */
static void tidy(kv_peer_t *peer, uint64_t now_ns)
{
    const double idle = (double)(now_ns - peer->used_ns) / (double)WEFT_NS_PER_SECOND;
    if (peer->n_pulls > 0 || peer->state == KV_PEER_ASKING) {
        return;
    }
    if (peer->is_replaced || idle > peer->transfer->config.engine_ttl) {
        destroy_peer(peer);
    } else if (peer->state == KV_PEER_FAILED && peer->n_ranks > 0) {
        forget_ranks(peer);
        peer->engine_id[0] = '\0';
    }
}

void kv_peers_poll(kv_transfer_t *transfer, uint64_t now_ns)
{
    kv_peer_t *next;
    take_answers(transfer);
    for (kv_peer_t *peer = transfer->peers; peer != NULL; peer = next) {
        next = peer->next;
        look_at(peer, now_ns);
        tidy(peer, now_ns);
    }
}

uint64_t kv_peers_next_ns(const kv_transfer_t *transfer)
{
    uint64_t next = UINT64_MAX;
    for (const kv_peer_t *peer = transfer->peers; peer != NULL; peer = peer->next) {
        uint64_t own = UINT64_MAX;
        if (peer->state == KV_PEER_ASKING) {
            own = peer->asked_ns + KV_PEER_TIMEOUT_NS;
        } else if (peer->state == KV_PEER_READY && peer->n_pulls > 0) {
            own = peer->heartbeat_ns;
        }
        next = own < next ? own : next;
    }
    return next;
}

void kv_peers_destroy(kv_transfer_t *transfer)
{
    while (transfer->peers != NULL) {
        destroy_peer(transfer->peers);
    }
}
