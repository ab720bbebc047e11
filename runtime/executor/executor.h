/* SPDX-License-Identifier: Apache-2.0 */
/*
 * executor: carries out step plans on one rank: keeps the mirrored slots, feeds the model graph,
 * samples.
 *
 * executor_launch enqueues and returns; executor_collect waits for the oldest launched step and
 * reads the sampling buffer. A plan may be launched before the one before it is collected: a
 * STEP_ROW_FROM_SLOT row takes its token from the device.
 *
 * Owns     slots, step buffers at fixed addresses; borrows the model, the KV pool's memory
 * Threads  engine thread
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "kvstore/kv_layout.h"
#include "runtime/model/model.h"
#include "runtime/sched/step_plan.h"

typedef struct executor executor_t;

#define EXECUTOR_MIN_DEPTH 2
#define EXECUTOR_MAX_DEPTH 8

/*
 * Of a model that is cut, the executors of all its ranks carry out the same plans. What a step gives
 * counts only as long as the ranks' group has not failed (coll_status).
 */
typedef struct executor_config {
    model_t *model;
    k_stream_t *stream;
    step_limits_t limits;
    const kv_layout_t *layout;
    k_dtype_t kv_dtype;
    void *kv_base;  /* the pool's memory */
    uint32_t depth; /* steps that may be out; 0: EXECUTOR_MIN_DEPTH */
    bool
        is_timed; /* results say how long the device took; it must have a clock. Two more events are
                       recorded in each step; no thread waits for them */
} executor_config_t;

/* Results of one step, valid until its buffers are launched again (depth steps later). */
typedef struct step_result {
    uint64_t step;
    uint32_t n_rows;         /* as in the plan */
    const k_sampled_t *rows; /* [n_rows]; of rows with STEP_ROW_SAMPLE */
    /* What was sampled after drafts, [n_drafts] of each row, in row order. */
    const k_sampled_t *drafted;
    /* Prompt log-probabilities, for rows that asked, in row order: entry j of a row with start s
     * is about history token s + j + 1. A row has one for each of its tokens, but the newest token
     * of a history has none: nothing is known after it. */
    const k_sampled_t *prompt; /* [n_prompt] */
    uint32_t n_prompt;
    /* Of rows that asked, in row order: the last hidden state of the row's last token, normed. */
    const char *embeddings;  /* [n_embeddings], each [hidden] activations: k_ops.act */
    size_t embedding_stride; /* bytes from one to the next */
    uint32_t n_embeddings;
    /* With is_timed: from the first op of the step to its last; and from the last op of the step
     * before to the first of this one: copies of results and inputs lie between them, and what
     * others enqueued. */
    uint64_t busy_ns;
    bool has_gap; /* there was a step before, and no executor_rest since */
    uint64_t gap_ns;
} step_result_t;

/*
 * Whether there are kernels for a cache of such blocks (executor_create asks, too); latent: elements
 * of a token that are summed, 0: plain attention. WEFT_ERR_UNSUPPORTED: diag names the options.
 */
weft_status_t executor_check_attention(const k_ops_t *ops, const kv_layout_t *layout,
                                       k_dtype_t kv_dtype, uint32_t latent, weft_diag_t *diag);

weft_status_t executor_create(const executor_config_t *config, weft_diag_t *diag,
                              executor_t **executor_out);
void executor_destroy(executor_t *executor); /* NULL is fine */

/*
 * The mask a STEP_ROW_MASKED row of slot is sampled under, [(vocab + 31) / 32] words, written by
 * the engine before executor_launch.
 */
uint32_t *executor_mask(executor_t *executor, uint32_t slot);

/*
 * The plan is read before the call returns. A row that samples ends at the newest token of its
 * slot's history, which then grows by the sampled one.
 * WEFT_ERR_INVALID: the plan breaks its limits or does not fit the slots (logged);
 * nothing ran. WEFT_ERR_QUEUE_FULL: depth steps are out already.
 */
weft_status_t executor_launch(executor_t *executor, const step_plan_t *plan);

/*
 * Of a model in stages the last one's first rank sends what it sampled here, and the leader (rank 0)
 * waits for it; other ranks have no results of use. WEFT_ERR_NOT_FOUND: nothing was launched. WEFT_ERR_DEVICE: the
 * rank cannot go on. WEFT_ERR_PEER_GONE, _TIMEOUT: another stage is lost.
 */
weft_status_t executor_collect(executor_t *executor, step_result_t *result_out);

/* There is nothing to compute for now: the time until the next step is no gap. */
void executor_rest(executor_t *executor);

/* Whether executor_collect of the oldest step that is out will not wait for this rank's device. */
bool executor_is_ready(const executor_t *executor);

/*
 * Waits for steps that are out and drops their results, and what was recorded of steps: the ranks they
 * were computed with are lost.
 */
void executor_forget(executor_t *executor);

/*
 * Bytes of slots and step buffers that executor_create would take of the device; SIZE_MAX: beyond
 * counting. config: the rank's (model_local_config); shard NULL: the whole model. depth: as the config's.
 * is_host: whether the device is, which then has what the host reads as well.
 */
size_t executor_memory(const step_limits_t *limits, const model_config_t *config,
                       const model_shard_t *shard, uint32_t block_tokens, uint32_t depth,
                       bool is_host);
/* Of the stream's scratch, which it shares with the model. */
size_t executor_scratch(const step_limits_t *limits, const model_config_t *config,
                        const model_shard_t *shard, const k_ops_t *ops, uint32_t threads,
                        bool is_host);
