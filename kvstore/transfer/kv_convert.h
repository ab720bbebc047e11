/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_convert: the keys and values of a head of a layer in one block, from the form of one worker to that
 * of another: their elements, and where they lie. What is between heads is kv_layout's business.
 *
 *   plain       [token][K then V of it, head_dim each]: weft's, and that of vLLM's GPU backends
 *   transposed  K [head_dim][token], then V [token][head_dim]: vLLM's CPU_ATTN, as measured
 *
 * int8 is weft's alone, plain, its scales behind the tokens (kv_layout.h).
 *
 * Threads  none of its own
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define KV_CONVERT_MAX_DIM 1024 /* of a head */

typedef enum kv_element {
    KV_ELEMENT_F32,
    KV_ELEMENT_F16,
    KV_ELEMENT_BF16,
    KV_ELEMENT_F8, /* E4M3: base/float8.h */
    KV_ELEMENT_I8  /* base/int8.h */
} kv_element_t;

typedef struct kv_head_form {
    kv_element_t element;
    bool is_transposed;
    uint32_t block_tokens;
    uint32_t head_dim;
} kv_head_form_t;

/* "f32", "f16", "bf16", "f8_e4m3", "int8", and vLLM's "torch.float32" and so on; false: none of these. */
bool kv_element_parse(const char *name, uint32_t length, kv_element_t *element_out);
uint32_t kv_element_bytes(kv_element_t element);
uint32_t kv_element_scale_bytes(kv_element_t element); /* of a scale; 0: without */
/* K and V of a token, scales and all; times block_tokens: all of the head. */
uint32_t kv_head_token_bytes(const kv_head_form_t *form);

/*
 * Whether bytes mean the same in both: then they are copied, whatever the block sizes; but where there
 * are scales, those have to be equal as well.
 */
bool kv_head_form_is_same(const kv_head_form_t *a, const kv_head_form_t *b);

/*
 * Tokens from_token … of one head to to_token … of another, n of them. Narrower elements are rounded to
 * nearest, ties to even; what is too large becomes infinite, or the largest of fp8. Elements that are the
 * same on both sides stay what they are, bit by bit.
 */
void kv_convert_head(const kv_head_form_t *from_form, const void *from, uint32_t from_token,
                     const kv_head_form_t *to_form, void *to, uint32_t to_token, uint32_t n);

/* The same as a device is asked for it: heads by the addresses of their first elements. */
typedef struct kv_head_move {
    uint64_t to;
    uint64_t from;
    uint32_t to_token;
    uint32_t from_token;
    uint32_t tokens;
} kv_head_move_t;
