/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever happens in whatever order, and without memory. */
#include <stdio.h>
#include <string.h>

#include "kvstore/transfer/kv_transfer_priv.h"
#include "tests/support/random.h"
#include "tests/support/transfer_pair.h"

/* ---- no memory ------------------------------------------------------------------------------- */

/* From meeting to reading, with whatever fails at the nth allocation of the process. */
static void move_prompt(transfer_worker_t *there, transfer_worker_t *here, uint64_t nth)
{
    kv_block_id_t theirs[PROMPT_BLOCKS];
    kv_block_id_t ours[PROMPT_BLOCKS];
    kv_transfer_params_t params = {0};
    kv_pull_t *pull = NULL;
    const uint32_t n = alloc(there, PROMPT, theirs);
    alloc(here, PROMPT, ours);
    transfer_worker_write(there, theirs, 0, PROMPT, nth);
    weft_alloc_fail_nth(nth);
    const weft_status_t held =
        kv_transfer_hold(there->transfer, NULL, "r", theirs, n, PROMPT, &params);
    kv_pool_release(there->pool, theirs, n);
    if (held == WEFT_OK &&
        kv_transfer_expect(here->transfer, &params, PROMPT, &diag, &pull) == WEFT_OK &&
        kv_pull_start(pull, 0, ours, n) == WEFT_OK) {
        assert_true(transfer_rig_until(is_over, pull));
        assert_true(transfer_worker_has(here, ours, 0, kv_pull_tokens(pull), nth));
        assert_true(kv_pull_state(pull) != WEFT_OK || kv_pull_tokens(pull) == PROMPT);
    }
    kv_pull_end(pull);
    kv_pool_release(here->pool, ours, n);
    kv_transfer_params_fini(&params);
}

static void a_failed_allocation_costs_a_pull_at_most(void **state)
{
    const transfer_worker_config_t config = {.extra = "\"kv_lease_duration\": 0.1"};
    (void)state;
    const size_t before = weft_alloc_live_bytes();
    uint64_t n_allocations = UINT64_MAX;
    for (uint64_t nth = 1; nth <= n_allocations; nth++) {
        transfer_worker_t there;
        transfer_worker_t here;
        transfer_worker_open(&there, &config);
        transfer_worker_open(&here, &config);
        move_prompt(&there, &here, nth);
        n_allocations = weft_alloc_fail_nth(0);
        assert_true(transfer_rig_until(has_landed, &here));
        assert_all_free(&there);
        transfer_worker_close(&here);
        transfer_worker_close(&there);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
}

static void a_failed_allocation_at_the_start_leaves_nothing_behind(void **state)
{
    static const uint8_t fingerprint[32];
    kv_transfer_config_t parsed;
    (void)state;
    assert_status(kv_transfer_config_parse("{\"kv_connector\": \"WeftConnector\", \"kv_role\": "
                                           "\"kv_both\", \"kv_connector_extra_config\": {" AS_VLLM
                                           "}}",
                                           0, &diag, &parsed),
                  WEFT_OK);
    const kv_transfer_setup_t start = {.config = &parsed,
                                       .pool = prefill.pool,
                                       .fingerprint = fingerprint,
                                       .model = "m",
                                       .dtype = "f32",
                                       .model_dtype = "torch.float32",
                                       .total_heads = TRANSFER_RIG_HEADS,
                                       .total_layers = TRANSFER_RIG_LAYERS};
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t nth = 1; status != WEFT_OK; nth++) {
        kv_transfer_t *transfer = NULL;
        weft_alloc_fail_nth(nth);
        status = kv_transfer_create(&start, NULL, &transfer);
        weft_alloc_fail_nth(0);
        kv_transfer_destroy(transfer);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    kv_transfer_config_fini(&parsed);
}

/* ---- any history ----------------------------------------------------------------------------- */

/*
 * Many prompts, short leases, blocks that are written anew as soon as they are free: whatever a pull
 * calls good is the prompt's, and in the end no block is held on either side.
 */
enum { MAX_PULLS = 6, SMALL = 24 };

typedef struct history {
    transfer_worker_t there;
    transfer_worker_t here;
    test_random_t random;
    uint64_t prompts;
    uint64_t good;
    uint64_t failed;
    uint64_t expired; /* leases, when time began to pass */
    struct {
        kv_pull_t *pull;
        uint64_t prompt;
        uint32_t n;
        kv_block_id_t blocks[PROMPT_BLOCKS];
    } pulls[MAX_PULLS];
} history_t;

static void begin_pull(history_t *history, uint32_t i)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    kv_transfer_params_t params;
    char id[32];
    const uint64_t prompt = history->prompts++;
    if (kv_pool_alloc(history->there.pool, PROMPT_BLOCKS, blocks) != WEFT_OK) {
        return;
    }
    transfer_worker_write(&history->there, blocks, 0, PROMPT, prompt);
    snprintf(id, sizeof(id), "r%llu", (unsigned long long)prompt);
    assert_status(
        kv_transfer_hold(history->there.transfer, NULL, id, blocks, PROMPT_BLOCKS, PROMPT, &params),
        WEFT_OK);
    kv_pool_release(history->there.pool, blocks, PROMPT_BLOCKS);
    kv_pull_t *pull = expect(&history->here, &params, PROMPT);
    kv_transfer_params_fini(&params);
    history->pulls[i].n = 0;
    if (kv_pool_alloc(history->here.pool, PROMPT_BLOCKS, history->pulls[i].blocks) == WEFT_OK) {
        history->pulls[i].n = PROMPT_BLOCKS;
    }
    history->pulls[i].pull = pull;
    history->pulls[i].prompt = prompt;
}

static void end_pull(history_t *history, uint32_t i)
{
    kv_pull_t *pull = history->pulls[i].pull;
    const uint32_t tokens = kv_pull_tokens(pull);
    const bool is_good = transfer_worker_has(&history->here, history->pulls[i].blocks, 0, tokens,
                                             history->pulls[i].prompt);
    assert_true(tokens == 0 || is_good);
    history->good += kv_pull_state(pull) == WEFT_OK;
    history->failed += kv_pull_state(pull) < 0;
    kv_pull_end(pull);
    kv_pool_release(history->here.pool, history->pulls[i].blocks, history->pulls[i].n);
    history->pulls[i].pull = NULL;
}

static void step_pull(history_t *history, uint32_t i)
{
    kv_pull_t *pull = history->pulls[i].pull;
    if (pull == NULL) {
        begin_pull(history, i);
    } else if (kv_pull_state(pull) != WEFT_PENDING ||
               test_random_below(&history->random, 16) == 0) {
        end_pull(history, i);
    } else if (!kv_pull_is_started(pull) && history->pulls[i].n > 0 &&
               test_random_below(&history->random, 4) == 0) {
        assert_status(kv_pull_start(pull, 0, history->pulls[i].blocks, history->pulls[i].n),
                      WEFT_OK);
    }
}

/* Of what is on its way something is over, or nothing is on its way. */
static bool has_news(void *user)
{
    const history_t *history = user;
    bool is_moving = false;
    for (uint32_t i = 0; i < MAX_PULLS; i++) {
        const kv_pull_t *pull = history->pulls[i].pull;
        if (pull != NULL && kv_pull_state(pull) != WEFT_PENDING) {
            return true;
        }
        is_moving |= pull != NULL && kv_pull_is_started(pull);
    }
    return !is_moving;
}

static bool has_time_passed(void *user)
{
    history_t *history = user;
    const kv_transfer_stats_t stats = transfer_worker_stats(&history->there);
    return stats.leases_expired > history->expired || stats.leases_open == 0;
}

static void nothing_leaks_and_nothing_stale_is_believed(void **state)
{
    static history_t history;
    const uint64_t seed = test_seed(1);
    const uint32_t steps = test_rounds(40000);
    (void)state;
    history = (history_t){.random = {seed}};
    const transfer_worker_config_t config = {.extra = "\"kv_lease_duration\": 0.003",
                                             .n_blocks = SMALL};
    transfer_worker_open(&history.there, &config);
    transfer_worker_open(&history.here, &config);
    for (uint32_t step = 0; step < steps; step++) {
        step_pull(&history, test_random_below(&history.random, MAX_PULLS));
        transfer_rig_poll();
        if (test_random_below(&history.random, 4) == 0) {
            assert_true(transfer_rig_until(has_news, &history));
        }
        if (test_random_below(&history.random, 32) == 0) {
            history.expired = transfer_worker_stats(&history.there).leases_expired;
            assert_true(transfer_rig_until(has_time_passed, &history));
        }
    }
    for (uint32_t i = 0; i < MAX_PULLS; i++) {
        if (history.pulls[i].pull != NULL) {
            end_pull(&history, i);
        }
    }
    assert_true(transfer_rig_until(has_landed, &history.here));
    assert_all_free(&history.there);
    printf("good %llu failed %llu stale %llu expired %llu\n", (unsigned long long)history.good,
           (unsigned long long)history.failed,
           (unsigned long long)transfer_worker_stats(&history.here).stale_reads,
           (unsigned long long)transfer_worker_stats(&history.there).leases_expired);
    assert_true(history.good > 0);
    assert_true(transfer_worker_stats(&history.there).leases_expired > 0);
    transfer_worker_close(&history.here);
    transfer_worker_close(&history.there);
}

/*
 * The same ahead of prefills that are cut in chunks, preempted, aborted, over a fabric that loses,
 * delays and reorders; each round with workers of its own, closed in the middle of everything.
 */
typedef struct ahead {
    transfer_worker_t there;
    transfer_worker_t here;
    test_random_t random;
    uint32_t n_ids;
    uint64_t good;
    uint64_t failed;
    struct {
        bool is_running; /* the prefill */
        running_t running;
        kv_pull_t *pull;
        uint64_t prompt;
        uint32_t n;
        kv_block_id_t blocks[PROMPT_BLOCKS];
        char id[32];
    } requests[MAX_PULLS];
} ahead_t;

static void step_prefill(ahead_t *ahead, uint32_t i)
{
    running_t *running = &ahead->requests[i].running;
    char id[40];
    if (test_random_below(&ahead->random, 16) == 0) {
        preempt_prefill(running);
    } else if (test_random_below(&ahead->random, 24) == 0) {
        kv_lease_drop(running->lease);
        kv_pool_release(ahead->there.pool, running->blocks, running->n);
        ahead->requests[i].is_running = false;
    } else if (running->tokens < PROMPT) {
        const uint32_t left = PROMPT - running->tokens;
        const uint32_t n = test_random_between(&ahead->random, 1, 2 * TOKENS);
        compute(running, n < left ? n : left, ahead->requests[i].prompt);
    } else {
        snprintf(id, sizeof(id), "cmpl-%s", ahead->requests[i].id);
        finish_prefill(running, id);
        ahead->requests[i].is_running = false;
    }
}

static void begin_ahead(ahead_t *ahead, uint32_t i)
{
    if (kv_pool_free_blocks(ahead->there.pool) < PROMPT_BLOCKS ||
        kv_pool_free_blocks(ahead->here.pool) < PROMPT_BLOCKS) {
        return;
    }
    ahead->requests[i].prompt = ahead->n_ids;
    snprintf(ahead->requests[i].id, sizeof(ahead->requests[i].id), "x%u", ahead->n_ids++);
    const char *id = ahead->requests[i].id;
    const bool is_early = test_random_below(&ahead->random, 2) == 0;
    if (is_early) {
        begin_prefill_on(&ahead->there, &ahead->requests[i].running, id, PROMPT);
    }
    ahead->requests[i].pull = expect_ahead_of(&ahead->there, &ahead->here, id, PROMPT);
    ahead->requests[i].n = alloc(&ahead->here, PROMPT, ahead->requests[i].blocks);
    if (!is_early) {
        begin_prefill_on(&ahead->there, &ahead->requests[i].running, id, PROMPT);
    }
    ahead->requests[i].is_running = true;
}

static void end_ahead(ahead_t *ahead, uint32_t i)
{
    kv_pull_t *pull = ahead->requests[i].pull;
    const kv_block_id_t *blocks = ahead->requests[i].blocks;
    const uint32_t tokens = kv_pull_tokens(pull);
    assert_true(kv_pull_state(pull) != WEFT_OK || tokens == PROMPT);
    assert_true(transfer_worker_has(&ahead->here, blocks, 0, tokens, ahead->requests[i].prompt));
    ahead->good += kv_pull_state(pull) == WEFT_OK;
    ahead->failed += kv_pull_state(pull) < 0;
    kv_pull_end(pull);
    kv_pool_release(ahead->here.pool, blocks, ahead->requests[i].n);
    ahead->requests[i].pull = NULL;
}

static void step_ahead(ahead_t *ahead, uint32_t i)
{
    kv_pull_t *pull = ahead->requests[i].pull;
    if (ahead->requests[i].is_running && test_random_below(&ahead->random, 2) == 0) {
        step_prefill(ahead, i);
    } else if (pull == NULL && !ahead->requests[i].is_running) {
        begin_ahead(ahead, i);
    } else if (pull != NULL && (kv_pull_state(pull) != WEFT_PENDING ||
                                test_random_below(&ahead->random, 40) == 0)) {
        end_ahead(ahead, i);
    } else if (pull != NULL && !kv_pull_is_started(pull)) {
        assert_status(kv_pull_start(pull, 0, ahead->requests[i].blocks, ahead->requests[i].n),
                      WEFT_OK);
    }
}

static bool is_peer_lost(ahead_t *ahead)
{
    const kv_transfer_stats_t stats = transfer_worker_stats(&ahead->here);
    return stats.n_peers > 0 && !stats.peers[0].is_connected && stats.handshakes > 0;
}

/* Every pull has what there is of its prefill, or is over. */
static bool has_caught_up(void *user)
{
    ahead_t *ahead = user;
    for (uint32_t i = 0; i < MAX_PULLS; i++) {
        const kv_pull_t *pull = ahead->requests[i].pull;
        const uint32_t tokens = ahead->requests[i].running.tokens;
        if (pull != NULL && kv_pull_is_started(pull) && kv_pull_state(pull) == WEFT_PENDING &&
            kv_pull_tokens(pull) < (tokens == PROMPT ? PROMPT : tokens / TOKENS * TOKENS)) {
            return is_peer_lost(ahead);
        }
    }
    return true;
}

static void run_ahead(ahead_t *ahead, const char *fabric, uint64_t seed)
{
    char extra[256];
    const transfer_worker_config_t config = {.extra = extra, .n_blocks = SMALL};
    snprintf(extra, sizeof(extra), "\"kv_lease_duration\": 0.05%s", fabric);
    ahead->random.state = seed;
    memset(ahead->requests, 0, sizeof(ahead->requests));
    transfer_worker_open(&ahead->there, &config);
    transfer_worker_open(&ahead->here, &config);
    for (uint32_t step = 0; step < 600 && !is_peer_lost(ahead); step++) {
        step_ahead(ahead, test_random_below(&ahead->random, MAX_PULLS));
        transfer_rig_poll();
        if (test_random_below(&ahead->random, 6) == 0) {
            assert_true(transfer_rig_until(has_caught_up, ahead));
        }
    }
    for (uint32_t i = 0; i < MAX_PULLS; i++) {
        if (ahead->requests[i].pull != NULL) {
            end_ahead(ahead, i);
        }
        if (ahead->requests[i].is_running) {
            kv_lease_drop(ahead->requests[i].running.lease);
            kv_pool_release(ahead->there.pool, ahead->requests[i].running.blocks,
                            ahead->requests[i].running.n);
        }
    }
    assert_true(transfer_rig_until(has_landed, &ahead->here));
    assert_all_free(&ahead->there);
    transfer_worker_close(&ahead->here);
    transfer_worker_close(&ahead->there);
}

static void any_prefill_may_be_followed(void **state)
{
    static ahead_t ahead;
    const uint64_t seed = test_seed(1);
    const uint32_t rounds = test_rounds(100);
    (void)state;
    ahead = (ahead_t){0};
    for (uint32_t i = 0; i < rounds; i++) {
        run_ahead(&ahead, "", seed + i);
    }
    printf("good %llu failed %llu\n", (unsigned long long)ahead.good,
           (unsigned long long)ahead.failed);
    assert_true(ahead.good > 0);
}

static void a_bad_fabric_loses_nothing_but_time(void **state)
{
    static ahead_t ahead;
    const uint64_t seed = test_seed(1);
    const uint32_t rounds = test_rounds(200);
    (void)state;
    ahead = (ahead_t){0};
    for (uint32_t i = 0; i < rounds; i++) {
        char fabric[200];
        snprintf(fabric, sizeof(fabric),
                 ", \"backends\": [\"faulty\"], \"fabric_params\": \"faulty.under=tcp,"
                 "faulty.seed=%llu,faulty.delay_us=300,faulty.reorder=0.2,faulty.drop=%s\"",
                 (unsigned long long)(seed + i), i % 2 == 0 ? "0" : "0.01");
        run_ahead(&ahead, fabric, seed + i);
    }
    printf("good %llu failed %llu\n", (unsigned long long)ahead.good,
           (unsigned long long)ahead.failed);
    assert_true(ahead.good > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failed_allocation_costs_a_pull_at_most),
        TEST(a_failed_allocation_at_the_start_leaves_nothing_behind),
        cmocka_unit_test(nothing_leaks_and_nothing_stale_is_believed),
        cmocka_unit_test(any_prefill_may_be_followed),
        cmocka_unit_test(a_bad_fabric_loses_nothing_but_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
