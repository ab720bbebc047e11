/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_compat: may these two workers exchange blocks?
 *
 * vLLM compares one hash of what must be equal; a hash of ours over weft's own fields takes its place
 * between weft workers, and those are compared one by one besides, so that the difference has a
 * name. Block size, order of axes and tensor parallelism need not be equal (kv_slices.h), nor elements
 * (kv_convert.h).
 *
 * Threads  none of its own
 */
#pragma once

#include "kvstore/transfer/kv_handshake.h"

#define KV_COMPAT_HASH_BYTES 65 /* hex and a NUL */

/* What vLLM 0.32 hashes; speculative_config is null, transfer_mode pull unless said. */
typedef struct kv_vllm_identity {
    const char *attn_backend_name;
    const char *cache_dtype;
    const char *dtype;
    const char *model;
    const char *vllm_version;
    const char *transfer_mode; /* NULL: pull */
    uint64_t head_size;
    uint64_t nixl_connector_version;
    uint64_t num_hidden_layers;
    uint64_t num_kv_heads;
    bool is_hma_enabled;
} kv_vllm_identity_t;

/* WEFT_ERR_NO_MEMORY */
weft_status_t kv_compat_vllm_hash(const kv_vllm_identity_t *identity,
                                  char hash_out[KV_COMPAT_HASH_BYTES]);
weft_status_t kv_compat_weft_hash(const kv_weft_meta_t *meta, char hash_out[KV_COMPAT_HASH_BYTES]);

/* WEFT_ERR_INVALID: diag names what differs, theirs first. */
weft_status_t kv_compat_check(const kv_weft_meta_t *ours, const kv_weft_meta_t *theirs,
                              weft_diag_t *diag);
