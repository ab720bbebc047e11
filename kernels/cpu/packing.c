/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/packing.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/compiler.h"
#include "base/float8.h"
#include "kernels/cpu/packing_source.h"
#include "kernels/dequantize_priv.h"
#include "kernels/k_team.h"

enum { MAX_LANES = 16 };

static const packing_form_t *form_of(const packing_t *packing)
{
    return &packing_forms[packing->dtype];
}

static const packing_scale_form_t *scale_form_of(const packing_t *packing)
{
    return &packing_scale_forms[form_of(packing)->scales];
}

packing_t packing_of(k_dtype_t dtype, uint32_t columns, uint32_t lanes)
{
    assert(lanes <= MAX_LANES);
    packing_t packing = {.dtype = dtype, .lanes = lanes, .columns = columns};
    const packing_form_t *form = form_of(&packing);
    size_t blocks;
    if (form->bits == 0) {
        const uint32_t step = packing_step(dtype);
        const k_dtype_info_t *info = k_dtype_info(dtype);
        packing.block_bytes = (size_t)lanes * step / info->block_elements * info->block_bytes;
        blocks = ((size_t)columns + step - 1) / step;
    } else {
        const packing_scale_form_t *scales = scale_form_of(&packing);
        packing.block_units = scales->block_units;
        packing.quant_bytes = (size_t)form->bits * 4 * lanes;
        packing.block_bytes = packing.quant_bytes * scales->block_units +
                              (scales->halfwords * 2U + scales->bytes) * (size_t)lanes;
        blocks = columns / (PACKING_UNIT * packing.block_units);
    }
    packing.group_bytes =
        (blocks * packing.block_bytes + WEFT_CACHE_LINE - 1) / WEFT_CACHE_LINE * WEFT_CACHE_LINE;
    return packing;
}

uint32_t packing_groups(k_weight_form_t form, uint32_t rows, uint32_t lanes)
{
    return form == K_WEIGHT_GATE_UP ? 2 * packing_groups(K_WEIGHT_ROWS, rows / 2, lanes)
                                    : rows / lanes + (rows % lanes > 0 ? 1 : 0);
}

size_t packing_bytes(const packing_t *packing, k_weight_form_t form, uint32_t rows)
{
    return packing_groups(form, rows, packing->lanes) * packing->group_bytes;
}

/* ---- a unit to planes and back ------------------------------------------------------------- */

/* Quants to the bytes of a lane, plane after plane. */
static void to_planes(uint32_t bits, const uint8_t q[PACKING_UNIT], uint8_t planes[PACKING_UNIT])
{
    uint32_t done = 0;
    if ((bits & 4) != 0) {
        for (uint32_t i = 0; i < 16; i++) {
            *planes++ = (uint8_t)((q[i] & 15) | q[16 + i] << 4);
        }
        done = 4;
    }
    if ((bits & 2) != 0) {
        for (uint32_t e = 0; e < 8; e++) {
            const uint8_t *at = q + e / 4 * 16 + e % 4;
            uint32_t pairs = 0;
            for (uint32_t p = 0; p < 4; p++) {
                pairs |= (at[4 * p] >> done & 3U) << (2 * p);
            }
            *planes++ = (uint8_t)pairs;
        }
        done += 2;
    }
    if ((bits & 1) != 0) {
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t byte = 0;
            for (uint32_t b = 0; b < 8; b++) {
                byte |= (q[4 * b + i] >> done & 1U) << b;
            }
            *planes++ = (uint8_t)byte;
        }
    }
}

static void from_planes(uint32_t bits, const uint8_t *planes, uint8_t q[PACKING_UNIT])
{
    uint32_t done = 0;
    memset(q, 0, PACKING_UNIT);
    if ((bits & 4) != 0) {
        for (uint32_t i = 0; i < 16; i++) {
            q[i] = planes[i] & 15;
            q[16 + i] = planes[i] >> 4;
        }
        planes += 16;
        done = 4;
    }
    if ((bits & 2) != 0) {
        for (uint32_t c = 0; c < PACKING_UNIT; c++) {
            const uint32_t byte = planes[c / 16 * 4 + c % 4];
            q[c] |= (uint8_t)((byte >> (c % 16 / 4 * 2) & 3) << done);
        }
        planes += 8;
        done += 2;
    }
    if ((bits & 1) != 0) {
        for (uint32_t c = 0; c < PACKING_UNIT; c++) {
            q[c] |= (uint8_t)((planes[c % 4] >> (c / 4) & 1) << done);
        }
    }
}

/* What is added to a byte of 8 bits, or taken off again. */
static uint8_t byte_offset(const packing_t *packing)
{
    return packing->lanes == 16 ? 0x80 : 0;
}

/* ---- one row into its lane ----------------------------------------------------------------- */

static void pack_unit(const packing_t *packing, const uint8_t *q, uint32_t lane, uint8_t *unit)
{
    const uint32_t bits = form_of(packing)->bits;
    uint8_t planes[PACKING_UNIT];
    if (bits == 8) {
        for (uint32_t i = 0; i < PACKING_UNIT; i++) {
            planes[i] = q[i] ^ byte_offset(packing);
        }
    } else {
        to_planes(bits, q, planes);
    }
    for (uint32_t j = 0; j < bits; j++) {
        memcpy(unit + ((size_t)j * packing->lanes + lane) * 4, planes + (size_t)j * 4, 4);
    }
}

static void pack_scales(const packing_t *packing, const uint8_t *from, uint32_t lane, uint8_t *to)
{
    const packing_scale_form_t *form = scale_form_of(packing);
    const size_t lanes = packing->lanes;
    for (uint32_t i = 0; i < form->halfwords; i++) {
        memcpy(to + (i * lanes + lane) * 2, from + (size_t)i * 2, 2);
    }
    to += form->halfwords * lanes * 2;
    from += form->halfwords * 2;
    for (uint32_t i = 0; i < form->bytes; i++) {
        to[i * lanes + lane] = from[i];
    }
}

static void pack_quantized(const packing_t *packing, const uint8_t *row, uint32_t lane,
                           uint8_t *group)
{
    const packing_source_t *source = packing_source_of(packing->dtype);
    const uint32_t source_bytes = k_dtype_info(packing->dtype)->block_bytes;
    const uint32_t blocks = packing->columns / (PACKING_UNIT * packing->block_units);
    for (uint32_t b = 0; b < blocks; b++) {
        const uint8_t *block = row + (size_t)b * source_bytes;
        uint8_t *to = group + b * packing->block_bytes;
        uint8_t q[PACKING_UNIT];
        uint8_t scales[PACKING_MAX_SCALE_BYTES];
        for (uint32_t unit = 0; unit < packing->block_units; unit++) {
            source->read_unit(block, unit, q);
            pack_unit(packing, q, lane, to + unit * packing->quant_bytes);
        }
        source->read_scales(block, scales);
        pack_scales(packing, scales, lane, to + packing->block_units * packing->quant_bytes);
    }
}

/* Where column k of a lane of a plain type lies in its group. */
static size_t plain_at(const packing_t *packing, uint32_t k, uint32_t lane)
{
    const size_t bytes = k_dtype_info(packing->dtype)->block_bytes;
    return packing->dtype == K_BF16
               ? ((size_t)(k / 2) * packing->lanes + lane) * 4 + (size_t)(k % 2) * 2
               : ((size_t)k * packing->lanes + lane) * bytes;
}

static void pack_plain(const packing_t *packing, const uint8_t *row, uint32_t lane, uint8_t *group)
{
    const size_t bytes = k_dtype_info(packing->dtype)->block_bytes;
    for (uint32_t k = 0; k < packing->columns; k++) {
        memcpy(group + plain_at(packing, k, lane), row + k * bytes, bytes);
    }
}

/*
 * A NaN makes the scale one: the kernels need not tell that code from a number, and the products of
 * its block with any x are NaN either way, as are the row's.
 */
static void pack_f8(const packing_t *packing, const uint8_t *row, uint32_t lane, uint8_t *group)
{
    const size_t source_bytes = k_dtype_info(K_F8_32)->block_bytes;
    const size_t lanes = packing->lanes;
    for (uint32_t k = 0; k < packing->columns; k += PACKING_UNIT) {
        float scale;
        memcpy(&scale, row, sizeof(scale));
        for (uint32_t c = 0; c < PACKING_UNIT; c++) {
            const uint8_t code = row[sizeof(scale) + c];
            group[c * lanes + lane] = code;
            scale = (code & 0x7f) == WEFT_F8_NAN ? NAN : scale;
        }
        memcpy(group + PACKING_UNIT * lanes + lane * sizeof(scale), &scale, sizeof(scale));
        row += source_bytes;
        group += packing->block_bytes;
    }
}

/* ---- the matrix ---------------------------------------------------------------------------- */

typedef struct job {
    const packing_t *packing;
    k_weight_form_t form;
    const k_weight_part_t *parts;
    uint32_t n_parts;
    uint8_t *dst;
    uint32_t groups;
    uint32_t item_groups;
} job_t;

/* The source row of a lane of a group, NULL past the end. */
static const uint8_t *find_row(const job_t *job, uint64_t group, uint32_t lane)
{
    size_t row_bytes = 0;
    k_dtype_row_bytes(job->packing->dtype, job->packing->columns, &row_bytes);
    const k_weight_part_t *parts = job->parts;
    uint32_t n_parts = job->n_parts;
    if (job->form == K_WEIGHT_GATE_UP) {
        parts += group % 2;
        n_parts = 1;
        group /= 2;
    }
    uint64_t row = group * job->packing->lanes + lane;
    for (uint32_t i = 0; i < n_parts; i++) {
        if (row < parts[i].rows) {
            return (const uint8_t *)parts[i].data + row * row_bytes;
        }
        row -= parts[i].rows;
    }
    return NULL;
}

static void pack_group(const job_t *job, uint32_t index)
{
    const packing_t *packing = job->packing;
    uint8_t *group = job->dst + index * packing->group_bytes;
    memset(group, 0, packing->group_bytes);
    for (uint32_t lane = 0; lane < packing->lanes; lane++) {
        const uint8_t *row = find_row(job, index, lane);
        if (row == NULL) {
            return;
        }
        if (packing->dtype == K_F8_32) {
            pack_f8(packing, row, lane, group);
        } else if (packing->block_units == 0) {
            pack_plain(packing, row, lane, group);
        } else {
            pack_quantized(packing, row, lane, group);
        }
    }
}

static void pack_groups(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const job_t *job = arg;
    const uint32_t begin = item * job->item_groups;
    for (uint32_t i = begin; i < job->groups && i < begin + job->item_groups; i++) {
        pack_group(job, i);
    }
}

void packing_pack(const packing_t *packing, k_weight_form_t form, k_stream_t *stream,
                  const k_weight_part_t *parts, uint32_t n_parts, void *dst)
{
    job_t job = {.packing = packing, .form = form, .parts = parts, .n_parts = n_parts, .dst = dst};
    uint32_t rows = 0;
    for (uint32_t i = 0; i < n_parts; i++) {
        rows += parts[i].rows;
    }
    assert(form != K_WEIGHT_GATE_UP || (n_parts == 2 && parts[0].rows == parts[1].rows));
    job.groups = packing_groups(form, rows, packing->lanes);
    job.item_groups = packing_item_groups(job.groups, 1, packing_least_groups(packing),
                                          k_team_size(stream->team));
    const uint32_t items = job.groups == 0 ? 0 : (job.groups - 1) / job.item_groups + 1;
    k_team_run(stream->team, items, pack_groups, &job);
}

/* ---- one row back -------------------------------------------------------------------------- */

/* The integers of a unit, offsets taken off. */
static void unpack_unit(const packing_t *packing, const uint8_t *unit, uint32_t lane,
                        int values[PACKING_UNIT])
{
    const packing_form_t *form = form_of(packing);
    uint8_t planes[PACKING_UNIT];
    uint8_t q[PACKING_UNIT];
    for (uint32_t j = 0; j < form->bits; j++) {
        memcpy(planes + (size_t)j * 4, unit + ((size_t)j * packing->lanes + lane) * 4, 4);
    }
    if (form->bits == 8) {
        for (uint32_t e = 0; e < PACKING_UNIT; e++) {
            values[e] = (int8_t)(planes[e] ^ byte_offset(packing));
        }
        return;
    }
    from_planes(form->bits, planes, q);
    for (uint32_t e = 0; e < PACKING_UNIT; e++) {
        values[e] = form->levels == PACKING_IQ4    ? k_iq4_levels[q[e]]
                    : form->levels == PACKING_E2M1 ? k_e2m1_doubled[q[e]]
                                                   : q[e] - form->offset;
    }
}

/* As k_dequantize: value · (scale product), then the offset. scales: of the block. */
static void scale_unit(const packing_t *packing, const uint8_t *scales, uint32_t unit,
                       uint32_t lane, const int values[PACKING_UNIT], float *y)
{
    const size_t lanes = packing->lanes;
    const packing_scale_form_t *form = scale_form_of(packing);
    const float d = form->halfwords > 0 ? k_load_f16(scales + (size_t)lane * 2) : 0;
    const uint8_t *second = scales + lanes * 2 + (size_t)lane * 2;
    const uint8_t *bytes = scales + form->halfwords * lanes * 2 + lane;

    for (uint32_t e = 0; e < PACKING_UNIT; e++) {
        const float value = (float)values[e];
        float step;
        float product;
        float offset;
        switch ((packing_scales_t)form_of(packing)->scales) {
        case PACKING_D:
            y[e] = value * d;
            break;
        case PACKING_D_M:
            product = value * d;
            y[e] = product + k_load_f16(second);
            break;
        case PACKING_K_MIN:
            step = d * (float)bytes[unit * lanes];
            offset = k_load_f16(second) * (float)bytes[(8 + unit) * lanes];
            product = step * value;
            y[e] = product - offset;
            break;
        case PACKING_K_HALF:
            step = d * (float)(int8_t)bytes[(2 * unit + e / 16) * lanes];
            y[e] = step * value;
            break;
        case PACKING_K_HALF_MIN:
            step = d * (float)(bytes[(2 * unit + e / 16) * lanes] & 15);
            offset = k_load_f16(second) * (float)(bytes[(2 * unit + e / 16) * lanes] >> 4);
            product = step * value;
            y[e] = product - offset;
            break;
        case PACKING_K_SIGNED:
            step = d * (float)(int8_t)bytes[unit * lanes];
            y[e] = step * value;
            break;
        case PACKING_EXPONENT:
            y[e] = k_e8m0_half(bytes[0]) * value;
            break;
        case PACKING_D_ZERO:
            y[e] = (value - (float)bytes[0]) * d;
            break;
        }
    }
}

static void unpack_plain(const packing_t *packing, const uint8_t *group, uint32_t lane, float *y)
{
    for (uint32_t k = 0; k < packing->columns; k++) {
        k_dequantize(packing->dtype, group + plain_at(packing, k, lane), &y[k], 1);
    }
}

static void unpack_f8(const packing_t *packing, const uint8_t *group, uint32_t lane, float *y)
{
    const size_t lanes = packing->lanes;
    for (uint32_t k = 0; k < packing->columns; k += PACKING_UNIT) {
        float scale;
        memcpy(&scale, group + PACKING_UNIT * lanes + lane * sizeof(scale), sizeof(scale));
        for (uint32_t c = 0; c < PACKING_UNIT; c++) {
            y[k + c] = weft_f8_to_f32(group[c * lanes + lane]) * scale;
        }
        group += packing->block_bytes;
    }
}

void packing_unpack_row(const packing_t *packing, const void *data, uint32_t row, float *y)
{
    const uint8_t *group = (const uint8_t *)data + row / packing->lanes * packing->group_bytes;
    const uint32_t lane = row % packing->lanes;
    if (packing->dtype == K_F8_32) {
        unpack_f8(packing, group, lane, y);
        return;
    }
    if (packing->block_units == 0) {
        unpack_plain(packing, group, lane, y);
        return;
    }
    const size_t scales_at = packing->block_units * packing->quant_bytes;
    for (uint32_t i = 0; i < packing->columns / PACKING_UNIT; i++) {
        const uint8_t *block = group + i / packing->block_units * packing->block_bytes;
        const uint32_t unit = i % packing->block_units;
        int values[PACKING_UNIT];
        unpack_unit(packing, block + unit * packing->quant_bytes, lane, values);
        scale_unit(packing, block + scales_at, unit, lane, values, y + (size_t)i * PACKING_UNIT);
    }
}
