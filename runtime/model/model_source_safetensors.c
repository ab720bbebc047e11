/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint of Hugging Face: tensors in one file or in shards, everything else beside them. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "runtime/files/json_input.h"
#include "runtime/files/safetensors.h"
#include "runtime/model/model_source_priv.h"

#define INDEX_FILE                 "model.safetensors.index.json"
#define MAX_INDEX_BYTES            (64 << 20)
#define MAX_TOKENIZER_CONFIG_BYTES (16 << 20)
#define MAX_SHARDS                 1024
#define MAX_SHOWN                  200 /* bytes of a name in an error line */

typedef struct shard {
    const char *name; /* in the index; NULL: the only file */
    const char *path;
    const weft_mapped_file_t *file;
    safetensors_t *tensors;
} shard_t;

typedef struct opener {
    model_source_t *source;
    const char *folder;
    weft_diag_t *diag;
    json_t *index;      /* NULL: one file */
    json_t *weight_map; /* of the index: tensor to shard */
    shard_t *shards;    /* [n_shards] */
    size_t n_shards;
} opener_t;

static const char *path_of(opener_t *o, const char *file)
{
    return weft_arena_printf(&o->source->arena, "%s/%s", o->folder, file);
}

/* Maps a file that need not exist: then *file_out stays unmapped. */
static weft_status_t map_optional(opener_t *o, const char *file, weft_mapped_file_t *file_out)
{
    const char *path = path_of(o, file);
    if (path == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    return access(path, F_OK) == 0 ? weft_mapped_file_open(path, o->diag, file_out) : WEFT_OK;
}

/* ---- shards -------------------------------------------------------------------------------- */

static weft_status_t load_index(opener_t *o)
{
    weft_mapped_file_t file = {0};
    const char *path = path_of(o, INDEX_FILE);
    if (path == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = weft_mapped_file_open(path, o->diag, &file);
    if (status == WEFT_OK) {
        status = json_input_parse(file.data, file.length, MAX_INDEX_BYTES, JSON_REJECT_DUPLICATES,
                                  path, o->diag, &o->index);
    }
    weft_mapped_file_close(&file);
    if (status != WEFT_OK) {
        return status;
    }
    o->weight_map = json_object_get(o->index, "weight_map");
    if (!json_is_object(o->weight_map) || json_object_size(o->weight_map) == 0) {
        return weft_diag(o->diag, WEFT_ERR_MALFORMED, "%s: weight_map: missing or empty", path);
    }
    return WEFT_OK;
}

/* A shard lies in the folder itself: nothing else is read on the word of an index. */
static bool is_plain_file_name(const char *name)
{
    return name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL;
}

static weft_status_t add_shard(opener_t *o, const char *name)
{
    for (size_t i = 0; i < o->n_shards; i++) {
        if (strcmp(o->shards[i].name, name) == 0) {
            return WEFT_OK;
        }
    }
    if (o->n_shards == MAX_SHARDS) {
        return weft_diag(o->diag, WEFT_ERR_TOO_LARGE, "%s/" INDEX_FILE ": more than %d shards",
                         o->folder, MAX_SHARDS);
    }
    shard_t *shard = &o->shards[o->n_shards];
    shard->name = name;
    shard->path = path_of(o, name);
    if (shard->path == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    o->n_shards++;
    return WEFT_OK;
}

static weft_status_t list_shards(opener_t *o)
{
    const char *tensor;
    json_t *shard;
    json_object_foreach(o->weight_map, tensor, shard)
    {
        const char *name = json_string_value(shard);
        if (name == NULL || !is_plain_file_name(name)) {
            return weft_diag(o->diag, WEFT_ERR_MALFORMED,
                             "%s/" INDEX_FILE ": tensor %.*s: shard \"%.*s\" is not a file name in "
                             "this folder",
                             o->folder, MAX_SHOWN, tensor, MAX_SHOWN, name == NULL ? "" : name);
        }
        const weft_status_t status = add_shard(o, name);
        if (status != WEFT_OK) {
            return status;
        }
    }
    return WEFT_OK;
}

static weft_status_t open_shard(opener_t *o, shard_t *shard)
{
    weft_status_t status = model_source_map(o->source, shard->path, o->diag, &shard->file);
    if (status == WEFT_OK) {
        status = safetensors_parse(shard->file->data, shard->file->length, shard->file->length,
                                   shard->path, o->diag, &shard->tensors);
    }
    return status;
}

/* file: the only one, or NULL. */
static weft_status_t open_shards(opener_t *o, const char *file)
{
    weft_status_t status = WEFT_OK;
    o->shards = weft_arena_calloc(&o->source->arena, MAX_SHARDS, sizeof(*o->shards));
    if (o->shards == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (file != NULL) {
        o->shards[o->n_shards++].path = file;
    } else {
        status = load_index(o);
        if (status == WEFT_OK) {
            status = list_shards(o);
        }
    }
    o->source->files =
        weft_arena_calloc(&o->source->arena, o->n_shards + 1, sizeof(*o->source->files));
    if (status == WEFT_OK && o->source->files == NULL) {
        status = WEFT_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < o->n_shards && status == WEFT_OK; i++) {
        status = open_shard(o, &o->shards[i]);
    }
    return status;
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* Without an index every tensor counts; with one, those that it places in this shard. */
static bool is_placed_in(const opener_t *o, const shard_t *shard, const char *tensor)
{
    if (o->weight_map == NULL) {
        return true;
    }
    const char *place = json_string_value(json_object_get(o->weight_map, tensor));
    return place != NULL && strcmp(place, shard->name) == 0;
}

static bool shard_holds(const shard_t *shard, const char *tensor)
{
    for (size_t i = 0; i < safetensors_tensor_count(shard->tensors); i++) {
        if (strcmp(safetensors_tensor_at(shard->tensors, i)->name, tensor) == 0) {
            return true;
        }
    }
    return false;
}

/* Says which tensor of the index is missing first. */
static weft_status_t refuse_missing(opener_t *o)
{
    const char *tensor;
    json_t *name;
    json_object_foreach(o->weight_map, tensor, name)
    {
        for (size_t i = 0; i < o->n_shards; i++) {
            if (strcmp(o->shards[i].name, json_string_value(name)) == 0 &&
                !shard_holds(&o->shards[i], tensor)) {
                return weft_diag(o->diag, WEFT_ERR_MALFORMED,
                                 "%s: tensor %.*s: missing, though the index places it here",
                                 o->shards[i].path, MAX_SHOWN, tensor);
            }
        }
    }
    return WEFT_OK;
}

static weft_status_t check_index(opener_t *o)
{
    size_t placed = 0;
    for (size_t i = 0; i < o->n_shards; i++) {
        const safetensors_t *tensors = o->shards[i].tensors;
        for (size_t j = 0; j < safetensors_tensor_count(tensors); j++) {
            placed += is_placed_in(o, &o->shards[i], safetensors_tensor_at(tensors, j)->name);
        }
    }
    const bool is_short = o->weight_map != NULL && placed < json_object_size(o->weight_map);
    return is_short ? refuse_missing(o) : WEFT_OK;
}

static weft_status_t add_tensor(opener_t *o, const shard_t *shard,
                                const safetensors_tensor_t *tensor)
{
    model_source_t *source = o->source;
    if (!tensor->is_computable) {
        return weft_diag(
            o->diag, WEFT_ERR_UNSUPPORTED,
            "%s: tensor %.*s: type %s is not supported (supported: F32 F16 BF16 F8_E4M3)",
            shard->path, MAX_SHOWN, tensor->name, tensor->type);
    }
    model_tensor_t *added = &source->tensors[source->n_tensors];
    added->name = weft_arena_strdup(&source->arena, tensor->name);
    if (added->name == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    added->dtype = tensor->dtype;
    added->rows = 1;
    for (uint32_t i = 0; i + 1 < tensor->n_dims; i++) {
        added->rows *= tensor->dims[i];
    }
    added->columns = tensor->n_dims == 0 ? 1 : tensor->dims[tensor->n_dims - 1];
    added->data = (const char *)shard->file->data + tensor->offset;
    added->bytes = tensor->bytes;
    source->n_tensors++;
    return WEFT_OK;
}

static weft_status_t add_shard_tensors(opener_t *o, const shard_t *shard)
{
    for (size_t i = 0; i < safetensors_tensor_count(shard->tensors); i++) {
        const safetensors_tensor_t *tensor = safetensors_tensor_at(shard->tensors, i);
        if (is_placed_in(o, shard, tensor->name)) {
            const weft_status_t status = add_tensor(o, shard, tensor);
            if (status != WEFT_OK) {
                return status;
            }
        }
    }
    return WEFT_OK;
}

static weft_status_t list_tensors(opener_t *o)
{
    size_t total = 0;
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; i < o->n_shards; i++) {
        total += safetensors_tensor_count(o->shards[i].tensors);
    }
    o->source->tensors =
        weft_arena_calloc(&o->source->arena, total + 1, sizeof(*o->source->tensors));
    if (o->source->tensors == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < o->n_shards && status == WEFT_OK; i++) {
        status = add_shard_tensors(o, &o->shards[i]);
    }
    return status;
}

/* ---- what lies beside ---------------------------------------------------------------------- */

static weft_status_t read_config(opener_t *o)
{
    weft_mapped_file_t config = {0};
    weft_mapped_file_t generation = {0};
    const char *path = path_of(o, "config.json");
    if (path == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = weft_mapped_file_open(path, o->diag, &config);
    if (status == WEFT_OK) {
        status = map_optional(o, "generation_config.json", &generation);
    }
    if (status == WEFT_OK) {
        status = model_config_from_json(config.data, config.length, generation.data,
                                        generation.length, o->diag, &o->source->config);
        if (status != WEFT_OK) {
            weft_diag_prefix(o->diag, "%s", o->folder);
        }
    }
    weft_mapped_file_close(&generation);
    weft_mapped_file_close(&config);
    return status == WEFT_OK
               ? model_source_read_pooling(o->folder, o->diag, &o->source->config.pooling)
               : status;
}

/* The text of the template: a string, or the "default" (else the first) of a list of named ones. */
static const json_t *find_template(const json_t *config)
{
    size_t i;
    json_t *entry;
    const json_t *value = json_object_get(config, "chat_template");
    if (!json_is_array(value)) {
        return value;
    }
    json_array_foreach(value, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name != NULL && strcmp(name, "default") == 0) {
            return json_object_get(entry, "template");
        }
    }
    return json_object_get(json_array_get(value, 0), "template");
}

static weft_status_t keep_template(opener_t *o, const char *text, size_t length)
{
    o->source->chat_template = weft_arena_strndup(&o->source->arena, text, length);
    o->source->chat_template_length = length;
    return o->source->chat_template == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

/* Its model_max_length is often 10^30, so integers are read as real numbers. */
static weft_status_t template_from_config(opener_t *o)
{
    json_t *root = NULL;
    const weft_mapped_file_t *file = &o->source->tokenizer_config;
    const char *path = path_of(o, "tokenizer_config.json");
    if (path == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status =
        json_input_parse(file->data, file->length, MAX_TOKENIZER_CONFIG_BYTES,
                         JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, path, o->diag, &root);
    if (status != WEFT_OK) {
        return status;
    }
    const json_t *text = find_template(root);
    if (json_is_string(text)) {
        status = keep_template(o, json_string_value(text), json_string_length(text));
    }
    json_decref(root);
    return status;
}

static weft_status_t read_template(opener_t *o)
{
    weft_mapped_file_t jinja = {0};
    weft_status_t status = map_optional(o, "chat_template.jinja", &jinja);
    if (status == WEFT_OK && jinja.data != NULL) {
        status = keep_template(o, jinja.data, jinja.length);
    } else if (status == WEFT_OK && o->source->tokenizer_config.data != NULL) {
        status = template_from_config(o);
    }
    weft_mapped_file_close(&jinja);
    return status;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static weft_status_t open_all(opener_t *o, const char *file)
{
    weft_status_t status = open_shards(o, file);
    if (status == WEFT_OK) {
        status = check_index(o);
    }
    if (status == WEFT_OK) {
        status = read_config(o);
    }
    if (status == WEFT_OK) {
        status = list_tensors(o);
    }
    if (status == WEFT_OK) {
        status = map_optional(o, "tokenizer.json", &o->source->tokenizer);
    }
    if (status == WEFT_OK) {
        status = map_optional(o, "tokenizer_config.json", &o->source->tokenizer_config);
    }
    return status == WEFT_OK ? read_template(o) : status;
}

weft_status_t model_source_open_safetensors(model_source_t *source, const char *folder,
                                            const char *file, weft_diag_t *diag)
{
    opener_t o = {.source = source, .folder = folder, .diag = diag};
    source->format = "safetensors";
    const weft_status_t status = open_all(&o, file);
    for (size_t i = 0; i < o.n_shards; i++) {
        safetensors_destroy(o.shards[i].tensors);
    }
    json_decref(o.index);
    return status;
}
