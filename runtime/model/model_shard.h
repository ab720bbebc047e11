/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_shard: which part of a model a rank holds.
 *
 * Ranks are numbered stage by stage: rank = stage · tensor_size + tensor_rank. A stage holds a run of
 * layers; within a stage every matrix is cut over the tensor ranks: attention by heads, feed-forward
 * by its inner width, experts by theirs or whole ones dealt out, embedding and output by vocabulary.
 * Shoeybi et al. 2019, "Megatron-LM", section 3.
 *
 * Heads come in groups that share keys and values. Up to as many ranks as there are such groups get
 * whole ones; more ranks than that share them: the ranks of a group hold its keys and values each, and
 * its heads are dealt out among them. Of a matrix of which a rank takes columns, a block of the
 * file's format stays whole. Parts need not be equal, but every rank has one.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "runtime/model/model_config.h"
#include "transport/coll/coll.h"

/* All zero: the whole model. */
typedef struct model_shard {
    uint32_t tensor_rank;
    uint32_t tensor_size; /* 0 or 1: not cut */
    uint32_t stage;
    uint32_t stages;     /* 0 or 1: all layers */
    bool splits_experts; /* whole experts are dealt out; else each one is cut */
    coll_t *tensor; /* of the tensor ranks of this stage; NULL where there is one, or to measure */
    coll_t *world;  /* of all ranks, with several stages; as tensor */
    /* The ranks of world in host memory: for what the last stage sampled. NULL: world, which is so. */
    coll_t *results;
} model_shard_t;

typedef struct model_range {
    uint32_t first;
    uint32_t n;
} model_range_t;

/* What a rank holds of all that is dealt out. What the model has not is 0 of 0. */
typedef struct model_cut {
    model_range_t layers;
    model_range_t vocab;
    model_range_t heads;      /* of q */
    model_range_t kv_heads;   /* those that they read; of latents the one, on every rank */
    model_range_t ffn;        /* of the inner width */
    model_range_t shared_ffn; /* of the shared expert's */
    model_range_t expert_ffn; /* of every expert's */
    model_range_t experts;    /* whole ones */
    bool is_first;            /* of the tensor ranks: adds what all would add once too often */
    bool has_first_heads;     /* of the ranks that hold these kv_heads */
} model_cut_t;

/* Columns that lie in one block of a format, and in which tensor: the widest of several. */
typedef struct model_block {
    uint32_t columns; /* 0 or 1: none */
    char tensor[128];
} model_block_t;

/* Of the matrices whose columns are dealt out. */
typedef struct model_blocks {
    model_block_t values; /* attention's output */
    model_block_t ffn;
    model_block_t shared_ffn;
    model_block_t expert_ffn;
} model_blocks_t;

/* n things dealt out in runs as even as can be: part r of size. */
static inline model_range_t model_range_of(uint32_t n, uint32_t part, uint32_t parts)
{
    const uint32_t first = (uint32_t)((uint64_t)n * part / parts);
    const uint32_t end = (uint32_t)((uint64_t)n * (part + 1) / parts);
    return (model_range_t){first, end - first};
}

static inline bool model_shard_is_cut(const model_shard_t *shard)
{
    return shard->tensor_size > 1;
}

static inline bool model_shard_is_first(const model_shard_t *shard)
{
    return shard->stage == 0;
}

static inline bool model_shard_is_last(const model_shard_t *shard)
{
    return shard->stage + 1 >= shard->stages;
}

/* Ranks of world: that of this stage's tensor_rank in another stage. */
static inline uint32_t model_shard_rank(const model_shard_t *shard, uint32_t stage)
{
    return stage * (shard->tensor_size > 1 ? shard->tensor_size : 1) + shard->tensor_rank;
}

static inline model_range_t model_shard_layers(const model_shard_t *shard,
                                               const model_config_t *config)
{
    return model_range_of(config->layers, shard->stage, shard->stages > 1 ? shard->stages : 1);
}

static inline model_range_t model_shard_vocab(const model_shard_t *shard,
                                              const model_config_t *config)
{
    return model_range_of(config->vocab, shard->tensor_rank,
                          shard->tensor_size > 1 ? shard->tensor_size : 1);
}

static inline coll_t *model_shard_results(const model_shard_t *shard)
{
    return shard->results != NULL ? shard->results : shard->world;
}

/*
 * Whether what this rank computed may go to another stage. A failure of one group is made that of the
 * others as well: none carries on with what another left undone. To be asked after a receive and
 * before a send; where the device is not the host that is when they are enqueued, and again when the
 * step is done.
 */
bool model_shard_holds(const model_shard_t *shard);

/*
 * config: the whole model's. shard NULL: all of it.
 * WEFT_ERR_INVALID: no such rank. WEFT_ERR_UNSUPPORTED: it cannot be cut so; diag says what does not
 * divide, and among how many ranks it would.
 */
weft_status_t model_shard_cut(const model_config_t *config, const model_blocks_t *blocks,
                              const model_shard_t *shard, weft_diag_t *diag, model_cut_t *cut_out);

/*
 * The configuration that a rank computes with: fewer layers, heads, widths. experts.count stays, as
 * every rank routes among all.
 */
void model_shard_config(const model_config_t *whole, const model_cut_t *cut,
                        model_config_t *config_out);
