/* SPDX-License-Identifier: Apache-2.0 */
/* Random mixes of requests, with and without tiers: each answers as if it were alone. */
#include "runtime/sched/sched.h"

#include "tests/support/sched_rig.h"
#include "tests/support/shaky_tier.h"

static uint64_t n_read; /* blocks that came back from a tier */
static fake_mover_stats_t moved;
static uint64_t n_drafted;
static uint64_t n_accepted;

static void add_stats(fake_mover_stats_t *sum, fake_mover_stats_t stats)
{
    sum->pulled += stats.pulled;
    sum->failed += stats.failed;
    sum->given_up += stats.given_up;
    sum->unstarted += stats.unstarted;
    sum->told += stats.told;
    sum->held += stats.held;
    sum->retracted += stats.retracted;
    sum->dropped += stats.dropped;
}

/* A third of the prompts come from a peer, which fails in a third of them; a third is for one. */
static void add_peer(sched_rig_t *rig, sched_rig_seq_t *t)
{
    test_random_t *random = &rig->random;
    const uint32_t role = test_random_below(random, 3);
    if (role == 0) {
        const bool fails = test_random_below(random, 3) == 0;
        t->seq.needs_pull = test_random_below(random, 4) == 0;
        sched_rig_pull(rig, t,
                       fails ? test_random_below(random, t->seq.n_prompt) : FAKE_MOVER_NEVER);
    } else if (role == 1) {
        t->seq.is_kept = true;
        t->has_lease = test_random_below(random, 2) == 0;
    }
}

static void add_random_request(sched_rig_t *rig, bool with_peer)
{
    test_random_t *random = &rig->random;
    int32_t prompt[SCHED_RIG_MAX_CONTEXT];
    const uint32_t most = kv_pool_total_blocks(rig->pool) * kv_pool_layout(rig->pool)->block_tokens;
    const uint32_t context = most < SCHED_RIG_MAX_CONTEXT ? most : SCHED_RIG_MAX_CONTEXT;
    const uint32_t n_prompt = test_random_between(random, 1, context - 1);
    uint32_t max_tokens = test_random_below(random, 30);
    max_tokens = max_tokens < context - n_prompt ? max_tokens : context - n_prompt;
    sched_rig_fill_prompt(prompt, n_prompt, (int32_t)test_random_below(random, 3));
    if (test_random_below(random, 2) == 0) {
        prompt[test_random_below(random, n_prompt)] = 5;
    }
    const uint32_t n = test_random_below(random, 4) == 0 ? test_random_between(random, 2, 4) : 1;
    const int64_t priority = test_random_below(random, 3);
    const bool has_mask = test_random_below(random, 4) == 0;
    const bool wants_prompt = test_random_below(random, 5) == 0;
    sched_rig_seq_t *first = &rig->seqs[rig->n_seqs];
    for (uint32_t i = 0; i < n; i++) {
        sched_rig_seq_t *t = sched_rig_add(rig, prompt, n_prompt, max_tokens);
        t->seq.sibling = &first[(i + 1) % n].seq;
        t->seq.priority = priority;
        t->seq.pins_prompt = test_random_below(random, 8) == 0;
        t->seq.has_mask = has_mask;
        t->seq.drafts = rig->limits.max_drafts > 0 && !has_mask ? t->drafts : NULL;
        if (has_mask && test_random_below(random, 6) == 0) {
            t->mask_end = test_random_below(random, 2) == 0 ? SCHED_MASK_EMPTY : SCHED_MASK_FAILED;
        }
        t->seq.wants_prompt_logprobs = wants_prompt && i == 0;
        t->stop_id = (int32_t)test_random_below(random, SCHED_RIG_VOCAB);
        t->seq.stop_ids = &t->stop_id;
        t->seq.n_stop_ids = test_random_below(random, 2);
        t->seq.bias = t->bias;
        t->seq.n_bias = test_random_below(random, 4);
        if (i == 0 && with_peer) {
            add_peer(rig, t);
        }
        t->seq.sampling.seed = test_random_u64(random);
        sched_rig_expect(t);
    }
    for (uint32_t i = 0; i < n; i++) {
        sched_rig_submit(rig, &first[i]);
    }
}

static void disturb(sched_rig_t *rig)
{
    test_random_t *random = &rig->random;
    switch (test_random_below(random, 12)) {
    case 0:
        sched_preempt_nth(rig->sched, test_random_below(random, 8));
        break;
    case 3:
        sched_set_prompt_tokens(rig->sched, test_random_below(random, 20));
        break;
    case 1:
        sched_set_budget(rig->sched, test_random_between(random, 1, rig->limits.max_tokens));
        break;
    case 2: {
        sched_rig_seq_t *t = &rig->seqs[test_random_below(random, rig->n_seqs)];
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

static void run_mix(uint64_t seed, const kv_tier_ops_t *const *tiers, bool with_peer)
{
    sched_rig_t rig;
    test_random_t random = {seed};
    const uint32_t slots = test_random_between(&random, 1, 6);
    const uint32_t block_tokens = 1u << test_random_between(&random, 0, 4);
    const uint32_t stages =
        test_random_below(&random, 2) == 0 ? 1 : test_random_between(&random, 2, 5);
    const sched_rig_shape_t shape = {
        .block_tokens = block_tokens,
        .n_blocks = test_random_between(&random, 24, 400) / block_tokens + 2,
        .slots = slots,
        .step_tokens = slots + test_random_below(&random, 40),
        .is_cached = tiers != NULL || test_random_below(&random, 3) > 0,
        .host_blocks = tiers == NULL ? 0 : test_random_between(&random, 1, 80),
        .tiers = tiers,
        .stages = stages,
        .max_drafts = stages > 1 ? 0 : test_random_below(&random, 6),
    };
    sched_rig_init(&rig, &shape);
    rig.random = random;
    rig.is_mask_late = true;
    const uint32_t n_requests = test_random_between(&rig.random, 1, 12);
    const uint32_t depth = test_random_between(&rig.random, 1, SCHED_MAX_IN_FLIGHT);
    uint32_t submitted = 0;
    for (int i = 0; submitted < n_requests || !sched_is_empty(rig.sched); i++) {
        assert_true(i < 20000); /* else somebody starves */
        if (submitted < n_requests && test_random_below(&rig.random, 3) == 0) {
            add_random_request(&rig, with_peer);
            submitted++;
        }
        if (rig.n_seqs > 0 && i < 3000) {
            disturb(&rig);
        }
        const uint32_t rows = sched_rig_launch(&rig);
        while (sched_in_flight(rig.sched) >= depth ||
               (rows == 0 && sched_in_flight(rig.sched) > 0)) {
            sched_rig_commit(&rig);
        }
    }
    while (sched_in_flight(rig.sched) > 0) {
        sched_rig_commit(&rig);
    }
    n_read += kv_store_stats(rig.store).tiers[KV_TIER_host].hit_blocks;
    add_stats(&moved, fake_mover_stats(rig.mover));
    n_drafted += sched_stats(rig.sched).draft_tokens;
    n_accepted += sched_stats(rig.sched).accepted[0];
    for (uint32_t i = 0; i < rig.n_seqs; i++) {
        sched_rig_assert_answered(&rig.seqs[i]);
    }
    sched_rig_fini(&rig);
}

static void run_mixes(uint32_t whole, const kv_tier_ops_t *const *tiers, bool with_peer)
{
    const uint64_t seed = test_seed(20);
    const uint32_t rounds = test_rounds(whole);
    for (uint32_t i = 0; i < rounds; i++) {
        print_message("seed %llu\n", (unsigned long long)(seed + i));
        run_mix(seed + i, tiers, with_peer);
    }
}

static void every_sequence_answers_as_if_alone(void **state)
{
    (void)state;
    run_mixes(8000, NULL, false);
    assert_true(n_accepted > 0 && n_drafted > n_accepted);
}

static void every_sequence_answers_the_same_with_a_tier_below(void **state)
{
    (void)state;
    const kv_tier_ops_t *const tiers[KV_TIER_COUNT] = {[KV_TIER_host] = &kv_tier_host};
    n_read = 0;
    run_mixes(8000, tiers, false);
    assert_true(n_read > 0);
}

static void every_sequence_answers_the_same_with_a_shaky_tier(void **state)
{
    (void)state;
    const kv_tier_ops_t *const tiers[KV_TIER_COUNT] = {[KV_TIER_host] = &shaky_tier};
    n_read = 0;
    run_mixes(8000, tiers, false);
    assert_true(n_read > 0);
}

static void assert_all_happened(void)
{
    print_message("pulled %u failed %u given up %u unstarted %u, told %u held %u retracted %u "
                  "dropped %u\n",
                  moved.pulled, moved.failed, moved.given_up, moved.unstarted, moved.told,
                  moved.held, moved.retracted, moved.dropped);
    assert_true(moved.pulled > 0 && moved.failed > 0 && moved.given_up > 0 && moved.told > 0 &&
                moved.held > 0 && moved.retracted > 0 && moved.dropped > 0);
}

static void every_sequence_answers_the_same_with_peers(void **state)
{
    (void)state;
    moved = (fake_mover_stats_t){0};
    run_mixes(8000, NULL, true);
    assert_all_happened();
}

static void every_sequence_answers_the_same_with_peers_and_a_shaky_tier(void **state)
{
    (void)state;
    const kv_tier_ops_t *const tiers[KV_TIER_COUNT] = {[KV_TIER_host] = &shaky_tier};
    moved = (fake_mover_stats_t){0};
    run_mixes(8000, tiers, true);
    assert_all_happened();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_sequence_answers_as_if_alone),
        cmocka_unit_test(every_sequence_answers_the_same_with_a_tier_below),
        cmocka_unit_test(every_sequence_answers_the_same_with_a_shaky_tier),
        cmocka_unit_test(every_sequence_answers_the_same_with_peers),
        cmocka_unit_test(every_sequence_answers_the_same_with_peers_and_a_shaky_tier),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
