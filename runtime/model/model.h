/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model: the weights of this rank, packed for its device, and the graph that runs them.
 *
 * A layer is a plain function in runtime/model/families/<family>.c that enqueues ops of the k_ops table; it
 * allocates nothing and returns no data to the host.
 *
 * Owns     packed weights and the activation buffers of one step
 * Threads  the executor's
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "runtime/model/adapter.h"
#include "runtime/model/model_config.h"
#include "runtime/model/model_shard.h"
#include "runtime/model/model_source.h"

typedef struct model model_t;

typedef struct model_limits {
    uint32_t max_rows;      /* tokens of one step */
    uint32_t max_outputs;   /* rows of logits made by one model_logits */
    uint32_t max_context;   /* positions */
    uint32_t max_lora_rank; /* of adapters; 0: there are none */
    bool keeps_packed;      /* matrices in a file beside the source: model_packed.c */
} model_limits_t;

/* One forward pass. ids and seqs are device memory at fixed addresses. */
typedef struct model_batch {
    const int32_t *ids; /* [rows] */
    uint32_t rows;
    const k_seq_t *seqs; /* [n_seqs], covering the rows in order */
    uint32_t n_seqs;
    uint32_t max_tokens;   /* no sequence's start + rows is more */
    uint32_t max_rows;     /* no sequence's rows are more */
    const k_kv_view_t *kv; /* [layers of this rank], host memory */
    uint32_t
        adapter_targets; /* ADAPTER_BIT: what adapters of the sequences may add to; 0: none has one */
} model_batch_t;

/*
 * source is borrowed until destroy (weights may be used where they are mapped); shard NULL: the whole
 * model. Of a cut one, every rank runs the same passes; what they add up goes by shard->tensor, which
 * outlives the model or is exchanged in time.
 */
weft_status_t model_create(const model_source_t *source, const model_shard_t *shard,
                           const model_limits_t *limits, k_stream_t *stream, weft_diag_t *diag,
                           model_t **model_out);
void model_destroy(model_t *model); /* NULL is fine */

/* With max_lora_rank: what sequences with an adapter add. Borrowed; before the first pass. */
void model_set_adapters(model_t *model, const adapter_table_t *adapters);
/* adapter_table_targets of those: more as adapters come, never fewer. */
uint32_t model_adapter_targets(const model_t *model);

/* The ranks have met anew: the groups of this shard instead of those there were. */
void model_set_groups(model_t *model, const model_shard_t *shard);

const model_shard_t *model_shard(const model_t *model);
const model_cut_t *model_cut(const model_t *model);
const model_config_t *model_config(const model_t *model);       /* of the whole, as the file says */
const model_config_t *model_local_config(const model_t *model); /* of what this rank computes */
const model_limits_t *model_limits(const model_t *model);

/*
 * Enqueues the pass on the stream; the last hidden states of all its rows stay in the model. A stage
 * that is not the first waits for those of the stage before, one that is not the last sends them on.
 */
void model_forward(model_t *model, k_stream_t *stream, const model_batch_t *batch);

/*
 * Enqueues the last hidden states of some rows of the last pass, normed: rows [n] device memory,
 * n ≤ max_outputs. Returns where they will be until the next call: [n, *stride_out] activations.
 */
const void *model_hidden(model_t *model, k_stream_t *stream, const uint32_t *rows, uint32_t n,
                         size_t *stride_out);

/*
 * Enqueues the logits of some rows of the last pass: rows [n] device memory, n ≤ max_outputs;
 * logits [n, vocab] device memory, of a cut model those of this rank's tokens (model_shard_vocab). May
 * be called any number of times after a pass. Last stage only.
 */
void model_logits(model_t *model, k_stream_t *stream, const uint32_t *rows, uint32_t n,
                  float *logits);

/* Bytes of packed weights and of activation buffers that model_create would take. */
weft_status_t model_memory(const model_source_t *source, const model_shard_t *shard,
                           const model_limits_t *limits, const k_ops_t *ops, weft_diag_t *diag,
                           size_t *weights_bytes_out, size_t *activation_bytes_out);

/* Of the stream's scratch, which it shares with all that runs on the stream: k_stream_reserve. */
weft_status_t model_scratch(const model_source_t *source, const model_shard_t *shard,
                            const model_limits_t *limits, const k_ops_t *ops, uint32_t threads,
                            weft_diag_t *diag, size_t *bytes_out);

/* model_local_config of a model that is not made yet. */
weft_status_t model_local_config_of(const model_source_t *source, const model_shard_t *shard,
                                    weft_diag_t *diag, model_config_t *config_out);
