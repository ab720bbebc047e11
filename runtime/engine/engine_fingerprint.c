/* SPDX-License-Identifier: Apache-2.0 */
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "runtime/engine/engine_priv.h"

/*
 * Every byte of every weight counts: models that were trained on differ anywhere. XXH3 reads them at
 * memory speed, from where the model is loaded from anyway.
 */
static int add_tensor(EVP_MD_CTX *digest, const model_tensor_t *tensor)
{
    char text[256];
    XXH128_canonical_t sum;
    const int length = snprintf(text, sizeof(text), "%.128s %s %llu %llu %zu\n", tensor->name,
                                k_dtype_info(tensor->dtype)->name, (unsigned long long)tensor->rows,
                                (unsigned long long)tensor->columns, tensor->bytes);
    XXH128_canonicalFromHash(&sum, XXH3_128bits(tensor->data, tensor->bytes));
    return EVP_DigestUpdate(digest, text, (size_t)length) &&
           EVP_DigestUpdate(digest, sum.digest, sizeof(sum.digest));
}

/* Which part of every block is here: nothing where that is all of it. */
static int add_shard(EVP_MD_CTX *digest, const engine_t *engine)
{
    char text[96];
    const model_shard_t *shard = &engine->group.ranks.shard;
    if (shard->tensor_size <= 1 && shard->stages <= 1) {
        return 1;
    }
    const int length =
        snprintf(text, sizeof(text), "rank %u of %u stage %u of %u\n", shard->tensor_rank,
                 shard->tensor_size, shard->stage, shard->stages);
    return EVP_DigestUpdate(digest, text, (size_t)length);
}

/* Where its KV blocks are made, and how they are laid out. */
static int add_cache(EVP_MD_CTX *digest, const engine_t *engine)
{
    char text[256];
    const engine_plan_t *plan = &engine->plan;
    const kv_layout_t *layout = &plan->layout;
    const kv_group_t *group = &layout->groups[0];
    const int length = snprintf(
        text, sizeof(text),
        "weft kv 1\ndevice %s isa %s dtype %s order %d tokens %u layers %u heads %u dim %u "
        "window %u block %zu hash %s\n",
        engine->device->ops->name, engine->stream->ops->name, k_dtype_info(plan->kv_dtype)->name,
        (int)layout->order, layout->block_tokens, group->layers, group->heads, group->head_dim,
        group->window, layout->block_bytes[0], kv_hash_algo_name(kv_hasher_algo(engine->hasher)));
    return EVP_DigestUpdate(digest, text, (size_t)length) && add_shard(digest, engine);
}

/* What families vary besides. */
static int add_variant(EVP_MD_CTX *digest, const model_config_t *model)
{
    char text[512];
    const model_experts_t *experts = &model->experts;
    const int length = snprintf(
        text, sizeof(text),
        "attention %a cap %a residual %a logits %a cap %a activation %d %a offset %a window %u "
        "norms %d %d %d experts %u %u %d %d %a groups %u %u\n",
        (double)model->attention_scale, (double)model->attention_softcap,
        (double)model->residual_scale, (double)model->logit_scale, (double)model->logit_softcap,
        (int)model->activation, (double)model->activation_limit, (double)model->norm_offset,
        model->window, model->has_pre_norms, model->has_post_norms, (int)model->qk_norm,
        experts->count, experts->used, experts->is_sigmoid, experts->renormalizes,
        (double)experts->scale, experts->n_groups, experts->groups_used);
    return EVP_DigestUpdate(digest, text, (size_t)length) &&
           EVP_DigestUpdate(digest, model->sliding.bits, sizeof(model->sliding.bits)) &&
           EVP_DigestUpdate(digest, model->dense_layers.bits, sizeof(model->dense_layers.bits));
}

/* Longrope's divisors are of the context, too; GGUF has them in tensors. */
static int add_rotation(EVP_MD_CTX *digest, const model_rope_t *rope, uint32_t context)
{
    char text[256];
    const int length = snprintf(
        text, sizeof(text), "rope %d %a %u %d %a %a %a %a %a %a %u %d %d\n", (int)rope->kind,
        (double)rope->theta, rope->dim, rope->interleaved, (double)rope->factor,
        (double)rope->low_freq_factor, (double)rope->high_freq_factor, (double)rope->beta_fast,
        (double)rope->beta_slow, (double)rope->mscale, rope->original_context, rope->keeps_ramp,
        model_rope_is_long(rope, context));
    return EVP_DigestUpdate(digest, text, (size_t)length) &&
           EVP_DigestUpdate(digest, rope->short_factors, sizeof(rope->short_factors)) &&
           EVP_DigestUpdate(digest, rope->long_factors, sizeof(rope->long_factors));
}

static int add_model(EVP_MD_CTX *digest, const engine_t *engine)
{
    char text[192];
    const model_config_t *model = &engine->model_config;
    const uint32_t context = engine->plan.model_limits.max_context;
    const int length =
        snprintf(text, sizeof(text), "family %s norm %a scale %a tiles %u %u int4 %d %u\n",
                 model->family, (double)model->norm_eps, (double)model->embedding_scale,
                 model->f8_tile_rows, model->f8_tile_columns, (int)model->int4, model->int4_group);
    return EVP_DigestUpdate(digest, text, (size_t)length) &&
           add_rotation(digest, &model->rope, context) &&
           add_rotation(digest, &model->local_rope, context) && add_variant(digest, model);
}

static int add_engine(EVP_MD_CTX *digest, const engine_t *engine)
{
    return add_cache(digest, engine) && add_model(digest, engine) &&
           EVP_DigestUpdate(digest, kv_hasher_root(engine->hasher), sizeof(kv_hash_t));
}

static weft_status_t make(const engine_t *engine, const model_source_t *source, bool with_cache,
                          uint8_t fingerprint_out[ENGINE_FINGERPRINT_BYTES])
{
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    int is_fine = digest != NULL && EVP_DigestInit_ex(digest, EVP_sha256(), NULL) == 1 &&
                  (with_cache ? add_engine(digest, engine) : add_model(digest, engine)) == 1;
    const size_t n = model_source_tensor_count(source);
    for (size_t i = 0; is_fine && i < n; i++) {
        const model_tensor_t tensor = model_source_tensor_at(source, i);
        is_fine = add_tensor(digest, &tensor);
    }
    is_fine = is_fine && EVP_DigestFinal_ex(digest, fingerprint_out, NULL) == 1;
    EVP_MD_CTX_free(digest);
    return is_fine ? WEFT_OK : WEFT_ERR_NO_MEMORY;
}

weft_status_t engine_fingerprint(const engine_t *engine, const model_source_t *source,
                                 uint8_t fingerprint_out[ENGINE_FINGERPRINT_BYTES])
{
    return make(engine, source, true, fingerprint_out);
}

weft_status_t engine_model_fingerprint(const engine_t *engine, const model_source_t *source,
                                       uint8_t fingerprint_out[ENGINE_FINGERPRINT_BYTES])
{
    return make(engine, source, false, fingerprint_out);
}
