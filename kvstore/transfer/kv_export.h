/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_export: blocks as a vLLM worker has them, for vLLM workers that read them as they are. Where K is
 * transposed inside heads (CPU_ATTN), or elements are others than ours, what is held for readers is a
 * copy in a pool of its own.
 *
 * Threads  the engine's
 */
#pragma once

#include "kvstore/kv_pool.h"
#include "kvstore/transfer/kv_convert.h"
#include "kvstore/transfer/kv_slices.h"

typedef struct kv_export kv_export_t;

/* Of our shape and form, n_blocks of block_tokens; host is borrowed. */
weft_status_t kv_export_create(weft_device_t *host, const kv_shape_t *shape,
                               const kv_head_form_t *form, const kv_head_form_t *as,
                               uint32_t n_blocks, weft_diag_t *diag, kv_export_t **export_out);
void kv_export_destroy(kv_export_t *export); /* no block is held; NULL is fine */
kv_pool_t *kv_export_pool(const kv_export_t *export);

/*
 * Copies n_tokens of a sequence in our blocks. Blocks of kv_export_pool, one reference each, for the
 * caller to weft_free and release. WEFT_ERR_NO_BLOCKS: too much is held.
 */
weft_status_t kv_export_copy(kv_export_t *export, const kv_block_id_t *blocks, uint32_t n_tokens,
                             kv_block_id_t **blocks_out, uint32_t *n_out);
