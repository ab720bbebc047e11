/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_shard: which part of a model a rank holds.
 *
 * Ranks are numbered stage by stage: rank = stage · tensor_size + tensor_rank. A stage holds a run of
 * layers; within a stage every matrix is cut over the tensor ranks: attention by heads, feed-forward
 * by its inner width, experts by theirs or whole ones dealt out, embedding and output by vocabulary.
 * Shoeybi et al. 2019, "Megatron-LM", section 3.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "runtime/model_config.h"
#include "transport/coll/coll.h"

/* All zero: the whole model. */
typedef struct model_shard {
    uint32_t tensor_rank;
    uint32_t tensor_size; /* 0 or 1: not cut */
    uint32_t stage;
    uint32_t stages;     /* 0 or 1: all layers */
    bool splits_experts; /* whole experts are dealt out; else each one is cut */
    coll_t *tensor; /* of the tensor ranks of this stage; NULL where there is one, or to measure */
} model_shard_t;

typedef struct model_range {
    uint32_t first;
    uint32_t n;
} model_range_t;

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
