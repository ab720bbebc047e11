/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several threads submit, read, abort and release at random moments while the engine is disturbed;
 * afterwards no block is referenced and no byte is lost.
 */
#include <pthread.h>

#include "base/log.h"
#include "runtime/engine/engine_priv.h"
#include "tests/support/engine_rig.h"
#include "tests/support/random.h"

enum { THREADS = 3, OPEN = 6, VOCAB = 320 };

typedef struct consumer {
    engine_t *engine;
    test_random_t random;
    uint32_t rounds;
    uint32_t answered;
    uint32_t aborted;
    pthread_t thread;
} consumer_t;

static engine_request_t *send_random(consumer_t *c, engine_client_t *client)
{
    int32_t prompt[64];
    const uint32_t n_prompt = test_random_between(&c->random, 1, 64);
    for (uint32_t i = 0; i < n_prompt; i++) {
        prompt[i] = (int32_t)((i * 7 + n_prompt % 3) % VOCAB);
    }
    engine_submit_t submit = engine_rig_submit(prompt, n_prompt, test_random_below(&c->random, 60));
    submit.n = test_random_between(&c->random, 1, 3);
    submit.priority = test_random_below(&c->random, 2);
    submit.sampling.temperature = 1;
    submit.sampling.seed = ENGINE_NO_SEED;
    submit.sampling.wants_logprobs = test_random_below(&c->random, 2) == 0;
    engine_request_t *request = NULL;
    const weft_status_t status = engine_submit(c->engine, client, &submit, NULL, &request);
    return status == WEFT_OK ? request : NULL; /* the queue may be full */
}

static void read_answer(const engine_request_t *request)
{
    for (uint32_t k = 0; k < engine_request_samples(request); k++) {
        const engine_answer_t a = engine_request_answer(request, k);
        for (uint32_t i = 0; i < a.n_tokens; i++) {
            if (a.tokens[i] < 0 || a.tokens[i] >= VOCAB ||
                (a.logprobs != NULL && a.logprobs[i].chosen.token != a.tokens[i])) {
                abort();
            }
        }
    }
    (void)engine_request_timings(request);
}

/* One of the consumer's requests moves on: read, given up, or replaced by a new one. */
static void touch(consumer_t *c, engine_client_t *client, engine_request_t **request)
{
    if (*request == NULL) {
        *request = send_random(c, client);
        return;
    }
    read_answer(*request);
    if (engine_rig_is_done(*request)) {
        c->answered++;
        engine_request_release(*request);
        *request = NULL;
        return;
    }
    switch (test_random_below(&c->random, 12)) {
    case 0:
        engine_abort(*request);
        break;
    case 1:
        c->aborted++;
        engine_request_release(*request);
        *request = NULL;
        break;
    default:
        break;
    }
}

static void *consume(void *arg)
{
    consumer_t *c = arg;
    engine_request_t *open[OPEN] = {NULL};
    engine_client_t *client = NULL;
    if (engine_client_create(c->engine, &client) < 0) {
        abort();
    }
    for (uint32_t i = 0; i < c->rounds; i++) {
        touch(c, client, &open[test_random_below(&c->random, OPEN)]);
        (void)engine_client_wait(client, 1);
        (void)engine_stats(c->engine);
        if (test_random_below(&c->random, 50) == 0) {
            (void)engine_reset_prefix_cache(c->engine, false, false);
        }
    }
    for (uint32_t i = 0; i < OPEN; i++) {
        if (open[i] != NULL) {
            engine_request_release(open[i]);
        }
    }
    engine_client_destroy(client);
    return NULL;
}

static void random_use_by_many_threads_leaves_nothing_behind(void **state)
{
    (void)state;
    engine_rig_t rig;
    consumer_t consumers[THREADS] = {0};
    const uint64_t seed = test_seed(1);
    const size_t live = weft_alloc_live_bytes();
    engine_options_t options = engine_rig_options();
    options.max_num_seqs = 4;
    options.max_num_queued_reqs = 8;
    options.num_gpu_blocks = 20;
    weft_log_set_level(WEFT_LOG_WARN);
    engine_rig_open(&rig, "llama", &options);
    engine_set_chaos(rig.engine, seed | 1);
    for (uint32_t i = 0; i < THREADS; i++) {
        consumers[i] = (consumer_t){
            .engine = rig.engine, .random = {seed * THREADS + i}, .rounds = test_scaled(20000)};
        assert_int_equal(pthread_create(&consumers[i].thread, NULL, consume, &consumers[i]), 0);
    }
    uint32_t answered = 0, aborted = 0;
    for (uint32_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(consumers[i].thread, NULL), 0);
        answered += consumers[i].answered;
        aborted += consumers[i].aborted;
    }
    print_message("%u answered, %u given up\n", answered, aborted);
    assert_true(answered > 0 && aborted > 0);
    const engine_stats_t stats = engine_rig_wait_idle(&rig);
    assert_int_equal(stats.referenced_blocks, 0);
    assert_true(engine_is_healthy(rig.engine));
    engine_rig_close(&rig);
    assert_int_equal(weft_alloc_live_bytes(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_use_by_many_threads_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
