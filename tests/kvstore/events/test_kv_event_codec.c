/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_event_codec.h"

#include "base/compiler.h"
#include "tests/support/kv_event_json.h"
#include "tests/support/random.h"

static const kv_event_encoding_t *encoding_of(const char *release)
{
    static const char *const names[][2] = {{"0.33.0", "map-0.33"},    {"0.32.0", "map"},
                                           {"0.23.0", "array-0.23"},  {"0.17.1", "array-0.17"},
                                           {"0.14.1", "array-0.14"},  {"0.10.2", "array-0.10.2"},
                                           {"0.10.0", "array-0.10.0"}};
    const kv_event_encoding_t *encoding = NULL;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (strcmp(names[i][0], release) == 0) {
            assert_status(kv_event_encoding_parse(names[i][1], NULL, &encoding), WEFT_OK);
        }
    }
    assert_non_null(encoding);
    return encoding;
}

static kv_event_int_t rank_of(const json_t *batch)
{
    const json_t *rank = json_array_get(batch, 2);
    return json_is_null(rank) ? (kv_event_int_t){0}
                              : (kv_event_int_t){true, json_integer_value(rank)};
}

static void encode_json(weft_arena_t *arena, weft_buffer_t *out, const json_t *batch,
                        const kv_event_encoding_t *encoding, kv_event_width_t width)
{
    const json_t *events = json_array_get(batch, 1);
    kv_event_batch_begin(out, json_number_value(json_array_get(batch, 0)),
                         (uint32_t)json_array_size(events));
    for (size_t i = 0; i < json_array_size(events); i++) {
        const kv_event_t event = json_event(arena, json_array_get(events, i));
        kv_event_encode(out, encoding, width, &event);
    }
    kv_event_batch_end(out, rank_of(batch));
    assert_false(out->is_failed);
}

static void every_release_s_batches_are_encoded_byte_for_byte(void **state)
{
    (void)state;
    json_t *file = read_json_vector("kv_events/kv_events.json");
    const json_t *cases = json_object_get(file, "cases");
    assert_int_equal(json_array_size(cases), 168);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *test = json_array_get(cases, i);
        weft_arena_t arena = {0};
        weft_buffer_t out = {0};
        size_t length;
        const uint8_t *payload =
            hex_bytes(&arena, json_string_value(json_object_get(test, "payload")), &length);
        encode_json(&arena, &out, json_object_get(test, "decoded"),
                    encoding_of(json_string_value(json_object_get(test, "vllm"))),
                    KV_EVENT_SHORTEST);
        if (out.length != length || memcmp(out.data, payload, length) != 0) {
            fail_msg("%s of %s differs", json_string_value(json_object_get(test, "name")),
                     json_string_value(json_object_get(test, "vllm")));
        }
        weft_buffer_free(&out);
        weft_arena_free(&arena);
    }
    json_decref(file);
}

static void assert_spans_equal(kv_msgpack_span_t a, kv_msgpack_span_t b)
{
    assert_true(kv_event_text_equal(a, b));
}

static void assert_events_equal(const kv_event_t *a, const kv_event_t *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->block_hashes.count, b->block_hashes.count);
    for (uint32_t i = 0; i < a->block_hashes.count; i++) {
        assert_memory_equal(&a->block_hashes.items[i], &b->block_hashes.items[i],
                            sizeof(kv_event_hash_t));
    }
    assert_memory_equal(&a->parent_block_hash, &b->parent_block_hash, sizeof(kv_event_hash_t));
    assert_int_equal(a->token_ids.count, b->token_ids.count);
    for (uint32_t i = 0; i < a->token_ids.count; i++) {
        assert_int_equal(a->token_ids.items[i], b->token_ids.items[i]);
    }
    assert_int_equal(a->block_size, b->block_size);
    assert_int_equal(a->lora_id.is_set, b->lora_id.is_set);
    assert_int_equal(a->lora_id.value, b->lora_id.value);
    assert_int_equal(a->group_idx.is_set, b->group_idx.is_set);
    assert_int_equal(a->group_idx.value, b->group_idx.value);
    assert_int_equal(a->kv_cache_spec_sliding_window.value, b->kv_cache_spec_sliding_window.value);
    assert_spans_equal(a->medium, b->medium);
    assert_spans_equal(a->lora_name, b->lora_name);
    assert_spans_equal(a->extra_keys, b->extra_keys);
    assert_spans_equal(a->kv_cache_spec_kind, b->kv_cache_spec_kind);
    assert_spans_equal(a->locality, b->locality);
    assert_spans_equal(a->ownership, b->ownership);
    assert_spans_equal(a->session_id, b->session_id);
    assert_spans_equal(a->lookahead_token_ids, b->lookahead_token_ids);
}

static void every_release_s_batches_are_decoded(void **state)
{
    (void)state;
    json_t *file = read_json_vector("kv_events/kv_events.json");
    const json_t *cases = json_object_get(file, "cases");
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *test = json_array_get(cases, i);
        const json_t *expected = json_object_get(test, "decoded");
        const json_t *events = json_array_get(expected, 1);
        weft_arena_t arena = {0};
        kv_event_batch_t batch;
        weft_diag_t diag = {0};
        size_t length;
        const uint8_t *payload =
            hex_bytes(&arena, json_string_value(json_object_get(test, "payload")), &length);
        if (kv_event_batch_decode(payload, length, &diag, &batch) != WEFT_OK) {
            fail_msg("%s: %s", json_string_value(json_object_get(test, "name")), diag.text);
        }
        assert_true(batch.ts == json_number_value(json_array_get(expected, 0)));
        assert_int_equal(batch.rank.is_set, rank_of(expected).is_set);
        assert_int_equal(batch.rank.value, rank_of(expected).value);
        assert_int_equal(batch.n_events, json_array_size(events));
        for (uint32_t j = 0; j < batch.n_events; j++) {
            const kv_event_t event = json_event(&arena, json_array_get(events, j));
            assert_events_equal(&batch.events[j], &event);
        }
        kv_event_batch_fini(&batch);
        weft_arena_free(&arena);
    }
    json_decref(file);
}

/* ---- llm-d's reader -------------------------------------------------------------------------- */

static uint64_t low_u64(const kv_event_hash_t *hash)
{
    uint64_t value = 0;
    for (unsigned i = hash->n_bytes < 8 ? 0 : hash->n_bytes - 8u; i < hash->n_bytes; i++) {
        value = value << 8 | hash->bytes[i];
    }
    return value;
}

static uint64_t json_u64(const json_t *json)
{
    const kv_event_hash_t hash = json_hash(json);
    return low_u64(&hash);
}

static void assert_llmd_agrees(const kv_event_t *event, const json_t *parsed)
{
    const json_t *hashes = json_object_get(parsed, "BlockHashes");
    if (event->kind == KV_EVENT_CLEARED) {
        return;
    }
    assert_int_equal(json_array_size(hashes), event->block_hashes.count);
    for (uint32_t i = 0; i < event->block_hashes.count; i++) {
        assert_int_equal(json_u64(json_array_get(hashes, i)),
                         low_u64(&event->block_hashes.items[i]));
    }
    if (event->kind == KV_EVENT_STORED) {
        const json_t *tokens = json_object_get(parsed, "Tokens");
        assert_int_equal(json_array_size(tokens), event->token_ids.count);
        for (uint32_t i = 0; i < event->token_ids.count; i++) {
            assert_int_equal(json_integer_value(json_array_get(tokens, i)),
                             event->token_ids.items[i]);
        }
        assert_int_equal(json_u64(json_object_get(parsed, "ParentHash")),
                         low_u64(&event->parent_block_hash));
        assert_int_equal(json_integer_value(json_object_get(parsed, "BlockSize")),
                         event->block_size);
    }
}

/* Every number in a hash's place is in 8 bytes, so that none is of a type that llm-d refuses. */
static void assert_hashes_are_wide(weft_arena_t *arena, const json_t *test)
{
    weft_buffer_t out = {0};
    kv_event_batch_t batch;
    encode_json(arena, &out, json_object_get(test, "decoded"),
                encoding_of(json_string_value(json_object_get(test, "vllm"))), KV_EVENT_WIDE);
    assert_status(kv_event_batch_decode(out.data, out.length, NULL, &batch), WEFT_OK);
    for (uint32_t i = 0; i < batch.n_events; i++) {
        const kv_event_hash_t *hash = &batch.events[i].block_hashes.items[0];
        uint8_t wide[9] = {0xcf};
        memcpy(wide + 1, hash->bytes, 8);
        assert_non_null(memmem(out.data, out.length, wide, sizeof(wide)));
    }
    kv_event_batch_fini(&batch);
    weft_buffer_free(&out);
}

static void llmd_reads_the_same_and_refuses_only_short_hashes(void **state)
{
    (void)state;
    json_t *ours = read_json_vector("kv_events/kv_events.json");
    json_t *theirs = read_json_vector("kv_events/llmd_event_parse.json");
    const json_t *cases = json_object_get(theirs, "cases");
    uint32_t refused = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *test = json_array_get(cases, i);
        const json_t *result = json_object_get(test, "result");
        const json_t *events = json_object_get(result, "events");
        weft_arena_t arena = {0};
        kv_event_batch_t batch;
        size_t length;
        const uint8_t *payload =
            hex_bytes(&arena, json_string_value(json_object_get(test, "payload")), &length);
        if (json_object_get(result, "error") != NULL) {
            assert_hashes_are_wide(&arena, json_array_get(json_object_get(ours, "cases"), i));
            refused++;
        } else {
            assert_status(kv_event_batch_decode(payload, length, NULL, &batch), WEFT_OK);
            assert_int_equal(json_array_size(events), batch.n_events);
            for (uint32_t j = 0; j < batch.n_events; j++) {
                assert_llmd_agrees(&batch.events[j], json_array_get(events, j));
            }
            kv_event_batch_fini(&batch);
        }
        weft_arena_free(&arena);
    }
    assert_int_equal(refused, 14);
    json_decref(ours);
    json_decref(theirs);
}

/* ---- what is wrong --------------------------------------------------------------------------- */

static void assert_refused(const char *hex, const char *why)
{
    weft_arena_t arena = {0};
    kv_event_batch_t batch;
    weft_diag_t diag = {0};
    size_t length;
    const uint8_t *payload = hex_bytes(&arena, hex, &length);
    assert_status(kv_event_batch_decode(payload, length, &diag, &batch), WEFT_ERR_MALFORMED);
    if (strstr(diag.text, why) == NULL) {
        fail_msg("%s: \"%s\" does not say \"%s\"", hex, diag.text, why);
    }
    assert_null(batch.events);
    weft_arena_free(&arena);
}

#define TS      "cb0000000000000000"
#define STORED  "ab426c6f636b53746f726564"
#define REMOVED "ac426c6f636b52656d6f766564"
#define CLEARED "b0416c6c426c6f636b73436c6561726564"

static void faults_are_named(void **state)
{
    (void)state;
    assert_refused("", "not an array of three");
    assert_refused("92" TS "90", "not an array of three");
    assert_refused("93c090c0", "does not begin with a time");
    assert_refused("93" TS "dd7fffffff", "does not begin with a time");
    assert_refused("93" TS "dc0020" CLEARED CLEARED, "more events than");
    assert_refused("93" TS "90a0", "rank");
    assert_refused("93" TS "90c0c0", "rank");
    assert_refused("93" TS "9191a3616263c0", "no event is called \"abc\"");
    assert_refused("93" TS "9181a3616263c0c0c0c0c0c0c0", "no event is called \"\"");
    assert_refused("93" TS "9193" STORED "90c0c0c0c0c0c0c0", "too few fields");
    assert_refused("93" TS "9181a474797065" REMOVED "c0c0c0c0c0", "without block_hashes");
    assert_refused("93" TS "9192" REMOVED "91c400c0c0c0", "a block hash is neither");
    assert_refused("93" TS "9192" REMOVED "91a161c0c0c0", "a block hash is neither");
    assert_refused("93" TS "9192" REMOVED "c0c0c0c0c0", "block_hashes of BlockRemoved is wrong");
    assert_refused("93" TS "9193" REMOVED "900500", "medium of BlockRemoved is wrong");
    assert_refused("93" TS "9199" STORED "9101c0910110c0c0c09200c0c0", "extra_keys of BlockStored");
    assert_refused("93" TS "9199" STORED "9101c0910110c0c0c092c0c0c0", "one for each block");
}

static void fields_of_later_releases_are_skipped(void **state)
{
    (void)state;
    weft_arena_t arena = {0};
    kv_event_batch_t batch;
    size_t length;
    /* {"later": [1, {}], "type": "AllBlocksCleared"}, ["AllBlocksCleared", 7] */
    const uint8_t *payload = hex_bytes(
        &arena, "93" TS "9282a56c61746572920180a474797065" CLEARED "92" CLEARED "0703", &length);
    assert_status(kv_event_batch_decode(payload, length, NULL, &batch), WEFT_OK);
    assert_int_equal(batch.n_events, 2);
    assert_int_equal(batch.events[0].kind, KV_EVENT_CLEARED);
    assert_int_equal(batch.rank.value, 3);
    kv_event_batch_fini(&batch);
    weft_arena_free(&arena);
}

static void every_cut_and_every_flipped_bit_is_survived(void **state)
{
    (void)state;
    json_t *file = read_json_vector("kv_events/kv_events.json");
    const json_t *cases = json_object_get(file, "cases");
    const size_t before = weft_alloc_live_bytes();
    for (size_t i = 0; i < json_array_size(cases); i += 5) {
        weft_arena_t arena = {0};
        kv_event_batch_t batch;
        size_t length;
        uint8_t *payload = hex_bytes(
            &arena, json_string_value(json_object_get(json_array_get(cases, i), "payload")),
            &length);
        for (size_t cut = 0; cut < length; cut++) {
            assert_status(kv_event_batch_decode(payload, cut, NULL, &batch), WEFT_ERR_MALFORMED);
        }
        for (size_t bit = 0; bit < 8 * length; bit++) {
            payload[bit / 8] ^= (uint8_t)(1u << bit % 8);
            kv_event_batch_decode(payload, length, NULL, &batch);
            kv_event_batch_fini(&batch);
            payload[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        weft_arena_free(&arena);
    }
    assert_int_equal(weft_alloc_live_bytes(), before);
    json_decref(file);
}

static void an_unknown_encoding_is_told_the_known_ones(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    const kv_event_encoding_t *encoding = NULL;
    assert_status(kv_event_encoding_parse("array-0.9", &diag, &encoding), WEFT_ERR_INVALID);
    for (uint32_t i = 0; kv_event_encoding_at(i) != NULL; i++) {
        assert_non_null(strstr(diag.text, kv_event_encoding_at(i)->name));
    }
    assert_null(encoding);
}

static void no_memory_is_said(void **state)
{
    (void)state;
    weft_arena_t arena = {0};
    kv_event_batch_t batch;
    size_t length;
    const uint8_t *payload = hex_bytes(&arena, "93" TS "9192" REMOVED "9101c0", &length);
    weft_alloc_fail_nth(1);
    assert_status(kv_event_batch_decode(payload, length, NULL, &batch), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(0);
    weft_arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_release_s_batches_are_encoded_byte_for_byte),
        cmocka_unit_test(every_release_s_batches_are_decoded),
        cmocka_unit_test(llmd_reads_the_same_and_refuses_only_short_hashes),
        cmocka_unit_test(faults_are_named),
        cmocka_unit_test(fields_of_later_releases_are_skipped),
        cmocka_unit_test(every_cut_and_every_flipped_bit_is_survived),
        cmocka_unit_test(an_unknown_encoding_is_told_the_known_ones),
        cmocka_unit_test(no_memory_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
