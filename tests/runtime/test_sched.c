/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/sched.h"

#include <string.h>

#include "tests/support/check.h"
#include "tests/support/fake_executor.h"
#include "tests/support/random.h"

enum { VOCAB = 97, MAX_SEQS = 48, MAX_CONTEXT = 160 };

/* One sequence and what it should answer. */
typedef struct tracked {
    sched_seq_t seq;
    int32_t tokens[MAX_CONTEXT + 1];
    kv_hash_t hashes[MAX_CONTEXT];
    int32_t expected[MAX_CONTEXT + 1];
    uint32_t n_expected; /* prompt included */
    engine_finish_t expected_finish;
    int32_t stop_id;
    k_bias_t bias[3];
    uint32_t n_prompt_entries;
    uint32_t finishes;
    uint32_t retirements;
    sched_mask_t mask_end; /* READY: it has masks for ever */
    bool is_aborted;
} tracked_t;

typedef struct rig {
    weft_device_t *device;
    kv_pool_t *pool;
    kv_index_t *index;
    kv_hasher_t *hasher;
    sched_t *sched;
    step_plan_t *plan;
    fake_executor_t *fake;
    step_limits_t limits;
    test_random_t random;
    bool is_mask_late; /* sometimes */
    tracked_t *seqs;   /* [MAX_SEQS] */
    uint32_t n_seqs;
} rig_t;

static void note_scheduled(void *user, sched_seq_t *seq)
{
    (void)user;
    assert_int_equal(seq->state, SCHED_SEQ_RUNNING);
}

static void note_token(void *user, sched_seq_t *seq, const k_sampled_t *sampled)
{
    (void)user;
    const tracked_t *t = seq->user;
    assert_true(seq->n_tokens <= t->n_expected);
    assert_int_equal(sampled->chosen.token, t->expected[seq->n_tokens - 1]);
}

static void note_prompt(void *user, sched_seq_t *seq, uint32_t first, const k_sampled_t *entries,
                        uint32_t n)
{
    (void)user;
    tracked_t *t = seq->user;
    assert_true(first + n <= seq->n_prompt);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(entries[i].chosen.token, seq->tokens[first + i]);
        assert_true(entries[i].chosen.logprob == fake_prompt_logprob(seq->tokens, first + i));
    }
    assert_true(first <= t->n_prompt_entries || first == 1); /* no gap */
    t->n_prompt_entries = first + n > t->n_prompt_entries ? first + n : t->n_prompt_entries;
}

static void note_finish(void *user, sched_seq_t *seq)
{
    (void)user;
    ((tracked_t *)seq->user)->finishes++;
}

static void note_retired(void *user, sched_seq_t *seq)
{
    (void)user;
    tracked_t *t = seq->user;
    assert_int_equal(t->finishes, 1);
    t->retirements++;
}

static sched_mask_t some_mask_state(void *user, sched_seq_t *seq)
{
    rig_t *rig = user;
    const sched_mask_t end = ((tracked_t *)seq->user)->mask_end;
    if (end != SCHED_MASK_READY) {
        return end;
    }
    const bool is_late = rig->is_mask_late && test_random_below(&rig->random, 3) == 0;
    return is_late ? SCHED_MASK_LATER : SCHED_MASK_READY;
}

static void note_mask(void *user, sched_seq_t *seq)
{
    (void)user;
    assert_int_equal(seq->pending, 0);
}

static void forget_block(void *user, kv_block_id_t block)
{
    rig_t *rig = user;
    if (rig->index != NULL) {
        kv_index_remove(rig->index, block);
    }
}

typedef struct shape {
    uint32_t block_tokens;
    uint32_t n_blocks;
    uint32_t slots;
    uint32_t step_tokens;
    bool is_cached;
} shape_t;

static void rig_init(rig_t *rig, const shape_t *shape)
{
    kv_pool_config_t pool = {
        .layout = {.block_tokens = shape->block_tokens,
                   .element_bytes = 2,
                   .n_groups = 1,
                   .groups = {{.layers = 1, .heads = 1, .head_dim = 1}}},
        .n_blocks = shape->n_blocks,
        .on_reuse = forget_block,
        .user = rig,
    };
    *rig = (rig_t){.seqs = calloc(MAX_SEQS, sizeof(tracked_t))};
    assert_status(weft_device_open("cpu", 0, NULL, &rig->device), WEFT_OK);
    pool.device = rig->device;
    assert_status(kv_layout_init(&pool.layout, pool.n_blocks, NULL), WEFT_OK);
    assert_status(kv_pool_create(&pool, &rig->pool), WEFT_OK);
    assert_status(kv_hasher_create(KV_HASH_ALGO_sha256_cbor, NULL, &rig->hasher), WEFT_OK);
    if (shape->is_cached) {
        assert_status(kv_index_create(pool.n_blocks, &rig->index), WEFT_OK);
    }
    rig->limits = sched_limits(shape->slots, shape->step_tokens, MAX_CONTEXT, shape->block_tokens);
    const sched_config_t config = {
        .pool = rig->pool,
        .index = rig->index,
        .hasher = rig->hasher,
        .limits = rig->limits,
        .events = {.user = rig,
                   .on_scheduled = note_scheduled,
                   .on_token = note_token,
                   .on_prompt = note_prompt,
                   .on_finish = note_finish,
                   .on_retired = note_retired,
                   .mask_state = some_mask_state,
                   .write_mask = note_mask},
    };
    assert_status(sched_create(&config, &rig->sched), WEFT_OK);
    assert_status(step_plan_create(&rig->limits, &rig->plan), WEFT_OK);
    rig->fake = fake_executor_create(&rig->limits, pool.n_blocks, shape->block_tokens, VOCAB);
}

static void rig_fini(rig_t *rig)
{
    assert_true(sched_is_empty(rig->sched));
    assert_int_equal(kv_pool_free_blocks(rig->pool), kv_pool_total_blocks(rig->pool));
    sched_destroy(rig->sched);
    step_plan_destroy(rig->plan);
    fake_executor_destroy(rig->fake);
    kv_index_destroy(rig->index);
    kv_hasher_destroy(rig->hasher);
    kv_pool_destroy(rig->pool);
    weft_device_close(rig->device);
    free(rig->seqs);
}

static void expect(tracked_t *t)
{
    const uint32_t limit = t->seq.n_prompt + t->seq.max_tokens;
    memcpy(t->expected, t->tokens, t->seq.n_prompt * sizeof(int32_t));
    t->n_expected = t->seq.n_prompt;
    t->expected_finish = ENGINE_FINISH_LENGTH;
    while (t->n_expected < limit) {
        const int32_t token = fake_next_token(t->expected, t->n_expected, t->seq.sampling.seed,
                                              t->n_expected - t->seq.n_prompt, VOCAB);
        t->expected[t->n_expected++] = token;
        if (t->seq.n_stop_ids > 0 && token == t->stop_id) {
            t->expected_finish = ENGINE_FINISH_STOP;
            break;
        }
    }
    if (t->mask_end != SCHED_MASK_READY && t->seq.max_tokens > 0) {
        t->n_expected = t->seq.n_prompt;
        t->expected_finish =
            t->mask_end == SCHED_MASK_EMPTY ? ENGINE_FINISH_CONSTRAINT : ENGINE_FINISH_ERROR;
    }
}

/* A sequence with the given prompt, not yet submitted. */
static tracked_t *add_seq(rig_t *rig, const int32_t *prompt, uint32_t n_prompt, uint32_t max_tokens)
{
    assert_true(rig->n_seqs < MAX_SEQS);
    tracked_t *t = &rig->seqs[rig->n_seqs];
    memcpy(t->tokens, prompt, n_prompt * sizeof(int32_t));
    t->seq = (sched_seq_t){
        .tokens = t->tokens,
        .hashes = rig->index == NULL ? NULL : t->hashes,
        .n_prompt = n_prompt,
        .max_tokens = max_tokens,
        .arrival_ns = rig->n_seqs,
        .sampling = {.seed = rig->n_seqs},
        .sibling = &t->seq,
        .user = t,
    };
    const uint32_t size = kv_pool_layout(rig->pool)->block_tokens;
    for (uint32_t i = 0; t->seq.hashes != NULL && i < n_prompt / size; i++) {
        kv_hasher_block(rig->hasher, i == 0 ? NULL : &t->hashes[i - 1], prompt + i * size, size,
                        NULL, &t->hashes[i]);
        t->seq.n_hashes++;
    }
    rig->n_seqs++;
    return t;
}

static void submit(rig_t *rig, tracked_t *t)
{
    expect(t);
    assert_status(sched_submit(rig->sched, &t->seq), WEFT_OK);
}

static uint32_t launch(rig_t *rig)
{
    const uint32_t rows = sched_plan(rig->sched, rig->plan);
    sched_check(rig->sched);
    if (rows > 0) {
        fake_executor_launch(rig->fake, rig->plan);
    }
    return rows;
}

static void commit(rig_t *rig)
{
    const step_result_t result = fake_executor_collect(rig->fake);
    sched_commit(rig->sched, &result);
    sched_check(rig->sched);
}

static uint32_t step(rig_t *rig)
{
    const uint32_t rows = launch(rig);
    if (rows > 0) {
        commit(rig);
    }
    return rows;
}

static void run_until_empty(rig_t *rig)
{
    for (int i = 0; !sched_is_empty(rig->sched); i++) {
        assert_true(i < 10000);
        step(rig);
    }
}

static void assert_answered(const tracked_t *t)
{
    assert_int_equal(t->finishes, 1);
    assert_int_equal(t->retirements, 1);
    if (t->is_aborted && t->seq.finish == ENGINE_FINISH_ABORT) {
        assert_memory_equal(t->tokens, t->expected, t->seq.n_tokens * sizeof(int32_t));
        return;
    }
    assert_int_equal(t->seq.finish, t->expected_finish);
    assert_int_equal(t->seq.n_tokens, t->n_expected);
    assert_memory_equal(t->tokens, t->expected, t->n_expected * sizeof(int32_t));
    if (t->seq.wants_prompt_logprobs && t->seq.n_prompt > 1 &&
        t->seq.finish != ENGINE_FINISH_ERROR && t->seq.finish != ENGINE_FINISH_CONSTRAINT) {
        assert_int_equal(t->n_prompt_entries, t->seq.n_prompt);
    }
}

static void fill_prompt(int32_t *prompt, uint32_t n, int32_t base)
{
    for (uint32_t i = 0; i < n; i++) {
        prompt[i] = (int32_t)((uint32_t)base * 31 + i * 7) % VOCAB;
    }
}

/* ---- single claims ---- */

static void decodes_come_first_and_prefills_take_the_rest(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[64];
    rig_init(&rig, &(shape_t){4, 100, 4, 16, true});
    fill_prompt(prompt, 64, 1);
    submit(&rig, add_seq(&rig, prompt, 5, 8));
    submit(&rig, add_seq(&rig, prompt + 5, 6, 8));
    assert_int_equal(step(&rig), 2);
    submit(&rig, add_seq(&rig, prompt + 20, 40, 2));
    assert_int_equal(launch(&rig), 3);
    assert_int_equal(rig.plan->rows[0].n_tokens, 1);
    assert_int_equal(rig.plan->rows[1].n_tokens, 1);
    assert_int_equal(rig.plan->rows[0].flags, STEP_ROW_FROM_SLOT | STEP_ROW_SAMPLE);
    assert_int_equal(rig.plan->rows[2].n_tokens, 14);
    assert_int_equal(rig.plan->rows[2].flags, 0);
    commit(&rig);
    run_until_empty(&rig);
    rig_fini(&rig);
}

static void a_long_prefill_leaves_half_to_a_short_one(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[MAX_CONTEXT];
    rig_init(&rig, &(shape_t){4, 100, 4, 16, false});
    fill_prompt(prompt, MAX_CONTEXT, 1);
    tracked_t *longest = add_seq(&rig, prompt, 140, 1);
    tracked_t *shorter = add_seq(&rig, prompt + 3, 6, 1);
    submit(&rig, longest);
    submit(&rig, shorter);
    step(&rig);
    assert_int_equal(shorter->seq.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(longest->seq.computed, 10); /* half, and what the short one left over */
    run_until_empty(&rig);
    assert_answered(longest);
    rig_fini(&rig);
}

static void equal_prompts_share_blocks_and_compute_one_token(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[32];
    rig_init(&rig, &(shape_t){4, 100, 4, 64, true});
    fill_prompt(prompt, 32, 1);
    tracked_t *first = add_seq(&rig, prompt, 32, 9);
    submit(&rig, first);
    run_until_empty(&rig);
    tracked_t *second = add_seq(&rig, prompt, 32, 1);
    submit(&rig, second);
    assert_int_equal(launch(&rig), 1);
    assert_int_equal(rig.plan->rows[0].start, 28);
    assert_int_equal(rig.plan->rows[0].n_tokens, 4);
    assert_int_equal(second->seq.cached_tokens, 28);
    commit(&rig);

    /* Blocks that filled during the answer are found too. */
    tracked_t *third = add_seq(&rig, first->tokens, 41, 1);
    submit(&rig, third);
    run_until_empty(&rig);
    assert_int_equal(third->seq.cached_tokens, 40);
    assert_answered(third);
    assert_int_equal(sched_stats(rig.sched).prefix_queries, 32 + 32 + 41);
    assert_int_equal(sched_stats(rig.sched).prefix_hits, 68);
    rig_fini(&rig);
}

static void a_prompt_that_is_being_computed_is_not_computed_again(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[64];
    rig_init(&rig, &(shape_t){4, 100, 4, 16, true});
    fill_prompt(prompt, 64, 1);
    tracked_t *first = add_seq(&rig, prompt, 60, 2);
    prompt[44] = 0;
    tracked_t *second = add_seq(&rig, prompt, 60, 2);
    prompt[1] = 0;
    tracked_t *other = add_seq(&rig, prompt, 4, 2);
    submit(&rig, first);
    submit(&rig, second);
    submit(&rig, other);
    step(&rig);
    assert_int_equal(second->seq.state, SCHED_SEQ_WAITING);
    assert_int_equal(other->seq.state, SCHED_SEQ_RUNNING);
    run_until_empty(&rig);
    assert_int_equal(second->seq.cached_tokens, 44);
    assert_answered(second);
    rig_fini(&rig);
}

static void samples_of_a_prompt_share_its_blocks_without_caching(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[30];
    rig_init(&rig, &(shape_t){4, 100, 4, 16, false});
    fill_prompt(prompt, 30, 1);
    tracked_t *samples[3];
    for (int i = 0; i < 3; i++) {
        samples[i] = add_seq(&rig, prompt, 30, 8);
    }
    for (int i = 0; i < 3; i++) {
        samples[i]->seq.sibling = &samples[(i + 1) % 3]->seq;
        submit(&rig, samples[i]);
    }
    step(&rig);
    step(&rig);
    assert_int_equal(samples[1]->seq.state, SCHED_SEQ_WAITING);
    step(&rig);
    step(&rig);
    assert_int_equal(samples[2]->seq.state, SCHED_SEQ_RUNNING);
    assert_int_equal(samples[2]->seq.cached_tokens, 28);
    assert_true(kv_pool_total_blocks(rig.pool) - kv_pool_free_blocks(rig.pool) <= 7 + 3 * 2);
    run_until_empty(&rig);
    for (int i = 0; i < 3; i++) {
        assert_answered(samples[i]);
    }
    rig_fini(&rig);
}

static void prompt_logprobs_are_complete_whatever_is_cached(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[40];
    rig_init(&rig, &(shape_t){4, 100, 4, 7, true});
    fill_prompt(prompt, 40, 1);
    submit(&rig, add_seq(&rig, prompt, 40, 2));
    run_until_empty(&rig);
    for (uint32_t max_tokens = 0; max_tokens < 2; max_tokens++) {
        tracked_t *t = add_seq(&rig, prompt, 40, max_tokens);
        t->seq.wants_prompt_logprobs = true;
        submit(&rig, t);
        run_until_empty(&rig);
        assert_answered(t);
        assert_int_equal(t->n_prompt_entries, 40);
    }
    rig_fini(&rig);
}

static void a_lone_prompt_token_without_answer_is_done_at_once(void **state)
{
    (void)state;
    rig_t rig;
    const int32_t prompt[1] = {3};
    rig_init(&rig, &(shape_t){4, 40, 2, 7, true});
    tracked_t *t = add_seq(&rig, prompt, 1, 0);
    submit(&rig, t);
    assert_answered(t);
    rig_fini(&rig);
}

static void what_can_never_fit_is_refused(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[MAX_CONTEXT] = {0};
    rig_init(&rig, &(shape_t){4, 10, 2, 8, true});
    tracked_t *over_context = add_seq(&rig, prompt, MAX_CONTEXT - 5, 6);
    assert_status(sched_submit(rig.sched, &over_context->seq), WEFT_ERR_TOO_LARGE);
    tracked_t *over_pool = add_seq(&rig, prompt, 39, 2);
    assert_status(sched_submit(rig.sched, &over_pool->seq), WEFT_ERR_TOO_LARGE);
    tracked_t *whole_pool = add_seq(&rig, prompt, 39, 1);
    submit(&rig, whole_pool);
    run_until_empty(&rig);
    assert_answered(whole_pool);
    rig_fini(&rig);
}

static void the_youngest_is_preempted_and_still_answers_the_same(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[24];
    rig_init(&rig, &(shape_t){4, 12, 3, 32, true});
    fill_prompt(prompt, 24, 1);
    tracked_t *old = add_seq(&rig, prompt, 16, 30);
    tracked_t *young = add_seq(&rig, prompt + 4, 16, 30);
    submit(&rig, old);
    submit(&rig, young);
    run_until_empty(&rig);
    assert_int_equal(old->seq.preemptions, 0);
    assert_true(young->seq.preemptions > 0);
    assert_answered(old);
    assert_answered(young);
    rig_fini(&rig);
}

static void lower_priority_number_runs_first_and_is_kept(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[24];
    rig_init(&rig, &(shape_t){4, 60, 1, 32, true});
    fill_prompt(prompt, 24, 1);
    tracked_t *low = add_seq(&rig, prompt, 10, 3);
    tracked_t *high = add_seq(&rig, prompt + 5, 10, 3);
    low->seq.priority = 7;
    high->seq.priority = -2;
    submit(&rig, low);
    submit(&rig, high);
    step(&rig);
    assert_int_equal(high->seq.state, SCHED_SEQ_RUNNING);
    assert_int_equal(low->seq.state, SCHED_SEQ_WAITING);
    run_until_empty(&rig);
    rig_fini(&rig);
}

static void a_request_that_does_not_fit_yet_is_overtaken_but_not_for_ever(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[MAX_CONTEXT];
    rig_init(&rig, &(shape_t){4, 40, 4, 32, false});
    fill_prompt(prompt, MAX_CONTEXT, 1);
    tracked_t *holder = add_seq(&rig, prompt, 30, 120);
    submit(&rig, holder);
    step(&rig);
    tracked_t *large = add_seq(&rig, prompt + 1, 150, 1);
    tracked_t *small = add_seq(&rig, prompt + 2, 8, 2);
    submit(&rig, large);
    submit(&rig, small);
    step(&rig);
    assert_int_equal(large->seq.state, SCHED_SEQ_WAITING);
    assert_int_not_equal(small->seq.state, SCHED_SEQ_WAITING);
    run_until_empty(&rig);
    assert_answered(large);
    assert_true(large->seq.overtaken <= SCHED_MAX_OVERTAKEN);
    rig_fini(&rig);
}

static void abort_frees_blocks_wherever_the_sequence_is(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[60];
    rig_init(&rig, &(shape_t){4, 60, 2, 16, true});
    fill_prompt(prompt, 60, 1);
    tracked_t *decoding = add_seq(&rig, prompt, 8, 20);
    tracked_t *in_prefill = add_seq(&rig, prompt + 8, 50, 20);
    tracked_t *queued = add_seq(&rig, prompt, 8, 20);
    submit(&rig, decoding);
    submit(&rig, in_prefill);
    submit(&rig, queued);
    step(&rig);
    launch(&rig); /* and one in flight */
    tracked_t *all[] = {queued, in_prefill, decoding};
    for (int i = 0; i < 3; i++) {
        all[i]->is_aborted = true;
        sched_abort(rig.sched, &all[i]->seq, ENGINE_FINISH_ABORT);
        sched_check(rig.sched);
        sched_abort(rig.sched, &all[i]->seq, ENGINE_FINISH_ABORT); /* again: nothing */
    }
    assert_int_equal(kv_pool_free_blocks(rig.pool), 60);
    assert_int_equal(queued->retirements, 1);
    assert_int_equal(decoding->retirements, 0);
    commit(&rig);
    assert_int_equal(decoding->retirements, 1);
    assert_int_equal(in_prefill->retirements, 1);
    rig_fini(&rig);
}

static void a_lost_device_retires_everything(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[20];
    rig_init(&rig, &(shape_t){4, 60, 2, 16, true});
    fill_prompt(prompt, 20, 1);
    for (int i = 0; i < 3; i++) {
        submit(&rig, add_seq(&rig, prompt, 9, 12));
    }
    launch(&rig);
    launch(&rig);
    sched_abort_all(rig.sched, ENGINE_FINISH_ERROR);
    assert_int_equal(rig.seqs[0].retirements, 0);
    sched_forget_flights(rig.sched);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rig.seqs[i].finishes, 1);
        assert_int_equal(rig.seqs[i].retirements, 1);
        assert_int_equal(rig.seqs[i].seq.finish, ENGINE_FINISH_ERROR);
    }
    rig_fini(&rig);
}

static void the_next_step_can_be_planned_before_the_last_is_collected(void **state)
{
    (void)state;
    rig_t rig;
    int32_t prompt[20];
    rig_init(&rig, &(shape_t){4, 60, 2, 16, true});
    fill_prompt(prompt, 20, 1);
    tracked_t *t = add_seq(&rig, prompt, 9, 12);
    submit(&rig, t);
    launch(&rig);
    for (int i = 0; i < 11; i++) {
        assert_int_equal(launch(&rig), 1);
        assert_int_equal(rig.plan->rows[0].flags, STEP_ROW_FROM_SLOT | STEP_ROW_SAMPLE);
        assert_int_equal(rig.plan->rows[0].start, 9 + i);
        commit(&rig);
    }
    assert_int_equal(launch(&rig), 0); /* all that it may answer is in flight */
    commit(&rig);
    assert_answered(t);
    rig_fini(&rig);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig, &(shape_t){4, 60, 2, 16, true});
    sched_config_t config = {.pool = rig.pool, .limits = rig.limits};
    sched_t *sched = NULL;
    for (uint64_t n = 1; n <= 5; n++) {
        weft_alloc_fail_nth(n);
        assert_status(sched_create(&config, &sched), WEFT_ERR_NO_MEMORY);
    }
    weft_alloc_fail_nth(0);
    config.limits.max_tokens = 1;
    assert_status(sched_create(&config, &sched), WEFT_ERR_INVALID);
    rig_fini(&rig);
}

/* ---- random mixes ---- */

static void add_random_request(rig_t *rig)
{
    test_random_t *random = &rig->random;
    int32_t prompt[MAX_CONTEXT];
    const uint32_t most = kv_pool_total_blocks(rig->pool) * kv_pool_layout(rig->pool)->block_tokens;
    const uint32_t context = most < MAX_CONTEXT ? most : MAX_CONTEXT;
    const uint32_t n_prompt = test_random_between(random, 1, context - 1);
    uint32_t max_tokens = test_random_below(random, 30);
    max_tokens = max_tokens < context - n_prompt ? max_tokens : context - n_prompt;
    fill_prompt(prompt, n_prompt, (int32_t)test_random_below(random, 3));
    if (test_random_below(random, 2) == 0) {
        prompt[test_random_below(random, n_prompt)] = 5;
    }
    const uint32_t n = test_random_below(random, 4) == 0 ? test_random_between(random, 2, 4) : 1;
    const int64_t priority = test_random_below(random, 3);
    const bool has_mask = test_random_below(random, 4) == 0;
    const bool wants_prompt = test_random_below(random, 5) == 0;
    tracked_t *first = &rig->seqs[rig->n_seqs];
    for (uint32_t i = 0; i < n; i++) {
        tracked_t *t = add_seq(rig, prompt, n_prompt, max_tokens);
        t->seq.sibling = &first[(i + 1) % n].seq;
        t->seq.priority = priority;
        t->seq.has_mask = has_mask;
        if (has_mask && test_random_below(random, 6) == 0) {
            t->mask_end = test_random_below(random, 2) == 0 ? SCHED_MASK_EMPTY : SCHED_MASK_FAILED;
        }
        t->seq.wants_prompt_logprobs = wants_prompt && i == 0;
        t->stop_id = (int32_t)test_random_below(random, VOCAB);
        t->seq.stop_ids = &t->stop_id;
        t->seq.n_stop_ids = test_random_below(random, 2);
        t->seq.bias = t->bias;
        t->seq.n_bias = test_random_below(random, 4);
        t->seq.sampling.seed = test_random_u64(random);
        expect(t);
    }
    for (uint32_t i = 0; i < n; i++) {
        submit(rig, &first[i]);
    }
}

static void disturb(rig_t *rig)
{
    test_random_t *random = &rig->random;
    switch (test_random_below(random, 12)) {
    case 0:
        sched_preempt_nth(rig->sched, test_random_below(random, 8));
        break;
    case 1:
        sched_set_budget(rig->sched, test_random_between(random, 1, rig->limits.max_tokens));
        break;
    case 2: {
        tracked_t *t = &rig->seqs[test_random_below(random, rig->n_seqs)];
        if (test_random_below(random, 4) == 0) {
            t->is_aborted = true;
            sched_abort(rig->sched, &t->seq, ENGINE_FINISH_ABORT);
        }
        break;
    }
    default:
        break;
    }
    sched_check(rig->sched);
}

static void run_mix(uint64_t seed)
{
    rig_t rig;
    test_random_t random = {seed};
    const uint32_t slots = test_random_between(&random, 1, 6);
    const uint32_t block_tokens = 1u << test_random_between(&random, 0, 4);
    const shape_t shape = {
        .block_tokens = block_tokens,
        .n_blocks = test_random_between(&random, 24, 400) / block_tokens + 2,
        .slots = slots,
        .step_tokens = slots + test_random_below(&random, 40),
        .is_cached = test_random_below(&random, 3) > 0,
    };
    rig_init(&rig, &shape);
    rig.random = random;
    rig.is_mask_late = true;
    const uint32_t n_requests = test_random_between(&rig.random, 1, 12);
    const uint32_t depth = test_random_between(&rig.random, 1, SCHED_MAX_IN_FLIGHT);
    uint32_t submitted = 0;
    for (int i = 0; submitted < n_requests || !sched_is_empty(rig.sched); i++) {
        assert_true(i < 20000); /* else somebody starves */
        if (submitted < n_requests && test_random_below(&rig.random, 3) == 0) {
            add_random_request(&rig);
            submitted++;
        }
        if (rig.n_seqs > 0 && i < 3000) {
            disturb(&rig);
        }
        const uint32_t rows = launch(&rig);
        while (sched_in_flight(rig.sched) >= depth ||
               (rows == 0 && sched_in_flight(rig.sched) > 0)) {
            commit(&rig);
        }
    }
    while (sched_in_flight(rig.sched) > 0) {
        commit(&rig);
    }
    for (uint32_t i = 0; i < rig.n_seqs; i++) {
        assert_answered(&rig.seqs[i]);
    }
    rig_fini(&rig);
}

static void every_sequence_answers_as_if_alone(void **state)
{
    (void)state;
    const uint64_t seed = test_seed(20);
    const uint32_t rounds = test_rounds(8000);
    for (uint32_t i = 0; i < rounds; i++) {
        print_message("seed %llu\n", (unsigned long long)(seed + i));
        run_mix(seed + i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_come_first_and_prefills_take_the_rest),
        cmocka_unit_test(a_long_prefill_leaves_half_to_a_short_one),
        cmocka_unit_test(equal_prompts_share_blocks_and_compute_one_token),
        cmocka_unit_test(a_prompt_that_is_being_computed_is_not_computed_again),
        cmocka_unit_test(samples_of_a_prompt_share_its_blocks_without_caching),
        cmocka_unit_test(prompt_logprobs_are_complete_whatever_is_cached),
        cmocka_unit_test(a_lone_prompt_token_without_answer_is_done_at_once),
        cmocka_unit_test(what_can_never_fit_is_refused),
        cmocka_unit_test(the_youngest_is_preempted_and_still_answers_the_same),
        cmocka_unit_test(lower_priority_number_runs_first_and_is_kept),
        cmocka_unit_test(a_request_that_does_not_fit_yet_is_overtaken_but_not_for_ever),
        cmocka_unit_test(abort_frees_blocks_wherever_the_sequence_is),
        cmocka_unit_test(a_lost_device_retires_everything),
        cmocka_unit_test(the_next_step_can_be_planned_before_the_last_is_collected),
        cmocka_unit_test(creation_survives_no_memory),
        cmocka_unit_test(every_sequence_answers_as_if_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
