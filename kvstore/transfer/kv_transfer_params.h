/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_transfer_params: the field of that name in requests and answers, as vLLM's NixlConnector has it.
 *
 *   to prefill    {"do_remote_decode": true, ...}; its answer has what a decode request needs
 *   to decode     that answer's object, {"do_remote_prefill": true, "remote_block_ids": ...}
 *   ahead         of the answer: {"do_remote_prefill": true, "transfer_id": "x", "remote_host": ...,
 *                 "remote_port": ...} while the prefill request has "do_remote_decode" and the same
 *                 transfer_id: blocks are pulled as they fill
 *   one call      {"do_remote_prefill": true, "prefill_url": "http://P:8000"}: the decode worker
 *                 itself asks the prefiller (the API's business; here it is only carried)
 *
 * transfer_id, prefill_url, and weft_leases are weft's own; other unknown keys are ignored.
 *
 * Threads  none of its own; plain memory
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define KV_TRANSFER_MAX_GROUPS   16
#define KV_TRANSFER_MAX_BLOCKS   (UINT32_C(1) << 20) /* of all groups */
#define KV_TRANSFER_MAX_ID_BYTES 512 /* of request, engine and transfer ids, hosts */
#define KV_TRANSFER_MAX_RANKS    64

#define KV_LEASE_MAX_EPOCH ((INT64_C(1) << 53) - 1) /* what JSON's readers agree upon */

/* Where a rank says how long blocks are good: see kv_lease_table.h. */
typedef struct kv_lease_ref {
    uint32_t slot;
    uint64_t epoch;
} kv_lease_ref_t;

typedef struct kv_transfer_params {
    bool do_remote_prefill;
    bool do_remote_decode;
    bool has_block_ids; /* false: null, or no such key */
    bool has_port;
    uint16_t remote_port;
    char *remote_engine_id; /* owned, NULL: null, or no such key; so for each text */
    char *remote_request_id;
    char *remote_host;
    char *transfer_id;
    char *prefill_url;
    uint32_t *blocks; /* owned [n_blocks], of all groups, one after another */
    uint32_t n_blocks;
    uint32_t n_groups;
    uint32_t group_blocks[KV_TRANSFER_MAX_GROUPS];
    uint32_t tp_size; /* 1 unless said, so for each */
    uint32_t dcp_size;
    uint32_t pp_size;
    bool has_num_tokens;
    uint32_t remote_num_tokens;
    uint32_t n_leases; /* ranks of one pipeline stage, from 0 on */
    kv_lease_ref_t leases[KV_TRANSFER_MAX_RANKS];
} kv_transfer_params_t;

/*
 * object: the value of "kv_transfer_params"; null is an object without keys. Block ids nested or
 * flat. WEFT_ERR_INVALID: diag names key and fault. WEFT_ERR_UNSUPPORTED: another transfer_mode,
 * or remote_block_ids of more groups or blocks than can be.
 */
weft_status_t kv_transfer_params_decode(const json_t *object, weft_diag_t *diag,
                                        kv_transfer_params_t *params_out);

/*
 * Whether a decode worker can use them: what is missing is named, WEFT_ERR_INVALID. With block ids
 * all of remote_engine_id, remote_request_id, remote_host, remote_port are needed; ahead of them
 * transfer_id, remote_host and remote_port. WEFT_ERR_NOT_FOUND: nothing was asked for, or the block
 * list is empty: prefill here.
 */
weft_status_t kv_transfer_params_check(const kv_transfer_params_t *params, weft_diag_t *diag);

/* As a prefill worker answers, keys in vLLM's order. A new reference; NULL: no memory. */
json_t *kv_transfer_params_json(const kv_transfer_params_t *params);

weft_status_t kv_transfer_params_copy(const kv_transfer_params_t *params,
                                      kv_transfer_params_t *copy_out);
void kv_transfer_params_fini(kv_transfer_params_t *params); /* zeroed ones are fine */
