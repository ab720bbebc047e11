/* SPDX-License-Identifier: Apache-2.0 */
/* kv_publisher_rig: a publisher on ports of 127.0.0.1, and chains of blocks to tell it of. */
#pragma once

#include <sched.h>
#include <string.h>

#include "base/clock.h"
#include "kvstore/events/kv_publisher.h"
#include "tests/support/check.h"
#include "tests/support/random.h"
#include "tests/support/zmq_tsan.h"

enum { RIG_TOKENS = 4 };

typedef struct publisher_rig {
    kv_publisher_t *publisher;
    char endpoint[128];
    char replay[128]; /* "": none */
} publisher_rig_t;

static inline void rig_learn_endpoint(const json_t *source, const char *field, char *out)
{
    const char *text = json_string_value(json_object_get(source, field));
    snprintf(out, 128, "%s", text == NULL ? "" : text);
}

/* more: further fields of --kv-events-config, with a comma in front. */
static inline publisher_rig_t rig_open_with(const char *more, const char *encoding,
                                            bool has_int_hashes)
{
    publisher_rig_t rig = {.publisher = NULL};
    char text[1024];
    weft_diag_t diag = {0};
    snprintf(text, sizeof(text),
             "{\"enable_kv_cache_events\": true, \"endpoint\": \"tcp://127.0.0.1:0\", "
             "\"replay_endpoint\": \"tcp://127.0.0.1:0\"%s}",
             more);
    const kv_publisher_config_t config = {.events_config = text,
                                          .encoding = encoding,
                                          .block_tokens = RIG_TOKENS,
                                          .algo = KV_HASH_ALGO_sha256_cbor,
                                          .has_int_hashes = has_int_hashes};
    if (kv_publisher_create(&config, &diag, &rig.publisher) != WEFT_OK) {
        fail_msg("%s", diag.text);
    }
    assert_non_null(rig.publisher);
    json_t *sources = kv_publisher_sources(rig.publisher);
    rig_learn_endpoint(json_object_get(sources, "0"), "endpoint", rig.endpoint);
    rig_learn_endpoint(json_object_get(sources, "0"), "replay_endpoint", rig.replay);
    json_decref(sources);
    return rig;
}

static inline publisher_rig_t rig_open(const char *more)
{
    return rig_open_with(more, NULL, true);
}

static inline void rig_close(publisher_rig_t *rig)
{
    kv_publisher_destroy(rig->publisher);
    rig->publisher = NULL;
}

#define RIG_DEADLINE_NS (60 * WEFT_NS_PER_SECOND)

/* Until the publisher has sent n batches. */
static inline void rig_wait_for_batches(const publisher_rig_t *rig, uint64_t n)
{
    const uint64_t deadline = weft_clock_ns() + RIG_DEADLINE_NS;
    while (kv_publisher_stats(rig->publisher).batches < n) {
        assert_true(weft_clock_ns() < deadline);
        sched_yield();
    }
}

/* A block of content n (any number) on parent, or NULL. */
typedef struct rig_block {
    kv_name_t name;
    int32_t tokens[RIG_TOKENS];
} rig_block_t;

static inline void rig_make_block(uint64_t n, const rig_block_t *parent, kv_extra_t *extra,
                                  rig_block_t *block)
{
    test_random_t random = {n + 1};
    *block = (rig_block_t){.name = {.is_first = parent == NULL, .extra = extra}};
    for (size_t i = 0; i < KV_HASH_BYTES; i++) {
        block->name.hash.bytes[i] = (uint8_t)test_random_u64(&random);
    }
    for (size_t i = 0; i < RIG_TOKENS; i++) {
        block->tokens[i] = (int32_t)test_random_below(&random, 200000);
    }
    if (parent != NULL) {
        block->name.parent = parent->name.hash;
    }
    block->name.tokens = block->tokens;
}

/* The number events call it. */
static inline uint64_t rig_number(const kv_hash_t *hash)
{
    return kv_hash_u64(hash, KV_HASH_ALGO_sha256_cbor);
}
