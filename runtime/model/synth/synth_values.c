/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/synth/synth_values.h"

#include <math.h>
#include <string.h>

#include "base/float8.h"

#define GOLDEN UINT64_C(0x9e3779b97f4a7c15)

uint64_t synth_mix(uint64_t a, uint64_t b)
{
    uint64_t z = a + (b + 1) * GOLDEN;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* ---- plain numbers ------------------------------------------------------------------------- */

/* The x that a normal variable stays below with probability p: bisection needs no table. */
static double normal_quantile(double p)
{
    double low = -9;
    double high = 9;
    for (int i = 0; i < 48; i++) {
        const double middle = (low + high) / 2;
        if (0.5 * erfc(-middle / sqrt(2)) < p) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return (low + high) / 2;
}

void synth_normal_init(synth_normal_t *normal)
{
    for (int i = 0; i < SYNTH_QUANTILES; i++) {
        normal->quantile[i] = normal_quantile((i + 0.5) / SYNTH_QUANTILES);
    }
}

static void tabulate(synth_values_t *values, const synth_normal_t *normal, double mean,
                     double deviation)
{
    for (int i = 0; i < SYNTH_QUANTILES; i++) {
        const float x = (float)(mean + deviation * normal->quantile[i]);
        memcpy(&values->wide[i], &x, sizeof(x));
        values->narrow[i] = values->dtype == K_BF16 ? k_f32_to_bf16(x) : k_f32_to_f16(x);
        values->bytes[i] = weft_f32_to_f8(x);
    }
}

/* Four elements a word of 64 random bits. */
static uint32_t quantile_of(uint64_t word, uint64_t element)
{
    return (uint32_t)(word >> (element % 4 * 16)) % SYNTH_QUANTILES;
}

static void fill_wide(const synth_values_t *values, uint64_t first, size_t n, void *out)
{
    uint32_t *y = out;
    for (size_t i = 0; i < n; i++) {
        y[i] = values->wide[quantile_of(synth_mix(values->key, (first + i) / 4), first + i)];
    }
}

static void fill_narrow(const synth_values_t *values, uint64_t first, size_t n, void *out)
{
    uint16_t *y = out;
    size_t i = 0;
    for (; i < n && (first + i) % 4 != 0; i++) {
        y[i] = values->narrow[quantile_of(synth_mix(values->key, (first + i) / 4), first + i)];
    }
    for (; i + 4 <= n; i += 4) {
        const uint64_t word = synth_mix(values->key, (first + i) / 4);
        for (uint64_t j = 0; j < 4; j++) {
            y[i + j] = values->narrow[quantile_of(word, j)];
        }
    }
    for (; i < n; i++) {
        y[i] = values->narrow[quantile_of(synth_mix(values->key, (first + i) / 4), first + i)];
    }
}

static void fill_bytes(const synth_values_t *values, uint64_t first, size_t n, void *out)
{
    uint8_t *y = out;
    for (size_t i = 0; i < n;) {
        const uint64_t word = synth_mix(values->key, (first + i) / 4);
        do {
            y[i] = values->bytes[quantile_of(word, first + i)];
            i++;
        } while (i < n && (first + i) % 4 != 0);
    }
}

static void fill_words(const synth_values_t *values, uint64_t first, size_t n, void *out)
{
    uint32_t *y = out;
    for (size_t i = 0; i < n; i++) {
        y[i] = ((uint32_t)synth_mix(values->key, first + i) & values->mask) + values->least;
    }
}

/* ---- blocks -------------------------------------------------------------------------------- */

typedef void (*block_fn)(const synth_values_t *values, uint64_t random, uint8_t *block);

static void store_u16(uint8_t *p, uint16_t value)
{
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

static void scale_at_0(const synth_values_t *values, uint64_t random, uint8_t *block)
{
    store_u16(block, values->scales[random % 256]);
}

static void scale_and_offset_at_0(const synth_values_t *values, uint64_t random, uint8_t *block)
{
    store_u16(block, values->scales[random % 256]);
    store_u16(block + 2, values->offsets[random % 256]);
}

/* Scales of sub-blocks are 8 to 15, the minimum of each is its scale: four bits hold both. */
static void scale_q4_k(const synth_values_t *values, uint64_t random, uint8_t *block)
{
    scale_and_offset_at_0(values, random, block);
    for (int i = 0; i < 4; i++) {
        block[4 + i] = (uint8_t)(8 | (random >> (8 + 3 * i) & 7));
        block[8 + i] = block[4 + i];
        block[12 + i] = (uint8_t)((8 | (random >> (20 + 3 * i) & 7)) * 17);
    }
}

/* One byte holds scale (low) and minimum (high) of 16 elements. */
static void scale_q2_k(const synth_values_t *values, uint64_t random, uint8_t *block)
{
    for (int i = 0; i < 16; i++) {
        block[i] = (uint8_t)((8 | (random >> (8 + 3 * i) & 7)) * 17);
    }
    scale_and_offset_at_0(values, random, block + 80);
}

/* Sub-scales of 6 bits, less 32: 8 to 15 is 40 to 47, whose top pairs are 10. */
static void scale_q3_k(const synth_values_t *values, uint64_t random, uint8_t *block)
{
    for (int i = 0; i < 8; i++) {
        block[96 + i] = (uint8_t)(0x88 | (random >> (8 + 6 * i) & 0x77));
    }
    memset(block + 104, 0xaa, 4);
    store_u16(block + 108, values->scales[random % 256]);
}

static void scale_mxfp4(const synth_values_t *values, uint64_t random, uint8_t *block)
{
    block[0] = (uint8_t)(values->exponent + random % 2);
}

static void scale_q6_k(const synth_values_t *values, uint64_t random, uint8_t *block)
{
    for (int i = 0; i < 16; i++) {
        block[192 + i] = (uint8_t)(8 | (random >> (8 + 3 * i) & 7));
    }
    store_u16(block + 208, values->scales[random % 256]);
}

/*
 * All bytes of a block are random, then its scales are set. deviation: of the block's elements at a
 * step of 1, were they uniform; offset: what an element's mean is then, where the format can take
 * it away. Formats that cannot have it at half a step: blocks of either sign make up for it.
 */
typedef struct block_kind {
    block_fn set_scales;
    double deviation;
    double offset;
} block_kind_t;

#define UNIFORM(levels) ((levels) / 3.4641016151377544) /* sqrt(12) */
#define SUB_SCALE       11.5                            /* 8 to 15 */

static const block_kind_t kinds[K_DTYPE_COUNT] = {
    [K_Q4_0] = {scale_at_0, UNIFORM(16), 0},
    [K_Q4_1] = {scale_and_offset_at_0, UNIFORM(16), -7.5},
    [K_Q5_0] = {scale_at_0, UNIFORM(32), 0},
    [K_Q5_1] = {scale_and_offset_at_0, UNIFORM(32), -15.5},
    [K_Q8_0] = {scale_at_0, UNIFORM(256), 0},
    [K_Q2_K] = {scale_q2_k, UNIFORM(4) * SUB_SCALE, 1.5},
    [K_Q3_K] = {scale_q3_k, UNIFORM(8) * SUB_SCALE, 0},
    [K_Q4_K] = {scale_q4_k, UNIFORM(16) * SUB_SCALE, 7.5},
    [K_Q5_K] = {scale_q4_k, UNIFORM(32) * SUB_SCALE, 15.5},
    [K_IQ4_NL] = {scale_at_0, 67.44, 0},
    [K_MXFP4] = {scale_mxfp4, 2.93, 0},
    [K_Q6_K] = {scale_q6_k, UNIFORM(64) * SUB_SCALE, 0},
};

/* Steps from 3/4 to 5/4 of the mean one. */
static void tabulate_scales(synth_values_t *values, double deviation)
{
    const block_kind_t *kind = &kinds[values->dtype];
    for (int i = 0; i < 256; i++) {
        const double share = (0.75 + 0.5 * (i % 128) / 127) * (i < 128 ? 1 : -1);
        const float step = (float)(share * deviation / kind->deviation);
        values->scales[i] = k_f32_to_f16(step);
        values->offsets[i] = k_f32_to_f16((float)(step * kind->offset));
    }
    /* Powers of two come in pairs about the step: their mean square is 5/2 of the lower one's. */
    values->exponent = (uint8_t)(127 + lround(log2(deviation / kind->deviation / sqrt(2.5))));
}

static void fill_blocks(const synth_values_t *values, uint64_t first, size_t n, void *out)
{
    const size_t bytes = k_dtype_info(values->dtype)->block_bytes;
    const size_t words = bytes / 8 + 2; /* the last one picks the scales */
    uint8_t *block = out;
    for (size_t i = 0; i < n; i++, block += bytes) {
        const uint64_t word = (first + i) * words;
        for (size_t j = 0; j < bytes; j += 8) {
            const uint64_t random = synth_mix(values->key, word + j / 8);
            memcpy(block + j, &random, bytes - j < 8 ? bytes - j : 8);
        }
        kinds[values->dtype].set_scales(values, synth_mix(values->key, word + words - 1), block);
    }
}

/* ---- any type ------------------------------------------------------------------------------ */

bool synth_values_has(k_dtype_t dtype)
{
    return dtype == K_F32 || dtype == K_F16 || dtype == K_BF16 || dtype == K_F8 ||
           kinds[dtype].set_scales != NULL;
}

void synth_values_init(synth_values_t *values, const synth_normal_t *normal, k_dtype_t dtype,
                       uint64_t key, double mean, double deviation)
{
    values->dtype = dtype;
    values->key = key;
    if (k_dtype_info(dtype)->block_elements == 1) {
        tabulate(values, normal, mean, deviation);
    } else {
        tabulate_scales(values, deviation);
    }
}

void synth_values_init_words(synth_values_t *values, uint64_t key, uint32_t mask, uint32_t least)
{
    values->dtype = K_I32;
    values->key = key;
    values->mask = mask;
    values->least = least;
}

void synth_values_fill(const synth_values_t *values, uint64_t first, size_t n, void *out)
{
    if (values->dtype == K_F32) {
        fill_wide(values, first, n, out);
    } else if (values->dtype == K_F16 || values->dtype == K_BF16) {
        fill_narrow(values, first, n, out);
    } else if (values->dtype == K_F8) {
        fill_bytes(values, first, n, out);
    } else if (values->dtype == K_I32) {
        fill_words(values, first, n, out);
    } else {
        fill_blocks(values, first, n, out);
    }
}
