/* SPDX-License-Identifier: Apache-2.0 */
/* executor_rig: a model_rig with an executor and the plan of its next step. */
#pragma once

#include "runtime/executor/executor.h"
#include "tests/support/model_rig.h"

typedef struct executor_rig {
    model_rig_t rig;
    step_limits_t limits;
    executor_t *executor;
    step_plan_t *plan;
    uint64_t step;
} executor_rig_t;

static inline executor_config_t executor_rig_config(const executor_rig_t *rig, k_dtype_t kv_dtype)
{
    return (executor_config_t){
        .model = rig->rig.model,
        .stream = rig->rig.stream,
        .limits = rig->limits,
        .layout = &rig->rig.layout,
        .kv_dtype = kv_dtype,
        .kv_base = rig->rig.kv.addr,
    };
}

/* Model limits follow the step's. */
static inline void executor_rig_open(executor_rig_t *rig, model_rig_config_t config,
                                     const step_limits_t *limits)
{
    weft_diag_t diag = {0};
    config.limits = (model_limits_t){.max_rows = limits->max_tokens,
                                     .max_outputs = limits->max_outputs,
                                     .max_context = limits->max_context};
    *rig = (executor_rig_t){.limits = *limits};
    model_rig_open(&rig->rig, &config);
    const executor_config_t executor = executor_rig_config(rig, config.kv_dtype);
    model_rig_check(executor_create(&executor, &diag, &rig->executor), &diag);
    assert_status(step_plan_create(limits, &rig->plan), WEFT_OK);
    step_plan_clear(rig->plan, ++rig->step);
}

static inline void executor_rig_close(executor_rig_t *rig)
{
    step_plan_destroy(rig->plan);
    executor_destroy(rig->executor);
    model_rig_close(&rig->rig);
}

static inline step_bind_t *plan_bind(step_plan_t *plan, uint32_t slot, const int32_t *tokens,
                                     uint32_t n, const step_sampling_t *sampling)
{
    step_bind_t *bind = &plan->binds[plan->n_binds++];
    *bind = (step_bind_t){.slot = slot,
                          .prompt_tokens = n,
                          .first_token = plan->n_tokens,
                          .n_tokens = n,
                          .first_bias = plan->n_biases,
                          .sampling = *sampling};
    memcpy(plan->tokens + plan->n_tokens, tokens, n * sizeof(int32_t));
    plan->n_tokens += n;
    return bind;
}

/* The last bind's next bias. */
static inline void plan_bias(step_plan_t *plan, int32_t token, float value)
{
    plan->biases[plan->n_biases++] = (step_bias_t){token, value};
    plan->binds[plan->n_binds - 1].n_bias++;
}

static inline void plan_block(step_plan_t *plan, uint32_t slot, uint32_t index, uint32_t block)
{
    plan->blocks[plan->n_blocks++] = (step_block_t){slot, index, block};
}

static inline void plan_row(step_plan_t *plan, uint32_t slot, uint32_t start, uint32_t n,
                            uint32_t flags, uint64_t output_index)
{
    plan->rows[plan->n_rows++] = (step_row_t){
        .slot = slot,
        .flags = flags,
        .start = start,
        .n_tokens = n,
        .output_index = output_index,
    };
}

static inline weft_status_t executor_rig_launch(executor_rig_t *rig)
{
    const weft_status_t status = executor_launch(rig->executor, rig->plan);
    step_plan_clear(rig->plan, ++rig->step);
    return status;
}

static inline step_result_t executor_rig_collect(executor_rig_t *rig)
{
    step_result_t result = {0};
    assert_status(executor_collect(rig->executor, &result), WEFT_OK);
    return result;
}

static inline step_result_t executor_rig_step(executor_rig_t *rig)
{
    assert_status(executor_rig_launch(rig), WEFT_OK);
    return executor_rig_collect(rig);
}

static const step_sampling_t greedy_sampling = {
    .temperature = 0.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .wants_logprob = 1};
