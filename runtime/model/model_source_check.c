/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "runtime/model/model_source_priv.h"

#define MAX_SHOWN 200 /* bytes of a name in an error line */

typedef struct check {
    const model_source_t *source;
    weft_diag_t *diag;
    bool *is_known; /* [n_tensors], of by_name: a tensor that the model has */
    size_t known;
} check_t;

static size_t index_of(const model_source_t *source, const char *name)
{
    size_t low = 0;
    size_t high = source->n_tensors;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (strcmp(source->by_name[middle]->name, name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void know(check_t *check, const char *name)
{
    bool *is_known = &check->is_known[index_of(check->source, name)];
    check->known += !*is_known;
    *is_known = true;
}

static weft_status_t check_one(void *context, const model_tensor_want_t *want)
{
    check_t *check = context;
    model_tensor_t tensor;
    const weft_status_t status = model_source_require(
        check->source, want->key, want->rows / want->stacked, want->columns, check->diag, &tensor);
    if (status != WEFT_OK) {
        return status;
    }
    const char *names[] = {tensor.name, tensor.scales_name, tensor.zeros_name, tensor.order_name};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (names[i] != NULL) {
            know(check, names[i]);
        }
    }
    return WEFT_OK;
}

static bool is_spare(const model_config_t *config, const char *name)
{
    unsigned layer = 0;
    return sscanf(name, "model.layers.%u.", &layer) == 1 && layer >= config->layers &&
           layer - config->layers < config->spare_layers;
}

/* What a checkpoint may hold besides: buffers that are computed, and a head that is tied anyway. */
static bool is_ignored(const model_source_t *source, const char *name)
{
    const char *last = strrchr(name, '.');
    char head[64];
    const model_tensor_key_t output = {.id = MODEL_TENSOR_OUTPUT};
    model_source_tensor_name(source, output, head, sizeof(head));
    return (last != NULL && strcmp(last, ".inv_freq") == 0) || is_spare(&source->config, name) ||
           (source->config.is_embedding_tied && strcmp(name, head) == 0);
}

/*
 * A tensor that the graph does not use means that the model is a variant whose answers we would get
 * wrong.
 */
static weft_status_t refuse_unknown(const check_t *check)
{
    const model_source_t *source = check->source;
    for (size_t i = 0; i < source->n_tensors; i++) {
        const char *name = source->by_name[i]->name;
        if (!check->is_known[i] && !is_ignored(source, name)) {
            return weft_diag(check->diag, WEFT_ERR_UNSUPPORTED,
                             "%s: tensor %.*s: is not part of a %s model of %u layers; this "
                             "variant is not supported",
                             source->path, MAX_SHOWN, name, source->config.family,
                             source->config.layers);
        }
    }
    return WEFT_OK;
}

weft_status_t model_source_check_tensors(const model_source_t *source, weft_diag_t *diag)
{
    check_t check = {.source = source, .diag = diag};
    check.is_known = weft_calloc(source->n_tensors + 1, sizeof(bool), "model.known_tensors");
    if (check.is_known == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const model_file_kind_t kind = source->gguf != NULL ? MODEL_FILE_GGUF : MODEL_FILE_HF;
    weft_status_t status = model_tensors_visit(&source->config, kind, check_one, &check);
    if (status == WEFT_OK && check.known < source->n_tensors) {
        status = refuse_unknown(&check);
    }
    weft_free(check.is_known);
    return status;
}
