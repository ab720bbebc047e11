/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/adapter.h"

#include <assert.h>
#include <math.h>
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
    uint32_t layers;
    k_lora_t pairs[]; /* [layers][ADAPTER_TARGETS] */
};

struct adapter_table {
    weft_device_t *device;
    weft_mem_t memory; /* of the device: [layers][ADAPTER_TARGETS][places] */
    uint32_t places;
    uint32_t layers;
};

/* ---- what a model has ---------------------------------------------------------------------- */

static const char *const modules[ADAPTER_TARGETS] = {
    [ADAPTER_Q] = "self_attn.q_proj", [ADAPTER_K] = "self_attn.k_proj",
    [ADAPTER_V] = "self_attn.v_proj", [ADAPTER_O] = "self_attn.o_proj",
    [ADAPTER_GATE] = "mlp.gate_proj", [ADAPTER_UP] = "mlp.up_proj",
    [ADAPTER_DOWN] = "mlp.down_proj",
};

typedef struct shape {
    uint32_t in;
    uint32_t out;
} shape_t;

static shape_t shape_of(const model_config_t *config, adapter_target_t target)
{
    const uint32_t q = config->heads * config->head_dim;
    const uint32_t kv = config->kv_heads * config->head_dim;
    const shape_t shapes[ADAPTER_TARGETS] = {
        [ADAPTER_Q] = {config->hidden, q},
        [ADAPTER_K] = {config->hidden, kv},
        [ADAPTER_V] = {config->hidden, kv},
        [ADAPTER_O] = {q, config->hidden},
        [ADAPTER_GATE] = {config->hidden, config->intermediate},
        [ADAPTER_UP] = {config->hidden, config->intermediate},
        [ADAPTER_DOWN] = {config->intermediate, config->hidden},
    };
    return shapes[target];
}

weft_status_t adapter_check_model(const model_config_t *config, weft_diag_t *diag)
{
    const char *what = config->experts.count > 0   ? "experts"
                       : config->mla.kv_latent > 0 ? "latent attention"
                                                   : NULL;
    return what == NULL ? WEFT_OK
                        : weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                                    "adapters: not for models with %s yet", what);
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

/* base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight */
static bool parse_name(const char *name, place_t *place_out)
{
    const char *at = behind(name, "base_model.model.model.layers.");
    char *end = NULL;
    if (at == NULL || *at < '0' || *at > '9') {
        return false;
    }
    const unsigned long layer = strtoul(at, &end, 10);
    for (adapter_target_t t = 0; *end == '.' && layer < UINT32_MAX && t < ADAPTER_TARGETS; t++) {
        const char *side = behind(end + 1, modules[t]);
        const bool is_a = side != NULL && strcmp(side, ".lora_A.weight") == 0;
        if (is_a || (side != NULL && strcmp(side, ".lora_B.weight") == 0)) {
            *place_out = (place_t){.layer = (uint32_t)layer, .target = t, .is_b = !is_a};
            return true;
        }
    }
    return false;
}

static k_lora_t *pair_at(adapter_t *adapter, uint32_t layer, adapter_target_t target)
{
    return &adapter->pairs[(size_t)layer * ADAPTER_TARGETS + target];
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
    if (!parse_name(tensor->name, place_out)) {
        return refuse_tensor(loader, tensor, WEFT_ERR_UNSUPPORTED,
                             "adapters add to q, k, v, o, gate, up and down projections alone");
    }
    const shape_t shape = shape_of(model->config, place_out->target);
    const uint64_t wide = tensor->n_dims == 2 ? tensor->dims[place_out->is_b ? 0 : 1] : 0;
    const uint64_t rank = tensor->n_dims == 2 ? tensor->dims[place_out->is_b ? 1 : 0] : 0;
    if (place_out->layer >= model->config->layers) {
        return refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED, "the model has fewer layers");
    }
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

/* Ranks of both matrices of each pair, and the floats that all take. */
static weft_status_t measure(loader_t *loader)
{
    for (size_t i = 0; i < safetensors_tensor_count(loader->tensors); i++) {
        const safetensors_tensor_t *tensor = safetensors_tensor_at(loader->tensors, i);
        place_t place;
        const weft_status_t status = check_tensor(loader, tensor, &place);
        if (status < 0) {
            return status;
        }
        const uint32_t rank = (uint32_t)tensor->dims[place.is_b ? 1 : 0];
        k_lora_t *pair = pair_at(loader->adapter, place.layer, place.target);
        if (pair->rank != 0 && pair->rank != rank) {
            return refuse_tensor(loader, tensor, WEFT_ERR_MALFORMED,
                                 "of another rank than its pair");
        }
        pair->rank = rank;
        loader->used += floats_of((size_t)tensor->dims[0], (size_t)tensor->dims[1]);
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

static void place_a(const safetensors_tensor_t *tensor, const void *data, float *a)
{
    k_dequantize(tensor->dtype, data, a, (size_t)(tensor->dims[0] * tensor->dims[1]));
}

/* Transposed: [rank, out] */
static void place_b(const loader_t *loader, const safetensors_tensor_t *tensor, place_t place,
                    const char *data, float *b)
{
    const uint32_t out = (uint32_t)tensor->dims[0];
    const uint32_t rank = (uint32_t)tensor->dims[1];
    const size_t row_bytes = rank * k_dtype_info(tensor->dtype)->block_bytes;
    float row[ADAPTER_MAX_RANK];
    for (uint32_t i = 0; i < out; i++) {
        const uint32_t to = row_of_model(loader->model, place.target, i);
        k_dequantize(tensor->dtype, data + i * row_bytes, row, rank);
        for (uint32_t r = 0; r < rank; r++) {
            b[(size_t)r * out + to] = row[r];
        }
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
        if (!parse_name(tensor->name, &place)) {
            continue; /* cannot be: measured */
        }
        k_lora_t *pair = pair_at(loader->adapter, place.layer, place.target);
        const double rank = pair->rank;
        const size_t n = floats_of((size_t)tensor->dims[0], (size_t)tensor->dims[1]);
        pair->scale = (float)(loader->alpha / (loader->is_rank_stabilized ? sqrt(rank) : rank));
        if (place.is_b) {
            place_b(loader, tensor, place, data, to);
            pair->b = at;
        } else {
            place_a(tensor, data, to);
            pair->a = at;
        }
        to += n;
        at += n;
    }
}

/* A matrix without its other one. */
static weft_status_t check_pairs(const loader_t *loader)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < loader->adapter->layers * ADAPTER_TARGETS; i++) {
        const k_lora_t *pair = &loader->adapter->pairs[i];
        n += pair->rank > 0;
        if ((pair->a == NULL) != (pair->b == NULL)) {
            return weft_diag(loader->diag, WEFT_ERR_MALFORMED,
                             "%s: layer %u has one matrix of %s alone", loader->path,
                             i / ADAPTER_TARGETS, modules[i % ADAPTER_TARGETS]);
        }
    }
    return n > 0 ? WEFT_OK
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
    const uint32_t layers = model->config->layers;
    loader_t loader = {.model = model, .path = path, .diag = diag};
    assert(model->max_rank <= ADAPTER_MAX_RANK);
    loader.adapter = weft_zalloc(
        sizeof(adapter_t) + (size_t)layers * ADAPTER_TARGETS * sizeof(k_lora_t), "runtime.adapter");
    if (loader.adapter == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "%s: no memory", path);
    }
    loader.adapter->device = model->device;
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
    for (adapter_target_t t = 0; t < ADAPTER_TARGETS; t++) {
        const shape_t shape = shape_of(config, t);
        floats += floats_of(rank, shape.in) + floats_of(rank, shape.out);
    }
    return config->layers * floats * sizeof(float);
}

/* ---- tables ---------------------------------------------------------------------------------- */

weft_status_t adapter_table_create(const model_config_t *config, weft_device_t *device,
                                   uint32_t places, adapter_table_t **table_out)
{
    const size_t n = (size_t)config->layers * ADAPTER_TARGETS * places;
    adapter_table_t *table = weft_zalloc(sizeof(*table), "runtime.adapter_table");
    if (table == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    table->device = device;
    table->places = places;
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
    assert(place < table->places && adapter->layers == table->layers);
    weft_status_t status = device->open_queue(table->device, &queue);
    if (status < 0) {
        return status;
    }
    for (uint32_t i = 0; i < table->layers * ADAPTER_TARGETS; i++) {
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
    return entries + ((size_t)layer * ADAPTER_TARGETS + target) * table->places;
}
