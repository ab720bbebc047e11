/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/sched_rig.h"

#include <string.h>

static void note_scheduled(void *user, sched_seq_t *seq)
{
    sched_rig_t *rig = user;
    assert_int_equal(seq->state, SCHED_SEQ_RUNNING);
    if (((sched_rig_seq_t *)seq->user)->has_lease) {
        seq->lease = fake_mover_open(rig->mover, seq->tokens);
    }
}

static void note_token(void *user, sched_seq_t *seq, const k_sampled_t *sampled)
{
    (void)user;
    const sched_rig_seq_t *t = seq->user;
    assert_true(seq->n_tokens <= t->n_expected);
    assert_int_equal(sampled->chosen.token, t->expected[seq->n_tokens - 1]);
}

static void note_prompt(void *user, sched_seq_t *seq, uint32_t first, const k_sampled_t *entries,
                        uint32_t n)
{
    (void)user;
    sched_rig_seq_t *t = seq->user;
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
    ((sched_rig_seq_t *)seq->user)->finishes++;
}

static void note_retired(void *user, sched_seq_t *seq)
{
    (void)user;
    sched_rig_seq_t *t = seq->user;
    assert_int_equal(t->finishes, 1);
    t->retirements++;
}

static void note_pull_failed(void *user, sched_seq_t *seq, weft_status_t status, const char *reason)
{
    (void)user;
    sched_rig_seq_t *t = seq->user;
    assert_false(t->has_pull_failed);
    assert_int_equal(status, WEFT_ERR_PEER_GONE);
    assert_true(reason[0] != '\0');
    t->has_pull_failed = true;
}

static void note_hold(void *user, sched_seq_t *seq, const kv_block_id_t *blocks, uint32_t n,
                      uint32_t n_tokens)
{
    sched_rig_t *rig = user;
    sched_rig_seq_t *t = seq->user;
    assert_true(seq->is_kept);
    assert_int_equal(t->finishes, 0);
    fake_mover_hold(rig->mover, seq->lease, seq->tokens, blocks, n, n_tokens);
    t->holds++;
    t->held_tokens = n_tokens;
}

static sched_mask_t some_mask_state(void *user, sched_seq_t *seq)
{
    sched_rig_t *rig = user;
    const sched_mask_t end = ((sched_rig_seq_t *)seq->user)->mask_end;
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

/* Mostly right, and as often as not nothing more after what is wrong. */
static void guess(void *user, const sched_draft_t *rows, uint32_t n)
{
    sched_rig_t *rig = user;
    for (uint32_t i = 0; i < n; i++) {
        sched_seq_t *seq = rows[i].seq;
        const sched_rig_seq_t *t = seq->user;
        assert_int_equal(seq->pending, 0);
        assert_true(rows[i].most <= rig->limits.max_drafts);
        if (rows[i].most == 0) {
            continue;
        }
        /* The model that guesses has a place for each token that may be looked at. */
        assert_true(seq->n_tokens + rows[i].most <=
                    rows[i].n_blocks * kv_pool_layout(kv_store_pool(rig->store))->block_tokens);
        seq->n_drafts = test_random_below(&rig->random, rows[i].most + 1);
        for (uint32_t j = 0; j < seq->n_drafts; j++) {
            const uint32_t at = seq->n_tokens + j;
            const int32_t right = at < t->n_expected ? t->expected[at] : 0;
            const bool is_wrong = test_random_below(&rig->random, 5) == 0;
            seq->drafts[j] = is_wrong ? (right + 1) % SCHED_RIG_VOCAB : right;
        }
    }
}

static void wake(void *user)
{
    sem_post(&((sched_rig_t *)user)->tiers_moved);
}

/* The "KV" of fake_executor.h: 8 bytes a token. */
static void create_store(sched_rig_t *rig, const sched_rig_shape_t *shape)
{
    static const uint8_t fingerprint[32] = {0};
    kv_store_config_t config = {
        .device = rig->device,
        .layout = {.block_tokens = shape->block_tokens,
                   .element_bytes = 4,
                   .n_groups = 1,
                   .groups = {{.layers = 1, .heads = 1, .head_dim = 1}}},
        .n_blocks = shape->n_blocks,
        .is_caching = shape->is_cached,
        .max_pinned_blocks = shape->n_blocks / 4,
        .fingerprint = fingerprint,
        .tiers = shape->tiers,
        .wake = wake,
        .user = rig,
    };
    assert_status(kv_layout_init(&config.layout, config.n_blocks, NULL), WEFT_OK);
    config.host_bytes = shape->host_blocks * config.layout.block_bytes[0];
    assert_status(kv_store_create(&config, NULL, &rig->store), WEFT_OK);
    rig->pool = kv_store_pool(rig->store);
}

static void settle(void *user)
{
    ((sched_rig_t *)user)->settles++;
}

void sched_rig_init(sched_rig_t *rig, const sched_rig_shape_t *shape)
{
    *rig = (sched_rig_t){.seqs = calloc(SCHED_RIG_MAX_SEQS, sizeof(sched_rig_seq_t)),
                         .is_caching = shape->is_cached};
    sem_init(&rig->tiers_moved, 0, 0);
    assert_status(weft_device_open("cpu", 0, NULL, &rig->device), WEFT_OK);
    create_store(rig, shape);
    assert_status(kv_hasher_create(KV_HASH_ALGO_sha256_cbor, NULL, &rig->hasher), WEFT_OK);
    rig->mover = fake_mover_create(rig->pool, shape->n_blocks);
    rig->limits = sched_limits(shape->slots, shape->step_tokens, SCHED_RIG_MAX_CONTEXT,
                               shape->block_tokens, shape->max_drafts);
    const sched_config_t config = {
        .store = rig->store,
        .hasher = rig->hasher,
        .limits = rig->limits,
        .stages = shape->stages,
        .events = {.user = rig,
                   .settle = settle,
                   .on_scheduled = note_scheduled,
                   .on_token = note_token,
                   .on_prompt = note_prompt,
                   .on_finish = note_finish,
                   .on_retired = note_retired,
                   .mask_state = some_mask_state,
                   .write_mask = note_mask,
                   .draft = guess,
                   .on_pull_failed = note_pull_failed,
                   .on_hold = note_hold},
        .mover = fake_mover_ops(rig->mover),
    };
    assert_status(sched_create(&config, &rig->sched), WEFT_OK);
    assert_status(step_plan_create(&rig->limits, &rig->plan), WEFT_OK);
    rig->fake = fake_executor_create(&rig->limits, kv_pool_memory(rig->pool)->addr,
                                     shape->block_tokens, SCHED_RIG_VOCAB);
    if (shape->stages > 1) {
        fake_executor_set_stages(rig->fake);
    }
}

static bool is_reading(const sched_rig_t *rig)
{
    const kv_store_stats_t stats = kv_store_stats(rig->store);
    return stats.tiers[KV_TIER_host].tier.in_flight > 0;
}

/* Of a sequence that was aborted a read may still be on its way. */
static void wait_for_reads(sched_rig_t *rig)
{
    kv_store_poll(rig->store);
    while (is_reading(rig)) {
        sem_wait(&rig->tiers_moved); /* ctest has the deadline */
        kv_store_poll(rig->store);
    }
}

void sched_rig_fini(sched_rig_t *rig)
{
    assert_true(sched_is_empty(rig->sched));
    wait_for_reads(rig);
    while (fake_mover_is_busy(rig->mover)) {
        fake_mover_poll(rig->mover);
    }
    fake_mover_destroy(rig->mover);
    assert_int_equal(kv_pool_held_blocks(rig->pool), 0);
    sched_destroy(rig->sched);
    step_plan_destroy(rig->plan);
    fake_executor_destroy(rig->fake);
    kv_hasher_destroy(rig->hasher);
    kv_store_destroy(rig->store);
    weft_device_close(rig->device);
    sem_destroy(&rig->tiers_moved);
    free(rig->seqs);
}

void sched_rig_expect(sched_rig_seq_t *t)
{
    const uint32_t limit = t->seq.n_prompt + t->seq.max_tokens;
    memcpy(t->expected, t->tokens, t->seq.n_prompt * sizeof(int32_t));
    t->n_expected = t->seq.n_prompt;
    t->expected_finish = ENGINE_FINISH_LENGTH;
    while (t->n_expected < limit) {
        const int32_t token = fake_next_token(t->expected, t->n_expected, t->seq.sampling.seed,
                                              t->n_expected - t->seq.n_prompt, SCHED_RIG_VOCAB);
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
sched_rig_seq_t *sched_rig_add(sched_rig_t *rig, const int32_t *prompt, uint32_t n_prompt,
                               uint32_t max_tokens)
{
    assert_true(rig->n_seqs < SCHED_RIG_MAX_SEQS);
    sched_rig_seq_t *t = &rig->seqs[rig->n_seqs];
    memcpy(t->tokens, prompt, n_prompt * sizeof(int32_t));
    t->seq = (sched_seq_t){
        .tokens = t->tokens,
        .hashes = rig->is_caching ? t->hashes : NULL,
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

void sched_rig_pull(sched_rig_t *rig, sched_rig_seq_t *t, uint32_t fails_at)
{
    t->seq.pull = fake_mover_pull(rig->mover, t->tokens, t->seq.n_prompt, fails_at);
    t->seq.pulled = t->pulled;
}

void sched_rig_submit(sched_rig_t *rig, sched_rig_seq_t *t)
{
    sched_rig_expect(t);
    assert_status(sched_submit(rig->sched, &t->seq), WEFT_OK);
}

static uint32_t plan(sched_rig_t *rig)
{
    const uint32_t rows = sched_plan(rig->sched, rig->plan);
    sched_check(rig->sched);
    return rows;
}

uint32_t sched_rig_launch(sched_rig_t *rig)
{
    fake_mover_poll(rig->mover);
    uint32_t rows = plan(rig);
    while (rows == 0 && sched_in_flight(rig->sched) == 0 &&
           (is_reading(rig) || fake_mover_is_busy(rig->mover))) {
        if (fake_mover_is_busy(rig->mover)) {
            fake_mover_poll(rig->mover);
        } else {
            sem_wait(&rig->tiers_moved); /* as the engine's thread does; ctest has the deadline */
        }
        rows = plan(rig);
    }
    if (rows > 0) {
        fake_executor_launch(rig->fake, rig->plan);
    }
    return rows;
}

void sched_rig_commit(sched_rig_t *rig)
{
    const step_result_t result = fake_executor_collect(rig->fake);
    sched_commit(rig->sched, &result);
    sched_check(rig->sched);
}

uint32_t sched_rig_step(sched_rig_t *rig)
{
    const uint32_t rows = sched_rig_launch(rig);
    if (rows > 0) {
        sched_rig_commit(rig);
    }
    return rows;
}

void sched_rig_run(sched_rig_t *rig)
{
    for (int i = 0; !sched_is_empty(rig->sched); i++) {
        assert_true(i < 10000);
        sched_rig_step(rig);
    }
}

void sched_rig_assert_answered(const sched_rig_seq_t *t)
{
    assert_int_equal(t->finishes, 1);
    assert_int_equal(t->retirements, 1);
    if (t->is_aborted && t->seq.finish == ENGINE_FINISH_ABORT) {
        assert_memory_equal(t->tokens, t->expected, t->seq.n_tokens * sizeof(int32_t));
        return;
    }
    if (t->has_pull_failed && t->seq.needs_pull) {
        assert_int_equal(t->seq.finish, ENGINE_FINISH_ERROR);
        assert_int_equal(t->seq.n_tokens, t->seq.n_prompt);
        return;
    }
    assert_int_equal(t->seq.finish, t->expected_finish);
    assert_int_equal(t->holds, t->seq.is_kept && (t->seq.finish == ENGINE_FINISH_LENGTH ||
                                                  t->seq.finish == ENGINE_FINISH_STOP));
    assert_int_equal(t->seq.n_tokens, t->n_expected);
    assert_memory_equal(t->tokens, t->expected, t->n_expected * sizeof(int32_t));
    if (t->seq.wants_prompt_logprobs && t->seq.n_prompt > 1 &&
        t->seq.finish != ENGINE_FINISH_ERROR && t->seq.finish != ENGINE_FINISH_CONSTRAINT) {
        assert_int_equal(t->n_prompt_entries, t->seq.n_prompt);
    }
}

void sched_rig_fill_prompt(int32_t *prompt, uint32_t n, int32_t base)
{
    for (uint32_t i = 0; i < n; i++) {
        prompt[i] = (int32_t)((uint32_t)base * 31 + i * 7) % SCHED_RIG_VOCAB;
    }
}
