/* SPDX-License-Identifier: Apache-2.0 */
/*
 * draft_model: a small model that runs ahead of the one that answers, on the same stream: weights, an
 * executor, and a KV cache of its own. It has a block for each block of the other, and uses the same
 * block tables: where tokens of a sequence lie in one, they lie in the other.
 *
 * Owns     what it loads; borrows source and stream
 * Threads  the engine's
 */
#pragma once

#include "base/diag.h"
#include "base/status.h"
#include "runtime/executor/executor.h"
#include "runtime/model/model.h"
#include "text/text.h"

typedef struct draft_model_plan {
    k_dtype_t kv_dtype;
    kv_layout_t layout;
    uint32_t n_blocks;
    step_limits_t limits; /* the context is the smaller one of both models */
    model_limits_t model_limits;
} draft_model_plan_t;

typedef struct draft_model {
    weft_device_t *device;
    weft_mem_t kv;
    model_t *model;
    executor_t *executor;
    step_plan_t *step; /* the caller's to fill and launch */
} draft_model_t;

/*
 * Whether both models mean the same by a token: ids that both tokenizers have stand for the same
 * token; tokenizer NULL: both have as many. WEFT_ERR_UNSUPPORTED: diag says which does not.
 */
weft_status_t draft_model_check_vocab(const model_source_t *source, const model_config_t *answering,
                                      const text_tokenizer_t *tokenizer, weft_diag_t *diag);

/* A block's layout, n_blocks as yet 1. */
weft_status_t draft_model_plan_init(draft_model_plan_t *plan, const model_source_t *source,
                                    uint32_t block_tokens, k_dtype_t kv_dtype, weft_diag_t *diag);

/* Sizes of a step: those of the other model's, and its own longest context (0: what it allows). */
void draft_model_plan_steps(draft_model_plan_t *plan, const model_source_t *source,
                            const step_limits_t *limits, uint32_t max_context);

/*
 * Bytes that draft_model_create would take, but for the KV blocks; of the stream's scratch, which it
 * shares with all that runs on the stream.
 */
weft_status_t draft_model_memory(const draft_model_plan_t *plan, const model_source_t *source,
                                 const k_ops_t *ops, bool is_host, weft_diag_t *diag,
                                 size_t *bytes_out);
weft_status_t draft_model_scratch(const draft_model_plan_t *plan, const model_source_t *source,
                                  const k_ops_t *ops, uint32_t threads, bool is_host,
                                  weft_diag_t *diag, size_t *bytes_out);

weft_status_t draft_model_create(const draft_model_plan_t *plan, const model_source_t *source,
                                 k_stream_t *stream, weft_diag_t *diag, draft_model_t **draft_out);
void draft_model_destroy(draft_model_t *draft); /* NULL is fine */
