/* SPDX-License-Identifier: Apache-2.0 */
/* k_isa: what the op tables of the CPU share. */
#pragma once

#include "kernels/kernels.h"

#define ISA(name) extern const k_ops_t k_ops_##name;
#include "kernels/isas.def"
#undef ISA

/* Declares k_<isa>_<op> for every op, and fills a k_ops_t with them. */
#define K_ISA_DECLARE(isa, op) void k_##isa##_##op(k_stream_t *stream, const k_##op##_args_t *args)

/* Row `row` of activations, which are f32 on CPUs. */
static inline float *k_row(void *rows, size_t row, size_t stride)
{
    return (float *)rows + row * stride;
}

static inline const float *k_const_row(const void *rows, size_t row, size_t stride)
{
    return (const float *)rows + row * stride;
}

/* Rows that the sequences of an op cover. */
uint32_t k_seq_rows(const k_seq_t *seqs, uint32_t n_seqs);

/* The sequence that row belongs to. */
const k_seq_t *k_seq_of_row(const k_seq_t *seqs, uint32_t n_seqs, uint32_t row);

/* Where the first element of (position, head, part) lies. part: 0 K, 1 V. */
void *k_kv_address(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t position, uint32_t head,
                   uint32_t part);

/* Of K_I8: the scale of (position, head, part). */
float *k_kv_scale(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t position, uint32_t head,
                  uint32_t part);

/* n elements of a token in the cache's type, not K_I8: rounded to nearest even. */
void k_kv_store(k_dtype_t dtype, void *to, const float *from, uint32_t n);

/* All of (position, head, part) in the cache's type, whichever it is. */
void k_kv_store_head(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t position, uint32_t head,
                     uint32_t part, const float *from);

/* The `bytes` of scratch memory of a team member; asserts that they were reserved. */
void *k_stream_scratch(const k_stream_t *stream, uint32_t member, size_t bytes);
