/* SPDX-License-Identifier: Apache-2.0 */
/* What adapters add to linears. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtypes.h"
#include "kernels/ops/op_sequences.h"

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
