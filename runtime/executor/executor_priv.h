/* SPDX-License-Identifier: Apache-2.0 */
/*
 * executor_priv: what the executor's files share.
 *
 *   executor.c         life, launch, collect
 *   executor_memory.c  the arrays on host and device, laid out once
 *   executor_stage.c   from a plan to what is sent to the device: one struct, one copy
 *   executor_run.c     the ops of a step, enqueued one by one or as a graph
 *   executor_slices.c  sampling where the vocabulary is cut over ranks
 */
#pragma once

#include "runtime/executor/carve.h"
#include "runtime/executor/executor.h"

#define MAX_BATCH_BUCKETS    64
#define MAX_CONTEXT_BUCKETS  16
#define FIRST_CONTEXT_BUCKET 256

/* What the host knows of a sequence; its tokens and block table lie on the device. */
typedef struct slot {
    uint32_t n_tokens; /* of its history; a sampled token counts from its launch on */
    uint32_t n_unsure; /* the last of them, sampled after drafts: the next row tells which are */
    uint32_t prompt_tokens;
    uint32_t n_blocks; /* of its block table */
    uint32_t n_bias;
    uint32_t adapter;
    step_sampling_t sampling;
    uint64_t step; /* the last one with a row of it */
} slot_t;

/*
 * What a step tells the device. The same struct lies in pinned host memory, once for each step in
 * flight, and on the device at a fixed address. Of the tail only what a step uses is sent.
 */
typedef struct inputs {
    k_seq_t *seqs;           /* [max_slots] */
    k_sample_row_t *samples; /* [max_samples] */
    uint32_t *sample_rows;   /* [max_samples] model rows that sample */
    char *tail;              /* [tail_bytes] arrays of this step: see tail_t */
} inputs_t;

/* Offsets of the arrays in the tail of the step being made. */
typedef struct tail {
    size_t used;
    size_t tokens; /* int32_t [], biases k_bias_t []: those of the plan, for its binds */
    size_t biases;
    size_t words;       /* k_word_t [n_words]: entries of block tables */
    size_t prompt_seqs; /* k_seq_t [n_prompt_seqs]: whose tokens are targets */
    size_t prompt_rows; /* uint32_t [n_prompt]: model rows whose tokens' successors are known */
    size_t prompt_tops; /* uint32_t [n_prompt] */
    size_t embed_rows;  /* uint32_t [n_embeddings]: model rows whose hidden state is wanted */
} tail_t;

typedef struct device_state {
    int32_t *history;       /* [max_slots][max_context + 1] */
    uint32_t *block_tables; /* [max_slots][table_blocks] */
    k_bias_t *biases;       /* [max_slots][max_biases] */
    inputs_t inputs;
    int32_t *ids;         /* [max_tokens] */
    int32_t *targets;     /* [max_tokens] */
    float *logits;        /* [max_outputs, vocab], or this rank's part of the vocabulary */
    k_sampled_t *sampled; /* [max_samples], of sample_rows */
    k_sampled_t *prompt;  /* [max_tokens], of prompt_rows */
} device_state_t;

/* Where the vocabulary is cut: this rank's part, and what ranks tell one another of theirs. */
typedef struct slices {
    uint32_t ranks; /* 1: it is not cut */
    uint32_t rank;
    model_range_t vocab;
    uint32_t largest;     /* tokens that a rank has at most */
    bool has_lists;       /* of candidates, which the host looks at: where it can; else cuts */
    float *z;             /* [max_outputs, vocab.n] */
    k_slice_row_t *state; /* [max_outputs] */
    k_slice_cuts_t *cuts; /* [max_outputs]; NULL: lists */
    char *records;        /* [ranks] of up to `bytes` each */
    size_t bytes;
} slices_t;

/* What ranks exchange to sample a step besides the largest: bits, as its rows' parameters want. */
#define SAMPLING_DRAWS   UINT32_C(1)
#define SAMPLING_TOP_K   UINT32_C(2)
#define SAMPLING_TOP_P   UINT32_C(4)
#define SAMPLING_REPORTS UINT32_C(8)

/* What graphs of one size differ in: the bits of a step's sampling, and these. */
#define GRAPH_HAS_ADAPTERS UINT32_C(16)
#define GRAPH_HAS_DRAFTS   UINT32_C(32)
#define GRAPH_KINDS        64

/* What a step answers, in pinned host memory. */
typedef struct outputs {
    uint64_t step;
    weft_event_t *begun; /* before the first op, ended after the last; NULL: not timed */
    weft_event_t *ended;
    weft_event_t *done; /* the answer is here */
    uint32_t n_rows;
    uint32_t n_sampled;
    uint32_t n_prompt;
    uint32_t n_embeddings;
    k_sampled_t *rows;    /* [max_samples] as they were sampled; then [max_slots], a row's first */
    k_sampled_t *drafted; /* [max_samples] the others */
    k_sampled_t *prompt;  /* [max_tokens] */
    char *embeddings;     /* [max_embeddings], embedding_stride apart */
    uint32_t *n_samples;  /* [max_slots] of each row */
} outputs_t;

/* The step being made. */
typedef struct step {
    inputs_t *inputs; /* on the host */
    tail_t tail;
    uint32_t n_tokens;   /* rows of the model */
    uint32_t max_tokens; /* the longest sequence, this step's tokens counted */
    uint32_t max_rows;   /* of one sequence */
    uint32_t n_seqs;
    uint32_t n_words;
    uint32_t n_prompt;
    uint32_t n_prompt_seqs;
    uint32_t n_sampled;
    uint32_t n_embeddings;
    bool has_adapters;
    uint32_t adapter_targets; /* ADAPTER_BIT: what they may add to */
    uint32_t sampling;        /* SAMPLING_* where the vocabulary is cut, else 0 */
} step_t;

/*
 * Graphs of decode steps, in which each row is sampled: a token of each sequence, with drafts a few.
 * Made for a number of rows, which a step is filled up to with rows and sequences of nobody, and for the
 * longest context; when first needed, by all ranks for the same step.
 */
typedef struct graphs {
    uint32_t n_batches;
    uint32_t n_contexts;
    bool is_full;             /* the device had no memory for one: no further ones are made */
    uint32_t adapter_targets; /* those with adapters add to these */
    uint32_t batches[MAX_BATCH_BUCKETS];
    uint32_t contexts[MAX_CONTEXT_BUCKETS];
    k_graph_t *made[MAX_BATCH_BUCKETS][MAX_CONTEXT_BUCKETS][GRAPH_KINDS];
} graphs_t;

struct executor {
    model_t *model;
    k_stream_t *stream;
    step_limits_t limits;
    uint32_t vocab;
    uint32_t block_tokens;
    uint32_t table_blocks;
    uint32_t max_samples; /* of one step */
    uint32_t mask_words;
    size_t tail_bytes;
    size_t embedding_stride; /* bytes from one to the next in outputs */
    size_t embedding_bytes;  /* of a hidden state, as activations */
    bool is_timed;
    weft_event_t *ended; /* of the step collected last; NULL: none, or a rest since */

    weft_mem_t memory;
    device_state_t device;
    slices_t slices;

    weft_mem_t host_memory; /* pinned */
    slot_t *slots;          /* [max_slots] */
    uint32_t *masks;        /* [max_slots][mask_words] */
    k_kv_view_t *kv;        /* [layers] */
    uint32_t depth;         /* steps that may be out */
    inputs_t inputs[EXECUTOR_MAX_DEPTH];
    outputs_t outputs[EXECUTOR_MAX_DEPTH];
    graphs_t graphs;
    uint64_t n_launched;
    uint64_t n_collected;
};

static inline void executor_copy(executor_t *executor, void *dst, const void *src, size_t bytes)
{
    executor->stream->device->ops->copy(executor->stream->queue, dst, src, bytes);
}

/* executor_memory.c */
void executor_set_sizes(executor_t *executor, const step_limits_t *limits,
                        const model_config_t *config, const model_shard_t *shard,
                        uint32_t block_tokens, bool is_host);
uint32_t executor_widest(const executor_t *executor); /* elements of a row of logits */
weft_status_t executor_take_memory(executor_t *executor, uint32_t layers, weft_diag_t *diag);
void executor_free_memory(executor_t *executor);

static inline int32_t *executor_history(const executor_t *executor, uint32_t slot)
{
    return executor->device.history + (size_t)slot * (executor->limits.max_context + 1);
}

static inline k_bias_t *executor_biases(const executor_t *executor, uint32_t slot)
{
    return executor->device.biases + (size_t)slot * executor->limits.max_biases;
}

static inline uint32_t *executor_block_table(const executor_t *executor, uint32_t slot)
{
    return executor->device.block_tables + (size_t)slot * executor->table_blocks;
}

/* executor_stage.c: checks the plan against the slots, moves them on and fills the step's inputs. */
weft_status_t executor_stage(executor_t *executor, const step_plan_t *plan, step_t *step_out);

/* executor_run.c */
void executor_graphs_init(executor_t *executor);
void executor_graphs_drop(executor_t *executor);
weft_status_t executor_run(executor_t *executor, const step_plan_t *plan, step_t *step);

/* How many of the rows from `first` on are done in one turn. */
static inline uint32_t executor_turn(const executor_t *executor, uint32_t first, uint32_t n)
{
    return n - first < executor->limits.max_outputs ? n - first : executor->limits.max_outputs;
}

/* executor_slices.c: as the two of whole rows in executor_run.c; what a row of a step wants */
uint32_t executor_slices_wants(const k_sample_row_t *row);
void executor_slices_lay_out(const executor_t *executor, carve_t *carve, slices_t *slices);
void executor_slices_sample(executor_t *executor, const step_t *step);
void executor_slices_prompt(executor_t *executor, const step_t *step);
