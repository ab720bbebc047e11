/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_isa.h"

#include <assert.h>
#include <string.h>

#include "base/float8.h"
#include "base/int8.h"
#include "kernels/k_team.h"

uint32_t k_seq_rows(const k_seq_t *seqs, uint32_t n_seqs)
{
    return n_seqs > 0 ? seqs[n_seqs - 1].row + seqs[n_seqs - 1].rows : 0;
}

const k_seq_t *k_seq_of_row(const k_seq_t *seqs, uint32_t n_seqs, uint32_t row)
{
    uint32_t low = 0;
    uint32_t high = n_seqs;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (seqs[middle].row <= row) {
            low = middle;
        } else {
            high = middle;
        }
    }
    assert(row - seqs[low].row < seqs[low].rows);
    return &seqs[low];
}

void *k_kv_address(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t position, uint32_t head,
                   uint32_t part)
{
    const size_t block = seq->block_table[position / kv->block_tokens];
    const size_t token = position % kv->block_tokens;
    return (char *)kv->base + block * kv->block_stride + head * kv->head_stride +
           token * kv->token_stride + part * kv->part_stride;
}

float *k_kv_scale(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t position, uint32_t head,
                  uint32_t part)
{
    const size_t block = seq->block_table[position / kv->block_tokens];
    const size_t token = position % kv->block_tokens;
    return (float *)(void *)((char *)kv->base + block * kv->block_stride + head * kv->head_stride +
                             kv->scale_offset) +
           part * kv->block_tokens + token;
}

void *k_stream_scratch(const k_stream_t *stream, uint32_t member, size_t bytes)
{
    const size_t share = stream->scratch.bytes / k_team_size(stream->team);
    const size_t aligned = share / WEFT_CACHE_LINE * WEFT_CACHE_LINE;
    assert(bytes <= aligned);
    (void)bytes;
    return (char *)stream->scratch.addr + member * aligned;
}

const char *k_op_name(k_op_id_t op)
{
    static const char *const names[K_OP_COUNT] = {
#define OP(name) #name,
#include "kernels/ops.def"
#undef OP
    };
    return names[op];
}

bool k_ops_has(const k_ops_t *ops, k_op_id_t op)
{
    switch (op) {
#define OP(name)                                                                                   \
    case K_OP_##name:                                                                              \
        return ops->name != NULL;
#include "kernels/ops.def"
#undef OP
    case K_OP_COUNT:
        break;
    }
    return false;
}

void k_kv_store(k_dtype_t dtype, void *to, const float *from, uint32_t n)
{
    uint16_t *half = to;
    uint8_t *byte = to;
    assert(dtype == K_F32 || dtype == K_F16 || dtype == K_BF16 || dtype == K_F8);
    for (uint32_t i = 0; i < n; i++) {
        switch (dtype) {
        case K_F16:
            half[i] = k_f32_to_f16(from[i]);
            break;
        case K_BF16:
            half[i] = k_f32_to_bf16(from[i]);
            break;
        case K_F8:
            byte[i] = weft_f32_to_f8(from[i]);
            break;
        default:
            memcpy((float *)to + i, from + i, sizeof(float));
        }
    }
}

void k_kv_store_head(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t position, uint32_t head,
                     uint32_t part, const float *from)
{
    void *to = k_kv_address(kv, seq, position, head, part);
    if (kv->dtype != K_I8) {
        k_kv_store(kv->dtype, to, from, kv->head_dim);
        return;
    }
    const weft_i8_scale_t scale = weft_i8_scale_of(weft_i8_largest(from, kv->head_dim));
    *k_kv_scale(kv, seq, position, head, part) = scale.scale;
    for (uint32_t i = 0; i < kv->head_dim; i++) {
        ((int8_t *)to)[i] = weft_f32_to_i8(from[i] * scale.inverse);
    }
}
