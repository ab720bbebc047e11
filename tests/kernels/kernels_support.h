/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_support: streams, random arrays and weights for the tests of kernels/. */
#pragma once

#include <math.h>
#include <string.h>

#include "base/device.h"
#include "kernels/kernels.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

static inline weft_device_t *open_cpu(void)
{
    static weft_device_t *device;
    if (device == NULL) {
        weft_diag_t diag = {0};
        if (weft_device_open("cpu", 0, &diag, &device) < 0) {
            fail_msg("%s", diag.text);
        }
    }
    return device;
}

/* A stream with room for ops of rows × width. */
static inline k_stream_t *open_stream(const char *isa, uint32_t threads, uint32_t rows,
                                      uint32_t width)
{
    weft_diag_t diag = {0};
    k_stream_t *stream = NULL;
    if (k_stream_create(open_cpu(), isa, threads, &diag, &stream) < 0) {
        fail_msg("%s", diag.text);
    }
    assert_status(k_stream_reserve(stream, rows, width), WEFT_OK);
    return stream;
}

/* fn(isa, random) for every op table that this machine can run; the seed is printed. */
static inline void each_isa(void (*fn)(const char *isa, test_random_t *random), uint64_t seed)
{
    seed = test_seed(seed);
    for (const k_ops_t *const *ops = k_ops_all(); *ops != NULL; ops++) {
        if ((*ops)->is_supported()) {
            test_random_t random = {seed};
            print_message("isa %s\n", (*ops)->name);
            fn((*ops)->name, &random);
        }
    }
}

/* -1 … 1 */
static inline float random_float(test_random_t *random)
{
    return (float)((double)(int64_t)test_random_u64(random) * 0x1p-63);
}

/* n floats within ±1; free with test_free. */
static inline float *random_floats(test_random_t *random, size_t n)
{
    float *x = test_malloc((n + 1) * sizeof(*x));
    for (size_t i = 0; i < n; i++) {
        x[i] = random_float(random);
    }
    return x;
}

static inline void fill_u16(test_random_t *random, uint8_t *at, uint16_t (*encode)(float))
{
    const uint16_t bits = encode(random_float(random));
    memcpy(at, &bits, sizeof(bits));
}

/* What K_F8_8X32 promises: 8 rows, of so many blocks each, get the first one's scales. */
static inline void share_f8_scales(uint8_t *rows, size_t n, size_t blocks)
{
    for (size_t i = 0; i < n * blocks; i++) {
        const size_t first = i / blocks / 8 * 8 * blocks + i % blocks;
        memcpy(rows + i * 36, rows + first * 36, sizeof(float));
    }
}

/* Rows of a dtype as a file has them, scales within ±1; free with test_free. */
static inline uint8_t *random_weights(test_random_t *random, k_dtype_t dtype, size_t elements)
{
    const k_dtype_info_t *info = k_dtype_info(dtype);
    const size_t blocks = elements / info->block_elements;
    uint8_t *data = test_malloc(blocks * info->block_bytes);
    for (size_t i = 0; i < blocks * info->block_bytes; i++) {
        data[i] = (uint8_t)test_random_u64(random);
    }
    for (size_t b = 0; b < blocks; b++) {
        uint8_t *block = data + b * info->block_bytes;
        const float plain = random_float(random);
        switch (dtype) {
        case K_F8:
            block[0] = (uint8_t)(block[0] & 0xbf); /* below 2, no NaN */
            break;
        case K_F8_32:
        case K_F8_8X32:
            for (uint32_t i = 4; i < 36; i++) {
                block[i] = (uint8_t)(block[i] & 0xbf);
            }
            memcpy(block, &plain, sizeof(plain));
            break;
        case K_F32:
            memcpy(block, &plain, sizeof(plain));
            break;
        case K_BF16:
            fill_u16(random, block, k_f32_to_bf16);
            break;
        case K_Q6_K:
            fill_u16(random, block + 208, k_f32_to_f16);
            break;
        case K_Q3_K:
            fill_u16(random, block + 108, k_f32_to_f16);
            break;
        case K_Q2_K:
            fill_u16(random, block + 80, k_f32_to_f16);
            fill_u16(random, block + 82, k_f32_to_f16);
            break;
        case K_TQ1_0:
            fill_u16(random, block + 52, k_f32_to_f16);
            break;
        case K_TQ2_0:
            fill_u16(random, block + 64, k_f32_to_f16);
            break;
        case K_IQ1_M: /* the top nibbles of four words */
            for (int i = 0; i < 4; i++) {
                block[49 + 2 * i] = (uint8_t)((block[49 + 2 * i] & 15) | (i == 3 ? 0x30 : 0x10));
            }
            break;
        case K_MXFP4:
            block[0] = (uint8_t)(124 + block[0] % 4);
            break;
        case K_NVFP4:
            for (int i = 0; i < 4; i++) {
                block[i] = (uint8_t)(32 + block[i] % 24);
            }
            break;
        case K_Q4_1:
        case K_Q5_1:
        case K_Q4_K:
        case K_Q5_K:
            fill_u16(random, block + 2, k_f32_to_f16);
            fill_u16(random, block, k_f32_to_f16);
            break;
        default:
            fill_u16(random, block, k_f32_to_f16);
        }
    }
    return data;
}

static inline void assert_same_bits(const float *a, const float *b, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0) {
            fail_msg("%s: element %zu is %a, alone %a", what, i, (double)a[i], (double)b[i]);
        }
    }
}
