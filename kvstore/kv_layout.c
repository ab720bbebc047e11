/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_layout.h"

#include <stdbool.h>
#include <string.h>

#include "base/compiler.h"

static const char *const order_names[] = {
    [KV_ORDER_BHLNC] = "BHLNC",
    [KV_ORDER_BLHNC] = "BLHNC",
    [KV_ORDER_LBHNC] = "LBHNC",
};

const char *kv_order_name(kv_order_t order)
{
    return order_names[order];
}

weft_status_t kv_order_parse(const char *name, weft_diag_t *diag, kv_order_t *order_out)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(order_names); i++) {
        if (strcmp(name, order_names[i]) == 0) {
            *order_out = (kv_order_t)i;
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID,
                     "KV layout %s: unknown; BHLNC, BLHNC and LBHNC are possible", name);
}

bool kv_order_is_whole(kv_order_t order)
{
    return order != KV_ORDER_LBHNC;
}

/* a · b; sets *overflow, and leaves it set, when that does not fit. */
static size_t product(size_t a, size_t b, bool *overflow)
{
    if (a != 0 && b > SIZE_MAX / a) {
        *overflow = true;
        return 0;
    }
    return a * b;
}

/* One head of one layer of a block; sets s->scales. */
static size_t size_slice(const kv_layout_t *layout, kv_strides_t *s, bool *overflow)
{
    const size_t tokens = product(layout->block_tokens, s->token, overflow);
    if (layout->scale_bytes == 0) {
        return tokens;
    }
    s->scales = tokens;
    return product(layout->block_tokens, s->token + 2 * (size_t)layout->scale_bytes, overflow);
}

static kv_strides_t strides_of(const kv_layout_t *layout, const kv_group_t *group,
                               uint32_t n_blocks, bool *overflow)
{
    kv_strides_t s = {0};
    s.part = product(group->head_dim, layout->element_bytes, overflow);
    s.token = product(2, s.part, overflow);
    const size_t head = size_slice(layout, &s, overflow);

    switch (layout->order) {
    case KV_ORDER_BHLNC:
        s.layer = head;
        s.head = product(group->layers, s.layer, overflow);
        s.block = product(group->heads, s.head, overflow);
        break;
    case KV_ORDER_BLHNC:
        s.head = head;
        s.layer = product(group->heads, s.head, overflow);
        s.block = product(group->layers, s.layer, overflow);
        break;
    case KV_ORDER_LBHNC:
        s.head = head;
        s.block = product(group->heads, s.head, overflow);
        s.layer = product(n_blocks, s.block, overflow);
        break;
    }
    return s;
}

static weft_status_t check_extents(const kv_layout_t *layout, uint32_t n_blocks, weft_diag_t *diag)
{
    const uint32_t tokens = layout->block_tokens;
    if (tokens == 0 || (tokens & (tokens - 1)) != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "KV block of %u tokens: not a power of two",
                         tokens);
    }
    if (layout->element_bytes == 0 || n_blocks == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "KV layout: %u blocks of elements of %u bytes",
                         n_blocks, layout->element_bytes);
    }
    if (layout->n_groups == 0 || layout->n_groups > KV_MAX_GROUPS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "KV layout: %u groups, 1 to %u are possible",
                         layout->n_groups, KV_MAX_GROUPS);
    }
    for (uint32_t i = 0; i < layout->n_groups; i++) {
        const kv_group_t *group = &layout->groups[i];
        if (group->layers == 0 || group->heads == 0 || group->head_dim == 0) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "KV layout: group %u has %u layers, %u heads of %u elements", i,
                             group->layers, group->heads, group->head_dim);
        }
        if (layout->scale_bytes > 0 && group->head_dim % 2 != 0) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "KV layout: heads of %u elements with scales: not an even number",
                             group->head_dim);
        }
    }
    return WEFT_OK;
}

weft_status_t kv_layout_init(kv_layout_t *layout, uint32_t n_blocks, weft_diag_t *diag)
{
    const weft_status_t status = check_extents(layout, n_blocks, diag);
    if (status < 0) {
        return status;
    }
    for (uint32_t i = 0; i < layout->n_groups; i++) {
        const kv_group_t *group = &layout->groups[i];
        bool overflow = false;
        const kv_strides_t strides = strides_of(layout, group, n_blocks, &overflow);
        const size_t slices = product(group->layers, group->heads, &overflow);
        const size_t slice = layout->order == KV_ORDER_BHLNC ? strides.layer : strides.head;
        const size_t bytes = product(slices, slice, &overflow);
        (void)product(n_blocks, bytes, &overflow);
        if (overflow) {
            return weft_diag(diag, WEFT_ERR_TOO_LARGE,
                             "KV cache of %u blocks does not fit the address space", n_blocks);
        }
        layout->strides[i] = strides;
        layout->block_bytes[i] = bytes;
    }
    return WEFT_OK;
}
