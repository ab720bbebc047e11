/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/adapter_priv.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/alloc.h"
#include "base/mapped_file.h"
#include "runtime/files/safetensors.h"

typedef struct loader {
    const adapter_model_t *model;
    const char *path;
    weft_diag_t *diag;
    weft_mapped_file_t file;
    safetensors_t *tensors;
    adapter_config_t config;
    adapter_t *adapter;
    size_t used;        /* floats of its memory */
    weft_mem_t staging; /* the host's copy of it, where the device's cannot be written */
    size_t widest;      /* numbers in a row of b of all experts; 0: there is none */
    float *row;         /* [widest] */
} loader_t;

/* ---- the tensors ---------------------------------------------------------------------------- */

/* The pair of a place that is here; the first of a head's, or of all experts'. */
static k_lora_t *pair_at(const loader_t *loader, adapter_place_t place)
{
    const model_cut_t *cut = loader->model->cut;
    const adapter_pairs_t *of_layer = &loader->adapter->of_layer;
    const bool is_of_one = adapter_is_of_expert(place.target) && !place.is_of_all;
    const uint32_t expert = is_of_one ? place.expert - cut->experts.first : 0;
    return &loader->adapter->pairs[(size_t)(place.layer - cut->layers.first) * of_layer->n +
                                   adapter_pair_of(of_layer, place.target) + expert];
}

/* Matrices of all experts lie behind one another in a, and take turns in b's columns. */
static uint32_t experts_of(const adapter_model_t *model, adapter_place_t place)
{
    return place.is_of_all ? model->config->experts.count : 1;
}

static uint32_t rank_of(const adapter_model_t *model, const safetensors_tensor_t *tensor,
                        adapter_place_t place)
{
    return (uint32_t)tensor->dims[place.is_b ? 1 : 0] / experts_of(model, place);
}

/* Rows of b, whole. */
static uint64_t out_of(const model_config_t *config, adapter_place_t place)
{
    uint64_t out = 0;
    for (uint32_t t = 0; t < place.n_targets; t++) {
        out += adapter_shape(config, place.target + t).out;
    }
    return out;
}

static float scale_of(const loader_t *loader, double rank)
{
    return (float)(loader->config.alpha / (loader->config.is_rank_stabilized ? sqrt(rank) : rank));
}

static weft_status_t refuse_tensor(const loader_t *loader, const safetensors_tensor_t *tensor,
                                   weft_status_t status, const char *reason)
{
    return weft_diag(loader->diag, status, "%s: tensor %s: %s", loader->path, tensor->name, reason);
}

/* The extent of it that is not ranks: `wide` in the model. */
static weft_status_t refuse_shape(const loader_t *loader, const safetensors_tensor_t *tensor,
                                  adapter_place_t place, uint64_t wide)
{
    const uint32_t experts = experts_of(loader->model, place);
    char ranks[32] = "rank";
    char expected[32];
    char reason[192];
    if (tensor->n_dims != 2) {
        return refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED, "its shape is no matrix's");
    }
    if (experts > 1) {
        snprintf(ranks, sizeof(ranks), "%u * rank", experts);
    }
    snprintf(expected, sizeof(expected), "%" PRIu64, wide);
    snprintf(reason, sizeof(reason),
             "its shape is [%" PRIu64 ", %" PRIu64 "], the model's [%s, %s]", tensor->dims[0],
             tensor->dims[1], place.is_b ? expected : ranks, place.is_b ? ranks : expected);
    return refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED, reason);
}

static weft_status_t check_tensor(const loader_t *loader, const safetensors_tensor_t *tensor,
                                  adapter_place_t *place_out)
{
    const adapter_model_t *model = loader->model;
    uint32_t layer;
    if (!adapter_parse_name(model->config, loader->config.outer, tensor->name, place_out)) {
        return adapter_parse_layer(tensor->name, &layer) != NULL && layer >= model->config->layers
                   ? refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED, "the model has fewer layers")
                   : refuse_tensor(loader, tensor, WEFT_ERR_UNSUPPORTED,
                                   "adapters add to the projections of attention, feed-forward and "
                                   "experts that the layer has, and to routers, alone");
    }
    const uint64_t experts = experts_of(model, *place_out);
    const uint64_t wide = tensor->n_dims == 2 ? tensor->dims[place_out->is_b ? 0 : 1] : 0;
    const uint64_t ranks = tensor->n_dims == 2 ? tensor->dims[place_out->is_b ? 1 : 0] : 0;
    const uint64_t expected = place_out->is_b ? out_of(model->config, *place_out)
                                              : adapter_shape(model->config, place_out->target).in;
    if (wide != expected || ranks == 0 || ranks % experts != 0) {
        return refuse_shape(loader, tensor, *place_out, expected);
    }
    if (ranks / experts > model->max_rank) {
        return refuse_tensor(loader, tensor, WEFT_ERR_TOO_LARGE,
                             "its rank is above --max-lora-rank");
    }
    if (!tensor->is_computable || k_dtype_info(tensor->dtype)->block_elements != 1) {
        return refuse_tensor(loader, tensor, WEFT_ERR_UNSUPPORTED, "its type is not a float's");
    }
    return WEFT_OK;
}

static bool is_within(const model_range_t *range, uint32_t at)
{
    return at >= range->first && at - range->first < range->n;
}

static bool is_here(const adapter_model_t *model, adapter_place_t place)
{
    return is_within(&model->cut->layers, place.layer) &&
           (place.is_of_all || !adapter_is_of_expert(place.target) ||
            is_within(&model->cut->experts, place.expert));
}

/* What this rank keeps of the rows of a b that belong to one of its targets. */
static size_t floats_of_target(const adapter_model_t *model, adapter_target_t target, uint32_t rank)
{
    return adapter_floats(rank, adapter_part(model, target).out.n);
}

/* What this rank keeps of a matrix. */
static size_t floats_here(const adapter_model_t *model, adapter_place_t place, uint32_t rank)
{
    const model_mla_t *mla = &model->config->mla;
    const size_t n = place.is_of_all ? model->cut->experts.n : 1;
    size_t floats = 0;
    if (!is_here(model, place)) {
        return 0;
    }
    if (!place.is_b) {
        return n * adapter_floats(rank, adapter_part(model, place.target).in.n);
    }
    if (place.target == ADAPTER_MLA_KV_B) {
        return model->cut->heads.n *
               (adapter_floats(rank, mla->plain) + adapter_floats(rank, mla->value));
    }
    for (uint32_t t = 0; t < place.n_targets; t++) {
        floats += n * floats_of_target(model, place.target + t, rank);
    }
    return floats;
}

/* Pairs that a tensor has a matrix of are of one rank. */
static bool set_rank(const loader_t *loader, adapter_place_t place, uint32_t rank)
{
    const uint32_t n = place.n_targets * (place.is_of_all ? loader->model->cut->experts.n : 1);
    k_lora_t *pairs = pair_at(loader, place); /* targets of one tensor are neighbours */
    for (uint32_t i = 0; i < n; i++) {
        if (pairs[i].rank != 0 && pairs[i].rank != rank) {
            return false;
        }
        pairs[i].rank = rank;
    }
    return true;
}

/* Ranks of both matrices of each pair, and the floats that all take. */
static weft_status_t measure(loader_t *loader)
{
    const adapter_model_t *model = loader->model;
    for (size_t i = 0; i < safetensors_tensor_count(loader->tensors); i++) {
        const safetensors_tensor_t *tensor = safetensors_tensor_at(loader->tensors, i);
        adapter_place_t place;
        const weft_status_t status = check_tensor(loader, tensor, &place);
        if (status < 0) {
            return status;
        }
        if (!is_here(model, place)) {
            continue;
        }
        const uint32_t rank = rank_of(model, tensor, place);
        if (!set_rank(loader, place, rank)) {
            return refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED,
                                 "of another rank than a matrix before it of the same linear");
        }
        loader->used += floats_here(model, place, rank);
        const size_t width = place.is_of_all && place.is_b ? tensor->dims[1] : 0;
        loader->widest = width > loader->widest ? width : loader->widest;
    }
    return WEFT_OK;
}

/*
 * Row `row` of b as the model's rows lie: llama.cpp puts a head's two halves, which are rotated
 * together, side by side.
 */
static uint32_t row_of_model(const adapter_model_t *model, adapter_target_t target, uint32_t row)
{
    const uint32_t dim = model->config->head_dim;
    const bool is_turned = model->is_gguf && model->config->rope.interleaved &&
                           (target == ADAPTER_Q || target == ADAPTER_K);
    const uint32_t in_head = row % dim;
    return is_turned ? row - in_head + in_head % (dim / 2) * 2 + in_head / (dim / 2) : row;
}

/* Columns `in` of rows of a matrix [rank, columns], or of several behind one another. */
static void place_a(const safetensors_tensor_t *tensor, const char *data, model_range_t rows,
                    model_range_t in, float *a)
{
    const size_t element = k_dtype_info(tensor->dtype)->block_bytes;
    for (size_t r = 0; r < rows.n; r++) {
        k_dequantize(tensor->dtype,
                     data + ((rows.first + r) * tensor->dims[1] + in.first) * element, a + r * in.n,
                     in.n);
    }
}

/* Rows `out` of a matrix [rows, rank], transposed: [rank, out.n]. */
static void place_b(const loader_t *loader, const safetensors_tensor_t *tensor,
                    adapter_target_t target, const char *data, model_range_t out, float *b)
{
    const uint32_t rank = (uint32_t)tensor->dims[1];
    const size_t row_bytes = rank * k_dtype_info(tensor->dtype)->block_bytes;
    float row[ADAPTER_MAX_RANK];
    for (uint32_t i = out.first; i < out.first + out.n; i++) {
        const uint32_t to = row_of_model(loader->model, target, i) - out.first;
        k_dequantize(tensor->dtype, data + i * row_bytes, row, rank);
        for (uint32_t r = 0; r < rank; r++) {
            b[(size_t)r * out.n + to] = row[r];
        }
    }
}

/* Whether one target's matrix came by another name before: q's beside that of q, k and v. */
static bool has_matrix(const k_lora_t *pairs, adapter_place_t place)
{
    for (uint32_t t = 0; t < place.n_targets; t++) {
        if ((place.is_b ? pairs[t].b : pairs[t].a) != NULL) {
            return true;
        }
    }
    return false;
}

/* Each target's rows of b, which lie behind one another here and there. */
static void fill_plain_b(const loader_t *loader, const safetensors_tensor_t *tensor,
                         adapter_place_t place, const char *data, float *to, const float *at)
{
    const adapter_model_t *model = loader->model;
    const uint32_t rank = rank_of(model, tensor, place);
    const size_t row_bytes = rank * k_dtype_info(tensor->dtype)->block_bytes;
    k_lora_t *pairs = pair_at(loader, place);
    for (uint32_t t = 0; t < place.n_targets; t++) {
        const adapter_target_t target = place.target + t;
        const size_t n = floats_of_target(model, target, rank);
        place_b(loader, tensor, target, data, adapter_part(model, target).out, to);
        pairs[t].b = at;
        data += adapter_shape(model->config, target).out * row_bytes;
        to += n;
        at += n;
    }
}

/* A matrix of one linear or of several fused ones, written to `to`, which will lie at `at`. */
static weft_status_t fill_plain(const loader_t *loader, const safetensors_tensor_t *tensor,
                                adapter_place_t place, const char *data, float *to, const float *at)
{
    const model_range_t in = adapter_part(loader->model, place.target).in;
    k_lora_t *pairs = pair_at(loader, place);
    if (has_matrix(pairs, place)) {
        return refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED,
                             "another tensor is for the same linear");
    }
    for (uint32_t t = 0; t < place.n_targets; t++) {
        pairs[t].scale = scale_of(loader, pairs[t].rank);
    }
    if (place.is_b) {
        fill_plain_b(loader, tensor, place, data, to, at);
        return WEFT_OK;
    }
    place_a(tensor, data, (model_range_t){0, pairs->rank}, in, to);
    for (uint32_t t = 0; t < place.n_targets; t++) {
        pairs[t].a = at;
    }
    return WEFT_OK;
}

/* a of all experts: gate and up have the same. */
static void fill_experts_a(const loader_t *loader, const safetensors_tensor_t *tensor,
                           adapter_place_t place, const char *data, float *to, const float *at)
{
    const model_range_t *experts = &loader->model->cut->experts;
    const adapter_part_t part = adapter_part(loader->model, place.target);
    const uint32_t rank = rank_of(loader->model, tensor, place);
    const size_t n = adapter_floats(rank, part.in.n);
    k_lora_t *pairs = pair_at(loader, place);
    for (uint32_t e = 0; e < experts->n; e++) {
        place_a(tensor, data, (model_range_t){(experts->first + e) * rank, rank}, part.in,
                to + e * n);
        for (uint32_t t = 0; t < place.n_targets; t++) {
            pairs[t * experts->n + e].a = at + e * n;
        }
    }
}

/* b of all experts: rows of gate and up take turns, columns are [rank][experts]. */
static void fill_experts_b(const loader_t *loader, const safetensors_tensor_t *tensor,
                           adapter_place_t place, const char *data, float *to, const float *at)
{
    const model_range_t *experts = &loader->model->cut->experts;
    const model_range_t out = adapter_part(loader->model, place.target).out;
    const uint32_t rank = rank_of(loader->model, tensor, place);
    const uint32_t targets = place.n_targets;
    const size_t n = adapter_floats(rank, out.n);
    const size_t row_bytes = tensor->dims[1] * k_dtype_info(tensor->dtype)->block_bytes;
    k_lora_t *pairs = pair_at(loader, place);
    for (uint32_t i = 0; i < targets * experts->n; i++) {
        pairs[i].b = at + i * n;
        pairs[i].scale = scale_of(loader, rank);
    }
    for (uint32_t row = 0; row < targets * out.n; row++) {
        float *matrices = to + (size_t)(row % targets) * experts->n * n;
        k_dequantize(tensor->dtype, data + ((size_t)targets * out.first + row) * row_bytes,
                     loader->row, tensor->dims[1]);
        for (uint32_t i = 0; i < rank * experts->n; i++) {
            const uint32_t r = i / experts->n;
            const uint32_t e = i % experts->n;
            matrices[e * n + (size_t)r * out.n + row / targets] =
                loader->row[(size_t)r * loader->model->config->experts.count + experts->first + e];
        }
    }
}

/*
 * b's rows for a head's keys k and values v: what is added to k = W c is b_k a c, so to the latents
 * that stand for q, a' (b_k' q); to v = W c, b_v (a c).
 */
static void fill_heads(const loader_t *loader, const safetensors_tensor_t *tensor,
                       adapter_place_t place, const char *data, float *to, const float *at)
{
    const model_mla_t *mla = &loader->model->config->mla;
    const model_range_t *heads = &loader->model->cut->heads;
    const uint32_t rank = rank_of(loader->model, tensor, place);
    const model_range_t latents = {0, mla->kv_latent};
    k_lora_t *pairs = pair_at(loader, place);
    if (!place.is_b) {
        place_a(tensor, data, (model_range_t){0, rank}, latents, to);
    }
    for (uint32_t h = 0; h < heads->n; h++) {
        k_lora_t *key = &pairs[2 * h];
        k_lora_t *value = &pairs[2 * h + 1];
        key->rank = value->rank = rank;
        key->scale = value->scale = scale_of(loader, rank);
        if (!place.is_b) {
            key->b = value->a = at;
            continue;
        }
        const uint32_t row = (heads->first + h) * (mla->plain + mla->value);
        const size_t n_key = adapter_floats(rank, mla->plain);
        const size_t n = n_key + adapter_floats(rank, mla->value);
        const model_range_t keys = {row, mla->plain};
        const model_range_t values = {row + mla->plain, mla->value};
        place_b(loader, tensor, place.target, data, keys, to + h * n);
        place_b(loader, tensor, place.target, data, values, to + h * n + n_key);
        key->a = at + h * n;
        value->b = at + h * n + n_key;
    }
}

static weft_status_t fill_tensor(const loader_t *loader, const safetensors_tensor_t *tensor,
                                 adapter_place_t place, float *to, const float *at)
{
    const char *data = (const char *)loader->file.data + tensor->offset;
    if (place.is_of_all && place.is_b) {
        fill_experts_b(loader, tensor, place, data, to, at);
    } else if (place.is_of_all) {
        fill_experts_a(loader, tensor, place, data, to, at);
    } else if (place.target == ADAPTER_MLA_KV_B) {
        fill_heads(loader, tensor, place, data, to, at);
    } else {
        return fill_plain(loader, tensor, place, data, to, at);
    }
    return WEFT_OK;
}

/* Writes the matrices to `to`, as they will lie in the adapter's memory. */
static weft_status_t fill(const loader_t *loader, float *to)
{
    const adapter_model_t *model = loader->model;
    const float *at = loader->adapter->memory.addr;
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; status >= 0 && i < safetensors_tensor_count(loader->tensors); i++) {
        const safetensors_tensor_t *tensor = safetensors_tensor_at(loader->tensors, i);
        adapter_place_t place;
        if (!adapter_parse_name(model->config, loader->config.outer, tensor->name, &place) ||
            !is_here(model, place)) {
            continue; /* of the first kind there is none: measured */
        }
        status = fill_tensor(loader, tensor, place, to, at);
        const size_t n = floats_here(model, place, rank_of(model, tensor, place));
        to += n;
        at += n;
    }
    return status;
}

/* A matrix without its other one. */
static weft_status_t check_pairs(const loader_t *loader)
{
    const adapter_pairs_t *of_layer = &loader->adapter->of_layer;
    for (uint32_t i = 0; i < loader->adapter->layers * of_layer->n; i++) {
        const k_lora_t *pair = &loader->adapter->pairs[i];
        if ((pair->a == NULL) != (pair->b == NULL)) {
            return weft_diag(loader->diag, WEFT_ERR_MALFORMED,
                             "%s: layer %u has one of two matrices for %s", loader->path,
                             loader->model->cut->layers.first + i / of_layer->n,
                             adapter_module(loader->model->config,
                                            adapter_target_of(of_layer, i % of_layer->n)));
        }
    }
    return safetensors_tensor_count(loader->tensors) > 0
               ? WEFT_OK
               : weft_diag(loader->diag, WEFT_ERR_MALFORMED, "%s: no tensors", loader->path);
}

static weft_status_t open_tensors(loader_t *loader)
{
    char path[ADAPTER_MAX_PATH];
    weft_status_t status =
        adapter_file_name(loader->path, "adapter_model.safetensors", loader->diag, path);
    if (status >= 0) {
        status = weft_mapped_file_open(path, loader->diag, &loader->file);
    }
    return status < 0
               ? status
               : safetensors_parse(loader->file.data, loader->file.length, loader->file.length,
                                   path, loader->diag, &loader->tensors);
}

static weft_status_t take_memory(loader_t *loader)
{
    weft_device_t *device = loader->model->device;
    const size_t bytes = (loader->used > 0 ? loader->used : 1) * sizeof(float);
    weft_status_t status = device->ops->alloc(device, bytes, 0, &loader->adapter->memory);
    if (status >= 0 && loader->widest > 0) {
        loader->row = weft_calloc(loader->widest, sizeof(float), "runtime.adapter_row");
        status = loader->row == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    if (status >= 0 && !device->ops->is_host) {
        status = device->ops->alloc(device, bytes, WEFT_MEM_HOST, &loader->staging);
    }
    return status != WEFT_ERR_NO_MEMORY
               ? status
               : weft_diag(loader->diag, status, "%s: no memory for %zu MiB", loader->path,
                           bytes >> 20);
}

/* Bytes from the host to the device, which are there when it returns. */
static weft_status_t send(weft_device_t *device, void *to, const void *from, size_t bytes)
{
    weft_queue_t *queue = NULL;
    weft_status_t status = device->ops->open_queue(device, &queue);
    if (status < 0) {
        return status;
    }
    device->ops->copy(queue, to, from, bytes);
    status = device->ops->sync(queue);
    device->ops->close_queue(queue);
    return status;
}

/* Everything that can be known without memory for the matrices. */
static weft_status_t open_folder(loader_t *loader)
{
    const adapter_model_t *model = loader->model;
    const uint32_t layers = model->cut->layers.n;
    const adapter_pairs_t of_layer = adapter_pairs(model->config, model->cut);
    assert(model->max_rank <= ADAPTER_MAX_RANK);
    loader->adapter = weft_zalloc(
        sizeof(adapter_t) + (size_t)layers * of_layer.n * sizeof(k_lora_t), "runtime.adapter");
    if (loader->adapter == NULL) {
        return weft_diag(loader->diag, WEFT_ERR_NO_MEMORY, "%s: no memory", loader->path);
    }
    loader->adapter->device = model->device;
    loader->adapter->of_layer = of_layer;
    loader->adapter->layers = layers;
    weft_status_t status = adapter_config_read(loader->path, loader->diag, &loader->config);
    if (status >= 0) {
        status = open_tensors(loader);
    }
    return status < 0 ? status : measure(loader);
}

static void close_folder(loader_t *loader)
{
    adapter_free_memory(loader->model->device, &loader->staging);
    weft_free(loader->row);
    safetensors_destroy(loader->tensors);
    weft_mapped_file_close(&loader->file);
    adapter_destroy(loader->adapter);
}

static weft_status_t load(loader_t *loader)
{
    weft_device_t *device = loader->model->device;
    weft_mem_t *memory = &loader->adapter->memory;
    weft_status_t status = take_memory(loader);
    if (status < 0) {
        return status;
    }
    const weft_mem_t *written = device->ops->is_host ? memory : &loader->staging;
    status = fill(loader, written->addr);
    if (status >= 0) {
        status = check_pairs(loader);
    }
    if (status < 0 || device->ops->is_host) {
        return status;
    }
    status = send(device, memory->addr, written->addr, memory->bytes);
    return status < 0
               ? weft_diag(loader->diag, status, "%s: the device did not take it", loader->path)
               : WEFT_OK;
}

weft_status_t adapter_load(const adapter_model_t *model, const char *path, weft_diag_t *diag,
                           adapter_t **adapter_out)
{
    loader_t loader = {.model = model, .path = path, .diag = diag};
    weft_status_t status = open_folder(&loader);
    if (status >= 0) {
        status = load(&loader);
    }
    if (status >= 0) {
        *adapter_out = loader.adapter;
        loader.adapter = NULL; /* the caller's now */
    }
    close_folder(&loader);
    return status;
}

weft_status_t adapter_measure(const adapter_model_t *model, const char *path, weft_diag_t *diag,
                              size_t *bytes_out)
{
    loader_t loader = {.model = model, .path = path, .diag = diag};
    const weft_status_t status = open_folder(&loader);
    if (status >= 0) {
        *bytes_out = loader.used * sizeof(float);
    }
    close_folder(&loader);
    return status;
}

void adapter_destroy(adapter_t *adapter)
{
    if (adapter == NULL) {
        return;
    }
    adapter_free_memory(adapter->device, &adapter->memory);
    weft_free(adapter);
}
