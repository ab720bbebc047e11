/* SPDX-License-Identifier: Apache-2.0 */
/* The paged cache: rotation and writes, attention, latent attention. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtypes.h"
#include "kernels/ops/op_sequences.h"

#define K_ATTENTION_CHUNK 64
#define K_MAX_HEAD_DIM    256
#define K_MAX_LATENT      640 /* elements of a token in a cache of latents */

#define K_ATTENTION_SOFTCAP 1U
#define K_ATTENTION_SINKS   2U

/*
 * One layer of the paged KV cache. Element (block b, head h, token t, part p of {K, V}, i) lies at
 * base + b·block_stride + h·head_stride + t·token_stride + p·part_stride + i·element size, all
 * strides in bytes; base already includes the layer's offset.
 *
 * K_I8: an element is its code times a scale of the token's K, or V, in this head (base/int8.h); those
 * are f32, at base + b·block_stride + h·head_stride + scale_offset + (p·block_tokens + t)·4.
 */
typedef struct k_kv_view {
    void *base;
    k_dtype_t dtype; /* K_F32, K_F16, K_BF16, K_F8 or K_I8 */
    uint32_t block_tokens;
    uint32_t heads;
    uint32_t head_dim;
    size_t block_stride;
    size_t head_stride;
    size_t token_stride;
    size_t part_stride;
    size_t scale_offset; /* K_I8 alone */
} k_kv_view_t;

/* What a token's K, and its V, of a head take besides elements of a type. */
static inline uint32_t k_kv_scale_bytes(k_dtype_t dtype)
{
    return dtype == K_I8 ? sizeof(float) : 0;
}

/*
 * Rotates q and k in place, then writes k and v of every row to the cache.
 * Position p, pair i: angle p · inv_freq[i], cos and sin times mscale. Su et al. 2021, eq. 34.
 * Pairs are (i, i + rotary/2), or (2i, 2i + 1) when interleaved (GGUF files of family llama).
 * q [rows, q_heads, head_dim]; k, v [rows, kv.heads, head_dim]
 */
typedef struct k_rope_kv_write_args {
    void *q;
    void *k;
    const void *v;
    size_t q_stride;
    size_t k_stride;
    size_t v_stride;
    uint32_t q_heads;
    uint32_t rotary;       /* elements of a head that rotate: head_dim or fewer; 0: none */
    const float *inv_freq; /* [rotary/2] */
    float mscale;
    bool interleaved;
    k_kv_view_t kv;
    const k_seq_t *seqs;
    uint32_t n_seqs;
    uint32_t rows; /* of all sequences together, or more; sizes launches */
} k_rope_kv_write_args_t;

/*
 * Causal attention over the paged cache, which already holds this step's K and V.
 * o = softmax(q Kᵀ · scale, positions i−window+1..i) V, online softmax over chunks of
 * K_ATTENTION_CHUNK tokens counted from position 0 (Dao et al. 2022, algorithm 1).
 * softcap c: a score s becomes c · tanh(s / c) before it meets the others. sinks: head h has one
 * score more, sinks[h], that takes weight and brings no value (Xiao et al. 2023).
 * q, o [rows, q_heads, head_dim]; q head h reads kv head h / (q_heads / kv.heads)
 */
typedef struct k_attention_args {
    const void *q;
    void *o;
    size_t q_stride;
    size_t o_stride;
    uint32_t q_heads;
    float scale;
    uint32_t window;    /* 0: everything before */
    float softcap;      /* 0: none */
    const float *sinks; /* [q_heads] f32; NULL: none */
    k_kv_view_t kv;
    const k_seq_t *seqs;
    uint32_t n_seqs;
    /* No sequence's start + rows, and no sequence's rows, is more; they size launches and change no
     * result. max_rows 0: not known. */
    uint32_t max_tokens;
    uint32_t max_rows;
} k_attention_args_t;

/*
 * Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1): a token has one vector
 * of latent + rotary elements in the cache for all heads, kept over both parts of the view, which
 * lie side by side: kv.heads is 1, 2 · kv.head_dim is latent + rotary.
 *
 * mla_write rotates the last `rotary` elements of every head of q and of c as rope_kv_write does,
 * puts q's behind q_out's latents, and c into the cache.
 * q [rows, q_heads, q_dim]; q_out [rows, q_heads, latent + rotary]; c [rows, latent + rotary]
 */
typedef struct k_mla_write_args {
    const void *q;
    void *q_out;
    void *c; /* latents and the shared key */
    size_t q_stride;
    size_t q_out_stride;
    size_t c_stride;
    uint32_t q_heads;
    uint32_t q_dim;
    uint32_t latent;
    uint32_t rotary;
    const float *inv_freq; /* [rotary/2] */
    float mscale;
    bool interleaved;
    k_kv_view_t kv;
    const k_seq_t *seqs;
    uint32_t n_seqs;
    uint32_t rows; /* as rope_kv_write's */
} k_mla_write_args_t;

/*
 * o = softmax(q cᵀ · scale) c[latents], causal, chunks as attention's.
 * q [rows, q_heads, latent + rotary]; o [rows, q_heads, latent]
 */
typedef struct k_mla_attention_args {
    const void *q;
    void *o;
    size_t q_stride;
    size_t o_stride;
    uint32_t q_heads;
    uint32_t latent;
    float scale;
    k_kv_view_t kv;
    const k_seq_t *seqs;
    uint32_t n_seqs;
    uint32_t max_tokens; /* as attention's */
    uint32_t max_rows;
} k_mla_attention_args_t;
