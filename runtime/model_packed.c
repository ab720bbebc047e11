/* SPDX-License-Identifier: Apache-2.0 */
/* A model's packed matrices in a file beside it: its name, and the key that says what is in it. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#define WEFT_LOG_MODULE "model"
#include "base/log.h"
#include "runtime/model_priv.h"
#include "runtime/model_source_priv.h"

weft_status_t model_packed_begin(const model_t *model, model_weights_t *measured)
{
    if (!model->limits.keeps_packed || !model->device->ops->is_host) {
        return WEFT_OK;
    }
    measured->digest = XXH3_createState();
    if (measured->digest == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    XXH3_128bits_reset(measured->digest);
    return WEFT_OK;
}

void model_packed_end(model_weights_t *measured)
{
    XXH3_freeState(measured->digest);
    measured->digest = NULL;
}

/* "MODEL.avx512.packed", "FOLDER/weft.avx512.packed"; a rank's part has its place in it. */
static bool name_file(const model_t *model, const model_source_t *source, const k_ops_t *ops,
                      char name[PATH_MAX])
{
    const char *path = model_source_path(source);
    const model_shard_t *shard = &model->shard;
    struct stat info;
    char part[64] = "";
    if (shard->tensor_size > 1 || shard->stages > 1) {
        snprintf(part, sizeof(part), ".%u-%u.%u-%u", shard->tensor_rank, shard->tensor_size,
                 shard->stage, shard->stages);
    }
    const bool is_folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    const int length = snprintf(name, PATH_MAX, "%s%s.%s%s.packed", path, is_folder ? "/weft" : "",
                                ops->name, part);
    return length > 0 && length < PATH_MAX;
}

/* Of what was measured, of the files as they are, and of what packs. */
static weight_cache_key_t take_key(const model_source_t *source, const k_ops_t *ops,
                                   XXH3_state_t *digest)
{
    char text[128];
    XXH128_canonical_t canonical;
    weight_cache_key_t key;
    const int length =
        snprintf(text, sizeof(text), "weft %s packing %d %s", WEFT_VERSION, K_PACKING, ops->name);
    XXH3_128bits_update(digest, text, (size_t)length);
    for (size_t i = 0; i < source->n_files; i++) {
        XXH3_128bits_update(digest, &source->files[i].stamp, sizeof(source->files[i].stamp));
    }
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(digest));
    memcpy(key.bytes, canonical.digest, sizeof(key.bytes));
    return key;
}

const void *model_packed_open(model_t *model, const model_source_t *source, const k_ops_t *ops,
                              model_weights_t *measured)
{
    char name[PATH_MAX];
    weft_diag_t diag = {0};
    const void *matrices = NULL;
    measured->key = take_key(source, ops, measured->digest);
    if (!name_file(model, source, ops, name)) {
        return NULL;
    }
    const weft_status_t status = weight_cache_open(name, &measured->key, measured->matrices.used,
                                                   &diag, &model->packed, &matrices);
    if (status < 0) {
        weft_log_info("packing the weights anew: %s", diag.text);
        return NULL;
    }
    weft_log_info("weights packed before file=%s", name);
    return matrices;
}

void model_packed_save(const model_t *model, const model_source_t *source, const k_ops_t *ops,
                       const model_weights_t *measured, const void *matrices)
{
    char name[PATH_MAX];
    weft_diag_t diag = {0};
    if (!name_file(model, source, ops, name)) {
        weft_log_warn("packed weights are not kept: the model's path is too long");
        return;
    }
    if (weight_cache_save(name, &measured->key, matrices, measured->matrices.used, &diag) < 0) {
        weft_log_warn("packed weights are not kept: %s", diag.text);
        return;
    }
    weft_log_info("packed weights kept file=%s bytes=%zu", name, measured->matrices.used);
}
