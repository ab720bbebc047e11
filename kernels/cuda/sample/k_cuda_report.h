/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_report: log-softmax, rank and the most likely tokens of rows of logits, for what was sampled
 * (sample.cu) and for prompts (k_cuda_logprobs).
 */
#pragma once

#include "kernels/cuda/k_cuda.h"

typedef struct k_cuda_report {
    const float *logits; /* [rows, vocab] */
    /* Of sampled rows: which report anything, and how much; out has the chosen token. Else NULL. */
    const k_sample_row_t *params;
    const int32_t *targets; /* [rows], of prompt rows; else NULL */
    const uint32_t *n_top;  /* [rows], of prompt rows; else NULL */
    k_sampled_t *out;       /* [rows] */
    uint32_t rows;
    uint32_t vocab;
    size_t logits_stride;
} k_cuda_report_t;

size_t k_cuda_report_scratch_bytes(uint32_t rows, uint32_t vocab);

/* scratch [k_cuda_report_scratch_bytes()]; returns cudaError_t. */
int k_cuda_report(const k_cuda_launch_t *at, const k_cuda_report_t *report, void *scratch);
