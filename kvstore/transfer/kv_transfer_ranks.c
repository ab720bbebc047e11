/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_transfer: rank 0 and the others. What rank 0 does with a lease or a pull is ordered of all; how
 * pulls fare and when leases end there, the others report.
 */
#define WEFT_LOG_MODULE "kv-transfer"
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_priv.h"

bool kv_ranks_lead(const kv_transfer_t *transfer)
{
    return transfer->setup.crew != NULL && kv_crew_leads(transfer->setup.crew);
}

bool kv_ranks_follow(const kv_transfer_t *transfer)
{
    return transfer->setup.crew != NULL && !kv_crew_leads(transfer->setup.crew);
}

static uint32_t others_of(const kv_transfer_t *transfer)
{
    return kv_crew_others(transfer->setup.crew);
}

static void order(const kv_transfer_t *transfer, kv_order_head_t head, const void *items,
                  size_t bytes)
{
    head.bytes = (uint32_t)bytes;
    kv_crew_order(transfer->setup.crew, &head, items);
}

/* ---- open leases ----------------------------------------------------------------------------- */

static kv_transfer_t *transfer_of(const kv_lease_t *lease)
{
    return kv_lease_table_user(lease->table);
}

void kv_ranks_open(kv_lease_t *lease)
{
    kv_transfer_t *transfer = transfer_of(lease);
    if (kv_ranks_lead(transfer)) {
        lease->id = ++transfer->next_id;
        order(transfer, (kv_order_head_t){.kind = KV_ORDER_LEASE_OPEN, .id = lease->id},
              lease->transfer_id, strlen(lease->transfer_id));
    }
}

void kv_ranks_fill(const kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                   uint32_t n_tokens)
{
    const kv_transfer_t *transfer = transfer_of(lease);
    const uint32_t known = lease->n_blocks;
    if (kv_ranks_lead(transfer) && n >= known) {
        order(transfer,
              (kv_order_head_t){
                  .kind = KV_ORDER_LEASE_FILL, .id = lease->id, .first = known, .tokens = n_tokens},
              blocks + known, (n - known) * sizeof(*blocks));
    }
}

void kv_ranks_order_lease(const kv_lease_t *lease, kv_order_kind_t kind)
{
    if (lease != NULL && kv_ranks_lead(transfer_of(lease))) {
        order(transfer_of(lease), (kv_order_head_t){.kind = kind, .id = lease->id}, NULL, 0);
    }
}

/* ---- held leases ----------------------------------------------------------------------------- */

static void free_held(kv_held_t *held)
{
    if (held != NULL) {
        weft_free(held->are_gone);
        weft_free(held->blocks);
        weft_free(held);
    }
}

static weft_status_t copy_blocks(const kv_transfer_t *transfer, const kv_block_id_t *blocks,
                                 uint32_t n, kv_held_t *held)
{
    held->are_gone =
        weft_calloc(others_of(transfer) + 1, sizeof(*held->are_gone), "kv_transfer.held");
    held->blocks = weft_calloc(n + 1, sizeof(*held->blocks), "kv_transfer.held");
    if (held->are_gone == NULL || held->blocks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    memcpy(held->blocks, blocks, n * sizeof(*blocks));
    held->n = n;
    return WEFT_OK;
}

weft_status_t kv_ranks_hold(kv_transfer_t *transfer, const kv_lease_t *lease,
                            const kv_block_id_t *blocks, uint32_t n, kv_held_t **held_out)
{
    if (!kv_ranks_lead(transfer)) {
        return WEFT_OK;
    }
    kv_held_t *held = weft_zalloc(sizeof(*held), "kv_transfer.held");
    if (held == NULL || copy_blocks(transfer, blocks, n, held) < 0) {
        free_held(held);
        return WEFT_ERR_NO_MEMORY;
    }
    held->id = lease != NULL ? lease->id : ++transfer->next_id;
    *held_out = held;
    return WEFT_OK;
}

void kv_ranks_drop_held(kv_transfer_t *transfer, kv_held_t *held)
{
    if (held != NULL) {
        order(transfer, (kv_order_head_t){.kind = KV_ORDER_LEASE_DROP, .id = held->id}, NULL, 0);
        free_held(held);
    }
}

/* Blocks, then the request's id. */
static void order_hold(const kv_transfer_t *transfer, const kv_held_t *held, const char *request_id,
                       uint32_t n_tokens)
{
    weft_buffer_t items = {0};
    weft_buffer_append(&items, held->blocks, held->n * sizeof(*held->blocks));
    weft_buffer_puts(&items, request_id);
    if (!items.is_failed) { /* else nobody there knows of it: readers compute the prompt */
        order(
            transfer,
            (kv_order_head_t){
                .kind = KV_ORDER_LEASE_HOLD, .id = held->id, .block = held->n, .tokens = n_tokens},
            items.data, items.length);
    }
    weft_buffer_free(&items);
}

void kv_ranks_held(kv_transfer_t *transfer, kv_held_t *held, kv_lease_t *lease,
                   const char *request_id, uint32_t n_tokens)
{
    if (held == NULL) {
        return;
    }
    order_hold(transfer, held, request_id, n_tokens);
    if (lease != NULL) {
        lease->id = held->id;
    }
    held->is_own_gone = lease == NULL;
    kv_pool_acquire(transfer->setup.pool, held->blocks, held->n);
    held->next = transfer->held;
    transfer->held = held;
}

static bool is_held(const kv_transfer_t *transfer, const kv_held_t *held)
{
    bool is_so = !held->is_own_gone;
    for (uint32_t i = 0; i < others_of(transfer); i++) {
        is_so |= !held->are_gone[i];
    }
    return is_so;
}

static void release_held(kv_transfer_t *transfer, kv_held_t **at)
{
    kv_held_t *held = *at;
    *at = held->next;
    kv_pool_release(transfer->setup.pool, held->blocks, held->n);
    free_held(held);
    transfer->has_changed = true;
}

static kv_held_t **find_held(kv_transfer_t *transfer, uint64_t id)
{
    kv_held_t **at = &transfer->held;
    while (*at != NULL && (*at)->id != id) {
        at = &(*at)->next;
    }
    return at;
}

void kv_ranks_gone(kv_transfer_t *transfer, const kv_lease_t *lease)
{
    if (lease->state != KV_LEASE_HELD || lease->id == 0) {
        return;
    }
    if (kv_ranks_follow(transfer)) {
        kv_obey_gone(transfer, lease->id);
        return;
    }
    kv_held_t **at = find_held(transfer, lease->id);
    if (*at != NULL) {
        (*at)->is_own_gone = true;
        if (!is_held(transfer, *at)) {
            release_held(transfer, at);
        }
    }
}

uint32_t kv_ranks_held_elsewhere(const kv_transfer_t *transfer)
{
    uint32_t n = 0;
    for (const kv_held_t *held = transfer->held; held != NULL; held = held->next) {
        n += held->is_own_gone;
    }
    return n;
}

void kv_ranks_count_held(const kv_transfer_t *transfer, uint32_t *users)
{
    for (const kv_held_t *held = transfer->held; held != NULL; held = held->next) {
        for (uint32_t i = 0; i < held->n; i++) {
            users[held->blocks[i]]++;
        }
    }
}

static void take_gone(kv_transfer_t *transfer, const kv_report_t *report)
{
    kv_held_t **at = find_held(transfer, report->id);
    if (*at != NULL) {
        (*at)->are_gone[report->rank - 1] = true;
        if (!is_held(transfer, *at)) {
            release_held(transfer, at);
        }
    }
}

/* ---- pulls ----------------------------------------------------------------------------------- */

/* Params as JSON, as they came. */
static char *write_params(const kv_transfer_params_t *params)
{
    json_t *object = kv_transfer_params_json(params);
    if (object != NULL && !params->has_num_tokens) {
        json_object_del(object, "remote_num_tokens"); /* 0 would be a number */
    }
    char *text = object == NULL ? NULL : json_dumps(object, JSON_COMPACT);
    json_decref(object);
    return text;
}

weft_status_t kv_ranks_expect(kv_pull_t *pull)
{
    kv_transfer_t *transfer = pull->transfer;
    if (!kv_ranks_lead(transfer)) {
        return WEFT_OK;
    }
    const uint32_t n = others_of(transfer);
    char *text = write_params(&pull->params);
    pull->others = weft_calloc(n + 1, sizeof(*pull->others), "kv_pull.others");
    if (pull->others == NULL || text == NULL) {
        free(text);
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < n; i++) {
        pull->others[i] = (kv_pull_other_t){.status = WEFT_PENDING, .is_quiet = true};
    }
    pull->id = ++transfer->next_id;
    order(transfer,
          (kv_order_head_t){.kind = KV_ORDER_PULL_EXPECT, .id = pull->id, .tokens = pull->n_prompt},
          text, strlen(text));
    free(text);
    return WEFT_OK;
}

void kv_ranks_start(kv_pull_t *pull)
{
    const kv_transfer_t *transfer = pull->transfer;
    for (uint32_t i = 0; pull->others != NULL && i < others_of(transfer); i++) {
        pull->others[i].is_quiet = pull->others[i].status != WEFT_PENDING;
    }
    if (pull->others != NULL) {
        order(transfer,
              (kv_order_head_t){.kind = KV_ORDER_PULL_START, .id = pull->id, .first = pull->first},
              pull->blocks, pull->n_blocks * sizeof(*pull->blocks));
    }
}

void kv_ranks_cancel(kv_pull_t *pull)
{
    if (pull->others != NULL && !pull->is_cancel_ordered) {
        pull->is_cancel_ordered = true;
        order(pull->transfer, (kv_order_head_t){.kind = KV_ORDER_PULL_CANCEL, .id = pull->id}, NULL,
              0);
    }
}

void kv_ranks_end(kv_pull_t *pull)
{
    if (pull->others != NULL) {
        pull->is_cancel_ordered = true; /* this is more */
        order(pull->transfer, (kv_order_head_t){.kind = KV_ORDER_PULL_END, .id = pull->id}, NULL,
              0);
    }
}

weft_status_t kv_ranks_state(const kv_pull_t *pull, weft_status_t own)
{
    weft_status_t status = own;
    for (uint32_t i = 0; pull->others != NULL && i < others_of(pull->transfer); i++) {
        const weft_status_t other = pull->others[i].status;
        if (own == WEFT_PENDING || other == WEFT_PENDING) {
            return WEFT_PENDING; /* a failure, too, is one once nothing is written anywhere */
        }
        status = status < 0 ? status : other;
    }
    return status;
}

uint32_t kv_ranks_tokens(const kv_pull_t *pull, uint32_t own)
{
    uint32_t least = own;
    for (uint32_t i = 0; pull->others != NULL && i < others_of(pull->transfer); i++) {
        least = pull->others[i].tokens < least ? pull->others[i].tokens : least;
    }
    return least;
}

bool kv_ranks_are_quiet(const kv_pull_t *pull)
{
    bool are = true;
    for (uint32_t i = 0; pull->others != NULL && i < others_of(pull->transfer); i++) {
        are &= pull->others[i].is_quiet;
    }
    return are;
}

/* It failed on that rank: the others need not go on. */
static void fail_by_other(kv_pull_t *pull, uint32_t rank, weft_status_t status, const char *reason)
{
    char text[KV_REASON_BYTES];
    snprintf(text, sizeof(text), "on rank %u: %.300s", rank,
             reason[0] != '\0' ? reason : weft_strerror(status));
    if (pull->status == WEFT_OK && pull->reason[0] == '\0') {
        snprintf(pull->reason, sizeof(pull->reason), "%s", text);
    }
    kv_pull_fail(pull, status, text);
    kv_ranks_cancel(pull);
}

static void take_pull(kv_pull_t *pull, const kv_report_t *report)
{
    kv_pull_other_t *other = &pull->others[report->rank - 1];
    other->tokens = report->tokens > other->tokens ? report->tokens : other->tokens;
    if (report->status != WEFT_PENDING) {
        other->status = (weft_status_t)report->status;
        other->is_quiet = true;
    }
    if (report->status < 0) {
        fail_by_other(pull, report->rank, other->status, report->reason);
    }
    pull->transfer->has_changed = true;
}

static kv_pull_t *find_pull(const kv_transfer_t *transfer, uint64_t id)
{
    kv_pull_t *pull = transfer->pulls;
    while (pull != NULL && (pull->id != id || pull->others == NULL)) {
        pull = pull->next;
    }
    return pull;
}

void kv_transfer_hear(kv_transfer_t *transfer, const kv_report_t *report)
{
    kv_pull_t *pull = find_pull(transfer, report->id);
    switch ((kv_report_kind_t)report->kind) {
    case KV_REPORT_PULL:
        if (pull != NULL) {
            take_pull(pull, report);
        }
        break;
    case KV_REPORT_QUIET:
        if (pull != NULL) {
            pull->others[report->rank - 1].is_quiet = true;
        }
        break;
    case KV_REPORT_GONE:
        take_gone(transfer, report);
        break;
    case KV_REPORT_READ:
        break;
    }
}

/* ---- a rank is lost -------------------------------------------------------------------------- */

static void lose_pull(kv_pull_t *pull)
{
    for (uint32_t i = 0; pull->others != NULL && i < others_of(pull->transfer); i++) {
        pull->others[i] = (kv_pull_other_t){.status = WEFT_ERR_PEER_GONE, .is_quiet = true};
    }
    if (!pull->is_ended) {
        kv_pull_fail(pull, WEFT_ERR_PEER_GONE, "a rank of this worker is lost");
    }
}

/* Open ones stay the requests', which begin anew. */
static void lose_leases(const kv_transfer_t *transfer)
{
    kv_lease_t *next;
    for (kv_lease_t *lease = kv_lease_table_first(transfer->leases); lease != NULL; lease = next) {
        next = lease->next;
        if (lease->state == KV_LEASE_HELD) {
            kv_lease_table_drop(lease);
        }
    }
}

static void lead_on(kv_transfer_t *transfer)
{
    for (kv_pull_t *pull = transfer->pulls; pull != NULL; pull = pull->next) {
        lose_pull(pull);
    }
    lose_leases(transfer);
    while (transfer->held != NULL) {
        release_held(transfer, &transfer->held);
    }
    kv_pulls_poll(transfer, weft_clock_ns()); /* those that waited for others to land */
}

static void start_anew(kv_transfer_t *transfer)
{
    kv_pulls_destroy(transfer);
    while (kv_lease_table_first(transfer->leases) != NULL) {
        kv_lease_table_drop(kv_lease_table_first(transfer->leases));
    }
    kv_prefill_forget_early(transfer);
}

void kv_transfer_lose_ranks(kv_transfer_t *transfer)
{
    if (kv_ranks_lead(transfer)) {
        lead_on(transfer);
    } else {
        start_anew(transfer);
    }
}

/* ---- the side channel ------------------------------------------------------------------------ */

static kv_served_t *served_of(kv_transfer_t *transfer, kv_meta_request_t rank)
{
    const kv_side_client_config_t nobody = {0};
    kv_served_t *served = transfer->served;
    while (served != NULL &&
           (served->rank.pp_rank != rank.pp_rank || served->rank.tp_rank != rank.tp_rank)) {
        served = served->next;
    }
    if (served != NULL) {
        return served;
    }
    served = weft_zalloc(sizeof(*served), "kv_transfer.served");
    if (served == NULL || kv_side_client_open(transfer->channel, &nobody, &served->client) < 0) {
        weft_free(served);
        return NULL;
    }
    served->rank = rank;
    served->next = transfer->served;
    transfer->served = served;
    return served;
}

weft_status_t kv_transfer_serve_rank(kv_transfer_t *transfer, uint32_t pp_rank, uint32_t tp_rank,
                                     const void *export, size_t bytes)
{
    const kv_meta_request_t rank = {pp_rank, tp_rank};
    const kv_served_t *served = served_of(transfer, rank);
    return served == NULL ? WEFT_ERR_NO_MEMORY
                          : kv_side_client_serve(served->client, rank, export, bytes);
}

void kv_ranks_fini(kv_transfer_t *transfer)
{
    while (transfer->held != NULL) {
        release_held(transfer, &transfer->held);
    }
    while (transfer->served != NULL) {
        kv_served_t *served = transfer->served;
        transfer->served = served->next;
        kv_side_client_close(served->client);
        weft_free(served);
    }
}
