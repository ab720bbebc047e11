/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "executor"

#include <assert.h>
#include <string.h>

#include "base/log.h"
#include "runtime/executor_priv.h"

uint32_t *executor_mask(executor_t *executor, uint32_t slot)
{
    assert(slot < executor->limits.max_slots);
    return executor->masks + (size_t)slot * executor->mask_words;
}

/* ---- the tail ------------------------------------------------------------------------------ */

/* The next bytes of the tail: their offset. */
static size_t take(const executor_t *executor, step_t *step, size_t bytes)
{
    const size_t at = step->tail.used;
    const size_t mask = CARVE_ALIGNMENT - 1;
    step->tail.used += (bytes + mask) & ~mask;
    assert(step->tail.used <= executor->tail_bytes);
    (void)executor;
    return at;
}

static size_t put(const executor_t *executor, step_t *step, const void *data, size_t bytes)
{
    const size_t at = take(executor, step, bytes);
    memcpy(step->inputs->tail + at, data, bytes);
    return at;
}

static void *host_at(const step_t *step, size_t offset)
{
    return step->inputs->tail + offset;
}

/* ---- slots --------------------------------------------------------------------------------- */

static void bind_slots(executor_t *executor, const step_plan_t *plan, step_t *step)
{
    static_assert(sizeof(step_bias_t) == sizeof(k_bias_t), "biases are copied as they are");
    step->tail.tokens = put(executor, step, plan->tokens, plan->n_tokens * sizeof(int32_t));
    step->tail.biases = put(executor, step, plan->biases, plan->n_biases * sizeof(k_bias_t));
    for (uint32_t i = 0; i < plan->n_binds; i++) {
        const step_bind_t *bind = &plan->binds[i];
        executor->slots[bind->slot] = (slot_t){
            .n_tokens = bind->n_tokens,
            .prompt_tokens = bind->prompt_tokens,
            .n_bias = bind->n_bias,
            .adapter = bind->adapter,
            .sampling = bind->sampling,
        };
    }
}

static weft_status_t append_blocks(executor_t *executor, const step_plan_t *plan, step_t *step)
{
    const uint32_t n_words = plan->n_blocks + step_plan_row_tokens(plan);
    step->tail.words = take(executor, step, n_words * sizeof(k_word_t));
    k_word_t *words = host_at(step, step->tail.words);
    for (uint32_t i = 0; i < plan->n_blocks; i++) {
        const step_block_t *block = &plan->blocks[i];
        slot_t *slot = &executor->slots[block->slot];
        if (block->index > slot->n_blocks || block->index >= executor->table_blocks) {
            weft_log_error("step=%llu slot=%u block index %u after %u blocks",
                           (unsigned long long)plan->step, block->slot, block->index,
                           slot->n_blocks);
            return WEFT_ERR_INVALID;
        }
        slot->n_blocks += block->index == slot->n_blocks;
        words[step->n_words++] = (k_word_t){
            .at = executor_block_table(executor, block->slot) + block->index,
            .value = block->block,
        };
    }
    return WEFT_OK;
}

/*
 * Tokens that the plan has of its rows join the histories, and drafts, which what is sampled after
 * them will replace; behind append_blocks' words.
 */
static void append_row_tokens(executor_t *executor, const step_plan_t *plan, step_t *step)
{
    const int32_t *token = plan->tokens + plan->n_tokens - step_plan_row_tokens(plan);
    k_word_t *words = host_at(step, step->tail.words);
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const step_row_t *row = &plan->rows[i];
        const bool is_told = (row->flags & STEP_ROW_TOLD) != 0;
        const uint32_t end = row->start + row->n_tokens;
        uint32_t *history = (uint32_t *)executor_history(executor, row->slot);
        for (uint32_t at = is_told ? row->start : end; at < end + row->n_drafts; at++) {
            words[step->n_words++] = (k_word_t){.at = history + at, .value = (uint32_t)*token++};
        }
    }
}

/* ---- rows ---------------------------------------------------------------------------------- */

/*
 * A row stays within its slot's history and blocks, samples at the end only, and comes once. Where
 * drafts left that end open, the row is it; where the plan has its tokens, they are.
 */
static weft_status_t check_row(executor_t *executor, const step_plan_t *plan, const step_row_t *row)
{
    slot_t *slot = &executor->slots[row->slot];
    const uint32_t end = row->start + row->n_tokens;
    const bool must_end = (row->flags & (STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT)) != 0;
    const bool is_written = (row->flags & (STEP_ROW_TOLD | STEP_ROW_FROM_SLOT)) == STEP_ROW_TOLD;
    const uint64_t room = (uint64_t)slot->n_blocks * executor->block_tokens;
    if (is_written && row->start <= slot->n_tokens) {
        slot->n_tokens = end;
    }
    if (must_end && end < slot->n_tokens && slot->n_tokens - end <= slot->n_unsure) {
        slot->n_tokens = end;
    }
    slot->n_unsure = 0;
    if (end > slot->n_tokens || (must_end && end < slot->n_tokens) || end + row->n_drafts > room ||
        slot->step == plan->step) {
        weft_log_error("step=%llu slot=%u row of tokens %u..%u does not fit a history of %u in %u "
                       "blocks, or comes twice",
                       (unsigned long long)plan->step, row->slot, row->start, end, slot->n_tokens,
                       slot->n_blocks);
        return WEFT_ERR_INVALID;
    }
    slot->step = plan->step;
    return WEFT_OK;
}

/* Tokens of the row whose successors are known. */
static uint32_t known_of(const executor_t *executor, const step_row_t *row)
{
    const uint32_t known = executor->slots[row->slot].n_tokens - row->start - 1;
    return known < row->n_tokens ? known : row->n_tokens;
}

static void take_prompt_arrays(executor_t *executor, const step_plan_t *plan, step_t *step)
{
    size_t rows = 0;
    size_t tokens = 0;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        if ((plan->rows[i].flags & STEP_ROW_PROMPT_LOGPROBS) != 0) {
            rows++;
            tokens += known_of(executor, &plan->rows[i]);
        }
    }
    step->tail.embed_rows =
        take(executor, step, executor->limits.max_embeddings * sizeof(uint32_t));
    step->tail.prompt_seqs = take(executor, step, rows * sizeof(k_seq_t));
    step->tail.prompt_rows = take(executor, step, tokens * sizeof(uint32_t));
    step->tail.prompt_tops = take(executor, step, tokens * sizeof(uint32_t));
}

static void stage_prompt_rows(executor_t *executor, const step_row_t *row, step_t *step)
{
    k_seq_t *seqs = host_at(step, step->tail.prompt_seqs);
    uint32_t *rows = host_at(step, step->tail.prompt_rows);
    uint32_t *tops = host_at(step, step->tail.prompt_tops);
    const uint32_t n = known_of(executor, row);
    seqs[step->n_prompt_seqs++] = (k_seq_t){
        .row = step->n_prompt,
        .rows = n,
        .start = row->start + 1,
        .history = executor_history(executor, row->slot),
    };
    for (uint32_t i = 0; i < n; i++) {
        rows[step->n_prompt + i] = step->n_tokens + i;
        tops[step->n_prompt + i] = executor->slots[row->slot].sampling.n_prompt_top;
    }
    step->n_prompt += n;
}

/* Where the slot's mask, as it is now, will be on the device. */
static const uint32_t *stage_mask(executor_t *executor, uint32_t slot, step_t *step)
{
    const size_t at =
        put(executor, step, executor_mask(executor, slot), executor->mask_words * sizeof(uint32_t));
    return (const uint32_t *)(executor->device.inputs.tail + at);
}

/* After the row's last token and the first n_drafts drafts. */
static void stage_sample(executor_t *executor, const step_row_t *row, uint32_t n_drafts,
                         step_t *step)
{
    const slot_t *slot = &executor->slots[row->slot];
    const step_sampling_t *sampling = &slot->sampling;
    const bool is_masked = (row->flags & STEP_ROW_MASKED) != 0;
    int32_t *history = executor_history(executor, row->slot);

    step->inputs->samples[step->n_sampled] = (k_sample_row_t){
        .temperature = sampling->temperature,
        .top_p = sampling->top_p,
        .min_p = sampling->min_p,
        .top_k = sampling->top_k,
        .repetition_penalty = sampling->repetition_penalty,
        .frequency_penalty = sampling->frequency_penalty,
        .presence_penalty = sampling->presence_penalty,
        .n_top = sampling->n_top,
        .wants_logprob = sampling->wants_logprob != 0,
        .seed = sampling->seed,
        .output_index = row->output_index + n_drafts,
        .history = step_has_penalties(sampling) ? history : NULL,
        .history_tokens = slot->n_tokens + n_drafts,
        .prompt_tokens = slot->prompt_tokens,
        .bias = slot->n_bias > 0 ? executor_biases(executor, row->slot) : NULL,
        .n_bias = slot->n_bias,
        .mask = is_masked ? stage_mask(executor, row->slot, step) : NULL,
        .append_to = history + slot->n_tokens + n_drafts,
    };
    if (executor->slices.ranks > 1) {
        step->sampling |= executor_slices_wants(&step->inputs->samples[step->n_sampled]);
    }
    step->inputs->sample_rows[step->n_sampled] = step->n_tokens + row->n_tokens - 1 + n_drafts;
    step->n_sampled++;
}

static void stage_row(executor_t *executor, const step_row_t *row, step_t *step)
{
    const uint32_t n_tokens = row->n_tokens + row->n_drafts;
    step->inputs->seqs[step->n_seqs++] = (k_seq_t){
        .row = step->n_tokens,
        .rows = n_tokens,
        .start = row->start,
        .adapter = executor->slots[row->slot].adapter,
        .block_table = executor_block_table(executor, row->slot),
        /* It holds sampled tokens as soon as they are: STEP_ROW_FROM_SLOT needs no more. */
        .history = executor_history(executor, row->slot),
    };
    const uint32_t end = row->start + n_tokens;
    step->has_adapters |= executor->slots[row->slot].adapter > 0;
    step->max_tokens = step->max_tokens < end ? end : step->max_tokens;
    step->max_rows = step->max_rows < n_tokens ? n_tokens : step->max_rows;
    if ((row->flags & STEP_ROW_PROMPT_LOGPROBS) != 0) {
        stage_prompt_rows(executor, row, step);
    }
    for (uint32_t i = 0; (row->flags & STEP_ROW_SAMPLE) != 0 && i <= row->n_drafts; i++) {
        stage_sample(executor, row, i, step);
    }
    if ((row->flags & STEP_ROW_EMBED) != 0) {
        uint32_t *rows = host_at(step, step->tail.embed_rows);
        rows[step->n_embeddings++] = step->n_tokens + row->n_tokens - 1;
    }
    step->n_tokens += n_tokens;
}

weft_status_t executor_stage(executor_t *executor, const step_plan_t *plan, step_t *step_out)
{
    weft_diag_t diag = {0};
    weft_status_t status = step_plan_check(plan, &executor->limits, &diag);
    if (status < 0) {
        weft_log_error("%s", diag.text);
        return status;
    }
    step_t step = {.inputs = &executor->inputs[executor->n_launched % executor->depth]};
    bind_slots(executor, plan, &step);
    status = append_blocks(executor, plan, &step);
    for (uint32_t i = 0; status >= 0 && i < plan->n_rows; i++) {
        status = check_row(executor, plan, &plan->rows[i]);
    }
    if (status < 0) {
        return status;
    }
    append_row_tokens(executor, plan, &step);
    take_prompt_arrays(executor, plan, &step);
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        stage_row(executor, &plan->rows[i], &step);
    }
    *step_out = step;
    return WEFT_OK;
}
