/* SPDX-License-Identifier: Apache-2.0 */
#include <malloc.h>

#include "base/compiler.h"
#include "base/utf8.h"
#include "tests/support/random.h"
#include "tests/support/tokenizers.h"

#define MAX_IDS  64
#define MAX_TEXT 4096

typedef struct streamed {
    char text[MAX_TEXT];
    size_t length;
    int32_t stop;
    size_t tokens; /* taken, up to the one with the stop string */
} streamed_t;

static void add(streamed_t *streamed, const char *text, size_t length)
{
    assert_true(weft_utf8_valid(text, length));
    assert_true(streamed->length + length < MAX_TEXT);
    memcpy(streamed->text + streamed->length, text, length);
    streamed->length += length;
    streamed->text[streamed->length] = '\0';
}

static void stream_ids(const text_tokenizer_t *tokenizer, const text_stream_config_t *config,
                       const int32_t *ids, size_t n, streamed_t *streamed)
{
    const char *text = NULL;
    size_t length = 0;
    text_stream_t *stream = NULL;
    *streamed = (streamed_t){.stop = -1};
    assert_status(text_stream_create(tokenizer, config, &stream), WEFT_OK);
    while (streamed->tokens < n && streamed->stop < 0) {
        assert_status(
            text_stream_push(stream, ids[streamed->tokens], &text, &length, &streamed->stop),
            WEFT_OK);
        add(streamed, text, length);
        streamed->tokens++;
    }
    if (streamed->stop >= 0) {
        int32_t stop;
        assert_status(text_stream_push(stream, ids[0], &text, &length, &stop), WEFT_ERR_INVALID);
    }
    assert_status(text_stream_finish(stream, &text, &length), WEFT_OK);
    add(streamed, text, length);
    text_stream_destroy(stream);
}

static text_stops_t *make_stops(const char *const *stops, size_t n)
{
    text_stops_t *table = NULL;
    assert_status(text_stops_create(stops, n, NULL, &table), WEFT_OK);
    return table;
}

static size_t draw_ids(test_random_t *random, const text_tokenizer_t *tokenizer, int32_t *ids)
{
    size_t n = test_random_below(random, MAX_IDS);
    for (size_t i = 0; i < n; i++) {
        ids[i] = (int32_t)test_random_below(random, text_tokenizer_size(tokenizer));
    }
    return n;
}

static void check_whole(const text_tokenizer_t *tokenizer, test_random_t *random)
{
    int32_t ids[MAX_IDS];
    const size_t n = draw_ids(random, tokenizer, ids);
    const bool skip_special = test_random_below(random, 2) == 0;
    const text_stream_config_t config = {.skip_special = skip_special, .starts_text = true};
    streamed_t streamed;
    text_bytes_t whole = {0};
    stream_ids(tokenizer, &config, ids, n, &streamed);
    assert_status(text_tokenizer_decode(tokenizer, ids, n, skip_special, NULL, &whole), WEFT_OK);
    assert_int_equal(whole.length, streamed.length);
    assert_memory_equal(whole.data, streamed.text, whole.length);
    text_bytes_free(whole);
}

static void what_is_streamed_equals_the_whole_decoding(void **state)
{
    (void)state;
    test_random_t random = {.state = test_seed(3)};
    json_t *vectors = read_json_vector("text/kinds/sentencepiece.json");
    text_tokenizer_t *tokenizers[] = {
        load_json_tokenizer("byte-level/tokenizer.json", NULL),
        load_json_tokenizer("kinds/prepend.tokenizer.json", NULL),
        load_json_tokenizer("kinds/metaspace.tokenizer.json", NULL),
        load_json_tokenizer("kinds/wordpiece.tokenizer.json", NULL),
        load_sentencepiece(vectors),
    };
    const uint32_t rounds = test_rounds(20000);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tokenizers); i++) {
        for (uint32_t round = 0; round < rounds; round++) {
            check_whole(tokenizers[i], &random);
        }
        text_tokenizer_destroy(tokenizers[i]);
    }
    json_decref(vectors);
}

/* After a prompt the first space is the model's own. */
static void a_continued_text_keeps_its_first_space(void **state)
{
    (void)state;
    json_t *vectors = read_json_vector("text/kinds/sentencepiece.json");
    text_tokenizer_t *tokenizer = load_sentencepiece(vectors);
    const int32_t id = text_tokenizer_find(tokenizer, "▁the");
    streamed_t streamed;
    stream_ids(tokenizer, &(text_stream_config_t){0}, &id, 1, &streamed);
    assert_string_equal(streamed.text, " the");
    stream_ids(tokenizer, &(text_stream_config_t){.starts_text = true}, &id, 1, &streamed);
    assert_string_equal(streamed.text, "the");
    text_tokenizer_destroy(tokenizer);
    json_decref(vectors);
}

/* The end of the stop string that ends first, and the longest of those; the naive way. */
static size_t find_stop(const char *text, const char *const *stops, size_t n, int32_t *stop)
{
    *stop = -1;
    for (size_t end = 1; end <= strlen(text); end++) {
        for (size_t i = 0; i < n; i++) {
            const size_t length = strlen(stops[i]);
            const bool is_longer = *stop < 0 || length > strlen(stops[*stop]);
            if (length <= end && memcmp(text + end - length, stops[i], length) == 0 && is_longer) {
                *stop = (int32_t)i;
            }
        }
        if (*stop >= 0) {
            return end;
        }
    }
    return 0;
}

static size_t spell(const text_tokenizer_t *tokenizer, const char *text, int32_t *ids)
{
    text_ids_t encoded = {0};
    assert_status(
        text_tokenizer_encode(tokenizer, text, strlen(text), false, false, NULL, &encoded),
        WEFT_OK);
    assert_true(encoded.length <= MAX_TEXT);
    memcpy(ids, encoded.data, encoded.length * sizeof(*ids));
    size_t n = encoded.length;
    text_ids_free(encoded);
    return n;
}

static void draw_text(test_random_t *random, char *text, uint32_t most)
{
    const uint32_t length = test_random_below(random, most) + 1;
    for (uint32_t i = 0; i < length; i++) {
        text[i] = "ab\n"[test_random_below(random, 3)];
    }
    text[length] = '\0';
}

static void the_text_ends_at_the_stop_string_that_ends_first(void **state)
{
    (void)state;
    test_random_t random = {.state = test_seed(5)};
    text_tokenizer_t *tokenizer = load_json_tokenizer("byte-level/tokenizer.json", NULL);
    const uint32_t rounds = test_rounds(40000);
    for (uint32_t round = 0; round < rounds; round++) {
        static int32_t ids[MAX_TEXT];
        char text[64];
        char stops[3][16];
        const char *pointers[3] = {stops[0], stops[1], stops[2]};
        const size_t n_stops = test_random_below(&random, 4);
        int32_t stop;
        streamed_t streamed;
        draw_text(&random, text, 40);
        for (size_t i = 0; i < n_stops; i++) {
            draw_text(&random, stops[i], 5);
        }
        const bool include_stop = test_random_below(&random, 2) == 0;
        text_stops_t *table = make_stops(pointers, n_stops);
        const text_stream_config_t config = {.stops = table, .include_stop = include_stop};
        const size_t n = spell(tokenizer, text, ids);
        stream_ids(tokenizer, &config, ids, n, &streamed);
        text_stops_destroy(table);
        const size_t end = find_stop(text, pointers, n_stops, &stop);
        if (stop >= 0) {
            text[include_stop ? end : end - strlen(stops[stop])] = '\0';
            assert_string_equal(stops[streamed.stop], stops[stop]);
        } else {
            assert_int_equal(streamed.stop, -1);
        }
        assert_string_equal(streamed.text, text);
    }
    text_tokenizer_destroy(tokenizer);
}

static void a_stop_string_does_not_count_in_the_first_min_tokens(void **state)
{
    (void)state;
    text_tokenizer_t *tokenizer = load_json_tokenizer("byte-level/tokenizer.json", NULL);
    const char *const stops[] = {"b"};
    int32_t ids[MAX_TEXT];
    streamed_t streamed;
    text_stops_t *table = make_stops(stops, 1);
    text_stream_config_t config = {.stops = table, .min_tokens = 2};
    assert_int_equal(spell(tokenizer, "bcbcb", ids), 5);
    stream_ids(tokenizer, &config, ids, 5, &streamed);
    assert_string_equal(streamed.text, "bc");
    assert_int_equal(streamed.tokens, 3);
    config.min_tokens = 3;
    stream_ids(tokenizer, &config, ids, 5, &streamed);
    assert_string_equal(streamed.text, "bcbc");
    text_stops_destroy(table);
    text_tokenizer_destroy(tokenizer);
}

static void unusable_stop_strings_are_refused(void **state)
{
    (void)state;
    static char huge[(1 << 16) + 2];
    memset(huge, 'a', sizeof(huge) - 1);
    const char *const empty[] = {"a", ""};
    const char *const too_long[] = {huge};
    const char *const broken[] = {"\xff"};
    text_stops_t *table = NULL;
    assert_status(text_stops_create(empty, 2, NULL, &table), WEFT_ERR_INVALID);
    assert_status(text_stops_create(too_long, 1, NULL, &table), WEFT_ERR_TOO_LARGE);
    assert_status(text_stops_create(broken, 1, NULL, &table), WEFT_ERR_MALFORMED);
    text_stops_destroy(NULL);
    text_stream_destroy(NULL);
}

/* The heap in use; no allocation of the Rust side passes by base/alloc.h. */
static size_t heap_bytes(void)
{
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static void streams_share_one_table_of_stop_strings(void **state)
{
    (void)state;
    enum { N_STREAMS = 1000 };
    text_tokenizer_t *tokenizer = load_json_tokenizer("byte-level/tokenizer.json", NULL);
    static char text[1 << 16];
    static text_stream_t *streams[N_STREAMS];
    memset(text, 'a', sizeof(text) - 1);
    const char *const stops[] = {text};
    text_stops_t *table = make_stops(stops, 1);
    const text_stream_config_t config = {.stops = table};
    const size_t before = heap_bytes();
    for (size_t i = 0; i < N_STREAMS; i++) {
        assert_status(text_stream_create(tokenizer, &config, &streams[i]), WEFT_OK);
    }
    assert_true(heap_bytes() - before < N_STREAMS * 1024);
    text_stops_destroy(table);
    /* The table lives on with them: what may be the stop string's beginning is held back. */
    int32_t ids[8];
    const size_t n = spell(tokenizer, "aab", ids);
    for (size_t i = 0; i < N_STREAMS; i++) {
        const char *shown = NULL;
        size_t length = 0;
        int32_t stop = -1;
        assert_status(text_stream_push(streams[i], ids[0], &shown, &length, &stop), WEFT_OK);
        assert_int_equal(length, 0);
        for (size_t k = 1; k < n; k++) {
            assert_status(text_stream_push(streams[i], ids[k], &shown, &length, &stop), WEFT_OK);
        }
        assert_memory_equal(shown + length - 1, "b", 1);
        text_stream_destroy(streams[i]);
    }
    text_tokenizer_destroy(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_streamed_equals_the_whole_decoding),
        cmocka_unit_test(a_continued_text_keeps_its_first_space),
        cmocka_unit_test(the_text_ends_at_the_stop_string_that_ends_first),
        cmocka_unit_test(a_stop_string_does_not_count_in_the_first_min_tokens),
        cmocka_unit_test(streams_share_one_table_of_stop_strings),
        cmocka_unit_test(unusable_stop_strings_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
