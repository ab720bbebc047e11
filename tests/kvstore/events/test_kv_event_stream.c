/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publisher and subscriber together: whatever is lost, whoever joins late or restarts, the
 * subscriber ends with what the publisher's engine has, and the engine never waits.
 */
#include <stdlib.h>
#include <unistd.h>
#include <zmq.h>

#include "base/compiler.h"
#include "kvstore/events/kv_event_mirror.h"
#include "kvstore/events/kv_event_subscriber.h"
#include "tests/support/kv_publisher_rig.h"

/* ---- the engine: a forest of blocks, which tiers have each ----------------------------------- */

enum { BLOCKS = 300 };

typedef struct engine {
    rig_block_t blocks[BLOCKS];
    int parents[BLOCKS]; /* -1: none */
    uint8_t present[BLOCKS];
    kv_extra_t *extra; /* of every third chain */
    uint64_t batches;
    kv_publisher_t *publisher;
} engine_t;

static void engine_open(engine_t *engine, kv_publisher_t *publisher, test_random_t *random)
{
    *engine = (engine_t){.publisher = publisher};
    assert_status(kv_extra_create("tenant", "sql", "a/path", &engine->extra), WEFT_OK);
    for (int i = 0; i < BLOCKS; i++) {
        const bool is_first = i == 0 || test_random_below(random, 15) == 0;
        engine->parents[i] = is_first ? -1 : (int)test_random_below(random, (uint32_t)i);
        const rig_block_t *parent = is_first ? NULL : &engine->blocks[engine->parents[i]];
        kv_extra_t *extra = is_first ? (i % 3 == 0 ? engine->extra : NULL) : parent->name.extra;
        rig_make_block(test_random_u64(random), parent, extra, &engine->blocks[i]);
    }
}

static void engine_close(engine_t *engine)
{
    kv_extra_release(engine->extra);
}

static void engine_store(engine_t *engine, int last, uint32_t n, kv_tier_id_t tier)
{
    int chain[BLOCKS];
    uint32_t length = 0;
    for (int i = last; i >= 0 && length < n; i = engine->parents[i]) {
        chain[length++] = i;
    }
    while (length-- > 0) {
        kv_publisher_stored(engine->publisher, tier, &engine->blocks[chain[length]].name);
        engine->present[chain[length]] |= (uint8_t)(1u << tier);
    }
}

static void engine_remove(engine_t *engine, int block, kv_tier_id_t tier)
{
    if ((engine->present[block] >> tier & 1) != 0) {
        kv_publisher_removed(engine->publisher, tier, &engine->blocks[block].name.hash);
        engine->present[block] &= (uint8_t)~(1u << tier);
    }
}

/* A step makes one batch. */
static void engine_step(engine_t *engine, test_random_t *random)
{
    const uint32_t n = test_random_between(random, 1, 6);
    engine_store(engine, (int)test_random_below(random, BLOCKS), 4, KV_TIER_device);
    for (uint32_t i = 0; i < n; i++) {
        const int block = (int)test_random_below(random, BLOCKS);
        const kv_tier_id_t tier = (kv_tier_id_t)test_random_below(random, KV_TIER_COUNT);
        if (test_random_below(random, 200) == 0) {
            kv_publisher_cleared(engine->publisher);
            memset(engine->present, 0, sizeof(engine->present));
        } else if (test_random_below(random, 3) == 0) {
            engine_store(engine, block, test_random_between(random, 1, 10), tier);
        } else {
            engine_remove(engine, block, tier);
        }
    }
    kv_publisher_flush(engine->publisher);
    engine->batches++;
}

/* ---- the reader ------------------------------------------------------------------------------ */

typedef struct reader {
    kv_event_subscriber_t *subscriber;
    kv_event_mirror_t *mirror;
    uint32_t gaps;
    uint64_t missed;
    uint64_t restarts;
    uint64_t next;
} reader_t;

static void count_gap(void *user, kv_event_hole_t hole, const kv_event_hash_t *hash)
{
    (void)hash;
    ((reader_t *)user)->gaps += hole == KV_EVENT_HOLE_GAP;
    assert_int_not_equal(hole, KV_EVENT_HOLE_UNKNOWN);
}

static void reader_open(reader_t *reader, const char *endpoint, const char *replay)
{
    *reader = (reader_t){.next = 0};
    const kv_event_mirror_config_t mirror = {
        .block_tokens = RIG_TOKENS, .on_hole = count_gap, .user = reader};
    const kv_event_subscriber_config_t config = {.endpoint = endpoint, .replay_endpoint = replay};
    assert_status(kv_event_mirror_create(&mirror, &reader->mirror), WEFT_OK);
    assert_status(kv_event_subscriber_create(&config, NULL, &reader->subscriber), WEFT_OK);
}

static void reader_close(reader_t *reader)
{
    kv_event_subscriber_destroy(reader->subscriber);
    kv_event_mirror_destroy(reader->mirror);
}

/* Takes what is there. */
static void reader_read(reader_t *reader, int timeout_ms)
{
    kv_event_news_t news;
    weft_diag_t diag = {0};
    weft_status_t status;
    while ((status = kv_event_subscriber_next(reader->subscriber, timeout_ms, &diag, &news)) ==
           WEFT_OK) {
        if (news.is_restart) {
            kv_event_mirror_restart(reader->mirror);
            reader->restarts++;
        }
        reader->missed += news.missed;
        assert_status(kv_event_mirror_apply_batch(reader->mirror, news.sequence, news.batch),
                      WEFT_OK);
        reader->next = news.sequence + 1;
        timeout_ms = 0;
    }
    assert_status(status, WEFT_ERR_TIMEOUT);
}

static kv_event_hash_t name_of(const engine_t *engine, int block)
{
    return kv_event_hash_number(rig_number(&engine->blocks[block].name.hash));
}

static bool has_the_state(const reader_t *reader, const engine_t *engine)
{
    uint64_t blocks = 0;
    for (int i = 0; i < BLOCKS; i++) {
        const kv_event_hash_t hash = name_of(engine, i);
        for (kv_tier_id_t tier = 0; tier < KV_TIER_COUNT; tier++) {
            if (kv_event_mirror_has(reader->mirror, kv_event_text(kv_tier_medium(tier)), 0,
                                    &hash) != ((engine->present[i] >> tier & 1) != 0)) {
                return false;
            }
        }
        blocks += engine->present[i] != 0;
    }
    return kv_event_mirror_blocks(reader->mirror) == blocks;
}

/* Each event's blocks have their tokens and parents, adapter and salt. */
static weft_status_t check_content(void *user, const kv_event_t *event)
{
    const engine_t *engine = user;
    kv_event_hash_t parent = event->parent_block_hash;
    for (uint32_t i = 0; i < event->block_hashes.count; i++) {
        int block = 0;
        for (; block < BLOCKS; block++) {
            const kv_event_hash_t name = name_of(engine, block);
            if (memcmp(&name, &event->block_hashes.items[i], sizeof(name)) == 0) {
                break;
            }
        }
        assert_true(block < BLOCKS);
        const rig_block_t *known = &engine->blocks[block];
        assert_memory_equal(event->token_ids.items + (size_t)i * RIG_TOKENS, known->tokens,
                            sizeof(known->tokens));
        if (engine->parents[block] < 0) {
            assert_int_equal(parent.n_bytes, 0);
        } else {
            const kv_event_hash_t above = name_of(engine, engine->parents[block]);
            assert_memory_equal(&parent, &above, sizeof(above));
        }
        assert_true(kv_event_text_equal(event->lora_name,
                                        kv_event_text(known->name.extra == NULL ? NULL : "sql")));
        parent = event->block_hashes.items[i];
    }
    return WEFT_OK;
}

/* One more batch at a time, as the last ones may be lost unseen, until the reader has them all. */
static void catch_up(reader_t *reader, engine_t *engine, test_random_t *random,
                     void (*pump)(void *user), void *user)
{
    const uint64_t deadline = weft_clock_ns() + RIG_DEADLINE_NS;
    do {
        assert_true(weft_clock_ns() < deadline);
        engine_step(engine, random);
        for (int i = 0; i < 20 && reader->next < engine->batches; i++) {
            if (pump != NULL) {
                pump(user);
            }
            reader_read(reader, 10);
        }
    } while (reader->next < engine->batches);
    assert_int_equal(reader->next, engine->batches);
    assert_int_equal(kv_publisher_stats(engine->publisher).stalls, 0);
}

static void settle(reader_t *reader, engine_t *engine, test_random_t *random,
                   void (*pump)(void *user), void *user)
{
    catch_up(reader, engine, random, pump, user);
    assert_true(has_the_state(reader, engine));
    assert_status(kv_event_mirror_write(reader->mirror, check_content, engine), WEFT_OK);
}

/* ---- a network that loses ------------------------------------------------------------------- */

typedef struct network {
    void *context;
    void *in;
    void *out;
    char endpoint[128];
    uint32_t loss; /* in a hundred */
    test_random_t random;
    uint64_t lost;
} network_t;

static void network_open(network_t *network, const char *endpoint, uint64_t seed)
{
    const int zero = 0;
    size_t size = sizeof(network->endpoint);
    *network = (network_t){.context = zmq_ctx_new(), .random = {seed}};
    network->in = zmq_socket(network->context, ZMQ_SUB);
    network->out = zmq_socket(network->context, ZMQ_PUB);
    zmq_setsockopt(network->in, ZMQ_SUBSCRIBE, "", 0);
    zmq_setsockopt(network->in, ZMQ_RCVHWM, &zero, sizeof(zero));
    zmq_setsockopt(network->out, ZMQ_LINGER, &zero, sizeof(zero));
    assert_int_equal(zmq_connect(network->in, endpoint), 0);
    assert_int_equal(zmq_bind(network->out, "tcp://127.0.0.1:*"), 0);
    zmq_getsockopt(network->out, ZMQ_LAST_ENDPOINT, network->endpoint, &size);
}

static void network_close(network_t *network)
{
    zmq_close(network->in);
    zmq_close(network->out);
    zmq_ctx_term(network->context);
}

static void network_pump(void *user)
{
    network_t *network = user;
    zmq_msg_t frame;
    int more = 0;
    bool is_lost = false;
    for (zmq_msg_init(&frame); zmq_msg_recv(&frame, network->in, ZMQ_DONTWAIT) >= 0;) {
        if (more == 0) {
            is_lost = test_random_below(&network->random, 100) < network->loss;
            network->lost += is_lost;
        }
        more = zmq_msg_more(&frame);
        if (!is_lost) {
            zmq_msg_send(&frame, network->out, more != 0 ? ZMQ_SNDMORE : 0);
        }
    }
    zmq_msg_close(&frame);
}

/* ---- claims ---------------------------------------------------------------------------------- */

static void run_lossy_round(uint64_t seed, const char *config)
{
    static engine_t engine;
    test_random_t random = {seed};
    reader_t reader = {.subscriber = NULL};
    network_t network;
    publisher_rig_t rig = rig_open(config);
    network_open(&network, rig.endpoint, seed + 1);
    engine_open(&engine, rig.publisher, &random);
    const uint32_t steps = test_random_between(&random, 20, 400);
    const uint32_t joins_at = test_random_below(&random, steps);
    for (uint32_t step = 0; step < steps; step++) {
        if (step == joins_at) {
            reader_open(&reader, network.endpoint, rig.replay);
        }
        if (test_random_below(&random, 20) == 0) {
            network.loss = test_random_below(&random, 3) * 30;
        }
        engine_step(&engine, &random);
        network_pump(&network);
        if (reader.subscriber != NULL && test_random_below(&random, 4) != 0) {
            reader_read(&reader, 0);
        }
    }
    network.loss = 0;
    settle(&reader, &engine, &random, network_pump, &network);
    assert_int_equal(reader.missed, 0);
    assert_int_equal(reader.gaps, 0);
    reader_close(&reader);
    engine_close(&engine);
    network_close(&network);
    rig_close(&rig);
}

static void a_reader_that_joins_late_and_loses_batches_ends_with_the_state(void **state)
{
    (void)state;
    static const char *const configs[] = {"", ", \"buffer_steps\": 5", ", \"buffer_steps\": 0",
                                          ", \"buffer_steps\": 60"};
    const uint64_t seed = test_seed(11);
    const uint32_t rounds = test_rounds(400);
    for (uint32_t round = 0; round < rounds; round++) {
        run_lossy_round(seed + round, configs[(seed + round) % WEFT_ARRAY_LEN(configs)]);
    }
}

static void ten_readers_end_with_the_state(void **state)
{
    (void)state;
    enum { READERS = 10 };
    static engine_t engine;
    reader_t readers[READERS];
    test_random_t random = {test_seed(5)};
    publisher_rig_t rig = rig_open(", \"buffer_steps\": 50");
    engine_open(&engine, rig.publisher, &random);
    for (int i = 0; i < READERS; i++) {
        for (uint32_t step = 0; step < 40; step++) {
            engine_step(&engine, &random);
        }
        reader_open(&readers[i], rig.endpoint, rig.replay);
    }
    for (int i = 0; i < READERS; i++) {
        settle(&readers[i], &engine, &random, NULL, NULL);
        assert_int_equal(readers[i].missed, 0);
    }
    for (int i = 0; i < READERS; i++) {
        reader_close(&readers[i]);
    }
    engine_close(&engine);
    rig_close(&rig);
}

static void a_reader_that_stalls_loses_batches_and_holds_up_nobody(void **state)
{
    (void)state;
    static engine_t engine;
    const int one = 1;
    const int zero = 0;
    reader_t reader;
    test_random_t random = {test_seed(6)};
    publisher_rig_t rig = rig_open(", \"buffer_steps\": 100, \"hwm\": 10");
    void *context = zmq_ctx_new();
    void *stalled = zmq_socket(context, ZMQ_SUB);
    zmq_setsockopt(stalled, ZMQ_RCVHWM, &one, sizeof(one));
    zmq_setsockopt(stalled, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(stalled, ZMQ_SUBSCRIBE, "", 0);
    assert_int_equal(zmq_connect(stalled, rig.endpoint), 0);
    engine_open(&engine, rig.publisher, &random);
    reader_open(&reader, rig.endpoint, rig.replay);
    for (uint32_t step = 0; step < test_scaled(400000); step++) {
        engine_step(&engine, &random);
        if (step % 100 == 0) { /* the engine is no faster than the publisher, which goes on */
            rig_wait_for_batches(&rig, engine.batches < 500 ? 0 : engine.batches - 500);
            reader_read(&reader, 0);
        }
    }
    settle(&reader, &engine, &random, NULL, NULL);
    assert_int_equal(reader.missed, 0);
    reader_close(&reader);
    engine_close(&engine);
    zmq_close(stalled);
    zmq_ctx_term(context);
    rig_close(&rig);
}

/* Of another life: other blocks, numbers from 0 again. */
static void restart(publisher_rig_t *rig, engine_t *engine, test_random_t *random, uint32_t steps)
{
    char config[512];
    if (rig->publisher != NULL) {
        rig_close(rig);
        engine_close(engine);
    }
    snprintf(config, sizeof(config),
             "{\"enable_kv_cache_events\": true, \"endpoint\": \"%s\", \"replay_endpoint\": "
             "\"%s\", \"buffer_steps\": 20}",
             rig->endpoint, rig->replay);
    const kv_publisher_config_t wanted = {.events_config = config,
                                          .block_tokens = RIG_TOKENS,
                                          .algo = KV_HASH_ALGO_sha256_cbor,
                                          .has_int_hashes = true};
    weft_diag_t diag = {0};
    if (kv_publisher_create(&wanted, &diag, &rig->publisher) != WEFT_OK) {
        fail_msg("%s", diag.text);
    }
    engine_open(engine, rig->publisher, random);
    for (uint32_t i = 0; i < steps; i++) {
        engine_step(engine, random);
    }
    rig_wait_for_batches(rig, engine->batches);
}

static void a_publisher_that_restarts_is_read_anew(void **state)
{
    (void)state;
    static engine_t engine;
    reader_t reader;
    test_random_t random = {test_seed(8)};
    publisher_rig_t rig = {.publisher = NULL};
    snprintf(rig.endpoint, sizeof(rig.endpoint), "ipc://@weft-events-%ld", (long)getpid());
    snprintf(rig.replay, sizeof(rig.replay), "ipc://@weft-replay-%ld", (long)getpid());
    restart(&rig, &engine, &random, 50);
    reader_open(&reader, rig.endpoint, rig.replay);
    settle(&reader, &engine, &random, NULL, NULL);
    assert_int_equal(reader.restarts, 0);
    /* The new one may be behind the old one's numbers, or already ahead. */
    restart(&rig, &engine, &random, 5);
    reader.next = 0;
    settle(&reader, &engine, &random, NULL, NULL);
    assert_true(reader.restarts >= 1);
    restart(&rig, &engine, &random, 200);
    reader.next = 0;
    settle(&reader, &engine, &random, NULL, NULL);
    assert_true(reader.restarts >= 2);
    assert_int_equal(reader.missed, 0);
    assert_int_equal(reader.gaps, 0);
    reader_close(&reader);
    engine_close(&engine);
    rig_close(&rig);
}

static void without_a_replay_endpoint_losses_are_counted(void **state)
{
    (void)state;
    static engine_t engine;
    test_random_t random = {test_seed(9)};
    reader_t reader;
    network_t network;
    publisher_rig_t rig = rig_open("");
    network_open(&network, rig.endpoint, 1);
    engine_open(&engine, rig.publisher, &random);
    reader_open(&reader, network.endpoint, NULL);
    catch_up(&reader, &engine, &random, network_pump, &network);
    const uint64_t before = reader.missed;
    for (uint64_t i = 1; i <= 10; i++) { /* all came so far, so that one is lost each time */
        network.loss = 100;
        engine_step(&engine, &random);
        while (network.lost < i) {
            network_pump(&network);
        }
        network.loss = 0;
        catch_up(&reader, &engine, &random, network_pump, &network);
    }
    assert_int_equal(network.lost, 10);
    assert_int_equal(reader.missed, before + 10);
    assert_int_equal(reader.gaps, 10);
    assert_int_equal(kv_event_subscriber_replays(reader.subscriber), 0);
    reader_close(&reader);
    engine_close(&engine);
    network_close(&network);
    rig_close(&rig);
}

static void endpoints_that_are_none_are_named(void **state)
{
    (void)state;
    kv_event_subscriber_t *subscriber = NULL;
    weft_diag_t diag = {0};
    kv_event_subscriber_config_t config = {.endpoint = "localhost:5557"};
    assert_status(kv_event_subscriber_create(&config, &diag, &subscriber), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "localhost:5557"));
    config = (kv_event_subscriber_config_t){.endpoint = "tcp://127.0.0.1:1",
                                            .replay_endpoint = "tcp://nowhere"};
    assert_status(kv_event_subscriber_create(&config, &diag, &subscriber), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "tcp://nowhere"));
    assert_null(subscriber);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reader_that_joins_late_and_loses_batches_ends_with_the_state),
        cmocka_unit_test(ten_readers_end_with_the_state),
        cmocka_unit_test(a_reader_that_stalls_loses_batches_and_holds_up_nobody),
        cmocka_unit_test(a_publisher_that_restarts_is_read_anew),
        cmocka_unit_test(without_a_replay_endpoint_losses_are_counted),
        cmocka_unit_test(endpoints_that_are_none_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
