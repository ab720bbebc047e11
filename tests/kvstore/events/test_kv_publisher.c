/* SPDX-License-Identifier: Apache-2.0 */
/* The publisher as plain ZeroMQ sockets see it. */
#include "kvstore/events/kv_publisher.h"

#include <zmq.h>

#include "base/compiler.h"
#include "kvstore/events/kv_event_message.h"
#include "kvstore/events/kv_events_config.h"
#include "tests/support/kv_event_json.h"
#include "tests/support/kv_publisher_rig.h"

/* ---- sockets --------------------------------------------------------------------------------- */

enum { MAX_FRAMES = 6, FRAME_BYTES = 1 << 16, TIMEOUT_MS = 30000 };

typedef struct message {
    uint32_t n;
    size_t lengths[MAX_FRAMES];
    uint8_t frames[MAX_FRAMES][FRAME_BYTES];
} message_t;

static void *context;
static message_t message;

static int setup(void **state)
{
    (void)state;
    context = zmq_ctx_new();
    return context == NULL;
}

static int teardown(void **state)
{
    (void)state;
    return zmq_ctx_term(context);
}

static void *connect_to(int type, const char *endpoint)
{
    const int zero = 0;
    void *socket = zmq_socket(context, type);
    assert_non_null(socket);
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof(zero));
    if (type == ZMQ_SUB) {
        zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0);
    }
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    return socket;
}

/* The next message; false: none came in time. */
static bool receive(void *socket, int timeout_ms)
{
    int more = 1;
    size_t size = sizeof(more);
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &timeout_ms, sizeof(timeout_ms));
    for (message.n = 0; more != 0; message.n++) {
        assert_true(message.n < MAX_FRAMES);
        const int length = zmq_recv(socket, message.frames[message.n], FRAME_BYTES, 0);
        if (length < 0) {
            return false;
        }
        assert_true(length <= FRAME_BYTES);
        message.lengths[message.n] = (size_t)length;
        zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size);
    }
    return true;
}

static void ask(void *dealer, uint64_t start)
{
    uint8_t number[8];
    kv_event_sequence_encode(start, number);
    assert_int_equal(zmq_send(dealer, "", 0, ZMQ_SNDMORE), 0);
    assert_int_equal(zmq_send(dealer, number, sizeof(number), 0), 8);
}

static void assert_frame(uint32_t index, const void *data, size_t length)
{
    assert_true(index < message.n);
    assert_int_equal(message.lengths[index], length);
    assert_memory_equal(message.frames[index], data, length);
}

/* A socket that gets what is published: batches are made until one arrives. Its number. */
static uint64_t join(const publisher_rig_t *rig, void *subscriber)
{
    for (int i = 0; i < 1000; i++) {
        kv_publisher_cleared(rig->publisher);
        kv_publisher_flush(rig->publisher);
        if (receive(subscriber, 10)) {
            return kv_event_sequence_decode(message.frames[1]);
        }
    }
    fail_msg("a subscriber does not get what is published");
    return 0;
}

/* ---- golden frames --------------------------------------------------------------------------- */

/* The frames of json from message's frame `first` on; the payload's time, bytes 2 to 9, is now. */
static void assert_golden(const json_t *json, uint32_t first)
{
    assert_int_equal(message.n, first + json_array_size(json));
    for (uint32_t i = 0; i < json_array_size(json); i++) {
        weft_arena_t arena = {0};
        size_t length;
        uint8_t *golden = hex_bytes(&arena, json_string_value(json_array_get(json, i)), &length);
        if (i + 1 == json_array_size(json) && length > 10) {
            memcpy(golden + 2, message.frames[first + i] + 2, 8);
        }
        assert_frame(first + i, golden, length);
        weft_arena_free(&arena);
    }
}

static publisher_rig_t open_golden(const json_t *test)
{
    char more[256];
    snprintf(more, sizeof(more), ", \"topic\": \"%s\", \"buffer_steps\": %d",
             json_string_value(json_object_get(test, "topic")),
             (int)json_integer_value(json_object_get(test, "buffer_steps")));
    return rig_open(more);
}

static void publish_cleared(const publisher_rig_t *rig, uint64_t batches)
{
    while (kv_publisher_stats(rig->publisher).batches < batches) {
        const uint64_t n = kv_publisher_stats(rig->publisher).batches;
        kv_publisher_cleared(rig->publisher);
        kv_publisher_flush(rig->publisher);
        rig_wait_for_batches(rig, n + 1);
    }
}

static void check_golden_replay(const json_t *test)
{
    const json_t *live = json_object_get(test, "live_frames");
    const json_t *replies = json_object_get(test, "replay_reply_dealer_frames");
    const uint64_t first = (uint64_t)json_integer_value(json_object_get(test, "first_seq"));
    publisher_rig_t rig = open_golden(test);
    void *dealer = connect_to(ZMQ_DEALER, rig.replay);
    publish_cleared(&rig, first + json_array_size(live));
    ask(dealer, first + 3);
    for (size_t i = 0; i < json_array_size(replies); i++) {
        assert_true(receive(dealer, TIMEOUT_MS));
        assert_golden(json_array_get(replies, i), 0);
    }
    zmq_close(dealer);
    rig_close(&rig);
}

static void replies_are_vllm_s_byte_for_byte(void **state)
{
    (void)state;
    json_t *file = read_json_vector("kv_events/zmq_frames.json");
    const json_t *cases = json_object_get(file, "cases");
    uint32_t checked = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *test = json_array_get(cases, i);
        if (json_object_get(test, "live_frames") != NULL &&
            json_integer_value(json_object_get(test, "first_seq")) < 1000) {
            check_golden_replay(test);
            checked++;
        }
    }
    assert_int_equal(checked, 3);
    json_decref(file);
}

static void live_frames_are_vllm_s_byte_for_byte(void **state)
{
    (void)state;
    json_t *file = read_json_vector("kv_events/zmq_frames.json");
    const json_t *test = json_array_get(json_object_get(file, "cases"), 2);
    const json_t *live = json_object_get(test, "live_frames");
    const uint64_t first = (uint64_t)json_integer_value(json_object_get(test, "first_seq"));
    publisher_rig_t rig = open_golden(test);
    void *subscriber = connect_to(ZMQ_SUB, rig.endpoint);
    assert_int_equal(first, 255);
    uint64_t sequence = join(&rig, subscriber);
    assert_true(sequence < first);
    publish_cleared(&rig, first + json_array_size(live));
    while (sequence < first - 1) {
        assert_true(receive(subscriber, TIMEOUT_MS));
        sequence = kv_event_sequence_decode(message.frames[1]);
    }
    for (size_t i = 0; i < json_array_size(live); i++) {
        assert_true(receive(subscriber, TIMEOUT_MS));
        assert_golden(json_array_get(live, i), 0);
    }
    zmq_close(subscriber);
    rig_close(&rig);
    json_decref(file);
}

static void sequences_of_64_bits_are_vllm_s(void **state)
{
    (void)state;
    json_t *file = read_json_vector("kv_events/zmq_frames.json");
    const json_t *test = json_array_get(json_object_get(file, "cases"), 3);
    const json_t *live = json_object_get(test, "live_frames");
    assert_int_equal(json_array_size(live), 5);
    for (size_t i = 0; i < json_array_size(live); i++) {
        weft_arena_t arena = {0};
        size_t length;
        uint8_t number[8];
        const char *hex = json_string_value(json_array_get(json_array_get(live, i), 1));
        const uint8_t *golden = hex_bytes(&arena, hex, &length);
        kv_event_sequence_encode(UINT64_C(0xffffffff) + i, number);
        assert_int_equal(length, 8);
        assert_memory_equal(golden, number, 8);
        assert_int_equal(kv_event_sequence_decode(golden), UINT64_C(0xffffffff) + i);
        weft_arena_free(&arena);
    }
    json_decref(file);
}

static void endpoints_follow_vllm_s_rules(void **state)
{
    (void)state;
    json_t *file = read_json_vector("kv_events/zmq_frames.json");
    const json_t *test = json_array_get(json_object_get(file, "cases"), 4);
    const json_t *pairs = json_object_get(test, "pairs");
    const json_t *bind = json_object_get(test, "bind");
    assert_true(json_array_size(pairs) == 5 && json_array_size(bind) == 6);
    for (size_t i = 0; i < json_array_size(pairs); i++) {
        const json_t *pair = json_array_get(pairs, i);
        char *shifted = NULL;
        assert_status(kv_events_shift(json_string_value(json_array_get(pair, 0)),
                                      (uint32_t)json_integer_value(json_array_get(pair, 1)), NULL,
                                      &shifted),
                      WEFT_OK);
        assert_string_equal(shifted, json_string_value(json_array_get(pair, 2)));
        weft_free(shifted);
    }
    for (size_t i = 0; i < json_array_size(bind); i++) {
        const json_t *pair = json_array_get(bind, i);
        assert_int_equal(kv_events_is_bound(json_string_value(json_array_get(pair, 0))),
                         json_is_true(json_array_get(pair, 1)));
    }
    assert_true(kv_events_is_bound("tcp://127.0.0.1:0"));
    char *none = NULL;
    assert_status(kv_events_shift("ipc:///tmp/x", 1, NULL, &none), WEFT_ERR_INVALID);
    assert_status(kv_events_shift("tcp://*:65535", 1, NULL, &none), WEFT_ERR_INVALID);
    assert_status(kv_events_shift("tcp://host", 1, NULL, &none), WEFT_ERR_INVALID);
    assert_status(kv_events_shift("udp://*:1", 0, NULL, &none), WEFT_ERR_INVALID);
    json_decref(file);
}

/* ---- events ---------------------------------------------------------------------------------- */

/* The batch that a publisher made since its n-th, asked for again. */
static kv_event_batch_t replayed_batch(const publisher_rig_t *rig, uint64_t n)
{
    kv_event_batch_t batch;
    void *dealer = connect_to(ZMQ_DEALER, rig->replay);
    rig_wait_for_batches(rig, n + 1);
    ask(dealer, n);
    assert_true(receive(dealer, TIMEOUT_MS));
    assert_int_equal(kv_event_sequence_decode(message.frames[2]), n);
    assert_status(kv_event_batch_decode(message.frames[3], message.lengths[3], NULL, &batch),
                  WEFT_OK);
    zmq_close(dealer);
    return batch;
}

static void assert_text(kv_event_text_t text, const char *expected)
{
    assert_true(kv_event_text_equal(text, kv_event_text(expected)));
}

static void assert_number(const kv_event_hash_t *hash, uint64_t number)
{
    const kv_event_hash_t expected = kv_event_hash_number(number);
    assert_memory_equal(hash, &expected, sizeof(expected));
}

static void chains_become_one_event_and_all_else_its_own(void **state)
{
    (void)state;
    rig_block_t blocks[6];
    publisher_rig_t rig = rig_open("");
    for (uint64_t i = 0; i < 6; i++) {
        rig_make_block(i, i == 0 || i == 3 ? NULL : &blocks[i - 1], NULL, &blocks[i]);
    }
    for (size_t i = 0; i < 5; i++) { /* two chains: 0 1 2, 3 4 */
        kv_publisher_stored(rig.publisher, KV_TIER_device, &blocks[i].name);
    }
    kv_publisher_stored(rig.publisher, KV_TIER_host, &blocks[5].name); /* of another tier */
    kv_publisher_removed(rig.publisher, KV_TIER_device, &blocks[2].name.hash);
    kv_publisher_removed(rig.publisher, KV_TIER_disk, &blocks[1].name.hash);
    kv_publisher_cleared(rig.publisher);
    kv_publisher_flush(rig.publisher);
    kv_publisher_flush(rig.publisher); /* no empty batch */

    kv_event_batch_t batch = replayed_batch(&rig, 0);
    assert_int_equal(batch.n_events, 6);
    assert_true(batch.rank.is_set && batch.rank.value == 0);
    const kv_event_t *event = batch.events;
    const uint32_t counts[] = {3, 2, 1};
    size_t block = 0;
    for (size_t i = 0; i < 3; i++, event++) {
        assert_int_equal(event->kind, KV_EVENT_STORED);
        assert_int_equal(event->block_hashes.count, counts[i]);
        assert_int_equal(event->token_ids.count, counts[i] * RIG_TOKENS);
        assert_int_equal(event->block_size, RIG_TOKENS);
        assert_text(event->medium, i == 2 ? "CPU" : "GPU");
        assert_text(event->kv_cache_spec_kind, "full_attention");
        assert_true(event->group_idx.is_set && event->group_idx.value == 0);
        assert_false(event->lora_id.is_set);
        if (blocks[block].name.is_first) {
            assert_int_equal(event->parent_block_hash.n_bytes, 0);
        } else {
            assert_number(&event->parent_block_hash, rig_number(&blocks[block].name.parent));
        }
        for (uint32_t j = 0; j < counts[i]; j++, block++) {
            assert_number(&event->block_hashes.items[j], rig_number(&blocks[block].name.hash));
            assert_memory_equal(event->token_ids.items + (size_t)j * RIG_TOKENS,
                                blocks[block].tokens, sizeof(blocks[block].tokens));
        }
    }
    assert_int_equal(event->kind, KV_EVENT_REMOVED);
    assert_text(event->medium, "GPU");
    assert_true(event->group_idx.is_set && event->group_idx.value == 0);
    assert_int_equal(event->block_hashes.count, 1);
    assert_number(&event->block_hashes.items[0], rig_number(&blocks[2].name.hash));
    assert_text(event[1].medium, "STORAGE");
    assert_int_equal(event[2].kind, KV_EVENT_CLEARED);
    kv_event_batch_fini(&batch);
    assert_int_equal(kv_publisher_stats(rig.publisher).blocks, 8);
    assert_int_equal(kv_publisher_stats(rig.publisher).events, 6);
    rig_close(&rig);
}

static void extra_keys_are_untagged_and_the_salt_is_the_first_block_s(void **state)
{
    (void)state;
    /* [["sql", "tenant"], ["sql"]] */
    static const uint8_t keys[] = "\x92\x92\xa3sql\xa6tenant\x91\xa3sql";
    static const uint8_t none[] = "\x91\xc0";
    rig_block_t blocks[3];
    kv_extra_t *extra = NULL;
    assert_status(kv_extra_create("tenant", "sql", "an/adapter", &extra), WEFT_OK);
    publisher_rig_t rig = rig_open("");
    rig_make_block(0, NULL, extra, &blocks[0]);
    rig_make_block(1, &blocks[0], extra, &blocks[1]);
    rig_make_block(2, NULL, NULL, &blocks[2]);
    for (size_t i = 0; i < 3; i++) {
        kv_publisher_stored(rig.publisher, KV_TIER_device, &blocks[i].name);
    }
    kv_extra_release(extra); /* the publisher has its own */
    kv_publisher_flush(rig.publisher);
    kv_event_batch_t batch = replayed_batch(&rig, 0);
    assert_int_equal(batch.n_events, 2);
    assert_text(batch.events[0].lora_name, "sql");
    assert_int_equal(batch.events[0].extra_keys.length, sizeof(keys) - 1);
    assert_memory_equal(batch.events[0].extra_keys.data, keys, sizeof(keys) - 1);
    assert_text(batch.events[1].lora_name, NULL);
    assert_memory_equal(batch.events[1].extra_keys.data, none, sizeof(none) - 1);
    kv_event_batch_fini(&batch);
    rig_close(&rig);
}

static void hashes_are_in_a_form_llmd_takes(void **state)
{
    (void)state;
    rig_block_t block;
    rig_make_block(0, NULL, NULL, &block);
    memset(block.name.hash.bytes + 24, 0, 7); /* a digest that ends with a small number */
    const uint8_t wide[] = {0x91, 0xcf, 0, 0, 0, 0, 0, 0, 0, block.name.hash.bytes[31]};
    for (uint32_t i = 0; kv_event_encoding_at(i) != NULL; i++) {
        publisher_rig_t rig = rig_open_with("", kv_event_encoding_at(i)->name, true);
        kv_publisher_stored(rig.publisher, KV_TIER_device, &block.name);
        kv_publisher_removed(rig.publisher, KV_TIER_device, &block.name.hash);
        kv_publisher_flush(rig.publisher);
        kv_event_batch_t batch = replayed_batch(&rig, 0);
        assert_int_equal(batch.n_events, 2);
        const uint8_t *first = memmem(message.frames[3], message.lengths[3], wide, sizeof(wide));
        assert_non_null(first);
        assert_non_null(memmem(first + 1,
                               message.lengths[3] - (size_t)(first + 1 - message.frames[3]), wide,
                               sizeof(wide)));
        kv_event_batch_fini(&batch);
        rig_close(&rig);
    }
}

static void whole_digests_are_an_option(void **state)
{
    (void)state;
    rig_block_t blocks[2];
    publisher_rig_t rig = rig_open_with("", "array-0.23", false);
    rig_make_block(0, NULL, NULL, &blocks[0]);
    rig_make_block(1, &blocks[0], NULL, &blocks[1]);
    kv_publisher_stored(rig.publisher, KV_TIER_device, &blocks[1].name);
    kv_publisher_flush(rig.publisher);
    kv_event_batch_t batch = replayed_batch(&rig, 0);
    const kv_event_hash_t hash = kv_event_hash_bytes(blocks[1].name.hash.bytes, KV_HASH_BYTES);
    const kv_event_hash_t parent = kv_event_hash_bytes(blocks[0].name.hash.bytes, KV_HASH_BYTES);
    assert_memory_equal(&batch.events[0].block_hashes.items[0], &hash, sizeof(hash));
    assert_memory_equal(&batch.events[0].parent_block_hash, &parent, sizeof(parent));
    kv_event_batch_fini(&batch);
    rig_close(&rig);
}

/* More than the ring holds at all: the engine waits for the publisher, and nothing is lost. */
static void a_step_larger_than_the_ring_is_one_batch(void **state)
{
    (void)state;
    enum { N = 50000 };
    kv_publisher_t *publisher = NULL;
    const kv_publisher_config_t config = {.events_config =
                                              "{\"enable_kv_cache_events\": true, \"endpoint\": "
                                              "\"tcp://127.0.0.1:0\", \"max_queue_size\": 0}",
                                          .block_tokens = RIG_TOKENS,
                                          .algo = KV_HASH_ALGO_sha256_cbor,
                                          .has_int_hashes = true};
    rig_block_t blocks[2];
    assert_status(kv_publisher_create(&config, NULL, &publisher), WEFT_OK);
    for (uint64_t i = 0; i < N; i++) {
        rig_make_block(i, i == 0 ? NULL : &blocks[(i - 1) % 2], NULL, &blocks[i % 2]);
        kv_publisher_stored(publisher, KV_TIER_device, &blocks[i % 2].name);
    }
    kv_publisher_flush(publisher);
    const publisher_rig_t rig = {.publisher = publisher};
    rig_wait_for_batches(&rig, 1);
    assert_int_equal(kv_publisher_stats(publisher).batches, 1);
    assert_int_equal(kv_publisher_stats(publisher).events, 1);
    assert_int_equal(kv_publisher_stats(publisher).blocks, N);
    assert_true(kv_publisher_stats(publisher).bytes > (size_t)N * (RIG_TOKENS + 9));
    kv_publisher_destroy(publisher);
}

static void the_engine_wakes_the_publisher_at_most_once_a_flush(void **state)
{
    (void)state;
    publisher_rig_t rig = rig_open("");
    rig_block_t block;
    rig_make_block(0, NULL, NULL, &block);
    for (int i = 0; i < 1000; i++) {
        kv_publisher_stored(rig.publisher, KV_TIER_device, &block.name);
        kv_publisher_removed(rig.publisher, KV_TIER_device, &block.name.hash);
        kv_publisher_flush(rig.publisher);
        kv_publisher_flush(rig.publisher);
    }
    rig_wait_for_batches(&rig, 1000);
    const kv_publisher_stats_t stats = kv_publisher_stats(rig.publisher);
    assert_int_equal(stats.batches, 1000);
    assert_true(stats.wakes <= 1000);
    assert_int_equal(stats.stalls, 0);
    rig_close(&rig);
}

/* ---- replay ---------------------------------------------------------------------------------- */

static void what_is_no_longer_kept_comes_as_one_batch(void **state)
{
    (void)state;
    rig_block_t blocks[8];
    kv_event_batch_t batch;
    publisher_rig_t rig = rig_open(", \"buffer_steps\": 2");
    void *dealer = connect_to(ZMQ_DEALER, rig.replay);
    for (uint64_t i = 0; i < 8; i++) {
        rig_make_block(i, i == 0 ? NULL : &blocks[i - 1], NULL, &blocks[i]);
        kv_publisher_stored(rig.publisher, KV_TIER_device, &blocks[i].name);
        kv_publisher_flush(rig.publisher);
    }
    rig_wait_for_batches(&rig, 8);
    ask(dealer, 3);
    assert_true(receive(dealer, TIMEOUT_MS));
    assert_int_equal(kv_event_sequence_decode(message.frames[2]), 5);
    assert_status(kv_event_batch_decode(message.frames[3], message.lengths[3], NULL, &batch),
                  WEFT_OK);
    assert_int_equal(batch.n_events, 2);
    assert_int_equal(batch.events[0].kind, KV_EVENT_CLEARED);
    assert_int_equal(batch.events[1].kind, KV_EVENT_STORED);
    assert_int_equal(batch.events[1].block_hashes.count, 6);
    assert_text(batch.events[1].kv_cache_spec_kind, "full_attention");
    for (uint32_t i = 0; i < 6; i++) {
        assert_number(&batch.events[1].block_hashes.items[i], rig_number(&blocks[i].name.hash));
    }
    kv_event_batch_fini(&batch);
    for (uint64_t sequence = 6; sequence < 8; sequence++) {
        assert_true(receive(dealer, TIMEOUT_MS));
        assert_int_equal(kv_event_sequence_decode(message.frames[2]), sequence);
    }
    assert_true(receive(dealer, TIMEOUT_MS));
    assert_int_equal(kv_event_sequence_decode(message.frames[2]), UINT64_MAX);
    ask(dealer, 8); /* nothing yet: the end marker alone */
    assert_true(receive(dealer, TIMEOUT_MS));
    assert_int_equal(message.n, 4);
    assert_int_equal(kv_event_sequence_decode(message.frames[2]), UINT64_MAX);
    zmq_close(dealer);
    rig_close(&rig);
}

static void requests_that_are_none_are_ignored(void **state)
{
    (void)state;
    static const char large[1000];
    publisher_rig_t rig = rig_open("");
    void *dealer = connect_to(ZMQ_DEALER, rig.replay);
    void *rude = connect_to(ZMQ_DEALER, rig.replay);
    zmq_send(dealer, "12345678", 8, 0);
    zmq_send(dealer, "", 0, 0);
    zmq_send(dealer, "", 0, ZMQ_SNDMORE);
    zmq_send(dealer, "1234", 4, 0);
    zmq_send(dealer, "x", 1, ZMQ_SNDMORE);
    zmq_send(dealer, "12345678", 8, 0);
    for (int i = 0; i < 20; i++) {
        zmq_send(dealer, "", 0, i == 19 ? 0 : ZMQ_SNDMORE);
    }
    zmq_send(rude, large, sizeof(large), 0);
    ask(dealer, 0);
    assert_true(receive(dealer, TIMEOUT_MS));
    assert_int_equal(kv_event_sequence_decode(message.frames[2]), UINT64_MAX);
    assert_int_equal(kv_publisher_stats(rig.publisher).replays, 1);
    zmq_close(dealer);
    zmq_close(rude);
    rig_close(&rig);
}

/* ---- start and end --------------------------------------------------------------------------- */

static void assert_refused(const char *config, const char *why)
{
    weft_diag_t diag = {0};
    kv_publisher_t *publisher = NULL;
    const kv_publisher_config_t wanted = {.events_config = config, .block_tokens = RIG_TOKENS};
    assert_status(kv_publisher_create(&wanted, &diag, &publisher), WEFT_ERR_INVALID);
    assert_null(publisher);
    if (strstr(diag.text, why) == NULL) {
        fail_msg("%s: \"%s\" does not say \"%s\"", config, diag.text, why);
    }
}

static void configurations_that_are_wrong_are_refused(void **state)
{
    (void)state;
    assert_refused("{", "not JSON");
    assert_refused("[]", "not a JSON object");
    assert_refused("{\"enabled\": true}", "no field is called \"enabled\"");
    assert_refused("{\"enable_kv_cache_events\": 1}", "enable_kv_cache_events: not true or false");
    assert_refused("{\"hwm\": \"5\"}", "hwm: not a whole number");
    assert_refused("{\"buffer_steps\": -1}", "buffer_steps: not a whole number");
    assert_refused("{\"max_queue_size\": 1.5}", "max_queue_size: not a whole number");
    assert_refused("{\"endpoint\": null}", "endpoint: not a text");
    assert_refused("{\"topic\": 5}", "topic: not a text");
    assert_refused("{\"replay_endpoint\": 5}", "replay_endpoint: not a text or null");
    assert_refused("{\"publisher\": \"kafka\"}", "publisher: \"kafka\"");
    assert_refused("{\"enable_kv_cache_events\": true, \"endpoint\": \"here\"}", "here");
    assert_refused("{\"enable_kv_cache_events\": true, \"endpoint\": \"tcp://*:5557x\"}", "port");
    assert_refused("{\"enable_kv_cache_events\": true, \"endpoint\": \"tcp://no host:5\"}",
                   "cannot connect to");
}

static void events_that_are_off_need_no_publisher(void **state)
{
    (void)state;
    static const char *const configs[] = {
        NULL, "", "{}", "{\"endpoint\": \"tcp://*:5557\"}",
        "{\"enable_kv_cache_events\": true, \"publisher\": \"null\"}"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(configs); i++) {
        kv_publisher_t *publisher = NULL;
        const kv_publisher_config_t config = {.events_config = configs[i]};
        assert_status(kv_publisher_create(&config, NULL, &publisher), WEFT_OK);
        assert_null(publisher);
    }
    rig_block_t block;
    rig_make_block(0, NULL, NULL, &block);
    kv_publisher_stored(NULL, KV_TIER_device, &block.name);
    kv_publisher_removed(NULL, KV_TIER_device, &block.name.hash);
    kv_publisher_cleared(NULL);
    kv_publisher_flush(NULL);
    assert_int_equal(kv_publisher_stats(NULL).batches, 0);
    json_t *sources = kv_publisher_sources(NULL);
    assert_int_equal(json_object_size(sources), 0);
    json_decref(sources);
}

static void an_endpoint_that_is_taken_is_said(void **state)
{
    (void)state;
    char config[512];
    weft_diag_t diag = {0};
    kv_publisher_t *publisher = NULL;
    publisher_rig_t rig = rig_open("");
    snprintf(config, sizeof(config),
             "{\"enable_kv_cache_events\": true, \"endpoint\": \"tcp://127.0.0.1:0\", "
             "\"replay_endpoint\": \"%s\"}",
             rig.endpoint);
    const kv_publisher_config_t wanted = {.events_config = config, .block_tokens = RIG_TOKENS};
    assert_status(kv_publisher_create(&wanted, &diag, &publisher), WEFT_ERR_IN_USE);
    assert_non_null(strstr(diag.text, rig.endpoint));
    rig_close(&rig);
}

static void sources_show_the_resolved_configuration(void **state)
{
    (void)state;
    kv_publisher_t *publisher = NULL;
    const kv_publisher_config_t config = {
        .events_config = "{\"enable_kv_cache_events\": true, \"endpoint\": \"tcp://127.0.0.1:0\", "
                         "\"topic\": \"kv@pod@model\", \"hwm\": 7}",
        .block_tokens = RIG_TOKENS,
        .data_parallel_rank = 3};
    assert_status(kv_publisher_create(&config, NULL, &publisher), WEFT_OK);
    json_t *sources = kv_publisher_sources(publisher);
    const json_t *source = json_object_get(sources, "3");
    assert_int_equal(json_object_size(source), 8);
    assert_true(json_is_true(json_object_get(source, "enable_kv_cache_events")));
    assert_string_equal(json_string_value(json_object_get(source, "publisher")), "zmq");
    assert_string_equal(json_string_value(json_object_get(source, "topic")), "kv@pod@model");
    assert_int_equal(json_integer_value(json_object_get(source, "hwm")), 7);
    assert_int_equal(json_integer_value(json_object_get(source, "buffer_steps")), 10000);
    assert_true(json_is_null(json_object_get(source, "replay_endpoint")));
    const char *endpoint = json_string_value(json_object_get(source, "endpoint"));
    assert_memory_equal(endpoint, "tcp://127.0.0.1:", 16);
    assert_true(atoi(endpoint + 16) > 0);
    json_decref(sources);
    kv_publisher_destroy(publisher);
}

static void central_mode_connects(void **state)
{
    (void)state;
    char endpoint[128], config[512];
    size_t size = sizeof(endpoint);
    kv_publisher_t *publisher = NULL;
    void *router = zmq_socket(context, ZMQ_SUB);
    zmq_setsockopt(router, ZMQ_SUBSCRIBE, "kv@", 3);
    assert_int_equal(zmq_bind(router, "tcp://127.0.0.1:*"), 0);
    zmq_getsockopt(router, ZMQ_LAST_ENDPOINT, endpoint, &size);
    snprintf(config, sizeof(config),
             "{\"enable_kv_cache_events\": true, \"endpoint\": \"%s\", \"topic\": \"kv@p@m\"}",
             endpoint);
    const kv_publisher_config_t wanted = {.events_config = config, .block_tokens = RIG_TOKENS};
    assert_status(kv_publisher_create(&wanted, NULL, &publisher), WEFT_OK);
    const publisher_rig_t rig = {.publisher = publisher};
    join(&rig, router);
    assert_frame(0, "kv@p@m", 6);
    zmq_close(router);
    kv_publisher_destroy(publisher);
}

static void failed_allocations_at_start_are_said(void **state)
{
    (void)state;
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t n = 1; status != WEFT_OK; n++) {
        kv_publisher_t *publisher = NULL;
        const kv_publisher_config_t config = {
            .events_config =
                "{\"enable_kv_cache_events\": true, \"endpoint\": \"tcp://127.0.0.1:0\", "
                "\"replay_endpoint\": \"tcp://127.0.0.1:0\"}",
            .block_tokens = RIG_TOKENS};
        weft_alloc_fail_nth(n);
        status = kv_publisher_create(&config, NULL, &publisher);
        weft_alloc_fail_nth(0);
        assert_true(status == WEFT_OK || status == WEFT_ERR_NO_MEMORY);
        kv_publisher_destroy(publisher);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replies_are_vllm_s_byte_for_byte),
        cmocka_unit_test(live_frames_are_vllm_s_byte_for_byte),
        cmocka_unit_test(sequences_of_64_bits_are_vllm_s),
        cmocka_unit_test(endpoints_follow_vllm_s_rules),
        cmocka_unit_test(chains_become_one_event_and_all_else_its_own),
        cmocka_unit_test(extra_keys_are_untagged_and_the_salt_is_the_first_block_s),
        cmocka_unit_test(hashes_are_in_a_form_llmd_takes),
        cmocka_unit_test(whole_digests_are_an_option),
        cmocka_unit_test(a_step_larger_than_the_ring_is_one_batch),
        cmocka_unit_test(the_engine_wakes_the_publisher_at_most_once_a_flush),
        cmocka_unit_test(what_is_no_longer_kept_comes_as_one_batch),
        cmocka_unit_test(requests_that_are_none_are_ignored),
        cmocka_unit_test(configurations_that_are_wrong_are_refused),
        cmocka_unit_test(events_that_are_off_need_no_publisher),
        cmocka_unit_test(an_endpoint_that_is_taken_is_said),
        cmocka_unit_test(sources_show_the_resolved_configuration),
        cmocka_unit_test(central_mode_connects),
        cmocka_unit_test(failed_allocations_at_start_are_said),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
