/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_layout: where every byte of a KV block lies.
 *
 * Axes: L(ayer) B(lock) H(ead) N(token) C(ontent: K then V of one token). The default order is
 * BHLNC: a block is one contiguous extent, and so is a slice of its heads. A layout is a list of
 * groups; a group is the layers of one attention kind and window and has its own block table.
 * Plain models have one group.
 *
 * Elements with scales (int8, base/int8.h) have one f32 for the K and one for the V of each token and
 * head. They follow the tokens of their head of a layer, so that what a slice of heads is stays one
 * extent:
 *
 *   N C elements [token][K, V][head_dim], then f32 [K, V][token]; head_dim is even
 *
 * Bytes of a block = heads × layers × tokens × 2 × (head_dim × element size + scale size), summed over
 * nothing else: each group has its own blocks.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define KV_MAX_GROUPS 4

typedef enum kv_order { KV_ORDER_BHLNC, KV_ORDER_BLHNC, KV_ORDER_LBHNC } kv_order_t;

typedef struct kv_group {
    uint32_t layers;
    uint32_t heads; /* of this rank */
    uint32_t head_dim;
    uint32_t window; /* 0: full attention */
} kv_group_t;

/* Strides in bytes. Element i of part p (0 K, 1 V): see k_kv_view in kernels/ops/op_attention.h. */
typedef struct kv_strides {
    size_t block;
    size_t layer;
    size_t head;
    size_t token;
    size_t part;
    size_t scales; /* from a head of a layer of a block to its scales; 0: there are none */
} kv_strides_t;

typedef struct kv_layout {
    kv_order_t order;
    uint32_t block_tokens;
    uint32_t element_bytes; /* 4 f32, 2 f16 and bf16, 1 fp8 and int8 */
    uint32_t scale_bytes;   /* 4 int8, 0 the others */
    uint32_t n_groups;
    kv_group_t groups[KV_MAX_GROUPS];
    kv_strides_t strides[KV_MAX_GROUPS];
    size_t block_bytes[KV_MAX_GROUPS];
} kv_layout_t;

/*
 * Fills strides and block_bytes from the other fields. n_blocks matters to KV_ORDER_LBHNC alone,
 * where a layer holds all blocks.
 * WEFT_ERR_INVALID: a zero extent, block_tokens not a power of two, scales where head_dim is odd.
 * WEFT_ERR_TOO_LARGE: overflow.
 */
weft_status_t kv_layout_init(kv_layout_t *layout, uint32_t n_blocks, weft_diag_t *diag);

const char *kv_order_name(kv_order_t order);
/* WEFT_ERR_INVALID: diag lists those there are. */
weft_status_t kv_order_parse(const char *name, weft_diag_t *diag, kv_order_t *order_out);
/* Whether a block is one piece of memory: what tiers below the device need. */
bool kv_order_is_whole(kv_order_t order);
