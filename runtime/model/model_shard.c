/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/model_shard.h"

#include <string.h>

/* Widths are dealt out in units of this many where there are enough: what kernels' tiles like. */
#define TILE 32

/* One model being cut for one rank. */
typedef struct cutter {
    const model_config_t *config;
    const model_blocks_t *blocks;
    uint32_t rank;
    uint32_t size;
    weft_diag_t *diag;
} cutter_t;

static uint32_t divisor_of(uint32_t a, uint32_t b)
{
    while (b != 0) {
        const uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Of things of `width` columns each: how few fill whole blocks. */
static uint32_t unit_of(const model_block_t *block, uint32_t width)
{
    return block->columns > 1 ? block->columns / divisor_of(block->columns, width) : 1;
}

/* block NULL: it is not for blocks that no more ranks can share them. */
static weft_status_t refuse(const cutter_t *cutter, const char *what, uint32_t n,
                            const model_block_t *block, uint32_t most)
{
    return block == NULL
               ? weft_diag(cutter->diag, WEFT_ERR_UNSUPPORTED,
                           "tensor parallel size %u: the model's %u %s can be dealt out among at "
                           "most %u ranks",
                           cutter->size, n, what, most)
               : weft_diag(
                     cutter->diag, WEFT_ERR_UNSUPPORTED,
                     "tensor parallel size %u: tensor %s keeps %u columns in a block, so that "
                     "the model's %u %s can be dealt out among at most %u ranks",
                     cutter->size, block->tensor, block->columns, n, what, most);
}

/* ---- widths -------------------------------------------------------------------------------- */

/* n columns, of which those of a block stay together. */
static weft_status_t cut_width(const cutter_t *cutter, const char *what, uint32_t n,
                               const model_block_t *block, model_range_t *range_out)
{
    const uint32_t least = block->columns > 1 ? block->columns : 1;
    const bool has_tiles = n % TILE == 0 && n / TILE >= cutter->size;
    const uint32_t unit = least < TILE && has_tiles ? TILE : least;
    if (n > 0 && n / unit < cutter->size) {
        return refuse(cutter, what, n, least > 1 ? block : NULL, n / unit);
    }
    const model_range_t units = model_range_of(n / unit, cutter->rank, cutter->size);
    *range_out = (model_range_t){units.first * unit, units.n * unit};
    return WEFT_OK;
}

static weft_status_t cut_experts(const cutter_t *cutter, bool splits_experts, model_cut_t *cut)
{
    const model_experts_t *experts = &cutter->config->experts;
    cut->experts = (model_range_t){0, experts->count};
    cut->expert_ffn = (model_range_t){0, experts->count > 0 ? experts->intermediate : 0};
    if (experts->count > 0 && splits_experts) {
        cut->experts = model_range_of(experts->count, cutter->rank, cutter->size);
        return experts->count < cutter->size
                   ? refuse(cutter, "experts", experts->count, NULL, experts->count)
                   : WEFT_OK;
    }
    return cut_width(cutter, "columns of an expert", cut->expert_ffn.n, &cutter->blocks->expert_ffn,
                     &cut->expert_ffn);
}

static weft_status_t cut_widths(const cutter_t *cutter, bool splits_experts, model_cut_t *cut)
{
    const model_config_t *config = cutter->config;
    weft_status_t status = cut_width(cutter, "columns of the feed-forward", config->intermediate,
                                     &cutter->blocks->ffn, &cut->ffn);
    if (status >= 0) {
        status =
            cut_width(cutter, "columns of the shared expert", config->experts.shared_intermediate,
                      &cutter->blocks->shared_ffn, &cut->shared_ffn);
    }
    return status < 0 ? status : cut_experts(cutter, splits_experts, cut);
}

/* Rows of the embedding: any number, blocks lie along columns. */
static weft_status_t cut_vocab(const cutter_t *cutter, model_cut_t *cut)
{
    const uint32_t vocab = cutter->config->vocab;
    cut->vocab = model_range_of(vocab, cutter->rank, cutter->size);
    return vocab < cutter->size ? refuse(cutter, "tokens", vocab, NULL, vocab) : WEFT_OK;
}

/* ---- heads --------------------------------------------------------------------------------- */

/* Heads of latents read the same cache: each is alone. */
static weft_status_t cut_latent_heads(const cutter_t *cutter, model_cut_t *cut)
{
    const uint32_t heads = cutter->config->heads;
    const uint32_t unit = unit_of(&cutter->blocks->values, cutter->config->mla.value);
    cut->kv_heads = (model_range_t){0, cutter->config->kv_heads};
    cut->has_first_heads = cut->is_first;
    if (heads / unit < cutter->size) {
        return refuse(cutter, "heads", heads, unit > 1 ? &cutter->blocks->values : NULL,
                      heads / unit);
    }
    const model_range_t units = model_range_of(heads / unit, cutter->rank, cutter->size);
    cut->heads = (model_range_t){units.first * unit, units.n * unit};
    return WEFT_OK;
}

/* Whole groups: no more ranks than keys have heads. */
static void deal_groups(const cutter_t *cutter, uint32_t group, uint32_t unit, model_cut_t *cut)
{
    const uint32_t units = cutter->config->kv_heads / unit;
    const model_range_t own = model_range_of(units, cutter->rank, cutter->size);
    cut->kv_heads = (model_range_t){own.first * unit, own.n * unit};
    cut->heads = (model_range_t){cut->kv_heads.first * group, cut->kv_heads.n * group};
    cut->has_first_heads = true;
}

/* One head of keys, and of those that read it what its ranks leave to this one. */
static void deal_heads(const cutter_t *cutter, uint32_t group, uint32_t unit, model_cut_t *cut)
{
    const uint32_t kv_heads = cutter->config->kv_heads;
    const uint32_t head = (uint32_t)((uint64_t)cutter->rank * kv_heads / cutter->size);
    /* The ranks r with r · kv_heads / size = head. */
    const uint32_t first = (uint32_t)(((uint64_t)head * cutter->size + kv_heads - 1) / kv_heads);
    const uint32_t end =
        (uint32_t)(((uint64_t)(head + 1) * cutter->size + kv_heads - 1) / kv_heads);
    const model_range_t own = model_range_of(group / unit, cutter->rank - first, end - first);
    cut->kv_heads = (model_range_t){head, 1};
    cut->heads = (model_range_t){head * group + own.first * unit, own.n * unit};
    cut->has_first_heads = cutter->rank == first;
}

static weft_status_t cut_heads(const cutter_t *cutter, model_cut_t *cut)
{
    const model_config_t *config = cutter->config;
    const model_block_t *values = &cutter->blocks->values;
    const uint32_t group = config->heads / config->kv_heads;
    const uint32_t groups_unit = unit_of(values, group * config->head_dim);
    const uint32_t heads_unit = unit_of(values, config->head_dim);
    if (cutter->size <= config->kv_heads / groups_unit) {
        deal_groups(cutter, group, groups_unit, cut);
        return WEFT_OK;
    }
    /* Blocks that reach over the border of two groups tie these together. */
    const uint32_t most =
        groups_unit > 1 ? config->kv_heads / groups_unit : config->kv_heads * (group / heads_unit);
    if (cutter->size > most) {
        const bool is_for_blocks = groups_unit > 1 || heads_unit > 1;
        return refuse(cutter, "heads", config->heads, is_for_blocks ? values : NULL, most);
    }
    deal_heads(cutter, group, heads_unit, cut);
    return WEFT_OK;
}

/* ---- between stages ------------------------------------------------------------------------ */

/* The ranks of a stage follow one another in the world. */
static uint32_t first_of_stage(const model_shard_t *shard)
{
    return shard->stage * shard->tensor_size;
}

static uint32_t world_rank_of(const model_shard_t *shard, uint32_t tensor_rank)
{
    return tensor_rank == COLL_NO_RANK ? COLL_NO_RANK : first_of_stage(shard) + tensor_rank;
}

static uint32_t tensor_rank_of(const model_shard_t *shard, uint32_t rank)
{
    const uint32_t first = first_of_stage(shard);
    const bool is_here = rank != COLL_NO_RANK && rank >= first && rank - first < shard->tensor_size;
    return is_here ? rank - first : COLL_NO_RANK;
}

/* The rank of world whose fault a group's failure is; false: it has not failed. */
static bool has_failed(const model_shard_t *shard, const coll_t *coll, uint32_t *rank_out)
{
    uint32_t rank = COLL_NO_RANK;
    if (coll == NULL || coll_status(coll, &rank) >= 0) {
        return false;
    }
    *rank_out = coll == shard->tensor ? world_rank_of(shard, rank) : rank;
    return true;
}

bool model_shard_holds(const model_shard_t *shard)
{
    uint32_t rank = COLL_NO_RANK;
    if (!has_failed(shard, shard->world, &rank) && !has_failed(shard, shard->results, &rank) &&
        !has_failed(shard, shard->tensor, &rank)) {
        return true;
    }
    if (shard->world != NULL) {
        coll_abort(shard->world, rank);
    }
    if (shard->results != NULL) {
        coll_abort(shard->results, rank);
    }
    if (shard->tensor != NULL) {
        coll_abort(shard->tensor, tensor_rank_of(shard, rank));
    }
    return false;
}

/* ---- all of it ----------------------------------------------------------------------------- */

static weft_status_t check_shard(const model_config_t *config, const model_shard_t *shard,
                                 weft_diag_t *diag)
{
    const uint32_t size = shard->tensor_size > 1 ? shard->tensor_size : 1;
    const uint32_t stages = shard->stages > 1 ? shard->stages : 1;
    if (shard->tensor_rank >= size || shard->stage >= stages) {
        return weft_diag(diag, WEFT_ERR_INVALID, "rank %u of %u in stage %u of %u: there is none",
                         shard->tensor_rank, size, shard->stage, stages);
    }
    if (stages > config->layers) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "pipeline parallel size %u: the model has %u layers", stages,
                         config->layers);
    }
    return WEFT_OK;
}

weft_status_t model_shard_cut(const model_config_t *config, const model_blocks_t *blocks,
                              const model_shard_t *shard, weft_diag_t *diag, model_cut_t *cut_out)
{
    static const model_shard_t whole = {0};
    shard = shard == NULL ? &whole : shard;
    const cutter_t cutter = {
        .config = config,
        .blocks = blocks,
        .rank = shard->tensor_rank,
        .size = shard->tensor_size > 1 ? shard->tensor_size : 1,
        .diag = diag,
    };
    model_cut_t cut = {.is_first = shard->tensor_rank == 0};
    weft_status_t status = check_shard(config, shard, diag);
    if (status >= 0) {
        cut.layers = model_shard_layers(shard, config);
        status = cut_vocab(&cutter, &cut);
    }
    if (status >= 0) {
        status =
            config->mla.kv_latent > 0 ? cut_latent_heads(&cutter, &cut) : cut_heads(&cutter, &cut);
    }
    if (status >= 0) {
        status = cut_widths(&cutter, shard->splits_experts && cutter.size > 1, &cut);
    }
    if (status >= 0) {
        *cut_out = cut;
    }
    return status;
}

static model_layers_t layers_from(const model_layers_t *layers, const model_range_t *range)
{
    model_layers_t own = {0};
    for (uint32_t i = 0; i < range->n; i++) {
        if (model_layers_has(layers, range->first + i)) {
            model_layers_add(&own, i);
        }
    }
    return own;
}

void model_shard_config(const model_config_t *whole, const model_cut_t *cut,
                        model_config_t *config_out)
{
    *config_out = *whole;
    config_out->layers = cut->layers.n;
    config_out->sliding = layers_from(&whole->sliding, &cut->layers);
    config_out->dense_layers = layers_from(&whole->dense_layers, &cut->layers);
    config_out->heads = cut->heads.n;
    config_out->kv_heads = cut->kv_heads.n;
    config_out->intermediate = cut->ffn.n;
    config_out->experts.intermediate = cut->expert_ffn.n;
    config_out->experts.shared_intermediate = cut->shared_ffn.n;
}
