/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_transfer: on another rank than 0. Its leases and pulls begin, go on and end as rank 0 orders; it
 * reports how far a pull has got, and that a lease is over. Orders for what has ended here are for
 * nothing, and no error.
 */
#define WEFT_LOG_MODULE "kv-transfer"
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_priv.h"

/* ---- what an order says ---------------------------------------------------------------------- */

/* Blocks that there are, and no part of one. */
static bool are_blocks(const kv_transfer_t *transfer, const char *items, size_t bytes)
{
    const uint32_t most = kv_pool_total_blocks(transfer->setup.pool);
    bool are = bytes % sizeof(kv_block_id_t) == 0;
    for (size_t at = 0; are && at < bytes; at += sizeof(kv_block_id_t)) {
        kv_block_id_t block;
        memcpy(&block, items + at, sizeof(block));
        are = block < most;
    }
    return are;
}

static char *text_of(const char *items, size_t bytes)
{
    const bool is_text = bytes > 0 && memchr(items, '\0', bytes) == NULL;
    return is_text ? weft_strndup(items, bytes, "kv_transfer.order") : NULL;
}

static kv_lease_t *find_lease(const kv_transfer_t *transfer, uint64_t id)
{
    kv_lease_t *lease = kv_lease_table_first(transfer->leases);
    while (lease != NULL && lease->id != id) {
        lease = lease->next;
    }
    return lease;
}

static kv_pull_t *find_pull(const kv_transfer_t *transfer, uint64_t id)
{
    kv_pull_t *pull = transfer->pulls;
    while (pull != NULL && (pull->id != id || pull->is_ended)) {
        pull = pull->next;
    }
    return pull;
}

/* ---- leases ---------------------------------------------------------------------------------- */

static weft_status_t open_lease(kv_transfer_t *transfer, const kv_order_head_t *order,
                                const char *items)
{
    char *transfer_id = text_of(items, order->bytes);
    if (transfer_id == NULL) {
        return WEFT_ERR_MALFORMED;
    }
    kv_lease_t *lease = kv_transfer_open(transfer, transfer_id);
    if (lease != NULL) { /* else readers of this rank learn of it when it is held */
        lease->id = order->id;
    }
    weft_free(transfer_id);
    return WEFT_OK;
}

static weft_status_t fill_lease(kv_transfer_t *transfer, const kv_order_head_t *order,
                                const char *items)
{
    kv_lease_t *lease = find_lease(transfer, order->id);
    if (!are_blocks(transfer, items, order->bytes)) {
        return WEFT_ERR_MALFORMED;
    }
    if (lease == NULL || lease->n_blocks < order->first) {
        return WEFT_OK; /* it could not be opened, or filled, for lack of memory */
    }
    const uint32_t n = order->first + order->bytes / (uint32_t)sizeof(kv_block_id_t);
    kv_block_id_t *blocks = weft_alloc((n + 1) * sizeof(*blocks), "kv_transfer.order");
    if (blocks == NULL) {
        return WEFT_OK;
    }
    if (order->first > 0) { /* else it may have none */
        memcpy(blocks, lease->blocks, order->first * sizeof(*blocks));
    }
    memcpy(blocks + order->first, items, order->bytes);
    kv_lease_progress(lease, blocks, n, order->tokens);
    weft_free(blocks);
    return WEFT_OK;
}

static void hold_lease(kv_transfer_t *transfer, const kv_order_head_t *order,
                       const kv_block_id_t *blocks, const char *request_id)
{
    kv_lease_t *lease = find_lease(transfer, order->id);
    if (lease != NULL) {
        lease->id = 0; /* whether it is over at once is told below */
    }
    const weft_status_t status = kv_lease_table_hold(
        transfer->leases, request_id, blocks, order->block, order->tokens, weft_clock_ns(), &lease);
    if (status < 0) {
        weft_log_warn("request=%s its blocks are not kept on this rank status=%s", request_id,
                      weft_strerror(status));
    }
    if (lease == NULL) {
        kv_gone_add(transfer, request_id);
        kv_obey_gone(transfer, order->id);
        return;
    }
    lease->id = order->id;
    kv_prefill_adopt(transfer, lease, request_id);
    lease = find_lease(transfer, order->id);
    if (lease != NULL) { /* else all were done before they could be told */
        kv_prefill_tell(lease);
    }
}

static weft_status_t obey_hold(kv_transfer_t *transfer, const kv_order_head_t *order,
                               const char *items)
{
    const size_t bytes = order->block * sizeof(kv_block_id_t);
    if (bytes > order->bytes || !are_blocks(transfer, items, bytes)) {
        return WEFT_ERR_MALFORMED;
    }
    char *request_id = text_of(items + bytes, order->bytes - bytes);
    kv_block_id_t *blocks = weft_alloc(bytes + 1, "kv_transfer.order");
    if (blocks == NULL || request_id == NULL) {
        weft_free(request_id);
        weft_free(blocks);
        return blocks == NULL ? WEFT_ERR_NO_MEMORY : WEFT_ERR_MALFORMED;
    }
    memcpy(blocks, items, bytes);
    hold_lease(transfer, order, blocks, request_id);
    weft_free(request_id);
    weft_free(blocks);
    return WEFT_OK;
}

static void end_lease(kv_transfer_t *transfer, const kv_order_head_t *order)
{
    kv_lease_t *lease = find_lease(transfer, order->id);
    if (lease == NULL) {
        return;
    }
    if (order->kind == KV_ORDER_LEASE_DROP) {
        kv_lease_drop(lease);
    } else if (lease->state == KV_LEASE_OPEN) {
        kv_lease_retract(lease);
    }
}

void kv_obey_gone(const kv_transfer_t *transfer, uint64_t id)
{
    const kv_report_t report = {.kind = KV_REPORT_GONE, .id = id};
    kv_crew_report(transfer->setup.crew, &report);
}

/* ---- pulls ----------------------------------------------------------------------------------- */

static void report_pull(const kv_transfer_t *transfer, uint64_t id, weft_status_t status,
                        uint32_t tokens, const char *reason)
{
    kv_report_t report = {.kind = KV_REPORT_PULL, .id = id, .status = status, .tokens = tokens};
    snprintf(report.reason, sizeof(report.reason), "%.127s", status < 0 ? reason : "");
    kv_crew_report(transfer->setup.crew, &report);
}

static weft_status_t read_params(const char *items, size_t bytes, kv_transfer_params_t *params_out)
{
    json_t *object = json_loadb(items, bytes, 0, NULL);
    const weft_status_t status =
        object == NULL ? WEFT_ERR_MALFORMED : kv_transfer_params_decode(object, NULL, params_out);
    json_decref(object);
    return status;
}

static weft_status_t expect(kv_transfer_t *transfer, const kv_order_head_t *order,
                            const char *items)
{
    kv_transfer_params_t params = {0};
    kv_pull_t *pull = NULL;
    weft_diag_t diag = {0};
    weft_status_t status = read_params(items, order->bytes, &params);
    if (status < 0) {
        return status;
    }
    status = kv_transfer_expect(transfer, &params, order->tokens, &diag, &pull);
    kv_transfer_params_fini(&params);
    if (status < 0) {
        report_pull(transfer, order->id, status, 0,
                    diag.text[0] != '\0' ? diag.text : weft_strerror(status));
    } else {
        pull->id = order->id;
    }
    return WEFT_OK;
}

static void report_state(kv_pull_t *pull)
{
    const weft_status_t status = kv_pull_state(pull);
    const uint32_t tokens = kv_pull_tokens(pull);
    if (pull->id == 0 || pull->is_end_told || pull->is_ended ||
        (status == WEFT_PENDING && tokens == pull->told_tokens)) {
        return;
    }
    pull->told_tokens = tokens;
    pull->is_end_told = status != WEFT_PENDING;
    report_pull(pull->transfer, pull->id, status, tokens, pull->reason);
}

static weft_status_t start(kv_transfer_t *transfer, const kv_order_head_t *order, const char *items)
{
    kv_pull_t *pull = find_pull(transfer, order->id);
    const uint32_t n = order->bytes / (uint32_t)sizeof(kv_block_id_t);
    if (!are_blocks(transfer, items, order->bytes)) {
        return WEFT_ERR_MALFORMED;
    }
    if (pull == NULL) {
        return WEFT_OK; /* it could not begin, which rank 0 has been told */
    }
    kv_block_id_t *blocks = weft_alloc(order->bytes + 1, "kv_transfer.order");
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (blocks != NULL) {
        memcpy(blocks, items, order->bytes);
        status = kv_pull_start(pull, order->first, blocks, n);
    }
    weft_free(blocks);
    if (status < 0) {
        kv_pull_fail(pull, status, weft_strerror(status));
    }
    report_state(pull);
    return WEFT_OK;
}

void kv_obey_quiet(const kv_transfer_t *transfer, uint64_t id)
{
    const kv_report_t report = {.kind = KV_REPORT_QUIET, .id = id};
    kv_crew_report(transfer->setup.crew, &report);
}

/* Rank 0 has the pull's end already, or hears that nothing is written when that is so. */
static void end(kv_pull_t *pull)
{
    pull->owes_quiet = !pull->is_end_told;
    kv_pull_end(pull);
}

static void cancel(kv_pull_t *pull)
{
    kv_pull_fail(pull, WEFT_ERR_CANCELLED, "another rank's part cannot be had");
    report_state(pull);
}

void kv_obey_report(kv_transfer_t *transfer)
{
    for (kv_pull_t *pull = transfer->pulls; kv_ranks_follow(transfer) && pull != NULL;
         pull = pull->next) {
        report_state(pull);
    }
}

/* ---- orders ---------------------------------------------------------------------------------- */

weft_status_t kv_transfer_obey(kv_transfer_t *transfer, const kv_order_head_t *order,
                               const char *items)
{
    kv_pull_t *pull = find_pull(transfer, order->id);
    switch (order->kind) {
    case KV_ORDER_LEASE_OPEN:
        return open_lease(transfer, order, items);
    case KV_ORDER_LEASE_FILL:
        return fill_lease(transfer, order, items);
    case KV_ORDER_LEASE_HOLD:
        return obey_hold(transfer, order, items);
    case KV_ORDER_LEASE_RETRACT:
    case KV_ORDER_LEASE_DROP:
        end_lease(transfer, order);
        return WEFT_OK;
    case KV_ORDER_PULL_EXPECT:
        return expect(transfer, order, items);
    case KV_ORDER_PULL_START:
        return start(transfer, order, items);
    case KV_ORDER_PULL_CANCEL:
    case KV_ORDER_PULL_END:
        if (pull != NULL) {
            (order->kind == KV_ORDER_PULL_END ? end : cancel)(pull);
        }
        return WEFT_OK;
    default:
        return WEFT_ERR_MALFORMED;
    }
}
