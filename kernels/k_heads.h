/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_heads: keys and values of heads, moved between blocks of unlike forms by a device.
 *
 * How the K and V of one head of one layer of a block lie; as kvstore/transfer/kv_convert.h:
 *   plain       [token][K then V of it, head_dim each]
 *   transposed  K [head_dim][token], then V [token][head_dim]
 *
 * K_I8 is plain; its scales follow as kvstore/kv_layout.h says.
 */
#pragma once

#include "kernels/kernels.h"

typedef struct k_head_form {
    k_dtype_t element;
    bool is_transposed;
    uint32_t block_tokens;
    uint32_t head_dim; /* the same on both sides */
} k_head_form_t;

/* Tokens from_token … of one head to to_token … of another. */
typedef struct k_head_move {
    uint64_t to; /* addresses of the heads' first elements */
    uint64_t from;
    uint32_t to_token;
    uint32_t from_token;
    uint32_t tokens;
} k_head_move_t;

/*
 * Enqueues it on a queue of the stream's device, which may be another than the stream's own. moves [n]
 * lie where the device reads them, and stay until then. What fails, fails the queue.
 * WEFT_ERR_UNSUPPORTED: no such kernel for this device.
 */
weft_status_t k_convert_heads(const k_stream_t *stream, weft_queue_t *queue, k_head_form_t to,
                              k_head_form_t from, const k_head_move_t *moves, uint32_t n);
