/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What sentence-transformers writes beside a model for embeddings: modules.json lists steps, one of
 * type …Pooling whose folder has a config.json of its own.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mapped_file.h"
#include "runtime/files/json_input.h"
#include "runtime/model/model_source_priv.h"

#define MAX_JSON_BYTES ((size_t)1 << 20)
#define MAX_PATH_BYTES 4096

/* NULL in *root_out where there is no such file. */
static weft_status_t load(const char *folder, const char *file, weft_diag_t *diag,
                          json_t **root_out)
{
    char path[MAX_PATH_BYTES];
    weft_mapped_file_t mapped = {0};
    *root_out = NULL;
    if (snprintf(path, sizeof(path), "%s/%s", folder, file) >= (int)sizeof(path) ||
        access(path, F_OK) != 0) {
        return WEFT_OK;
    }
    weft_status_t status = weft_mapped_file_open(path, diag, &mapped);
    if (status == WEFT_OK) {
        status =
            json_input_parse(mapped.data, mapped.length, MAX_JSON_BYTES, 0, path, diag, root_out);
    }
    weft_mapped_file_close(&mapped);
    return status;
}

/* The pooling step's folder, "1_Pooling"; NULL: there is none, or it is no plain name. */
static const char *find_step(const json_t *modules)
{
    size_t i;
    json_t *step;
    json_array_foreach(modules, i, step)
    {
        const char *type = json_string_value(json_object_get(step, "type"));
        const char *path = json_string_value(json_object_get(step, "path"));
        const char *last = type == NULL ? NULL : strrchr(type, '.');
        if (last != NULL && strcmp(last, ".Pooling") == 0 && path != NULL && path[0] != '.' &&
            strchr(path, '/') == NULL) {
            return path;
        }
    }
    return NULL;
}

static weft_status_t read_step(const char *folder, const char *step, weft_diag_t *diag,
                               model_pooling_t *pooling_out)
{
    char file[512];
    json_t *root = NULL;
    snprintf(file, sizeof(file), "%.255s/config.json", step);
    const weft_status_t status = load(folder, file, diag, &root);
    const bool is_last = json_is_true(json_object_get(root, "pooling_mode_lasttoken"));
    *pooling_out = is_last ? MODEL_POOL_LAST : MODEL_POOL_OTHER;
    json_decref(root);
    return status;
}

weft_status_t model_source_read_pooling(const char *folder, weft_diag_t *diag,
                                        model_pooling_t *pooling_out)
{
    json_t *modules = NULL;
    weft_status_t status = load(folder, "modules.json", diag, &modules);
    const char *step = find_step(modules);
    *pooling_out = MODEL_POOL_NONE;
    if (status == WEFT_OK && step != NULL) {
        status = read_step(folder, step, diag, pooling_out);
    }
    json_decref(modules);
    return status;
}
