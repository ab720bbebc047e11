/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/packing.h"

#include <assert.h>
#include <string.h>

#include "base/compiler.h"
#include "kernels/k_team.h"

/* Units that share scales in the k types; source blocks of the others are one unit. */
enum { K_UNITS = 8, MAX_LANES = 16 };

typedef struct form {
    uint32_t quant_bytes; /* of a unit and lane; 0: plain */
    uint32_t scale_units;
    uint32_t scale_bytes; /* of scale_units units and a lane */
} form_t;

static const form_t forms[K_DTYPE_COUNT] = {
    [K_Q4_0] = {16, 1, 2},        [K_Q4_1] = {16, 1, 4},        [K_Q8_0] = {32, 1, 2},
    [K_Q4_K] = {16, K_UNITS, 20}, [K_Q6_K] = {24, K_UNITS, 18},
};

bool packing_has(k_dtype_t dtype)
{
    return forms[dtype].quant_bytes != 0 || dtype == K_F32 || dtype == K_F16 || dtype == K_BF16;
}

packing_t packing_of(k_dtype_t dtype, uint32_t columns, uint32_t lanes)
{
    assert(lanes <= MAX_LANES);
    const form_t *form = &forms[dtype];
    packing_t packing = {.dtype = dtype, .lanes = lanes, .columns = columns};
    if (form->quant_bytes == 0) {
        packing.scales_at = (size_t)columns * lanes * k_dtype_info(dtype)->block_bytes;
        packing.group_bytes = packing.scales_at;
    } else {
        const size_t units = columns / PACKING_UNIT;
        packing.scales_at = units * form->quant_bytes * lanes;
        packing.group_bytes =
            packing.scales_at + units / form->scale_units * form->scale_bytes * lanes;
    }
    packing.group_bytes =
        (packing.group_bytes + WEFT_CACHE_LINE - 1) / WEFT_CACHE_LINE * WEFT_CACHE_LINE;
    return packing;
}

size_t packing_bytes(const packing_t *packing, uint32_t rows)
{
    return ((size_t)rows + packing->lanes - 1) / packing->lanes * packing->group_bytes;
}

/* ---- one row into its lane ----------------------------------------------------------------- */

static void copy_words(const packing_t *packing, const uint8_t *from, uint32_t words, uint8_t *to)
{
    for (uint32_t j = 0; j < words; j++) {
        memcpy(to + (size_t)j * packing->lanes * 4, from + (size_t)j * 4, 4);
    }
}

/* d (and m) of 2 bytes each, then quants that already lie as a unit wants them. */
static void pack_simple(const packing_t *packing, const uint8_t *row, uint32_t lane, uint8_t *group)
{
    const form_t *form = &forms[packing->dtype];
    const uint32_t block_bytes = k_dtype_info(packing->dtype)->block_bytes;
    for (uint32_t unit = 0; unit < packing->columns / PACKING_UNIT; unit++) {
        const uint8_t *block = row + (size_t)unit * block_bytes;
        const size_t scales =
            packing->scales_at + (size_t)unit * form->scale_bytes * packing->lanes;
        for (uint32_t s = 0; s < form->scale_bytes; s += 2) {
            memcpy(group + scales + (size_t)s * packing->lanes + (size_t)lane * 2, block + s, 2);
        }
        uint8_t quants[PACKING_UNIT];
        memcpy(quants, block + form->scale_bytes, form->quant_bytes);
        if (packing->dtype == K_Q8_0 && packing->lanes == 16) {
            for (uint32_t i = 0; i < PACKING_UNIT; i++) {
                quants[i] ^= 0x80;
            }
        }
        copy_words(packing, quants, form->quant_bytes / 4,
                   group + (size_t)unit * form->quant_bytes * packing->lanes + (size_t)lane * 4);
    }
}

/* See dequantize.c for the source's layout. */
static void q4_k_scale(const uint8_t *packed, uint32_t j, uint8_t *scale_out, uint8_t *min_out)
{
    if (j < 4) {
        *scale_out = packed[j] & 63;
        *min_out = packed[j + 4] & 63;
    } else {
        *scale_out = (uint8_t)((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
        *min_out = (uint8_t)((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
    }
}

static void pack_q4_k(const packing_t *packing, const uint8_t *row, uint32_t lane, uint8_t *group)
{
    const size_t lanes = packing->lanes;
    for (uint32_t b = 0; b < packing->columns / (K_UNITS * PACKING_UNIT); b++) {
        const uint8_t *block = row + (size_t)b * 144;
        uint8_t *scales = group + packing->scales_at + b * 20 * lanes;
        memcpy(scales + (size_t)lane * 2, block, 2);
        memcpy(scales + lanes * 2 + (size_t)lane * 2, block + 2, 2);
        for (uint32_t j = 0; j < K_UNITS; j++) {
            q4_k_scale(block + 4, j, &scales[(4 + j) * lanes + lane],
                       &scales[(12 + j) * lanes + lane]);
            const uint8_t *from = block + 16 + (size_t)(j / 2) * 32;
            uint8_t nibbles[16];
            for (uint32_t i = 0; i < 16; i++) {
                const uint8_t low = from[i] >> (j % 2 * 4) & 15;
                const uint8_t high = from[i + 16] >> (j % 2 * 4) & 15;
                nibbles[i] = (uint8_t)(low | high << 4);
            }
            copy_words(packing, nibbles, 4,
                       group + ((size_t)b * K_UNITS + j) * 16 * lanes + (size_t)lane * 4);
        }
    }
}

static uint8_t q6_k_value(const uint8_t *block, uint32_t element)
{
    const uint32_t half = element / 128;
    const uint32_t line = element % 128 / 32;
    const uint32_t i = element % 32;
    const int low = block[half * 64 + line % 2 * 32 + i] >> (line / 2 * 4) & 15;
    const int high = block[128 + half * 32 + i] >> (line * 2) & 3;
    return (uint8_t)(low | high << 4);
}

static void pack_q6_k(const packing_t *packing, const uint8_t *row, uint32_t lane, uint8_t *group)
{
    const size_t lanes = packing->lanes;
    for (uint32_t b = 0; b < packing->columns / (K_UNITS * PACKING_UNIT); b++) {
        const uint8_t *block = row + (size_t)b * 210;
        uint8_t *scales = group + packing->scales_at + b * 18 * lanes;
        memcpy(scales + (size_t)lane * 2, block + 208, 2);
        for (uint32_t s = 0; s < 16; s++) {
            scales[(2 + s) * lanes + lane] = block[192 + s];
        }
        for (uint32_t j = 0; j < K_UNITS; j++) {
            uint8_t unit[24] = {0};
            for (uint32_t e = 0; e < PACKING_UNIT; e++) {
                const uint8_t value = q6_k_value(block, j * PACKING_UNIT + e);
                unit[e % 16] |= (uint8_t)((value & 15) << (e / 16 * 4));
                unit[16 + e / 16 * 4 + e % 4] |= (uint8_t)(value >> 4 << (e % 16 / 4 * 2));
            }
            copy_words(packing, unit, 6,
                       group + ((size_t)b * K_UNITS + j) * 24 * lanes + (size_t)lane * 4);
        }
    }
}

static void pack_plain(const packing_t *packing, const uint8_t *row, uint32_t lane, uint8_t *group)
{
    const size_t bytes = k_dtype_info(packing->dtype)->block_bytes;
    for (uint32_t k = 0; k < packing->columns; k++) {
        memcpy(group + ((size_t)k * packing->lanes + lane) * bytes, row + k * bytes, bytes);
    }
}

/* ---- the matrix ---------------------------------------------------------------------------- */

typedef struct job {
    const packing_t *packing;
    const k_weight_part_t *parts;
    uint32_t n_parts;
    uint8_t *dst;
} job_t;

static const uint8_t *find_row(const job_t *job, uint64_t row)
{
    size_t row_bytes = 0;
    k_dtype_row_bytes(job->packing->dtype, job->packing->columns, &row_bytes);
    for (uint32_t i = 0; i < job->n_parts; i++) {
        if (row < job->parts[i].rows) {
            return (const uint8_t *)job->parts[i].data + row * row_bytes;
        }
        row -= job->parts[i].rows;
    }
    return NULL;
}

static void pack_group(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const job_t *job = arg;
    const packing_t *packing = job->packing;
    uint8_t *group = job->dst + item * packing->group_bytes;
    memset(group, 0, packing->group_bytes);
    for (uint32_t lane = 0; lane < packing->lanes; lane++) {
        const uint8_t *row = find_row(job, (uint64_t)item * packing->lanes + lane);
        if (row == NULL) {
            return;
        }
        switch (packing->dtype) {
        case K_Q4_K:
            pack_q4_k(packing, row, lane, group);
            break;
        case K_Q6_K:
            pack_q6_k(packing, row, lane, group);
            break;
        case K_Q4_0:
        case K_Q4_1:
        case K_Q8_0:
            pack_simple(packing, row, lane, group);
            break;
        default:
            pack_plain(packing, row, lane, group);
        }
    }
}

void packing_pack(const packing_t *packing, k_stream_t *stream, const k_weight_part_t *parts,
                  uint32_t n_parts, void *dst)
{
    const job_t job = {packing, parts, n_parts, dst};
    uint64_t rows = 0;
    for (uint32_t i = 0; i < n_parts; i++) {
        rows += parts[i].rows;
    }
    k_team_run(stream->team, (uint32_t)((rows + packing->lanes - 1) / packing->lanes), pack_group,
               &job);
}

/* ---- one row back -------------------------------------------------------------------------- */

static float load_f16(const uint8_t *from)
{
    uint16_t bits;
    memcpy(&bits, from, sizeof(bits));
    return k_f16_to_f32(bits);
}

/* The integers of a unit, offsets taken off. */
static void unpack_unit(const packing_t *packing, const uint8_t *group, uint32_t unit,
                        uint32_t lane, int values[PACKING_UNIT])
{
    const size_t step = (size_t)packing->lanes * 4;
    const uint8_t *from = group +
                          (size_t)unit * forms[packing->dtype].quant_bytes * packing->lanes +
                          (size_t)lane * 4;
    for (uint32_t e = 0; e < PACKING_UNIT; e++) {
        const uint32_t i = e % 4;
        const int nibble = from[e % 16 / 4 * step + i] >> (e / 16 * 4) & 15;
        switch (packing->dtype) {
        case K_Q8_0:
            values[e] = packing->lanes == 16 ? from[e / 4 * step + i] - 128
                                             : (int8_t)from[e / 4 * step + i];
            break;
        case K_Q6_K:
            values[e] =
                (nibble | (from[(4 + e / 16) * step + i] >> (e % 16 / 4 * 2) & 3) << 4) - 32;
            break;
        case K_Q4_0:
            values[e] = nibble - 8;
            break;
        default:
            values[e] = nibble;
        }
    }
}

/* As k_dequantize: value · (scale product), then the offset. */
static void scale_unit(const packing_t *packing, const uint8_t *group, uint32_t unit, uint32_t lane,
                       const int values[PACKING_UNIT], float *y)
{
    const size_t lanes = packing->lanes;
    const form_t *form = &forms[packing->dtype];
    const uint8_t *scales =
        group + packing->scales_at + (size_t)unit / form->scale_units * form->scale_bytes * lanes;
    const uint32_t j = unit % form->scale_units;
    const float d = load_f16(scales + (size_t)lane * 2);
    const uint8_t *second = scales + lanes * 2 + (size_t)lane * 2;

    for (uint32_t e = 0; e < PACKING_UNIT; e++) {
        const float value = (float)values[e];
        if (packing->dtype == K_Q4_K) {
            const float step = d * (float)scales[(4 + j) * lanes + lane];
            const float offset = load_f16(second) * (float)scales[(12 + j) * lanes + lane];
            const float product = step * value;
            y[e] = product - offset;
        } else if (packing->dtype == K_Q6_K) {
            const float step = d * (float)(int8_t)scales[(2 + 2 * j + e / 16) * lanes + lane];
            y[e] = step * value;
        } else if (packing->dtype == K_Q4_1) {
            const float product = value * d;
            y[e] = product + load_f16(second);
        } else {
            y[e] = value * d;
        }
    }
}

static void unpack_plain(const packing_t *packing, const uint8_t *group, uint32_t lane, float *y)
{
    const size_t bytes = k_dtype_info(packing->dtype)->block_bytes;
    for (uint32_t k = 0; k < packing->columns; k++) {
        k_dequantize(packing->dtype, group + ((size_t)k * packing->lanes + lane) * bytes, &y[k], 1);
    }
}

void packing_unpack_row(const packing_t *packing, const void *data, uint32_t row, float *y)
{
    const uint8_t *group = (const uint8_t *)data + row / packing->lanes * packing->group_bytes;
    const uint32_t lane = row % packing->lanes;
    if (forms[packing->dtype].quant_bytes == 0) {
        unpack_plain(packing, group, lane, y);
        return;
    }
    for (uint32_t unit = 0; unit < packing->columns / PACKING_UNIT; unit++) {
        int values[PACKING_UNIT];
        unpack_unit(packing, group, unit, lane, values);
        scale_unit(packing, group, unit, lane, values, y + (size_t)unit * PACKING_UNIT);
    }
}
