/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/fake_executor.h"

#include <string.h>

#include "runtime/sched/sched.h"
#include "tests/support/check.h"

#define UNKNOWN (-1)

typedef struct fake_slot {
    bool is_bound;
    uint32_t n_tokens;
    uint32_t n_unsure; /* the last of them, sampled after drafts */
    int32_t *tokens;   /* [max_context + 1] */
    uint32_t *blocks;  /* [max_context] */
    step_sampling_t sampling;
} fake_slot_t;

typedef struct fake_step {
    step_result_t result;
    k_sampled_t *rows;    /* [max_slots] */
    k_sampled_t *drafted; /* [max_slots][max_drafts] */
    uint32_t n_drafted;
    k_sampled_t *prompt; /* [max_tokens] */
} fake_step_t;

struct fake_executor {
    step_limits_t limits;
    uint32_t block_tokens;
    uint32_t vocab;
    uint64_t *kv; /* [n_blocks][block_tokens], borrowed */
    fake_slot_t *slots;
    bool has_stages;
    fake_step_t steps[SCHED_MAX_IN_FLIGHT];
    uint32_t n_launched;
    uint32_t n_collected;
};

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = (a ^ (b + UINT64_C(0x9e3779b97f4a7c15))) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 29)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 32);
}

static uint64_t extend(uint64_t before, int32_t token)
{
    return mix(before, (uint32_t)token);
}

static uint64_t history_hash(const int32_t *tokens, uint32_t n)
{
    uint64_t hash = 1;
    for (uint32_t i = 0; i < n; i++) {
        hash = extend(hash, tokens[i]);
    }
    return hash;
}

uint64_t fake_kv(const int32_t *tokens, uint32_t n)
{
    return history_hash(tokens, n);
}

static int32_t sample(uint64_t hash, uint64_t seed, uint64_t output_index, uint32_t vocab)
{
    return (int32_t)(mix(mix(hash, seed), output_index) % vocab);
}

int32_t fake_next_token(const int32_t *tokens, uint32_t n, uint64_t seed, uint64_t output_index,
                        uint32_t vocab)
{
    return sample(history_hash(tokens, n), seed, output_index, vocab);
}

static float logprob_of(uint64_t hash_before, int32_t token)
{
    return -(float)(extend(hash_before, token) % 1000);
}

float fake_prompt_logprob(const int32_t *tokens, uint32_t n)
{
    return logprob_of(history_hash(tokens, n), tokens[n]);
}

fake_executor_t *fake_executor_create(const step_limits_t *limits, uint64_t *kv,
                                      uint32_t block_tokens, uint32_t vocab)
{
    fake_executor_t *fake = calloc(1, sizeof(*fake));
    fake->limits = *limits;
    fake->block_tokens = block_tokens;
    fake->vocab = vocab;
    fake->kv = kv;
    fake->slots = calloc(limits->max_slots, sizeof(fake_slot_t));
    for (uint32_t i = 0; i < limits->max_slots; i++) {
        fake->slots[i].tokens = calloc(limits->max_context + 1, sizeof(int32_t));
        fake->slots[i].blocks = calloc(limits->max_context, sizeof(uint32_t));
    }
    for (int i = 0; i < SCHED_MAX_IN_FLIGHT; i++) {
        fake->steps[i].rows = calloc(limits->max_slots, sizeof(k_sampled_t));
        fake->steps[i].drafted = calloc(step_limits_samples(limits), sizeof(k_sampled_t));
        fake->steps[i].prompt = calloc(limits->max_tokens, sizeof(k_sampled_t));
    }
    return fake;
}

void fake_executor_destroy(fake_executor_t *fake)
{
    for (uint32_t i = 0; i < fake->limits.max_slots; i++) {
        free(fake->slots[i].tokens);
        free(fake->slots[i].blocks);
    }
    for (int i = 0; i < SCHED_MAX_IN_FLIGHT; i++) {
        free(fake->steps[i].rows);
        free(fake->steps[i].drafted);
        free(fake->steps[i].prompt);
    }
    free(fake->slots);
    free(fake);
}

void fake_executor_set_stages(fake_executor_t *fake)
{
    fake->has_stages = true;
}

static uint64_t *kv_at(fake_executor_t *fake, const fake_slot_t *slot, uint32_t position)
{
    const uint32_t block = slot->blocks[position / fake->block_tokens];
    return &fake->kv[(size_t)block * fake->block_tokens + position % fake->block_tokens];
}

static void report_prompt(fake_step_t *step, const fake_slot_t *slot, uint32_t position,
                          uint64_t hash)
{
    if (position + 1 < slot->n_tokens) {
        const int32_t target = slot->tokens[position + 1];
        step->prompt[step->result.n_prompt++] = (k_sampled_t){
            .chosen = {.token = target, .rank = 1, .logprob = logprob_of(hash, target)}};
    }
}

/* Behind the row's own tokens; what is sampled then lies where the drafts were, right or not. */
static void run_drafts(fake_executor_t *fake, fake_step_t *step, const step_row_t *row,
                       const int32_t *drafts, uint64_t hash)
{
    fake_slot_t *slot = &fake->slots[row->slot];
    for (uint32_t i = 0; i < row->n_drafts; i++) {
        k_sampled_t *out = &step->drafted[step->n_drafted++];
        hash = extend(hash, drafts[i]);
        *kv_at(fake, slot, row->start + row->n_tokens + i) = hash;
        out->chosen.token =
            sample(hash, slot->sampling.seed, row->output_index + i + 1, fake->vocab);
        slot->tokens[slot->n_tokens++] = out->chosen.token;
    }
    slot->n_unsure = row->n_drafts;
}

static void run_row(fake_executor_t *fake, fake_step_t *step, const step_row_t *row,
                    const int32_t *drafts, k_sampled_t *out)
{
    fake_slot_t *slot = &fake->slots[row->slot];
    assert_true(slot->is_bound);
    if ((row->flags & STEP_ROW_FROM_SLOT) != 0) {
        assert_in_range(slot->n_tokens - row->start, 1, 1 + slot->n_unsure);
        slot->n_tokens = row->start + 1;
    }
    assert_true(row->start + row->n_tokens <= slot->n_tokens);
    uint64_t hash = 1;
    for (uint32_t i = 0; i < row->start; i++) {
        hash = extend(hash, slot->tokens[i]);
        assert_true(*kv_at(fake, slot, i) == hash);
    }
    for (uint32_t i = row->start; i < row->start + row->n_tokens; i++) {
        assert_int_not_equal(slot->tokens[i], UNKNOWN);
        hash = extend(hash, slot->tokens[i]);
        *kv_at(fake, slot, i) = hash;
        if ((row->flags & STEP_ROW_PROMPT_LOGPROBS) != 0) {
            report_prompt(step, slot, i, hash);
        }
    }
    if ((row->flags & STEP_ROW_SAMPLE) != 0) {
        assert_int_equal(row->start + row->n_tokens, slot->n_tokens);
        out->chosen.token = sample(hash, slot->sampling.seed, row->output_index, fake->vocab);
        slot->tokens[slot->n_tokens++] = fake->has_stages ? UNKNOWN : out->chosen.token;
        run_drafts(fake, step, row, drafts, hash);
    }
}

static void run_rows(fake_executor_t *fake, fake_step_t *step, const step_plan_t *plan)
{
    const int32_t *brought = plan->tokens + plan->n_tokens - step_plan_row_tokens(plan);
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const step_row_t *row = &plan->rows[i];
        const bool is_from_slot = (row->flags & STEP_ROW_FROM_SLOT) != 0;
        assert_int_equal((row->flags & STEP_ROW_TOLD) != 0, fake->has_stages && is_from_slot);
        if ((row->flags & STEP_ROW_TOLD) != 0) {
            /* Where only a last stage samples, the first hears of it from the plan. */
            fake->slots[row->slot].tokens[row->start] = *brought++;
        }
        run_row(fake, step, row, brought, &step->rows[i]);
        brought += row->n_drafts;
    }
}

static void apply_binds(fake_executor_t *fake, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->n_binds; i++) {
        const step_bind_t *bind = &plan->binds[i];
        fake_slot_t *slot = &fake->slots[bind->slot];
        slot->is_bound = true;
        slot->sampling = bind->sampling;
        slot->n_tokens = bind->n_tokens;
        slot->n_unsure = 0;
        memcpy(slot->tokens, plan->tokens + bind->first_token, bind->n_tokens * sizeof(int32_t));
        memset(slot->blocks, 0xff, fake->limits.max_context * sizeof(uint32_t));
    }
    for (uint32_t i = 0; i < plan->n_blocks; i++) {
        const step_block_t *block = &plan->blocks[i];
        fake->slots[block->slot].blocks[block->index] = block->block;
    }
}

void fake_executor_launch(fake_executor_t *fake, const step_plan_t *plan)
{
    weft_diag_t diag = {0};
    if (step_plan_check(plan, &fake->limits, &diag) < 0) {
        fail_msg("%s", diag.text);
    }
    assert_true(fake->n_launched - fake->n_collected < SCHED_MAX_IN_FLIGHT);
    fake_step_t *step = &fake->steps[fake->n_launched++ % SCHED_MAX_IN_FLIGHT];
    step->n_drafted = 0;
    step->result = (step_result_t){.step = plan->step,
                                   .n_rows = plan->n_rows,
                                   .rows = step->rows,
                                   .drafted = step->drafted,
                                   .prompt = step->prompt};
    apply_binds(fake, plan);
    run_rows(fake, step, plan);
}

step_result_t fake_executor_collect(fake_executor_t *fake)
{
    assert_true(fake->n_launched > fake->n_collected);
    return fake->steps[fake->n_collected++ % SCHED_MAX_IN_FLIGHT].result;
}
