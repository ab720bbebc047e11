/* SPDX-License-Identifier: Apache-2.0 */
/* Mixtures of experts: who gets a row, their products, and the sum. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/k_weight.h"

#define K_MAX_EXPERTS 512 /* of a layer */

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
