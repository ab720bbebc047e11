/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_export.h"

#include "base/alloc.h"

struct kv_export {
    kv_shape_t from; /* ours; layer_addrs borrowed */
    kv_head_form_t from_form;
    kv_shape_t to;
    kv_head_form_t to_form;
    uint64_t *layer_addrs; /* of to */
    kv_pool_t *pool;
};

static weft_status_t open_pool(kv_export_t *export, weft_device_t *host, uint32_t n_blocks,
                               weft_diag_t *diag)
{
    kv_pool_config_t config = {
        .device = host,
        .layout = {.order = KV_ORDER_LBHNC,
                   .block_tokens = export->to_form.block_tokens,
                   .element_bytes = kv_element_bytes(export->to_form.element),
                   .scale_bytes = kv_element_scale_bytes(export->to_form.element),
                   .n_groups = 1,
                   .groups = {{.layers = export->from.layers,
                               .heads = export->from.heads,
                               .head_dim = export->to_form.head_dim}}},
        .n_blocks = n_blocks};
    weft_status_t status = kv_layout_init(&config.layout, n_blocks, diag);
    if (status >= 0) {
        status = kv_pool_create(&config, &export->pool);
    }
    return status;
}

static void fill_shape(kv_export_t *export)
{
    const kv_layout_t *layout = kv_pool_layout(export->pool);
    const uint64_t base = (uint64_t)(uintptr_t)kv_pool_memory(export->pool)->addr;
    export->to = export->from;
    export->to.block_tokens = layout->block_tokens;
    export->to.token_bytes = kv_head_token_bytes(&export->to_form);
    export->to.n_blocks = kv_pool_total_blocks(export->pool);
    export->to.block_stride = layout->strides[0].block;
    export->to.head_stride = layout->strides[0].head;
    export->to.layer_addrs = export->layer_addrs;
    for (uint32_t i = 0; i < export->to.layers; i++) {
        export->layer_addrs[i] = base + i * layout->strides[0].layer;
    }
}

weft_status_t kv_export_create(weft_device_t *host, const kv_shape_t *shape,
                               const kv_head_form_t *form, const kv_head_form_t *as,
                               uint32_t n_blocks, weft_diag_t *diag, kv_export_t **export_out)
{
    kv_export_t *export = weft_zalloc(sizeof(*export), "kv_export");
    if (export == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    export->from = *shape;
    export->from_form = *form;
    export->to_form = *as;
    export->layer_addrs =
        weft_calloc(shape->layers, sizeof(*export->layer_addrs), "kv_export.layers");
    const weft_status_t status =
        export->layer_addrs == NULL ? WEFT_ERR_NO_MEMORY : open_pool(export, host, n_blocks, diag);
    if (status < 0) {
        kv_export_destroy(export);
        return status;
    }
    fill_shape(export);
    *export_out = export;
    return WEFT_OK;
}

void kv_export_destroy(kv_export_t *export)
{
    if (export != NULL) {
        kv_pool_destroy(export->pool);
        weft_free(export->layer_addrs);
        weft_free(export);
    }
}

kv_pool_t *kv_export_pool(const kv_export_t *export)
{
    return export->pool;
}

static void *head_at(const kv_shape_t *shape, uint32_t layer, uint32_t head, kv_block_id_t block)
{
    return (void *)(uintptr_t)(shape->layer_addrs[layer] + block * shape->block_stride +
                               head * shape->head_stride);
}

/* n tokens that lie in one block on both sides. */
static void copy_run(const kv_export_t *export, kv_block_id_t from, uint32_t from_token,
                     kv_block_id_t to, uint32_t to_token, uint32_t n)
{
    for (uint32_t layer = 0; layer < export->from.layers; layer++) {
        for (uint32_t head = 0; head < export->from.heads; head++) {
            kv_convert_head(&export->from_form, head_at(&export->from, layer, head, from),
                            from_token, &export->to_form, head_at(&export->to, layer, head, to),
                            to_token, n);
        }
    }
}

weft_status_t kv_export_copy(kv_export_t *export, const kv_block_id_t *blocks, uint32_t n_tokens,
                             kv_block_id_t **blocks_out, uint32_t *n_out)
{
    const uint32_t ours = export->from.block_tokens;
    const uint32_t theirs = export->to.block_tokens;
    const uint32_t n = (n_tokens + theirs - 1) / theirs;
    kv_block_id_t *copies = weft_calloc((size_t)n + 1, sizeof(*copies), "kv_export.blocks");
    if (copies == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = kv_pool_alloc(export->pool, n, copies);
    if (status < 0) {
        weft_free(copies);
        return status;
    }
    for (uint32_t token = 0; token < n_tokens;) {
        uint32_t run = ours - token % ours;
        run = theirs - token % theirs < run ? theirs - token % theirs : run;
        run = n_tokens - token < run ? n_tokens - token : run;
        copy_run(export, blocks[token / ours], token % ours, copies[token / theirs], token % theirs,
                 run);
        token += run;
    }
    *blocks_out = copies;
    *n_out = n;
    return WEFT_OK;
}
