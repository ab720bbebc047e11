/* SPDX-License-Identifier: Apache-2.0 */
/* kv_transfer: what a worker says of itself in the handshake, and whether another one fits. */
#include <msgpack/pack.h>
#include <stdio.h>
#include <string.h>

#include "base/compiler.h"
#include "kvstore/transfer/kv_transfer_priv.h"

static const char *const order_names[] = {
    [KV_ORDER_BHLNC] = "BHLNC", [KV_ORDER_BLHNC] = "BLHNC", [KV_ORDER_LBHNC] = "LBHNC"};

static const kv_layout_t *layout_of(const kv_transfer_t *transfer)
{
    return kv_pool_layout(transfer->setup.pool);
}

/* ---- ourselves ------------------------------------------------------------------------------- */

static void fill_shape(kv_transfer_t *transfer, uint32_t first_layer, uint32_t first_head)
{
    const kv_layout_t *layout = layout_of(transfer);
    const kv_group_t *group = &layout->groups[0];
    const uint64_t base = (uint64_t)(uintptr_t)kv_pool_memory(transfer->setup.pool)->addr;
    for (uint32_t i = 0; i < group->layers; i++) {
        transfer->layer_addrs[i] = base + i * layout->strides[0].layer;
    }
    transfer->shape = (kv_shape_t){.block_tokens = layout->block_tokens,
                                   .token_bytes = kv_head_token_bytes(&transfer->form),
                                   .first_layer = first_layer,
                                   .layers = group->layers,
                                   .first_head = first_head,
                                   .heads = group->heads,
                                   .n_blocks = kv_pool_total_blocks(transfer->setup.pool),
                                   .block_stride = layout->strides[0].block,
                                   .head_stride = layout->strides[0].head,
                                   .layer_addrs = transfer->layer_addrs};
}

static weft_status_t make_hashes(kv_transfer_t *transfer)
{
    const kv_transfer_config_t *config = &transfer->config;
    const kv_weft_meta_t *own = &transfer->identity;
    const kv_vllm_identity_t vllm = {
        .attn_backend_name = config->attn_backend_name == NULL ? "WEFT" : config->attn_backend_name,
        .cache_dtype = config->vllm_cache_dtype == NULL ? "auto" : config->vllm_cache_dtype,
        .dtype = config->vllm_dtype == NULL ? transfer->model_dtype : config->vllm_dtype,
        .model = config->vllm_model == NULL ? transfer->model : config->vllm_model,
        .vllm_version = config->vllm_version,
        .head_size = own->head_dim,
        .nixl_connector_version = config->nixl_connector_version,
        .num_hidden_layers = own->total_layers,
        .num_kv_heads = own->total_heads,
        .is_hma_enabled = config->is_hma_enabled};
    const weft_status_t status = kv_compat_weft_hash(own, transfer->hash);
    return status < 0 || config->vllm_version == NULL
               ? status
               : kv_compat_vllm_hash(&vllm, transfer->vllm_hash);
}

/* As runtime/model/model_shard.h deals layers out. */
static uint32_t first_layer_of(const kv_transfer_setup_t *setup)
{
    return (uint32_t)((uint64_t)setup->total_layers * setup->pp_rank / setup->pp_size);
}

weft_status_t kv_transfer_identify(kv_transfer_t *transfer, weft_diag_t *diag)
{
    const kv_transfer_setup_t *setup = &transfer->setup;
    const kv_layout_t *layout = layout_of(transfer);
    const kv_group_t *group = &layout->groups[0];
    uint32_t first_head = 0;
    uint32_t heads = 0;
    if (layout->n_groups != 1) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "KV transfer: models with several kinds of KV layers are not served");
    }
    if (!kv_heads_of(setup->total_heads, setup->tp_size, setup->tp_rank, &first_head, &heads) ||
        heads != group->heads) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "KV transfer: %u heads of %u in rank %u of %u: that cannot be",
                         group->heads, setup->total_heads, setup->tp_rank, setup->tp_size);
    }
    transfer->form =
        (kv_head_form_t){.block_tokens = layout->block_tokens, .head_dim = group->head_dim};
    if (!kv_element_parse(transfer->dtype, (uint32_t)strlen(transfer->dtype),
                          &transfer->form.element) ||
        kv_element_bytes(transfer->form.element) != layout->element_bytes ||
        kv_element_scale_bytes(transfer->form.element) != layout->scale_bytes ||
        group->head_dim > KV_CONVERT_MAX_DIM) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "KV transfer: KV dtype %s is not served",
                         transfer->dtype);
    }
    const uint32_t first_layer = first_layer_of(setup);
    transfer->identity = (kv_weft_meta_t){
        .version = KV_WEFT_META_VERSION,
        .fingerprint = {(const char *)transfer->fingerprint, sizeof(transfer->fingerprint)},
        .model = kv_wire_text(transfer->model),
        .dtype = kv_wire_text(transfer->dtype),
        .total_layers = setup->total_layers,
        .total_heads = setup->total_heads,
        .head_dim = group->head_dim,
        .first_layer = first_layer,
        .layers = group->layers,
        .heads = group->heads,
        .tp_rank = setup->tp_rank,
        .tp_size = setup->tp_size,
        .pp_rank = setup->pp_rank,
        .pp_size = setup->pp_size,
        .lease_addr = (uint64_t)(uintptr_t)transfer->words.addr,
        .lease_slots = KV_TRANSFER_LEASE_SLOTS};
    fill_shape(transfer, first_layer, first_head);
    return make_hashes(transfer);
}

/* ---- the payload ----------------------------------------------------------------------------- */

static int append(void *user, const char *data, size_t length)
{
    weft_buffer_append(user, data, length);
    return 0;
}

static kv_msgpack_span_t item_of(const weft_buffer_t *buffer)
{
    return (kv_msgpack_span_t){buffer->data, (uint32_t)buffer->length};
}

typedef struct region_items {
    weft_buffer_t groups;
    weft_buffer_t names;
    weft_buffer_t types;
} region_items_t;

/* Names as vLLM has them, so that regions are sorted alike. */
static void pack_regions(uint32_t first_layer, uint32_t n, const char *space, region_items_t *items)
{
    msgpack_packer groups = {.data = &items->groups, .callback = append};
    msgpack_packer names = {.data = &items->names, .callback = append};
    msgpack_packer types = {.data = &items->types, .callback = append};
    msgpack_pack_array(&groups, n);
    msgpack_pack_array(&names, n);
    msgpack_pack_array(&types, n);
    for (uint32_t i = 0; i < n; i++) {
        char name[64];
        const int length =
            snprintf(name, sizeof(name), "model.layers.%u.self_attn.attn", first_layer + i);
        msgpack_pack_uint32(&groups, 0);
        msgpack_pack_str(&names, (size_t)length);
        msgpack_pack_str_body(&names, name, (size_t)length);
        msgpack_pack_str(&types, 4);
        msgpack_pack_str_body(&types, space, 4);
    }
}

static kv_pool_t *exported_pool(const kv_transfer_t *transfer)
{
    return transfer->export == NULL ? transfer->setup.pool : kv_export_pool(transfer->export);
}

/* One region when a block is one extent, else one a layer, as vLLM has them. */
static uint32_t count_regions(const kv_layout_t *layout)
{
    return layout->order == KV_ORDER_BHLNC ? 1 : layout->groups[0].layers;
}

static uint64_t region_bytes(const kv_layout_t *layout)
{
    return layout->order == KV_ORDER_BHLNC ? layout->strides[0].block
                                           : layout->groups[0].heads * layout->strides[0].head;
}

typedef struct region_numbers {
    uint32_t n;
    uint64_t *bases;
    uint64_t *lens;
    uint64_t *strides;
    uint64_t *blocks;
} region_numbers_t;

static void encode_agent(kv_transfer_t *transfer, const weft_buffer_t *blob,
                         const weft_buffer_t *weft, const region_numbers_t *regions,
                         weft_buffer_t *out)
{
    static const char zero_pair[] = {(char)0x92, 0, 0};
    static const char empty_list = (char)0x90;
    static const char empty_map = (char)0x80;
    const kv_layout_t *layout = kv_pool_layout(exported_pool(transfer));
    const char *backend = transfer->config.attn_backend_name;
    const weft_device_t *device = kv_pool_device(exported_pool(transfer));
    const uint32_t n = regions->n;
    region_items_t items = {0};
    pack_regions(transfer->shape.first_layer, n, device->ops->is_host ? "DRAM" : "VRAM", &items);
    const kv_agent_meta_t meta = {
        .engine_id = kv_wire_text(transfer->config.engine_id),
        .agent_metadata = item_of(blob),
        .device_id = (uint64_t)device->index,
        .kv_caches_base_addr = {regions->bases, n},
        .num_blocks = regions->blocks[0],
        .block_lens = {regions->lens, n},
        .block_strides = {regions->strides, n},
        .kv_cache_layout = kv_wire_text(order_names[layout->order]),
        .block_size = layout->block_tokens,
        .ssm_sizes = {zero_pair, sizeof(zero_pair)},
        .attn_backend_name = kv_wire_text(backend == NULL ? "WEFT" : backend),
        .physical_blocks_per_logical_kv_block = 1,
        .region_num_blocks = {regions->blocks, n},
        .region_group_ids = item_of(&items.groups),
        .region_names = item_of(&items.names),
        .region_mem_types = item_of(&items.types),
        .dcp_size = 1,
        .pcp_size = 1,
        .region_members = {&empty_list, 1},
        .packed_member_layouts = {&empty_map, 1},
        /* A copy for vLLM is what vLLM has, and is read so. */
        .weft = transfer->export == NULL ? item_of(weft) : (kv_msgpack_span_t){0}};
    kv_agent_meta_encode(&meta, out);
    out->is_failed |= items.groups.is_failed || items.names.is_failed || items.types.is_failed ||
                      blob->is_failed || weft->is_failed;
    weft_buffer_free(&items.groups);
    weft_buffer_free(&items.names);
    weft_buffer_free(&items.types);
}

static weft_status_t encode_regions(kv_transfer_t *transfer, const weft_buffer_t *blob,
                                    const weft_buffer_t *weft, weft_buffer_t *out)
{
    kv_pool_t *pool = exported_pool(transfer);
    const kv_layout_t *layout = kv_pool_layout(pool);
    const uint64_t base = (uint64_t)(uintptr_t)kv_pool_memory(pool)->addr;
    weft_arena_t arena = {0};
    region_numbers_t regions = {.n = count_regions(layout)};
    regions.bases = weft_arena_calloc(&arena, 4 * (size_t)regions.n, sizeof(uint64_t));
    if (regions.bases == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    regions.lens = regions.bases + regions.n;
    regions.strides = regions.lens + regions.n;
    regions.blocks = regions.strides + regions.n;
    for (uint32_t i = 0; i < regions.n; i++) {
        regions.bases[i] = base + i * layout->strides[0].layer;
        regions.lens[i] = region_bytes(layout);
        regions.strides[i] = layout->strides[0].block;
        regions.blocks[i] = kv_pool_total_blocks(pool);
    }
    encode_agent(transfer, blob, weft, &regions, out);
    weft_arena_free(&arena);
    return out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

weft_status_t kv_transfer_payload(kv_transfer_t *transfer, weft_buffer_t *out)
{
    weft_buffer_t blob = {0};
    weft_buffer_t weft = {0};
    weft_buffer_t agent = {0};
    kv_weft_meta_encode(&transfer->identity, &weft);
    weft_status_t status = xfer_export(transfer->agent, NULL, 0, true, &blob);
    if (status >= 0) {
        status = encode_regions(transfer, &blob, &weft, &agent);
    }
    if (status >= 0) {
        kv_payload_encode(transfer->vllm_hash[0] != '\0' ? transfer->vllm_hash : transfer->hash,
                          agent.data, agent.length, out);
        status = out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    weft_buffer_free(&blob);
    weft_buffer_free(&weft);
    weft_buffer_free(&agent);
    return status;
}

/* ---- others ---------------------------------------------------------------------------------- */

/* The hash says only that something differs; what a weft worker says besides has names. */
static weft_status_t check_foreign(const kv_transfer_t *transfer, const kv_handshake_t *handshake,
                                   weft_diag_t *diag)
{
    const kv_msgpack_span_t hash = handshake->compatibility_hash;
    if (!transfer->config.enforce_handshake_compat ||
        (transfer->vllm_hash[0] != '\0' && kv_wire_text_is(hash, transfer->vllm_hash))) {
        return WEFT_OK;
    }
    if (transfer->vllm_hash[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "compatibility hash: it is vLLM's there; vllm_version in "
                         "kv_connector_extra_config makes such a one here");
    }
    return weft_diag(diag, WEFT_ERR_INVALID,
                     "compatibility hash: %.*s there, %s here: vLLM's or the connector's version, "
                     "attention backend, model name, a dtype",
                     (int)(hash.length < 64 ? hash.length : 64), hash.data, transfer->vllm_hash);
}

static weft_status_t check_rank(const kv_peer_t *peer, const kv_peer_rank_t *rank,
                                const kv_weft_meta_t *theirs, weft_diag_t *diag)
{
    if (theirs->tp_size != peer->tp_size || theirs->pp_size != peer->pp_size) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "ranks: %llu x %llu there, tp_size %u and pp_size %u in the request",
                         (unsigned long long)theirs->tp_size, (unsigned long long)theirs->pp_size,
                         peer->tp_size, peer->pp_size);
    }
    if (theirs->tp_rank != rank->rank.tp_rank || theirs->pp_rank != rank->rank.pp_rank) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "another rank answered");
    }
    return WEFT_OK;
}

typedef struct backend_row {
    const char *name;
    bool is_transposed;
} backend_row_t;

/* What is inside a head belongs to the attention backend. */
static const backend_row_t backends[] = {
    {"FLASH_ATTN", false}, {"FLASHINFER", false}, {"TRITON_ATTN", false}, {"CPU_ATTN", true}};

bool kv_transfer_vllm_form(const kv_transfer_t *transfer, kv_head_form_t *form_out)
{
    const kv_transfer_config_t *config = &transfer->config;
    const char *dtype = config->vllm_dtype == NULL ? transfer->model_dtype : config->vllm_dtype;
    const char *backend = config->attn_backend_name == NULL ? "" : config->attn_backend_name;
    kv_head_form_t form = transfer->form;
    if (config->vllm_version == NULL) {
        return false;
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(backends); i++) {
        form.is_transposed |= backends[i].is_transposed && strcmp(backends[i].name, backend) == 0;
    }
    if (!kv_element_parse(dtype, (uint32_t)strlen(dtype), &form.element) &&
        form.element == KV_ELEMENT_I8) {
        form.element = KV_ELEMENT_BF16; /* else ours, but that is nobody else's */
    }
    if (config->vllm_block_size > 0) {
        form.block_tokens = (uint32_t)config->vllm_block_size;
    }
    *form_out = form;
    return !kv_head_form_is_same(&form, &transfer->form) ||
           form.block_tokens != transfer->form.block_tokens;
}

static weft_status_t find_backend(const kv_handshake_t *handshake, weft_diag_t *diag,
                                  bool *is_transposed_out)
{
    const kv_msgpack_span_t name = handshake->agent.attn_backend_name;
    *is_transposed_out = false;
    if (handshake->is_weft) {
        return WEFT_OK;
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(backends); i++) {
        if (kv_wire_text_is(name, backends[i].name)) {
            *is_transposed_out = backends[i].is_transposed;
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                     "attention backend %.*s: the order inside its heads is not known",
                     (int)name.length, name.data == NULL ? "" : name.data);
}

/* vLLM does not say what its elements are: those of the model, or float32 where they are so wide. */
static weft_status_t find_form(const kv_transfer_t *transfer, const kv_handshake_t *handshake,
                               uint64_t head_elements, uint64_t bytes, weft_diag_t *diag,
                               kv_head_form_t *form)
{
    const char *dtype =
        transfer->config.vllm_dtype == NULL ? transfer->model_dtype : transfer->config.vllm_dtype;
    kv_msgpack_span_t name = handshake->is_weft ? handshake->weft.dtype : kv_wire_text(dtype);
    if (!handshake->is_weft && bytes == 4 * head_elements) {
        name = kv_wire_text("f32");
    }
    if (!kv_element_parse(name.data, name.length, &form->element)) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "KV dtype: %.*s there, %s here: no conversion",
                         (int)name.length, name.data, transfer->dtype);
    }
    form->block_tokens = (uint32_t)handshake->agent.block_size;
    form->head_dim = transfer->form.head_dim;
    return find_backend(handshake, diag, &form->is_transposed);
}

weft_status_t kv_transfer_check_peer(const kv_transfer_t *transfer, const kv_peer_t *peer,
                                     const kv_peer_rank_t *rank, const kv_handshake_t *handshake,
                                     weft_diag_t *diag)
{
    weft_status_t status = handshake->is_weft
                               ? kv_compat_check(&transfer->identity, &handshake->weft, diag)
                               : check_foreign(transfer, handshake, diag);
    if (status >= 0 && handshake->is_weft) {
        status = check_rank(peer, rank, &handshake->weft, diag);
    }
    return status;
}

static weft_status_t find_order(const kv_handshake_t *handshake, weft_diag_t *diag,
                                kv_order_t *order_out)
{
    const kv_msgpack_span_t name = handshake->agent.kv_cache_layout;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(order_names); i++) {
        if (kv_wire_text_is(name, order_names[i])) {
            *order_out = (kv_order_t)i;
            return WEFT_OK;
        }
    }
    if (kv_wire_text_is(name, "HND")) { /* vLLM's name up to 0.28 */
        *order_out = KV_ORDER_LBHNC;
        return WEFT_OK;
    }
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                     "KV cache layout: %.*s there; BHLNC, BLHNC, LBHNC can be read",
                     (int)name.length, name.data);
}

/* The addresses of layers, each a region, or parts of the only one. */
static uint64_t *find_layers(kv_handshake_t *handshake, const kv_shape_t *shape, kv_order_t order)
{
    const kv_agent_meta_t *agent = &handshake->agent;
    uint64_t *addrs = weft_arena_calloc(&handshake->arena, shape->layers, sizeof(*addrs));
    const uint64_t layer_bytes = (uint64_t)shape->block_tokens * shape->token_bytes;
    for (uint32_t i = 0; addrs != NULL && i < shape->layers; i++) {
        addrs[i] = order == KV_ORDER_BHLNC ? agent->kv_caches_base_addr.items[0] + i * layer_bytes
                                           : agent->kv_caches_base_addr.items[i];
    }
    return addrs;
}

static bool are_regions_as(const kv_agent_meta_t *agent, uint32_t n, uint64_t bytes)
{
    bool are = agent->kv_caches_base_addr.n == n;
    for (uint32_t i = 0; i < n && are; i++) {
        are = agent->block_lens.items[i] == bytes &&
              agent->block_strides.items[i] == agent->block_strides.items[0] &&
              (agent->region_num_blocks.items == NULL ||
               agent->region_num_blocks.items[i] == agent->num_blocks);
    }
    return are;
}

static uint32_t regions_of(const kv_shape_t *shape, kv_order_t order)
{
    return order == KV_ORDER_BHLNC ? 1 : shape->layers;
}

/* Bytes of one block are heads, times layers where they share a region, times what a head takes. */
static weft_status_t check_bytes(const kv_agent_meta_t *agent, const kv_shape_t *shape,
                                 kv_order_t order, weft_diag_t *diag)
{
    const uint32_t n = regions_of(shape, order);
    const uint64_t bytes =
        (uint64_t)shape->block_tokens * shape->token_bytes * shape->heads * (shape->layers / n);
    return are_regions_as(agent, n, bytes)
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID,
                           "block bytes: %llu in %u regions there, %llu in %u expected",
                           (unsigned long long)agent->block_lens.items[0],
                           agent->kv_caches_base_addr.n, (unsigned long long)bytes, n);
}

static weft_status_t find_extents(const kv_transfer_t *transfer, const kv_peer_t *peer,
                                  const kv_peer_rank_t *rank, weft_diag_t *diag, kv_shape_t *shape)
{
    const kv_handshake_t *handshake = &rank->handshake;
    shape->block_tokens = (uint32_t)handshake->agent.block_size;
    shape->n_blocks = handshake->agent.num_blocks;
    shape->block_stride = handshake->agent.block_strides.items[0];
    shape->layers = transfer->setup.total_layers;
    if (handshake->is_weft) {
        shape->first_layer = (uint32_t)handshake->weft.first_layer;
        shape->layers = (uint32_t)handshake->weft.layers;
    }
    if (!kv_heads_of(transfer->setup.total_heads, peer->tp_size, rank->rank.tp_rank,
                     &shape->first_head, &shape->heads) ||
        (handshake->is_weft && handshake->weft.heads != shape->heads)) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "tp_size: %u there do not go with %u KV heads",
                         peer->tp_size, transfer->setup.total_heads);
    }
    return WEFT_OK;
}

weft_status_t kv_transfer_peer_shape(const kv_transfer_t *transfer, const kv_peer_t *peer,
                                     kv_peer_rank_t *rank, weft_diag_t *diag, kv_shape_t *shape_out)
{
    kv_handshake_t *handshake = &rank->handshake;
    const kv_agent_meta_t *agent = &handshake->agent;
    kv_order_t order = KV_ORDER_BHLNC;
    kv_shape_t shape = {0};
    weft_status_t status = find_order(handshake, diag, &order);
    if (status >= 0) {
        status = find_extents(transfer, peer, rank, diag, &shape);
    }
    if (status < 0) {
        return status;
    }
    const uint64_t elements = (uint64_t)shape.block_tokens * 2 * transfer->form.head_dim *
                              shape.heads * (shape.layers / regions_of(&shape, order));
    status =
        find_form(transfer, handshake, elements, agent->block_lens.items[0], diag, &rank->form);
    shape.token_bytes = kv_head_token_bytes(&rank->form);
    if (status >= 0) {
        status = check_bytes(agent, &shape, order, diag);
    }
    if (status < 0) {
        return status;
    }
    shape.head_stride = (uint64_t)shape.block_tokens * shape.token_bytes *
                        (order == KV_ORDER_BHLNC ? shape.layers : 1);
    shape.layer_addrs = find_layers(handshake, &shape, order);
    if (shape.layer_addrs == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *shape_out = shape;
    return WEFT_OK;
}
