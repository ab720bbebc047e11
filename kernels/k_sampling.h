/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_sampling: one row of logits to a token, and its log-probabilities. Shared by the op tables of
 * the CPU.
 *
 * Weights exp(scaled) are added as integers, 2^44 is 1: sums are exact, whatever their order.
 *
 * A NaN logit counts as -inf, +inf as the largest float. A row where nothing is possible gives the
 * lowest allowed token, or the most likely one when the mask allows nothing.
 *
 * Noise of a token: -log(-log(u)), u = (w + ½) / 2^32, w the first word of Philox4x32-10 with key
 * (seed low, seed high) and counter (output_index low, output_index high, token, 0).
 */
#pragma once

#include <stddef.h>

#include "kernels/kernels.h"

/* Scratch memory that picking from so many tokens needs. */
size_t k_sampling_scratch_bytes(uint32_t tokens);

/* The token that params picks from logits [vocab], which are left alone. */
int32_t k_sampling_pick(const float *logits, uint32_t vocab, const k_sample_row_t *params,
                        void *scratch);

/* Log-probability and rank of target, and the n_top most likely tokens. */
void k_sampling_report(const float *logits, uint32_t vocab, int32_t target, uint32_t n_top,
                       k_sampled_t *out);
