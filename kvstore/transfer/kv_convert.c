/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_convert.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "base/compiler.h"
#include "base/float8.h"
#include "base/int8.h"

typedef struct element_row {
    const char *name;
    kv_element_t element;
} element_row_t;

static const element_row_t names[] = {
    {"f32", KV_ELEMENT_F32},    {"torch.float32", KV_ELEMENT_F32},
    {"f16", KV_ELEMENT_F16},    {"torch.float16", KV_ELEMENT_F16},
    {"bf16", KV_ELEMENT_BF16},  {"torch.bfloat16", KV_ELEMENT_BF16},
    {"f8_e4m3", KV_ELEMENT_F8}, {"int8", KV_ELEMENT_I8},
};

bool kv_element_parse(const char *name, uint32_t length, kv_element_t *element_out)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (strlen(names[i].name) == length && memcmp(names[i].name, name, length) == 0) {
            *element_out = names[i].element;
            return true;
        }
    }
    return false;
}

uint32_t kv_element_bytes(kv_element_t element)
{
    return element == KV_ELEMENT_F32                              ? 4
           : element == KV_ELEMENT_F8 || element == KV_ELEMENT_I8 ? 1
                                                                  : 2;
}

uint32_t kv_element_scale_bytes(kv_element_t element)
{
    return element == KV_ELEMENT_I8 ? sizeof(float) : 0;
}

uint32_t kv_head_token_bytes(const kv_head_form_t *form)
{
    return 2 * (form->head_dim * kv_element_bytes(form->element) +
                kv_element_scale_bytes(form->element));
}

bool kv_head_form_is_same(const kv_head_form_t *a, const kv_head_form_t *b)
{
    const bool has_scales = kv_element_scale_bytes(a->element) > 0;
    return a->element == b->element && !a->is_transposed && !b->is_transposed &&
           (!has_scales || a->block_tokens == b->block_tokens);
}

/* ---- elements -------------------------------------------------------------------------------- */

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* IEEE 754 binary16; subnormals are multiples of 2^-24. */
static float from_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t exponent = half >> 10 & 0x1f;
    const uint32_t mantissa = half & 0x3ff;
    if (exponent == 0) {
        const float value = (float)mantissa * 0x1p-24f;
        return float_of(bits_of(value) | sign);
    }
    if (exponent == 0x1f) {
        return float_of(sign | 0x7f800000 | mantissa << 13);
    }
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* bits without its lowest `shift`, to nearest, ties to even. */
static uint32_t round_off(uint32_t bits, uint32_t shift)
{
    const uint32_t half = 1u << (shift - 1);
    const uint32_t odd = bits >> shift & 1;
    return (bits + half - 1 + odd) >> shift;
}

static uint16_t to_f16(float value)
{
    const uint32_t bits = bits_of(value);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000) {
        return (uint16_t)(sign | 0x7e00 | (size >> 13 & 0x3ff));
    }
    if (size >= 0x47800000) { /* 65536 */
        return (uint16_t)(sign | 0x7c00);
    }
    if (size >= 0x38800000) { /* 2^-14: a carry moves into the exponent, up to infinity */
        return (uint16_t)(sign | round_off(size - 0x38000000, 13));
    }
    if (size < 0x33000000) { /* 2^-25: not even half of the smallest */
        return (uint16_t)sign;
    }
    const uint32_t shift = 126 - (size >> 23);
    return (uint16_t)(sign | round_off((size & 0x7fffff) | 0x800000, shift));
}

static uint16_t to_bf16(float value)
{
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)round_off(bits, 16);
}

static float load(kv_element_t element, const char *at)
{
    uint32_t word;
    uint16_t half;
    if (element == KV_ELEMENT_F32) {
        memcpy(&word, at, sizeof(word));
        return float_of(word);
    }
    if (element == KV_ELEMENT_F8) {
        return weft_f8_to_f32((uint8_t)*at);
    }
    if (element == KV_ELEMENT_I8) {
        return (float)*(const int8_t *)at;
    }
    memcpy(&half, at, sizeof(half));
    return element == KV_ELEMENT_F16 ? from_f16(half) : float_of((uint32_t)half << 16);
}

static void store(kv_element_t element, char *at, float value)
{
    if (element == KV_ELEMENT_F32) {
        memcpy(at, &value, sizeof(value));
        return;
    }
    if (element == KV_ELEMENT_F8) {
        *(uint8_t *)at = weft_f32_to_f8(value);
        return;
    }
    const uint16_t half = element == KV_ELEMENT_F16 ? to_f16(value) : to_bf16(value);
    memcpy(at, &half, sizeof(half));
}

/* ---- heads ----------------------------------------------------------------------------------- */

/* Where the elements of a part (0 K, 1 V) of a token lie. */
typedef struct row {
    size_t first; /* bytes from the head's start */
    size_t step;  /* bytes from one to the next */
} row_t;

static row_t row_of(const kv_head_form_t *form, uint32_t token, uint32_t part)
{
    const size_t bytes = kv_element_bytes(form->element);
    const size_t dim = form->head_dim;
    if (!form->is_transposed) {
        return (row_t){(2 * token + part) * dim * bytes, bytes};
    }
    if (part == 0) {
        return (row_t){token * bytes, form->block_tokens * bytes};
    }
    return (row_t){(form->block_tokens + (size_t)token) * dim * bytes, bytes};
}

/* Where the scale of a part of a token lies in its head. */
static size_t scale_of(const kv_head_form_t *form, uint32_t token, uint32_t part)
{
    return (size_t)form->block_tokens * (2 * (size_t)form->head_dim + part * sizeof(float)) +
           token * sizeof(float);
}

/* A part of a token, on one side. */
typedef struct place {
    const kv_head_form_t *form;
    char *at; /* its first element */
    size_t step;
    char *scale; /* NULL: it has none */
} place_t;

static place_t place_of(const kv_head_form_t *form, char *head, uint32_t token, uint32_t part)
{
    const row_t row = row_of(form, token, part);
    const bool has_scale = kv_element_scale_bytes(form->element) > 0;
    return (place_t){form, head + row.first, row.step,
                     has_scale ? head + scale_of(form, token, part) : NULL};
}

static void copy_row(const place_t *from, const place_t *to)
{
    const size_t bytes = kv_element_bytes(from->form->element);
    for (uint32_t i = 0; i < from->form->head_dim; i++) {
        memcpy(to->at + i * to->step, from->at + i * from->step, bytes);
    }
    if (from->scale != NULL) {
        memcpy(to->scale, from->scale, sizeof(float));
    }
}

static void load_row(const place_t *from, float *row)
{
    const uint32_t dim = from->form->head_dim;
    for (uint32_t i = 0; i < dim; i++) {
        row[i] = load(from->form->element, from->at + i * from->step);
    }
    if (from->scale != NULL) {
        float scale;
        memcpy(&scale, from->scale, sizeof(scale));
        for (uint32_t i = 0; i < dim; i++) {
            row[i] *= scale;
        }
    }
}

static void store_row(const float *row, const place_t *to)
{
    const uint32_t dim = to->form->head_dim;
    if (to->scale == NULL) {
        for (uint32_t i = 0; i < dim; i++) {
            store(to->form->element, to->at + i * to->step, row[i]);
        }
        return;
    }
    const weft_i8_scale_t scale = weft_i8_scale_of(weft_i8_largest(row, dim));
    memcpy(to->scale, &scale.scale, sizeof(scale.scale));
    for (uint32_t i = 0; i < dim; i++) {
        *(int8_t *)(to->at + i) = weft_f32_to_i8(row[i] * scale.inverse);
    }
}

void kv_convert_head(const kv_head_form_t *from_form, const void *from, uint32_t from_token,
                     const kv_head_form_t *to_form, void *to, uint32_t to_token, uint32_t n)
{
    float row[KV_CONVERT_MAX_DIM];
    assert(from_form->head_dim <= KV_CONVERT_MAX_DIM);
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t part = 0; part < 2; part++) {
            const place_t source = place_of(from_form, (char *)from, from_token + t, part);
            const place_t target = place_of(to_form, to, to_token + t, part);
            if (from_form->element == to_form->element) {
                copy_row(&source, &target);
            } else {
                load_row(&source, row);
                store_row(row, &target);
            }
        }
    }
}
