/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels: the table of ops that model graphs are written against.
 *
 * An op is enqueued on a k_stream and returns nothing to the host: its arguments are copied, what
 * they point to stays valid until the stream is synced. All pointers are addresses of the stream's
 * device. The cpu stream runs an op before the call returns, on the stream's thread team; callers
 * must not count on it.
 *
 * Threads    a stream belongs to one thread
 * Strides    in elements, unless a name says _bytes; arrays of rows have `stride` elements a row
 * Activations  what one op hands to the next (`void *`) has elements of the backend's k_ops.act type:
 *            f32 on CPUs, bf16 on GPUs. The residual stream and logits are f32 everywhere (`float *`);
 *            where an array can be either, a dtype beside it says which
 * Decision 7 for one (op, dtype, ISA) every output row is computed by the same instructions in the
 *            same order whatever the number of rows and threads; K is summed in fixed chunks;
 *            attention walks tokens in chunks of K_ATTENTION_CHUNK, whatever the block size
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/device.h"
#include "base/diag.h"
#include "base/status.h"
#include "kernels/dtypes.h"

#define K_ATTENTION_CHUNK 64
#define K_MAX_HEAD_DIM    256
#define K_MAX_LATENT      640 /* elements of a token in a cache of latents */
#define K_MAX_EXPERTS     512 /* of a layer */
#define K_PACKING         2   /* rises with what weight_pack makes of the same weights */
#define K_MAX_LOGPROBS    20  /* top log-probabilities a sampled row can report */

typedef struct k_stream k_stream_t;
typedef struct k_graph k_graph_t; /* ops recorded, to be enqueued again all at once */

/* ---- weights ------------------------------------------------------------------------------- */

/* How a weight's rows lie beside one another. */
typedef enum k_weight_form {
    K_WEIGHT_ROWS,    /* as in the source */
    K_WEIGHT_GATE_UP, /* two parts of equal rows, row i of both side by side: for K_OUT_SWIGLU */
} k_weight_form_t;

/*
 * A matrix [rows, columns] as a backend keeps it: out = W x has `rows` outputs. Packed by
 * weight_pack into memory of weight_bytes(); `data` may instead point into the mapped file when
 * the backend computes straight from it (weight_bytes says 0).
 */
typedef struct k_weight {
    k_dtype_t dtype; /* of the source */
    k_weight_form_t form;
    uint32_t rows;
    uint32_t columns;
    const void *data;
} k_weight_t;

/* Row ranges of the source, in order, that make one weight; parts share dtype and columns. */
typedef struct k_weight_part {
    const void *data; /* [rows][row bytes] in file order */
    uint32_t rows;
    size_t
        stride; /* bytes from one row to the next, where k_ops.packs_slices; 0: as many as it has */
} k_weight_part_t;

/* ---- ops ----------------------------------------------------------------------------------- */

/*
 * y[i] = table row ids[i] - first_id, as f32; zeros where the table has no such row, so that the sum
 * over a vocabulary's slices is the whole table's row.   ids [rows]; table [., dim]; y [rows, dim]
 */
typedef struct k_embed_args {
    const k_weight_t *table; /* packed by weight_pack, as for linear: tied weights are kept once */
    const int32_t *ids;
    uint32_t first_id; /* of the table's first row */
    float *y;
    uint32_t rows;
    size_t y_stride;
    float scale; /* 1 unless the model scales its embeddings */
} k_embed_args_t;

/*
 * sums[r] = Σ x[r]², of rows whose other parts lie elsewhere.   x [rows, dim] activations; dim may
 * be 0
 */
typedef struct k_square_sums_args {
    const void *x;
    float *sums;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    size_t sums_stride;
} k_square_sums_args_t;

/*
 * y = x / sqrt(mean(x²) + eps) · w.   Zhang & Sennrich 2019, eq. 4.
 * x, y [rows, groups, dim]: each group is normed alone (groups = heads for Qwen3's q and k norms,
 * else 1), group g at g·dim of its row; y may be x where their types agree. w [dim] f32.
 */
typedef struct k_rms_norm_args {
    const void *x;
    k_dtype_t x_dtype; /* K_F32 (the residual stream), or k_ops.act */
    const float *w;
    void *y; /* activations */
    uint32_t rows;
    uint32_t groups;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
    float eps;
    /* Of one group, where x is a part of what is normed: Σ x² of all of it, and its elements. */
    const float *sums; /* [rows]; NULL: x is all */
    size_t sums_stride;
    uint32_t sums_dim;
} k_rms_norm_args_t;

/* What a linear does with x Wᵀ + bias. */
typedef enum k_out {
    K_OUT_STORE,  /* y = it */
    K_OUT_ADD,    /* y += it: y is the residual stream, f32 */
    K_OUT_SWIGLU, /* y [rows, W.rows / 2] = silu(gate) · up; W is of form K_WEIGHT_GATE_UP */
} k_out_t;

/* x [rows, W.columns] activations; y [rows, W.rows]; bias [W.rows] f32 or NULL, in source order */
typedef struct k_linear_args {
    const k_weight_t *w;
    const float *bias;
    const void *x;
    /* NULL, or what makes x, its y: done row by row as x is read. Only where k_ops.norms_in_linear. */
    const k_rms_norm_args_t *norm;
    void *y;
    k_dtype_t y_dtype; /* k_ops.act, or K_F32 (logits, the residual stream) */
    k_out_t out;
    uint32_t rows;
    size_t x_stride;
    size_t y_stride;
} k_linear_args_t;

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
 * The rows [row, row + rows) of the step belong to one sequence, at positions start...
 * An op's sequences cover its rows from 0 on, in order, without gaps.
 */
typedef struct k_seq {
    uint32_t row;
    uint32_t rows;
    uint32_t start;              /* tokens of the sequence already in the cache */
    uint32_t adapter;            /* of the tables of k_lora_t, counted from 1; 0: none */
    const uint32_t *block_table; /* block ids; entry i holds tokens [i·block_tokens, …) */
    const int32_t *history; /* token ids of the sequence from position 0; gather_tokens reads it */
} k_seq_t;

/* ids[seq.row + i] = seq.history[seq.start + i] for every row of every sequence. */
typedef struct k_gather_tokens_args {
    const k_seq_t *seqs;
    uint32_t n_seqs;
    int32_t *ids; /* [rows of all sequences] */
} k_gather_tokens_args_t;

typedef struct k_word {
    uint32_t *at;
    uint32_t value;
} k_word_t;

/* *words[i].at = words[i].value; no two of the same address. Single entries of block tables and histories. */
typedef struct k_write_words_args {
    const k_word_t *words;
    uint32_t n_words;
} k_write_words_args_t;

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

/*
 * y[r, h] = W_h x[r, h], a matrix a head, as a linear of out K_OUT_STORE does.
 * x [rows, .], head h's columns from h · x_dim on; y [rows, .] by y_dim
 */
typedef struct k_head_linear_args {
    const k_weight_t *heads; /* [n_heads], host memory; all of one shape */
    const void *x;
    void *y;
    uint32_t n_heads;
    uint32_t x_dim;
    uint32_t y_dim; /* elements from one head of y to the next: W.rows or more */
    uint32_t rows;
    size_t x_stride;
    size_t y_stride;
} k_head_linear_args_t;

/* y = silu(gate) · up, silu(x) = x / (1 + exp(−x)).   all [rows, dim] activations; y may be gate */
typedef struct k_silu_mul_args {
    const void *gate;
    const void *up;
    void *y;
    uint32_t rows;
    uint32_t dim;
    size_t gate_stride;
    size_t up_stride;
    size_t y_stride;
} k_silu_mul_args_t;

/*
 * y = gelu(gate) · up, gelu(x) = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).   As silu_mul.
 * Hendrycks & Gimpel 2016.
 */
typedef k_silu_mul_args_t k_gelu_mul_args_t;

/*
 * y = (u + 1) · g / (1 + exp(−1.702 g)), g = min(gate, limit), u = up within ±limit.   As silu_mul.
 * GPT-OSS, OpenAI 2025.
 */
typedef struct k_clamped_mul_args {
    const void *gate;
    const void *up;
    void *y;
    uint32_t rows;
    uint32_t dim;
    size_t gate_stride;
    size_t up_stride;
    size_t y_stride;
    float limit;
} k_clamped_mul_args_t;

#define K_LORA_ALIGNMENT ((size_t)16) /* of an adapter's matrices */

/*
 * What an adapter adds to a linear: y += scale · b (a x) (LoRA: Hu et al. 2021). Device memory.
 * Entry i of a table of them is adapter i + 1; rank 0: that one leaves this linear alone.
 */
typedef struct k_lora {
    const float *a; /* [rank, in] */
    const float *b; /* [rank, out]: transposed, as it is read */
    uint32_t rank;
    float scale;
} k_lora_t;

/*
 * What low may take between shrink and expand: sums over so many inputs each, of which a backend adds up
 * as many at a time. How they lie is its own.
 */
#define K_LORA_PART 1024

static inline uint32_t k_lora_parts(uint32_t in)
{
    return in / K_LORA_PART + (in % K_LORA_PART != 0);
}

static inline size_t k_lora_low_floats(uint32_t in, size_t rows, uint32_t max_rank)
{
    return k_lora_parts(in) * rows * max_rank;
}

/*
 * The rows that adapters add to: those whose sequence has one. n_heads linears of one shape at a time:
 * the next one's table lies table_step entries on.
 */
typedef struct k_lora_rows {
    const k_lora_t *table;
    uint32_t n_heads; /* 1 or more */
    uint32_t table_step;
    const k_seq_t *seqs; /* covering the rows in order */
    uint32_t n_seqs;
    uint32_t rows;
} k_lora_rows_t;

/* low = a x.   x [rows, in] activations, of the next head x_step elements on */
typedef struct k_lora_shrink_args {
    k_lora_rows_t of;
    const void *x;
    size_t x_stride;
    uint32_t x_step;
    uint32_t in;
    float *low; /* [k_lora_low_floats(in, n_heads · rows, max_rank)] */
    uint32_t max_rank;
} k_lora_shrink_args_t;

/* y += scale · b low.   y [rows, out] of y_dtype: f32 or activations, of the next head y_step on */
typedef struct k_lora_expand_args {
    k_lora_rows_t of;
    const float *low;
    uint32_t in; /* of the shrink that wrote low */
    uint32_t max_rank;
    void *y;
    k_dtype_t y_dtype;
    size_t y_stride;
    uint32_t y_step;
    uint32_t out;
} k_lora_expand_args_t;

/* The adapter's entry for a row, NULL: none, or it leaves the linear alone. */
static inline const k_lora_t *k_lora_of_row(const k_lora_t *table, const k_seq_t *seqs,
                                            uint32_t n_seqs, uint32_t row)
{
    uint32_t first = 0; /* the last sequence that begins at or before the row */
    for (uint32_t n = n_seqs; n > 1;) {
        const uint32_t half = n / 2;
        first += seqs[first + half].row <= row ? half : 0;
        n -= half;
    }
    const uint32_t adapter = seqs[first].adapter;
    return adapter > 0 && table[adapter - 1].rank > 0 ? &table[adapter - 1] : NULL;
}

static inline const k_lora_t *k_lora_of_head(const k_lora_rows_t *of, uint32_t head, uint32_t row)
{
    return k_lora_of_row(of->table + (size_t)head * of->table_step, of->seqs, of->n_seqs, row);
}

/*
 * What adapters add to a linear of each expert: y[s] += scale · b (a x[s]) for the slots s of every
 * expert, by its entry for the adapter of the slot's row. y [slots, out] activations; offsets and
 * n_experts: as expert_linear's. Ranks up to K_LORA_MAX_RANK.
 */
#define K_LORA_MAX_RANK 512
typedef struct k_lora_experts_args {
    const k_lora_t *table; /* [n_experts][places] */
    uint32_t places;
    const k_seq_t *seqs; /* covering the rows in order */
    uint32_t n_seqs;
    const uint32_t *offsets;
    const uint32_t *row_of_slot; /* [slots] */
    uint32_t n_experts;
    uint32_t slots;
    const void *x;
    size_t x_stride;
    bool has_rows; /* x is [rows, in], of which a slot has its row's; else [slots, in] */
    uint32_t in;
    float *low; /* [k_lora_low_floats(in, slots, max_rank)] for the time of the op */
    uint32_t max_rank;
    void *y;
    size_t y_stride;
    uint32_t out;
} k_lora_experts_args_t;

/* The entry for a slot, NULL: none, or the slot's expert is not among these. */
static inline const k_lora_t *k_lora_of_slot(const k_lora_experts_args_t *args, uint32_t slot)
{
    const uint32_t *offsets = args->offsets;
    uint32_t first = 0; /* the last expert whose slots begin at or before this one */
    if (args->n_experts == 0 || slot < offsets[0] || slot >= offsets[args->n_experts]) {
        return NULL;
    }
    for (uint32_t n = args->n_experts; n > 1;) {
        const uint32_t half = n / 2;
        first += offsets[first + half] <= slot ? half : 0;
        n -= half;
    }
    return k_lora_of_row(args->table + (size_t)first * args->places, args->seqs, args->n_seqs,
                         args->row_of_slot[slot]);
}

/* x = cap · tanh(x / cap).   x [rows, dim] f32: logits */
typedef struct k_softcap_args {
    float *x;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    float cap;
} k_softcap_args_t;

/* y += scale · x.   x [rows, dim] activations; y [rows, dim] the residual stream */
typedef struct k_add_args {
    const void *x;
    float *y;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
    float scale; /* 1 unless the model scales its branches */
} k_add_args_t;

/* y = x, for graphs that use the residual stream as it is.   x [rows, dim] f32; y activations */
typedef struct k_narrow_args {
    const float *x;
    void *y;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
} k_narrow_args_t;

/* y[i] = x[index[i]].   x [., dim]; y [rows, dim] */
typedef struct k_gather_rows_args {
    const float *x;
    const uint32_t *index;
    float *y;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
} k_gather_rows_args_t;

/* ---- experts ------------------------------------------------------------------------------- */

typedef enum k_route_kind {
    K_ROUTE_SOFTMAX, /* scores: softmax over all experts */
    K_ROUTE_SIGMOID, /* scores: 1 / (1 + exp(−logit)) each */
} k_route_kind_t;

/*
 * Chooses `used` of the experts for every row: those of the largest score + bias, ties to the lower
 * one, best first. With groups (n_groups > 1) only experts of the best groups count; a group is as
 * good as its best score, or as the sum of its best two where there is a bias (DeepSeek-AI 2024).
 * A weight is the score without bias, over the sum of the row's weights if `renormalizes`, times
 * scale.
 *
 * Rows times `used` are slots, ordered by expert, those of one expert by row: slots [offsets[e],
 * offsets[e + 1]) are expert e's; row_of_slot says whose they are, slot_of where a row's choices
 * lie.
 */
typedef struct k_route_args {
    const float *logits; /* [rows, experts] */
    const float *bias;   /* [experts] or NULL */
    size_t logits_stride;
    k_route_kind_t kind;
    uint32_t rows;
    uint32_t experts;
    uint32_t used;
    uint32_t n_groups;    /* divides experts; 0 or 1: none */
    uint32_t groups_used; /* ≤ n_groups */
    bool renormalizes;
    float scale;
    float *weights;        /* [rows, used] */
    uint32_t *slot_of;     /* [rows, used] */
    uint32_t *row_of_slot; /* [rows · used] */
    uint32_t *offsets;     /* [experts + 1] */
} k_route_args_t;

/*
 * y[s] = W_e x[s] + bias_e for the slots s of every expert e, as a linear of out K_OUT_STORE does.
 * x [slots, columns], or, where row_of_slot is given, [rows, columns]: then `gathered` [slots,
 * columns] may take each slot's row first. y [slots, W.rows]
 *
 * Where only a run of the experts is here: experts, bias and offsets begin at the first of them, and
 * slots of others stay as they are.
 */
typedef struct k_expert_linear_args {
    const k_weight_t *experts; /* [n_experts], host memory; all of one shape */
    const float *bias;         /* [n_experts, W.rows] f32 or NULL */
    const uint32_t *offsets;   /* [n_experts + 1] of what route wrote */
    const uint32_t *row_of_slot;
    const void *x;
    void *gathered;
    void *y;
    uint32_t n_experts;
    uint32_t all_experts; /* with those elsewhere; sizes launches and changes no result */
    uint32_t slots;
    size_t x_stride;
    size_t y_stride;
} k_expert_linear_args_t;

/*
 * y[r] += Σ_j weights[r, j] · x[slot_of[r, j]], j from first to last.   y: the residual stream
 * offsets: as expert_linear's, where only a run of the experts is here: slots of others are left out.
 */
typedef struct k_combine_args {
    const void *x; /* [slots, dim] activations */
    const float *weights;
    const uint32_t *slot_of;
    const uint32_t *offsets; /* [n_experts + 1]; NULL: all slots count */
    uint32_t n_experts;
    float *y;
    uint32_t rows;
    uint32_t used;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
    bool replaces; /* y = the sum, instead of adding it */
} k_combine_args_t;

/* ---- sampling ------------------------------------------------------------------------------ */

typedef struct k_bias {
    int32_t token;
    float value;
} k_bias_t;

/* What one row of logits reports: the log-softmax of the unmodified logits. */
typedef struct k_logprob {
    int32_t token;
    uint32_t rank; /* 1 = most likely */
    float logprob;
} k_logprob_t;

typedef struct k_sampled {
    k_logprob_t chosen;
    k_logprob_t top[K_MAX_LOGPROBS]; /* most likely first, ties by lower id; n_top are valid */
    uint32_t n_top;
} k_sampled_t;

/* Prompt log-probabilities: how likely target[i] was under row i.   logits [rows, vocab] */
typedef struct k_logprobs_args {
    const float *logits;
    const int32_t *targets;
    const uint32_t *n_top; /* [rows] */
    k_sampled_t *out;      /* [rows] */
    uint32_t rows;
    uint32_t vocab;
    size_t logits_stride;
} k_logprobs_args_t;

/*
 * How one row is sampled. In this order, as vLLM does: allowed mask, logit bias, repetition /
 * frequency / presence penalties over history, temperature, min_p, top_k, top_p, then
 * argmax(log p + Gumbel noise) with noise = Philox4x32-10(key = seed, counter = (output_index,
 * token)). temperature 0 is argmax, ties to the lower id. History counts: the first
 * prompt_tokens entries are the prompt (repetition only), the rest output.
 */
typedef struct k_sample_row {
    float temperature;
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    int32_t top_k;            /* 0: off */
    float repetition_penalty; /* 1: off */
    float frequency_penalty;  /* 0: off */
    float presence_penalty;   /* 0: off */
    uint32_t n_top;     /* log-probabilities wanted besides the chosen one, ≤ K_MAX_LOGPROBS */
    bool wants_logprob; /* else chosen.logprob and rank may stay 0 */
    uint64_t seed;
    uint64_t output_index;
    const int32_t *history; /* [history_tokens] token ids, or NULL when no penalty is on */
    uint32_t history_tokens;
    uint32_t prompt_tokens;
    const k_bias_t *bias; /* [n_bias] */
    uint32_t n_bias;
    const uint32_t *mask; /* bit t of word t/32: token t allowed; NULL: all */
    int32_t *append_to;   /* where the sampled token is written besides; NULL: nowhere */
} k_sample_row_t;

/* logits [rows, vocab], destroyed; params [rows]; out [rows] */
typedef struct k_sample_args {
    float *logits;
    const k_sample_row_t *params;
    k_sampled_t *out;
    uint32_t rows;
    uint32_t vocab;
    size_t logits_stride;
} k_sample_args_t;

/* ---- sampling from slices -------------------------------------------------------------------- */

/*
 * sample and logprobs where a vocabulary is cut over ranks: each has the logits of tokens
 * [first_token, first_token + tokens). An op on the slice writes a record a row; the caller gathers
 * those of all ranks, in rank order; the op that merges them comes to the same on every rank:
 *
 *   slice_max, merge_max                decide greedy rows
 *   slice_masses, merge_masses          find how far top_k and top_p keep tokens, in a few rounds
 *   slice_candidates, merge_candidates  the others; without such a cut a row may stay open and is
 *                                       asked again, for more
 *   slice_logprobs, merge_logprobs      for rows that want log-probabilities
 *
 * Lists of candidates take one exchange where few tokens are likely, but the host has to see which
 * rows are open; cuts take always the same exchanges and no look of the host.
 *
 * Results are those of sample and logprobs on the whole rows: sums are of integers (2^44 is 1), and
 * what is computed of a token only its own rank computes.
 */

/* A slice's largest. A token that is not there is -1. */
typedef struct k_slice_max {
    float max_logit; /* as the model gave it, as every `logit` here; NaN is -inf, +inf FLT_MAX */
    int32_t max_token;
    float target_logit; /* -inf on other ranks than the target's */
    float z;            /* after mask, bias and penalties */
    int32_t token;
    float logit;
    int32_t allowed; /* the lowest token that the mask allows */
    float allowed_logit;
} k_slice_max_t;

/* What is known of a row, the same on all ranks. */
typedef struct k_slice_row {
    int32_t token; /* sampled, or the target; -1: open */
    float logit;
    float max_logit;
    float max_z; /* of token `best`, before temperature */
    int32_t best;
    uint32_t n_top; /* log-probabilities wanted besides the token's own */
    bool wants_logprob;
} k_slice_row_t;

/*
 * logits, z [rows, tokens], stride elements a row: z takes the logits after mask, bias and
 * penalties, of rows where more than the largest logit counts. params NULL: log-probabilities of
 * targets are wanted, z is not written.
 */
typedef struct k_slice_max_args {
    const float *logits;
    const k_sample_row_t *params; /* [rows] */
    const int32_t *targets;       /* [rows] */
    float *z;
    k_slice_max_t *out; /* [rows] */
    uint32_t rows;
    uint32_t first_token;
    uint32_t tokens;
    size_t stride;
} k_slice_max_args_t;

typedef struct k_merge_max_args {
    const k_slice_max_t *maxima;  /* [ranks, rows] */
    const k_sample_row_t *params; /* [rows]; NULL: of targets */
    const int32_t *targets;       /* [rows] */
    const uint32_t *n_top;        /* [rows], of targets */
    k_slice_row_t *state;         /* [rows] */
    k_sampled_t *out;             /* [rows]: tokens that are decided */
    uint32_t rows;
    uint32_t ranks;
} k_merge_max_args_t;

/*
 * How far the tokens of a row are kept, best first: those before `below`, the bits of -scaled, which
 * are found K_CUT_BITS at a time, and of those that have just these the first of all ranks.
 */
#define K_CUT_ROUNDS 3
#define K_CUT_BITS   11
#define K_CUT_VALUES (1 << K_CUT_BITS) /* of a digit */
#define K_CUT_WHOLE  UINT32_MAX        /* as below: all tokens are kept */

typedef struct k_slice_cut {
    uint32_t below;  /* of round r the highest digits alone */
    uint32_t count;  /* tokens of all ranks before them */
    uint64_t weight; /* of those */
    uint64_t kept;   /* weight of all that are kept; by top_k alone */
    uint32_t equal;  /* tokens of this slice that have just these */
    uint32_t ties;   /* of which so many are kept, the lowest ids */
} k_slice_cut_t;

/* top_p is of what top_k keeps. */
typedef struct k_slice_cuts {
    k_slice_cut_t top_k;
    k_slice_cut_t top_p;
} k_slice_cuts_t;

/* A slice's tokens by the next digit. */
typedef struct k_masses {
    uint64_t weight[K_CUT_VALUES];
    uint32_t count[K_CUT_VALUES];
} k_masses_t;

/* The lowest bit of round r's digit. */
static inline int k_cut_shift(uint32_t round)
{
    return round + 1 < K_CUT_ROUNDS ? 31 - K_CUT_BITS * ((int)round + 1) : 0;
}

static inline int k_cut_bits(uint32_t round)
{
    return round + 1 < K_CUT_ROUNDS ? K_CUT_BITS : 31 - K_CUT_BITS * (K_CUT_ROUNDS - 1);
}

/* Whether a row's cut by top_p (else by top_k) is looked for. */
static inline bool k_cut_is_wanted(const k_sample_row_t *params, const k_slice_row_t *state,
                                   bool by_top_p)
{
    return state->token < 0 && (by_top_p ? params->top_p < 1.0f : params->top_k > 0);
}

/* Of open rows that ask for it; what is written of others says nothing. z as slice_max left it. */
typedef struct k_slice_masses_args {
    const float *z;
    const k_sample_row_t *params;
    const k_slice_row_t *state;
    const k_slice_cuts_t *cuts; /* [rows] */
    k_masses_t *out;            /* [rows] */
    bool by_top_p;              /* after all rounds by top_k, where a row asks for both */
    uint32_t round;
    uint32_t rows;
    uint32_t tokens;
    size_t stride;
} k_slice_masses_args_t;

typedef struct k_merge_masses_args {
    const k_masses_t *masses; /* [ranks, rows] */
    const k_sample_row_t *params;
    const k_slice_row_t *state;
    k_slice_cuts_t *cuts;
    bool by_top_p;
    uint32_t round;
    uint32_t rows;
    uint32_t ranks;
    uint32_t rank; /* whose slice it is */
} k_merge_masses_args_t;

/* A token that may be sampled. */
typedef struct k_candidate {
    double value; /* scaled + noise; -inf: less than that of `best` */
    float scaled; /* (z - max) / temperature */
    float weight; /* exp(scaled) */
    float logit;
    int32_t token;
} k_candidate_t;

/* Without top_k and top_p the one of the largest value; else the best ones, most likely first. */
typedef struct k_candidates {
    uint64_t weight;   /* of all tokens of the slice; with top_p and no top_k */
    uint32_t possible; /* tokens there would be */
    uint32_t n;
    k_candidate_t best[]; /* [most] */
} k_candidates_t;

static inline size_t k_candidates_bytes(uint32_t most)
{
    return sizeof(k_candidates_t) + most * sizeof(k_candidate_t);
}

/*
 * Of open rows. z is scaled in place; a row that is asked again has it so already. With cuts, which all
 * rows have that ask for top_k or top_p, there is one candidate, the best of what they keep.
 */
typedef struct k_slice_candidates_args {
    const float *logits;
    float *z; /* as slice_max left it */
    const k_sample_row_t *params;
    const k_slice_row_t *state;
    const k_slice_cuts_t *cuts; /* [rows]; NULL: lists of candidates */
    void *out;                  /* [rows] k_candidates_t of `most` */
    uint32_t most;
    bool is_again;
    uint32_t rows;
    uint32_t first_token;
    uint32_t tokens;
    size_t stride;
} k_slice_candidates_args_t;

typedef struct k_merge_candidates_args {
    const void *candidates; /* [ranks, rows] k_candidates_t of `most` */
    const k_sample_row_t *params;
    k_slice_row_t *state; /* rows whose candidates do not say enough stay open */
    k_sampled_t *out;
    bool is_cut; /* they were made with cuts: the best one is sampled */
    uint32_t most;
    uint32_t rows;
    uint32_t ranks;
} k_merge_candidates_args_t;

typedef struct k_top {
    float logit;
    int32_t token;
} k_top_t;

/* A slice's share of what log-probabilities are made of. */
typedef struct k_tally {
    uint64_t weight; /* of exp(logit - max_logit) */
    uint32_t larger; /* tokens before the row's own: larger logits, equal ones of lower ids */
    uint32_t n_top;
    k_top_t top[]; /* [max_top], most likely first, ties by lower id */
} k_tally_t;

static inline size_t k_tally_bytes(uint32_t max_top)
{
    return sizeof(k_tally_t) + max_top * sizeof(k_top_t);
}

/* Of rows that want log-probabilities; no row's n_top is more than max_top. */
typedef struct k_slice_logprobs_args {
    const float *logits;
    const k_slice_row_t *state;
    void *out; /* [rows] k_tally_t of max_top */
    uint32_t max_top;
    uint32_t rows;
    uint32_t first_token;
    uint32_t tokens;
    size_t stride;
} k_slice_logprobs_args_t;

typedef struct k_merge_logprobs_args {
    const void *tallies; /* [ranks, rows] k_tally_t of max_top */
    const k_slice_row_t *state;
    k_sampled_t *out;
    uint32_t max_top;
    uint32_t rows;
    uint32_t ranks;
} k_merge_logprobs_args_t;

/* ---- the table ----------------------------------------------------------------------------- */

#define K_ATTENTION_SOFTCAP 1U
#define K_ATTENTION_SINKS   2U

typedef enum k_op_id {
#define OP(name) K_OP_##name,
#include "kernels/ops.def"
#undef OP
    K_OP_COUNT
} k_op_id_t;

/* An op that a backend has not (yet) is NULL: models that need it are refused at load. */
typedef struct k_ops {
    const char *name; /* as in --cpu-isa: "ref", "avx2", "avx512" …; or "cuda" */
    bool (*is_supported)(void);
    k_dtype_t act;               /* of activations between ops */
    uint32_t attention_features; /* K_ATTENTION_*: what its attention heeds */
    /* Whether to a cache like this, of which `latent` elements are summed (0: plain); NULL: to any. */
    bool (*can_attend)(const k_kv_view_t *kv, uint32_t latent);

    /*
     * Bytes of a packed weight; 0: computes from the file's own bytes, nothing to pack; SIZE_MAX: the
     * backend has no such weight (a dtype without kernels, K_WEIGHT_GATE_UP where nothing is gained).
     */
    size_t (*weight_bytes)(k_dtype_t dtype, k_weight_form_t form, uint32_t rows, uint32_t columns);
    bool norms_in_linear; /* linear heeds args.norm; the same bits as rms_norm before it */
    bool has_f8_8x32;     /* weights of K_F8_8X32 have kernels of their own */
    bool packs_slices;    /* weight_pack takes parts with a stride: some columns of wider rows */
    /*
     * dst [weight_bytes()], zeroed, 128-byte aligned, on the stream's device; parts lie in host memory (the
     * mapped file) and may be read until the stream is synced. Runs on the stream's threads.
     */
    void (*weight_pack)(k_stream_t *stream, k_dtype_t dtype, k_weight_form_t form, uint32_t columns,
                        const k_weight_part_t *parts, uint32_t n_parts, void *dst);
    /* Scratch memory an op may need for at most `rows` rows of at most `width` elements (vocabulary
     * included). */
    size_t (*scratch_bytes)(uint32_t rows, uint32_t width, uint32_t threads);
    /* Device memory that nobody gives the backend: staging while weights are loaded, graphs. */
    size_t own_bytes;

#define OP(name) void (*name)(k_stream_t * stream, const k_##name##_args_t *args);
#include "kernels/ops.def"
#undef OP
} k_ops_t;

const char *k_op_name(k_op_id_t op);
bool k_ops_has(const k_ops_t *ops, k_op_id_t op);

struct k_stream {
    const k_ops_t *ops;
    const struct k_backend *backend;
    weft_device_t *device;
    weft_queue_t *queue;
    struct k_team *team;        /* cpu: the persistent threads */
    uint32_t multiprocessors;   /* cuda */
    struct cuda_loader *loader; /* cuda, while weights are read */
    weft_mem_t scratch;         /* made by k_stream_reserve */
};

/*
 * isa: "auto", or a name of k_ops (isas.def). threads 0: the cores this process may
 * use (affinity and cgroup counted).
 * WEFT_ERR_UNSUPPORTED names what this machine has.
 */
weft_status_t k_stream_create(weft_device_t *device, const char *isa, uint32_t threads,
                              weft_diag_t *diag, k_stream_t **stream_out);
void k_stream_destroy(k_stream_t *stream); /* NULL is fine */

/*
 * Makes room for ops of up to `rows` rows of `width` elements; called before the first op. width
 * is the widest row any op reads or writes: the vocabulary's logits count.
 */
weft_status_t k_stream_reserve(k_stream_t *stream, uint32_t rows, uint32_t width);

/* Waits until everything enqueued is done. */
weft_status_t k_stream_sync(k_stream_t *stream);

uint32_t k_stream_threads(const k_stream_t *stream); /* 1 where ops have none */

/*
 * Graphs: what is enqueued between capture and end_capture does not run but is recorded, with the
 * addresses and counts it was called with; copies count as ops. Launching one enqueues all of it for
 * the price of one op. A stream without graphs must not be asked for one.
 * end_capture: WEFT_ERR_NO_MEMORY where the device has no room for the graph; all else goes on.
 */
bool k_stream_has_graphs(const k_stream_t *stream);
weft_status_t k_stream_capture(k_stream_t *stream);
weft_status_t k_stream_end_capture(k_stream_t *stream, k_graph_t **graph_out);
void k_graph_launch(k_stream_t *stream, const k_graph_t *graph);
/* Launches of it that are on their way end as ever. NULL is fine. */
void k_graph_destroy(k_stream_t *stream, k_graph_t *graph);

/* The ops tables of the CPU, best first, NULL-terminated; check is_supported(). */
const k_ops_t *const *k_ops_all(void);
