/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "runtime/model_source_priv.h"

#define MAX_SHOWN 200 /* bytes of a name in an error line */

typedef struct check {
    const model_source_t *source;
    weft_diag_t *diag;
    size_t found;
} check_t;

static weft_status_t check_one(void *context, const model_tensor_want_t *want)
{
    check_t *check = context;
    model_tensor_t tensor;
    const weft_status_t status = model_source_require(
        check->source, want->id, want->layer, want->rows, want->columns, check->diag, &tensor);
    check->found += status == WEFT_OK;
    return status;
}

/* What a checkpoint may hold besides: buffers that are computed, and a head that is tied anyway. */
static bool is_ignored(const model_source_t *source, const char *name)
{
    const char *last = strrchr(name, '.');
    char head[64];
    model_source_tensor_name(source, MODEL_TENSOR_OUTPUT, 0, head, sizeof(head));
    return (last != NULL && strcmp(last, ".inv_freq") == 0) ||
           (source->config.is_embedding_tied && strcmp(name, head) == 0);
}

/*
 * A tensor that the graph does not use means that the model is a variant whose answers we would get
 * wrong.
 */
static weft_status_t refuse_unknown(const model_source_t *source, weft_diag_t *diag)
{
    const model_file_kind_t kind = source->gguf != NULL ? MODEL_FILE_GGUF : MODEL_FILE_HF;
    for (size_t i = 0; i < source->n_tensors; i++) {
        const char *name = source->tensors[i].name;
        if (!model_tensors_has(&source->config, kind, name) && !is_ignored(source, name)) {
            return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
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
    const weft_status_t status = model_tensors_visit(&source->config, check_one, &check);
    if (status != WEFT_OK) {
        return status;
    }
    return check.found < source->n_tensors ? refuse_unknown(source, diag) : WEFT_OK;
}
