/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_transfer_config: what --kv-transfer-config says: vLLM's JSON object, its names and defaults, and
 * weft's own keys in kv_connector_extra_config. docs/kv-transfer.md has the table.
 *
 * Keys that nobody knows are logged and left out, so that a configuration written for a later vLLM
 * starts; a value that cannot be is refused, with the path of its key or the place in the text.
 *
 * Threads  none of its own
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef enum kv_transfer_role {
    KV_TRANSFER_PRODUCER = 1, /* prefills for others */
    KV_TRANSFER_CONSUMER = 2, /* decodes what others prefilled */
    KV_TRANSFER_BOTH = 3
} kv_transfer_role_t;

typedef enum kv_transfer_policy {
    KV_TRANSFER_UNSAID,    /* the JSON says nothing: --kv-load-failure-policy decides */
    KV_TRANSFER_RECOMPUTE, /* what cannot be had is computed here */
    KV_TRANSFER_FAIL       /* the request fails */
} kv_transfer_policy_t;

typedef bool kv_transfer_BOOL_t;
typedef char *kv_transfer_TEXT_t;  /* owned; NULL: not given */
typedef char *kv_transfer_NAMES_t; /* owned, lower case, with commas between; NULL: not given */
typedef uint64_t kv_transfer_COUNT_t;
typedef double kv_transfer_NUMBER_t;

typedef struct kv_transfer_config {
    kv_transfer_role_t role;
    kv_transfer_policy_t policy;
    char *side_channel_host;    /* owned; what peers are told to connect to, and what is bound */
    uint16_t side_channel_port; /* 0: the system's choice */
#define CONFIG(place, field, type, fallback) kv_transfer_##type##_t field;
#include "kvstore/transfer/kv_transfer_config.def"
#undef CONFIG
} kv_transfer_config_t;

/*
 * text: the JSON object. Host and port are those of VLLM_NIXL_SIDE_CHANNEL_HOST and
 * VLLM_NIXL_SIDE_CHANNEL_PORT (+ data_parallel_rank), else localhost and 5600. Without an
 * engine_id one is drawn.
 * WEFT_ERR_INVALID: diag says where; WEFT_ERR_UNSUPPORTED: a connector or a mode that is not ours.
 */
weft_status_t kv_transfer_config_parse(const char *text, uint32_t data_parallel_rank,
                                       weft_diag_t *diag, kv_transfer_config_t *config_out);
weft_status_t kv_transfer_config_copy(const kv_transfer_config_t *config,
                                      kv_transfer_config_t *copy_out);
void kv_transfer_config_fini(kv_transfer_config_t *config);
