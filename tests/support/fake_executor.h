/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_executor: follows step plans as a rank does, but computes hashes instead of a model, so that
 * a plan that reads a block nobody filled, or skips a position, is caught at once.
 *
 * The "KV" of a position is a hash of all tokens up to it. A row checks every position before its
 * start in its slot's blocks, writes its own, and samples a token that is a function of that hash,
 * the seed and the output index: fake_next_token. Launched steps are carried out at once and
 * collected in order.
 */
#pragma once

#include "base/diag.h"
#include "runtime/executor/executor.h"

typedef struct fake_executor fake_executor_t;

/* kv [n_blocks][block_tokens]: the pool's memory, borrowed. */
fake_executor_t *fake_executor_create(const step_limits_t *limits, uint64_t *kv,
                                      uint32_t block_tokens, uint32_t vocab);
/* From now on it is a first stage, which does not know what it did not hear from a plan. */
void fake_executor_set_stages(fake_executor_t *fake);
void fake_executor_destroy(fake_executor_t *fake);
void fake_executor_launch(fake_executor_t *fake, const step_plan_t *plan);
step_result_t fake_executor_collect(fake_executor_t *fake);

/* What a sequence with this history answers next. */
int32_t fake_next_token(const int32_t *tokens, uint32_t n, uint64_t seed, uint64_t output_index,
                        uint32_t vocab);
/* The "KV" of the last of n tokens. */
uint64_t fake_kv(const int32_t *tokens, uint32_t n);
/* The "log-probability" of token n given the n before it. */
float fake_prompt_logprob(const int32_t *tokens, uint32_t n);
