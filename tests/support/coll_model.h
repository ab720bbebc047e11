/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_model: what collectives must come to, computed plainly from what every rank is known to give.
 */
#pragma once

#include <string.h>

#include "tests/support/random.h"
#include "transport/coll/coll_half.h"
#include "transport/coll/coll_sum.h"

/* Element i that `rank` gives in round `round`: of widely different sizes, so that order shows. */
static inline float coll_model_value(uint64_t round, uint32_t rank, size_t i)
{
    test_random_t random = {.state = round << 40 ^ (uint64_t)rank << 32 ^ i};
    const uint64_t bits = test_random_u64(&random);
    const float fraction = (float)(int32_t)(bits & 0xffffff) - 8388608.0f;
    return fraction * coll_f32_of_bits((uint32_t)(127 - 30 + (bits >> 24) % 16) << 23);
}

static inline void coll_model_store(coll_dtype_t dtype, void *at, size_t i, float value)
{
    if (dtype == COLL_F32) {
        ((float *)at)[i] = value;
    } else {
        ((uint16_t *)at)[i] = dtype == COLL_F16 ? coll_f16_of_f32(value) : coll_bf16_of_f32(value);
    }
}

static inline float coll_model_load(coll_dtype_t dtype, const void *at, size_t i)
{
    if (dtype == COLL_F32) {
        return ((const float *)at)[i];
    }
    const uint16_t half = ((const uint16_t *)at)[i];
    return dtype == COLL_F16 ? coll_f32_of_f16(half) : coll_f32_of_bf16(half);
}

/* What `rank` gives: elements first … first + n of its input. */
static inline void coll_model_input(uint64_t round, uint32_t rank, coll_dtype_t dtype, void *out,
                                    size_t first, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        coll_model_store(dtype, out, i, coll_model_value(round, rank, first + i));
    }
}

/* The sum of those elements, in rank order. */
static inline void coll_model_sum(uint64_t round, uint32_t size, coll_dtype_t dtype, void *out,
                                  size_t first, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char one[4];
        float sum = 0;
        for (uint32_t rank = 0; rank < size; rank++) {
            coll_model_store(dtype, one, 0, coll_model_value(round, rank, first + i));
            const float value = coll_model_load(dtype, one, 0);
            sum = rank == 0 ? value : sum + value;
        }
        coll_model_store(dtype, out, i, sum);
    }
}

/* Bytes that `rank` gives in that round. */
static inline void coll_model_bytes(uint64_t round, uint32_t rank, char *out, size_t n)
{
    test_random_t random = {.state = round << 20 ^ rank};
    const uint64_t base = test_random_u64(&random);
    for (size_t i = 0; i < n; i++) {
        out[i] = (char)(base >> i % 57 ^ i * 31);
    }
}
