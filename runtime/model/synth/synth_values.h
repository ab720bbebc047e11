/* SPDX-License-Identifier: Apache-2.0 */
/*
 * synth_values: random weights, written in the form of a dtype.
 *
 * Counter-based: element i of a tensor is a function of (key, i), so pieces may be filled in any
 * order by anybody.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtypes.h"

#define SYNTH_QUANTILES 4096

/* Points of the normal distribution that are equally likely. */
typedef struct synth_normal {
    double quantile[SYNTH_QUANTILES];
} synth_normal_t;

void synth_normal_init(synth_normal_t *normal);

/* A distribution as one dtype stores it. */
typedef struct synth_values {
    k_dtype_t dtype;
    uint64_t key;
    uint32_t wide[SYNTH_QUANTILES];   /* bits of F32 values */
    uint16_t narrow[SYNTH_QUANTILES]; /* of F16 and BF16 ones */
    uint8_t bytes[SYNTH_QUANTILES];   /* of E4M3 ones */
    uint16_t scales[256];             /* F16 steps of blocks: half of them negative */
    uint16_t offsets[256];            /* what centres a block of unsigned values, beside it */
    uint8_t exponent;                 /* the lower of the two powers of two that E8M0 scales are */
    uint32_t mask;                    /* bits of words that are random */
    uint32_t least;                   /* added to each */
} synth_values_t;

/* Whether weights of this type can be made. */
bool synth_values_has(k_dtype_t dtype);

/* mean is heeded by types without blocks; blocks have mean 0. */
void synth_values_init(synth_values_t *values, const synth_normal_t *normal, k_dtype_t dtype,
                       uint64_t key, double mean, double deviation);

/* Words of packed numbers, K_I32: (random bits & mask) + least. */
void synth_values_init_words(synth_values_t *values, uint64_t key, uint32_t mask, uint32_t least);

/* Writes blocks [first, first + n) of the tensor: elements for types without blocks. */
void synth_values_fill(const synth_values_t *values, uint64_t first, size_t n, void *out);

/* Well mixed bits of two numbers; Steele et al. 2014, "Fast splittable pseudorandom number
 * generators". */
uint64_t synth_mix(uint64_t a, uint64_t b);
