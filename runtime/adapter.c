/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/adapter.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "base/mapped_file.h"
#include "runtime/json_input.h"
#include "runtime/safetensors.h"

enum { MAX_PATH = 4096, MAX_CONFIG_BYTES = 1 << 20 };

struct adapter {
    weft_device_t *device;
    weft_mem_t memory;
    uint32_t n_pairs; /* of a layer */
    uint32_t layers;  /* of this rank */
    k_lora_t pairs[]; /* [layers][n_pairs] */
};

struct adapter_table {
    weft_device_t *device;
    weft_mem_t memory; /* of the device: [layers][n_pairs][places] */
    uint32_t places;
    uint32_t n_pairs;
    uint32_t layers;
    atomic_bool has_heads; /* set by put before sequences with the adapter run */
};

/* ---- what a model has ---------------------------------------------------------------------- */

static const char *const modules[ADAPTER_TARGETS] = {
    [ADAPTER_Q] = "self_attn.q_proj",
    [ADAPTER_K] = "self_attn.k_proj",
    [ADAPTER_V] = "self_attn.v_proj",
    [ADAPTER_O] = "self_attn.o_proj",
    [ADAPTER_GATE] = "mlp.gate_proj",
    [ADAPTER_UP] = "mlp.up_proj",
    [ADAPTER_DOWN] = "mlp.down_proj",
    [ADAPTER_SHARED_GATE] = "mlp.shared_experts.gate_proj",
    [ADAPTER_SHARED_UP] = "mlp.shared_experts.up_proj",
    [ADAPTER_SHARED_DOWN] = "mlp.shared_experts.down_proj",
    [ADAPTER_ROUTER] = "mlp.gate",
    [ADAPTER_MLA_Q] = "self_attn.q_proj",
    [ADAPTER_MLA_KV_A] = "self_attn.kv_a_proj_with_mqa",
    [ADAPTER_MLA_Q_B] = "self_attn.q_b_proj",
    [ADAPTER_MLA_KV_B] = "self_attn.kv_b_proj",
};

/* As the target's matrices are called in the model. */
static const char *module_of(const model_config_t *config, adapter_target_t target)
{
    const bool has_two_steps = target == ADAPTER_MLA_Q && config->mla.q_latent > 0;
    const bool is_mixtral = target == ADAPTER_ROUTER && strcmp(config->family, "mixtral") == 0;
    return has_two_steps ? "self_attn.q_a_proj"
           : is_mixtral  ? "block_sparse_moe.gate"
                         : modules[target];
}

static bool layer_has(const model_config_t *config, uint32_t layer, adapter_target_t target)
{
    const bool is_latent = config->mla.kv_latent > 0;
    const bool has_experts = model_layer_has_experts(config, layer);
    switch (target) {
    case ADAPTER_Q:
    case ADAPTER_K:
    case ADAPTER_V:
        return !is_latent;
    case ADAPTER_GATE:
    case ADAPTER_UP:
    case ADAPTER_DOWN:
        return !has_experts;
    case ADAPTER_SHARED_GATE:
    case ADAPTER_SHARED_UP:
    case ADAPTER_SHARED_DOWN:
        return has_experts && config->experts.shared_intermediate > 0;
    case ADAPTER_ROUTER:
        return has_experts;
    case ADAPTER_MLA_Q:
    case ADAPTER_MLA_KV_A:
    case ADAPTER_MLA_KV_B:
        return is_latent;
    case ADAPTER_MLA_Q_B:
        return is_latent && config->mla.q_latent > 0;
    default:
        return true;
    }
}

/* Numbers of a model, or of what a rank has of it, that make up the shapes of its matrices. */
typedef struct sizes {
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t ffn;
    uint32_t shared_ffn;
} sizes_t;

typedef struct shape {
    uint32_t in;
    uint32_t out;
} shape_t;

static sizes_t sizes_of(const model_config_t *config)
{
    return (sizes_t){config->heads, config->kv_heads, config->intermediate,
                     config->experts.shared_intermediate};
}

/* Of the matrix as if the model had these sizes; the first of a cut one's, it begins at that. */
static shape_t shape_with(const model_config_t *config, const sizes_t *sizes,
                          adapter_target_t target, shape_t uncut)
{
    const model_mla_t *mla = &config->mla;
    const uint32_t q_dim = mla->plain + mla->rotary;
    const uint32_t o_dim = mla->kv_latent > 0 ? mla->value : config->head_dim;
    const uint32_t in = uncut.in;
    const uint32_t out = uncut.out;
    switch (target) {
    case ADAPTER_Q:
        return (shape_t){in, sizes->heads * config->head_dim};
    case ADAPTER_K:
    case ADAPTER_V:
        return (shape_t){in, sizes->kv_heads * config->head_dim};
    case ADAPTER_O:
        return (shape_t){sizes->heads * o_dim, out};
    case ADAPTER_GATE:
    case ADAPTER_UP:
        return (shape_t){in, sizes->ffn};
    case ADAPTER_DOWN:
        return (shape_t){sizes->ffn, out};
    case ADAPTER_SHARED_GATE:
    case ADAPTER_SHARED_UP:
        return (shape_t){in, sizes->shared_ffn};
    case ADAPTER_SHARED_DOWN:
        return (shape_t){sizes->shared_ffn, out};
    case ADAPTER_MLA_Q:
        return (shape_t){in, mla->q_latent > 0 ? out : sizes->heads * q_dim};
    case ADAPTER_MLA_Q_B:
        return (shape_t){in, sizes->heads * q_dim};
    case ADAPTER_MLA_KV_B:
        return (shape_t){in, sizes->heads * (mla->plain + mla->value)};
    default:
        return uncut;
    }
}

/* What no cut changes of it. */
static shape_t uncut_of(const model_config_t *config, adapter_target_t target)
{
    const model_mla_t *mla = &config->mla;
    const uint32_t hidden = config->hidden;
    switch (target) {
    case ADAPTER_ROUTER:
        return (shape_t){hidden, config->experts.count};
    case ADAPTER_MLA_Q:
        return (shape_t){hidden, mla->q_latent};
    case ADAPTER_MLA_KV_A:
        return (shape_t){hidden, mla->kv_latent + mla->rotary};
    case ADAPTER_MLA_Q_B:
        return (shape_t){mla->q_latent, 0};
    case ADAPTER_MLA_KV_B:
        return (shape_t){mla->kv_latent, 0};
    default:
        return (shape_t){hidden, hidden};
    }
}

static shape_t shape_of(const model_config_t *config, adapter_target_t target)
{
    const sizes_t sizes = sizes_of(config);
    return shape_with(config, &sizes, target, uncut_of(config, target));
}

/* The part of a target's inputs and outputs that a rank has. */
typedef struct part {
    model_range_t in;
    model_range_t out;
} part_t;

static part_t part_of(const adapter_model_t *model, adapter_target_t target)
{
    const model_cut_t *cut = model->cut;
    const sizes_t first = {cut->heads.first, cut->kv_heads.first, cut->ffn.first,
                           cut->shared_ffn.first};
    const sizes_t n = {cut->heads.n, cut->kv_heads.n, cut->ffn.n, cut->shared_ffn.n};
    const shape_t begin = shape_with(model->config, &first, target, (shape_t){0, 0});
    const shape_t here = shape_with(model->config, &n, target, uncut_of(model->config, target));
    return (part_t){{begin.in, here.in}, {begin.out, here.out}};
}

/* Pairs of a layer, of which heads that are here have two each. */
static uint32_t pairs_of(const model_config_t *config)
{
    return config->mla.kv_latent > 0 ? ADAPTER_MLA_KV_B + 2 * config->heads : ADAPTER_MLA_KV_B;
}

/* ---- the config ----------------------------------------------------------------------------- */

typedef struct loader {
    const adapter_model_t *model;
    const char *path;
    weft_diag_t *diag;
    weft_mapped_file_t file;
    safetensors_t *tensors;
    double alpha;
    bool is_rank_stabilized;
    adapter_t *adapter;
    size_t used;        /* floats of its memory */
    weft_mem_t staging; /* the host's copy of it, where the device's cannot be written */
} loader_t;

static void refuse_unless(json_reader_t *reader, bool is_fine, const char *key, const char *reason)
{
    if (!is_fine) {
        json_reader_refuse(reader, WEFT_ERR_UNSUPPORTED, key, reason);
    }
}

static bool is_empty_object(const json_t *value)
{
    return value == NULL || (json_is_object(value) && json_object_size(value) == 0);
}

static void read_fields(json_reader_t *reader, loader_t *loader)
{
    const char *kind = json_reader_string(reader, "peft_type", "LORA");
    const char *bias = json_reader_string(reader, "bias", "none");
    loader->alpha = json_reader_need_f64(reader, "lora_alpha");
    loader->is_rank_stabilized = json_reader_bool(reader, "use_rslora", false);
    refuse_unless(reader, strcmp(kind, "LORA") == 0, "peft_type", "only LORA is possible");
    refuse_unless(reader, strcmp(bias, "none") == 0, "bias", "only none is possible");
    refuse_unless(reader, !json_reader_bool(reader, "use_dora", false), "use_dora",
                  "only false is possible");
    refuse_unless(reader, !json_reader_bool(reader, "fan_in_fan_out", false), "fan_in_fan_out",
                  "only false is possible");
    refuse_unless(reader, is_empty_object(json_reader_get(reader, "alpha_pattern")),
                  "alpha_pattern", "one lora_alpha for all is possible");
    refuse_unless(reader, json_reader_get(reader, "modules_to_save") == NULL, "modules_to_save",
                  "whole modules are not replaced");
}

static weft_status_t join(const loader_t *loader, const char *name, char out[MAX_PATH])
{
    const int length = snprintf(out, MAX_PATH, "%s/%s", loader->path, name);
    return length < MAX_PATH ? WEFT_OK
                             : weft_diag(loader->diag, WEFT_ERR_TOO_LARGE,
                                         "%s: the path is too long", loader->path);
}

static weft_status_t read_config(loader_t *loader)
{
    char path[MAX_PATH];
    json_t *root = NULL;
    weft_mapped_file_t file = {0};
    weft_status_t status = join(loader, "adapter_config.json", path);
    if (status >= 0) {
        status = weft_mapped_file_open(path, loader->diag, &file);
    }
    if (status >= 0) {
        status = json_input_parse(file.data, file.length, MAX_CONFIG_BYTES, 0, path, loader->diag,
                                  &root);
    }
    if (status >= 0) {
        json_reader_t reader = {.object = root, .name = path, .diag = loader->diag};
        read_fields(&reader, loader);
        status = reader.status;
    }
    json_decref(root);
    weft_mapped_file_close(&file);
    return status;
}

/* ---- the tensors ---------------------------------------------------------------------------- */

/* Where a tensor belongs. */
typedef struct place {
    uint32_t layer;
    adapter_target_t target;
    bool is_b;
} place_t;

/* What follows `start` in text, NULL: it does not begin so. */
static const char *behind(const char *text, const char *start)
{
    const size_t length = strlen(start);
    return strncmp(text, start, length) == 0 ? text + length : NULL;
}

/* base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight: the layer; what follows it, or NULL */
static const char *parse_layer(const char *name, uint32_t *layer_out)
{
    const char *at = behind(name, "base_model.model.model.layers.");
    char *end = NULL;
    if (at == NULL || *at < '0' || *at > '9') {
        return NULL;
    }
    const unsigned long layer = strtoul(at, &end, 10);
    *layer_out = layer < UINT32_MAX ? (uint32_t)layer : UINT32_MAX;
    return *end == '.' ? end + 1 : NULL;
}

static bool parse_name(const model_config_t *config, const char *name, place_t *place_out)
{
    uint32_t layer;
    const char *module = parse_layer(name, &layer);
    for (adapter_target_t t = 0; module != NULL && layer < config->layers && t < ADAPTER_TARGETS;
         t++) {
        const char *side = behind(module, module_of(config, t));
        const bool is_a = side != NULL && strcmp(side, ".lora_A.weight") == 0;
        if (layer_has(config, layer, t) &&
            (is_a || (side != NULL && strcmp(side, ".lora_B.weight") == 0))) {
            *place_out = (place_t){.layer = layer, .target = t, .is_b = !is_a};
            return true;
        }
    }
    return false;
}

static k_lora_t *pair_at(adapter_t *adapter, uint32_t layer, adapter_target_t target)
{
    return &adapter->pairs[(size_t)layer * adapter->n_pairs + target];
}

static uint32_t rank_of(const safetensors_tensor_t *tensor, place_t place)
{
    return (uint32_t)tensor->dims[place.is_b ? 1 : 0];
}

static float scale_of(const loader_t *loader, double rank)
{
    return (float)(loader->alpha / (loader->is_rank_stabilized ? sqrt(rank) : rank));
}

static weft_status_t refuse_tensor(const loader_t *loader, const safetensors_tensor_t *tensor,
                                   weft_status_t status, const char *reason)
{
    return weft_diag(loader->diag, status, "%s: tensor %s: %s", loader->path, tensor->name, reason);
}

static weft_status_t check_tensor(const loader_t *loader, const safetensors_tensor_t *tensor,
                                  place_t *place_out)
{
    const adapter_model_t *model = loader->model;
    uint32_t layer;
    if (!parse_name(model->config, tensor->name, place_out)) {
        return parse_layer(tensor->name, &layer) != NULL && layer >= model->config->layers
                   ? refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED, "the model has fewer layers")
               : strstr(tensor->name, ".experts.") != NULL
                   ? refuse_tensor(loader, tensor, WEFT_ERR_UNSUPPORTED,
                                   "nothing is added to single experts yet")
                   : refuse_tensor(loader, tensor, WEFT_ERR_UNSUPPORTED,
                                   "adapters add to the projections of attention and feed-forward "
                                   "that the layer has, and to routers, alone");
    }
    const shape_t shape = shape_of(model->config, place_out->target);
    const uint64_t wide = tensor->n_dims == 2 ? tensor->dims[place_out->is_b ? 0 : 1] : 0;
    const uint64_t rank = tensor->n_dims == 2 ? tensor->dims[place_out->is_b ? 1 : 0] : 0;
    if (wide != (place_out->is_b ? shape.out : shape.in) || rank == 0) {
        return refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED, "its shape is not the model's");
    }
    if (rank > model->max_rank) {
        return refuse_tensor(loader, tensor, WEFT_ERR_TOO_LARGE,
                             "its rank is above --max-lora-rank");
    }
    if (!tensor->is_computable || k_dtype_info(tensor->dtype)->block_elements != 1) {
        return refuse_tensor(loader, tensor, WEFT_ERR_UNSUPPORTED, "its type is not a float's");
    }
    return WEFT_OK;
}

/* Floats of a matrix, in whole vectors: the next one begins aligned. */
static size_t floats_of(size_t rows, size_t columns)
{
    const size_t vector = K_LORA_ALIGNMENT / sizeof(float);
    return (rows * columns + vector - 1) / vector * vector;
}

static bool is_here(const adapter_model_t *model, uint32_t layer)
{
    const model_range_t *layers = &model->cut->layers;
    return layer >= layers->first && layer - layers->first < layers->n;
}

/* What this rank keeps of a matrix. */
static size_t floats_here(const adapter_model_t *model, place_t place, uint32_t rank)
{
    const model_mla_t *mla = &model->config->mla;
    const part_t part = part_of(model, place.target);
    if (!is_here(model, place.layer)) {
        return 0;
    }
    if (place.is_b && place.target == ADAPTER_MLA_KV_B) {
        return model->cut->heads.n * (floats_of(rank, mla->plain) + floats_of(rank, mla->value));
    }
    return floats_of(rank, place.is_b ? part.out.n : part.in.n);
}

/* Ranks of both matrices of each pair, and the floats that all take. */
static weft_status_t measure(loader_t *loader)
{
    const adapter_model_t *model = loader->model;
    for (size_t i = 0; i < safetensors_tensor_count(loader->tensors); i++) {
        const safetensors_tensor_t *tensor = safetensors_tensor_at(loader->tensors, i);
        place_t place;
        const weft_status_t status = check_tensor(loader, tensor, &place);
        if (status < 0) {
            return status;
        }
        if (!is_here(model, place.layer)) {
            continue;
        }
        const uint32_t rank = rank_of(tensor, place);
        k_lora_t *pair =
            pair_at(loader->adapter, place.layer - model->cut->layers.first, place.target);
        if (pair->rank != 0 && pair->rank != rank) {
            return refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED,
                                 "of another rank than its pair");
        }
        pair->rank = rank;
        loader->used += floats_here(model, place, rank);
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

/* Columns `in` of a matrix [rank, columns]. */
static void place_a(const safetensors_tensor_t *tensor, const char *data, model_range_t in,
                    float *a)
{
    const size_t element = k_dtype_info(tensor->dtype)->block_bytes;
    for (size_t r = 0; r < tensor->dims[0]; r++) {
        k_dequantize(tensor->dtype, data + (r * tensor->dims[1] + in.first) * element, a + r * in.n,
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

/* One of a linear's matrices, written to `to`, which will lie at `at`. */
static void fill_plain(const loader_t *loader, const safetensors_tensor_t *tensor, place_t place,
                       const char *data, float *to, const float *at)
{
    const part_t part = part_of(loader->model, place.target);
    k_lora_t *pair =
        pair_at(loader->adapter, place.layer - loader->model->cut->layers.first, place.target);
    pair->scale = scale_of(loader, pair->rank);
    if (place.is_b) {
        place_b(loader, tensor, place.target, data, part.out, to);
        pair->b = at;
    } else {
        place_a(tensor, data, part.in, to);
        pair->a = at;
    }
}

/*
 * b's rows for a head's keys k and values v: what is added to k = W c is b_k a c, so to the latents
 * that stand for q, a' (b_k' q); to v = W c, b_v (a c).
 */
static void fill_heads(const loader_t *loader, const safetensors_tensor_t *tensor, place_t place,
                       const char *data, float *to, const float *at)
{
    const model_mla_t *mla = &loader->model->config->mla;
    const model_range_t *heads = &loader->model->cut->heads;
    const uint32_t rank = rank_of(tensor, place);
    const model_range_t latents = {0, mla->kv_latent};
    k_lora_t *pairs =
        pair_at(loader->adapter, place.layer - loader->model->cut->layers.first, ADAPTER_MLA_KV_B);
    if (!place.is_b) {
        place_a(tensor, data, latents, to);
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
        const size_t n_key = floats_of(rank, mla->plain);
        const size_t n = n_key + floats_of(rank, mla->value);
        const model_range_t keys = {row, mla->plain};
        const model_range_t values = {row + mla->plain, mla->value};
        place_b(loader, tensor, place.target, data, keys, to + h * n);
        place_b(loader, tensor, place.target, data, values, to + h * n + n_key);
        key->a = at + h * n;
        value->b = at + h * n + n_key;
    }
}

/* Writes the matrices to `to`, as they will lie in the adapter's memory. */
static void fill(const loader_t *loader, float *to)
{
    const float *at = loader->adapter->memory.addr;
    for (size_t i = 0; i < safetensors_tensor_count(loader->tensors); i++) {
        const safetensors_tensor_t *tensor = safetensors_tensor_at(loader->tensors, i);
        const char *data = (const char *)loader->file.data + tensor->offset;
        place_t place;
        if (!parse_name(loader->model->config, tensor->name, &place) ||
            !is_here(loader->model, place.layer)) {
            continue; /* of the first kind there is none: measured */
        }
        if (place.target == ADAPTER_MLA_KV_B) {
            fill_heads(loader, tensor, place, data, to, at);
        } else {
            fill_plain(loader, tensor, place, data, to, at);
        }
        const size_t n = floats_here(loader->model, place, rank_of(tensor, place));
        to += n;
        at += n;
    }
}

/* A matrix without its other one. */
static weft_status_t check_pairs(const loader_t *loader)
{
    const uint32_t n_pairs = loader->adapter->n_pairs;
    for (uint32_t i = 0; i < loader->adapter->layers * n_pairs; i++) {
        const k_lora_t *pair = &loader->adapter->pairs[i];
        const uint32_t target = i % n_pairs < ADAPTER_MLA_KV_B ? i % n_pairs : ADAPTER_MLA_KV_B;
        if ((pair->a == NULL) != (pair->b == NULL)) {
            return weft_diag(loader->diag, WEFT_ERR_MALFORMED,
                             "%s: layer %u has one matrix of %s alone", loader->path,
                             loader->model->cut->layers.first + i / n_pairs,
                             module_of(loader->model->config, target));
        }
    }
    return safetensors_tensor_count(loader->tensors) > 0
               ? WEFT_OK
               : weft_diag(loader->diag, WEFT_ERR_MALFORMED, "%s: no tensors", loader->path);
}

static weft_status_t open_tensors(loader_t *loader)
{
    char path[MAX_PATH];
    weft_status_t status = join(loader, "adapter_model.safetensors", path);
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

static weft_status_t load(loader_t *loader)
{
    weft_device_t *device = loader->model->device;
    weft_mem_t *memory = &loader->adapter->memory;
    weft_status_t status = read_config(loader);
    if (status >= 0) {
        status = open_tensors(loader);
    }
    if (status >= 0) {
        status = measure(loader);
    }
    if (status >= 0) {
        status = take_memory(loader);
    }
    if (status < 0) {
        return status;
    }
    const weft_mem_t *written = device->ops->is_host ? memory : &loader->staging;
    fill(loader, written->addr);
    status = check_pairs(loader);
    if (status < 0 || device->ops->is_host) {
        return status;
    }
    status = send(device, memory->addr, written->addr, memory->bytes);
    return status < 0
               ? weft_diag(loader->diag, status, "%s: the device did not take it", loader->path)
               : WEFT_OK;
}

static void free_memory(weft_device_t *device, weft_mem_t *memory)
{
    if (memory->addr != NULL) {
        device->ops->free(device, memory);
    }
}

weft_status_t adapter_load(const adapter_model_t *model, const char *path, weft_diag_t *diag,
                           adapter_t **adapter_out)
{
    const uint32_t layers = model->cut->layers.n;
    const bool has_heads = model->config->mla.kv_latent > 0;
    const uint32_t n_pairs = ADAPTER_MLA_KV_B + (has_heads ? 2 * model->cut->heads.n : 0);
    loader_t loader = {.model = model, .path = path, .diag = diag};
    assert(model->max_rank <= ADAPTER_MAX_RANK);
    loader.adapter = weft_zalloc(sizeof(adapter_t) + (size_t)layers * n_pairs * sizeof(k_lora_t),
                                 "runtime.adapter");
    if (loader.adapter == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "%s: no memory", path);
    }
    loader.adapter->device = model->device;
    loader.adapter->n_pairs = n_pairs;
    loader.adapter->layers = layers;
    const weft_status_t status = load(&loader);
    free_memory(model->device, &loader.staging);
    safetensors_destroy(loader.tensors);
    weft_mapped_file_close(&loader.file);
    if (status < 0) {
        adapter_destroy(loader.adapter);
        return status;
    }
    *adapter_out = loader.adapter;
    return WEFT_OK;
}

void adapter_destroy(adapter_t *adapter)
{
    if (adapter == NULL) {
        return;
    }
    free_memory(adapter->device, &adapter->memory);
    weft_free(adapter);
}

size_t adapter_bytes(const model_config_t *config, uint32_t rank)
{
    size_t floats = 0;
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        for (adapter_target_t t = 0; t < ADAPTER_TARGETS; t++) {
            const shape_t shape = shape_of(config, t);
            floats += layer_has(config, layer, t)
                          ? floats_of(rank, shape.in) + floats_of(rank, shape.out)
                          : 0;
        }
    }
    return floats * sizeof(float);
}

/* ---- tables ---------------------------------------------------------------------------------- */

weft_status_t adapter_table_create(const model_config_t *config, weft_device_t *device,
                                   uint32_t places, adapter_table_t **table_out)
{
    const uint32_t n_pairs = pairs_of(config);
    const size_t n = (size_t)config->layers * n_pairs * places;
    adapter_table_t *table = weft_zalloc(sizeof(*table), "runtime.adapter_table");
    if (table == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    table->device = device;
    table->places = places;
    table->n_pairs = n_pairs;
    table->layers = config->layers;
    const weft_status_t status =
        device->ops->alloc(device, n * sizeof(k_lora_t), 0, &table->memory); /* zeros: rank 0 */
    if (status < 0) {
        adapter_table_destroy(table);
        return status;
    }
    *table_out = table;
    return WEFT_OK;
}

void adapter_table_destroy(adapter_table_t *table)
{
    if (table == NULL) {
        return;
    }
    free_memory(table->device, &table->memory);
    weft_free(table);
}

weft_status_t adapter_table_put(adapter_table_t *table, uint32_t place, const adapter_t *adapter)
{
    const weft_device_ops_t *device = table->device->ops;
    k_lora_t *entries = table->memory.addr;
    weft_queue_t *queue = NULL;
    assert(place < table->places && adapter->layers == table->layers &&
           adapter->n_pairs == table->n_pairs);
    weft_status_t status = device->open_queue(table->device, &queue);
    if (status < 0) {
        return status;
    }
    for (uint32_t i = 0; i < table->layers * table->n_pairs; i++) {
        const bool is_head = i % table->n_pairs >= ADAPTER_MLA_KV_B;
        if (is_head && adapter->pairs[i].rank > 0) {
            atomic_store(&table->has_heads, true);
        }
        device->copy(queue, &entries[(size_t)i * table->places + place], &adapter->pairs[i],
                     sizeof(k_lora_t));
    }
    status = device->sync(queue);
    device->close_queue(queue);
    return status;
}

const k_lora_t *adapter_table_of(const adapter_table_t *table, uint32_t layer,
                                 adapter_target_t target)
{
    const k_lora_t *entries = table->memory.addr;
    return entries + ((size_t)layer * table->n_pairs + target) * table->places;
}

const k_lora_t *adapter_table_of_head(const adapter_table_t *table, uint32_t layer, uint32_t head,
                                      bool is_value)
{
    return adapter_table_of(table, layer, ADAPTER_MLA_KV_B + 2 * head + is_value);
}

bool adapter_table_has_heads(const adapter_table_t *table)
{
    return atomic_load(&table->has_heads);
}
