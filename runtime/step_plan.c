/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/step_plan.h"

#include <stdbool.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "runtime/carve.h"

static size_t lay_out(carve_t *carve, const step_limits_t *limits, step_plan_t *plan)
{
    plan->binds = carve_take(carve, limits->max_slots, sizeof(step_bind_t));
    plan->blocks = carve_take(carve, limits->max_blocks, sizeof(step_block_t));
    plan->rows = carve_take(carve, limits->max_slots, sizeof(step_row_t));
    plan->tokens = carve_take(carve, limits->max_bind_tokens, sizeof(int32_t));
    plan->biases = carve_take(carve, limits->max_biases, sizeof(step_bias_t));
    return carve->used;
}

weft_status_t step_plan_create(const step_limits_t *limits, step_plan_t **plan_out)
{
    step_plan_t measured = {0};
    carve_t carve = {.used = 0};
    (void)carve_take(&carve, 1, sizeof(step_plan_t));
    const size_t bytes = lay_out(&carve, limits, &measured);

    carve = (carve_t){.base = weft_alloc_aligned(CARVE_ALIGNMENT, bytes, "runtime.step_plan")};
    if (carve.base == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    step_plan_t *plan = carve_take(&carve, 1, sizeof(step_plan_t));
    lay_out(&carve, limits, plan);
    step_plan_clear(plan, 0);
    *plan_out = plan;
    return WEFT_OK;
}

void step_plan_destroy(step_plan_t *plan)
{
    weft_free(plan); /* the arrays lie behind it */
}

void step_plan_clear(step_plan_t *plan, uint64_t step)
{
    plan->version = STEP_PLAN_VERSION;
    plan->step = step;
    plan->n_binds = 0;
    plan->n_blocks = 0;
    plan->n_rows = 0;
    plan->n_tokens = 0;
    plan->n_biases = 0;
}

/* Whether [first, first + n) lies within [0, limit). */
static bool is_within(uint32_t first, uint32_t n, uint32_t limit)
{
    return first <= limit && n <= limit - first;
}

static weft_status_t check_counts(const step_plan_t *plan, const step_limits_t *limits,
                                  weft_diag_t *diag)
{
    const struct {
        const char *name;
        uint32_t n;
        uint32_t max;
    } counts[] = {
        {"binds", plan->n_binds, limits->max_slots},
        {"blocks", plan->n_blocks, limits->max_blocks},
        {"rows", plan->n_rows, limits->max_slots},
        {"tokens", plan->n_tokens, limits->max_bind_tokens},
        {"biases", plan->n_biases, limits->max_biases},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(counts); i++) {
        if (counts[i].n > counts[i].max) {
            return weft_diag(diag, WEFT_ERR_INVALID, "step plan: %u %s, at most %u", counts[i].n,
                             counts[i].name, counts[i].max);
        }
    }
    return WEFT_OK;
}

static bool is_bind_valid(const step_bind_t *bind, const step_plan_t *plan,
                          const step_limits_t *limits)
{
    return bind->slot < limits->max_slots && bind->n_tokens <= limits->max_context &&
           bind->prompt_tokens <= bind->n_tokens &&
           is_within(bind->first_token, bind->n_tokens, plan->n_tokens) &&
           is_within(bind->first_bias, bind->n_bias, plan->n_biases) &&
           bind->sampling.n_top <= K_MAX_LOGPROBS && bind->sampling.n_prompt_top <= K_MAX_LOGPROBS;
}

static bool is_row_valid(const step_row_t *row, const step_limits_t *limits)
{
    const bool is_from_slot = (row->flags & STEP_ROW_FROM_SLOT) != 0;
    return row->slot < limits->max_slots && row->n_tokens >= 1 &&
           (row->flags & ~STEP_ROW_ALL) == 0 && (!is_from_slot || row->n_tokens == 1) &&
           is_within(row->start, row->n_tokens, limits->max_context);
}

static bool are_drafts_valid(const step_row_t *row, const step_limits_t *limits)
{
    const uint32_t room = limits->max_context - row->start - row->n_tokens;
    return row->n_drafts == 0 || (row->flags == (STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT) &&
                                  row->n_drafts <= limits->max_drafts && row->n_drafts <= room);
}

uint32_t step_plan_row_tokens(const step_plan_t *plan)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const step_row_t *row = &plan->rows[i];
        n += ((row->flags & STEP_ROW_TOLD) != 0 ? row->n_tokens : 0) + row->n_drafts;
    }
    return n;
}

weft_status_t step_plan_check(const step_plan_t *plan, const step_limits_t *limits,
                              weft_diag_t *diag)
{
    if (plan->version != STEP_PLAN_VERSION) {
        return weft_diag(diag, WEFT_ERR_INVALID, "step plan: version %u, not %u", plan->version,
                         STEP_PLAN_VERSION);
    }
    const weft_status_t status = check_counts(plan, limits, diag);
    if (status < 0) {
        return status;
    }
    for (uint32_t i = 0; i < plan->n_binds; i++) {
        if (!is_bind_valid(&plan->binds[i], plan, limits)) {
            return weft_diag(diag, WEFT_ERR_INVALID, "step plan: bind %u breaks its limits", i);
        }
    }
    for (uint32_t i = 0; i < plan->n_blocks; i++) {
        if (plan->blocks[i].slot >= limits->max_slots) {
            return weft_diag(diag, WEFT_ERR_INVALID, "step plan: block %u names slot %u", i,
                             plan->blocks[i].slot);
        }
    }
    uint64_t tokens = 0;
    uint32_t embeddings = 0;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        if (!is_row_valid(&plan->rows[i], limits) || !are_drafts_valid(&plan->rows[i], limits)) {
            return weft_diag(diag, WEFT_ERR_INVALID, "step plan: row %u breaks its limits", i);
        }
        tokens += plan->rows[i].n_tokens + plan->rows[i].n_drafts;
        embeddings += (plan->rows[i].flags & STEP_ROW_EMBED) != 0;
    }
    if (embeddings > limits->max_embeddings) {
        return weft_diag(diag, WEFT_ERR_INVALID, "step plan: %u embeddings, at most %u", embeddings,
                         limits->max_embeddings);
    }
    if (step_plan_row_tokens(plan) > plan->n_tokens) {
        return weft_diag(diag, WEFT_ERR_INVALID, "step plan: rows bring %u of %u tokens",
                         step_plan_row_tokens(plan), plan->n_tokens);
    }
    if (tokens > limits->max_tokens) {
        return weft_diag(diag, WEFT_ERR_INVALID, "step plan: %llu tokens in one step, at most %u",
                         (unsigned long long)tokens, limits->max_tokens);
    }
    return WEFT_OK;
}
