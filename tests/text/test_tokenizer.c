/* SPDX-License-Identifier: Apache-2.0 */
#include "base/compiler.h"
#include "tests/support/random.h"
#include "tests/support/tokenizers.h"

static void ids_equal_those_of_the_tokenizers_library(void **state)
{
    (void)state;
    text_tokenizer_t *tokenizer =
        load_json_tokenizer("byte-level/tokenizer.json", "byte-level/tokenizer_config.json");
    json_t *vectors = read_json_vector("text/byte-level/texts.json");
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(vectors, "cases"), index, item)
    {
        assert_encodes(tokenizer, json_object_get(item, "text"), false, true,
                       json_object_get(item, "ids"));
    }
    assert_int_equal(text_tokenizer_bos(tokenizer), 1);
    assert_int_equal(text_tokenizer_eos(tokenizer), 2);
    json_decref(vectors);
    text_tokenizer_destroy(tokenizer);
}

static void assert_decodes(const text_tokenizer_t *tokenizer, const json_t *ids, bool skip_special,
                           const json_t *expected)
{
    int32_t buffer[1024];
    size_t length = json_array_size(ids);
    assert_true(length <= WEFT_ARRAY_LEN(buffer));
    for (size_t i = 0; i < length; i++) {
        buffer[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    }
    text_bytes_t text = {0};
    assert_status(text_tokenizer_decode(tokenizer, buffer, length, skip_special, NULL, &text),
                  WEFT_OK);
    assert_text(text.data, text.length, expected);
    text_bytes_free(text);
}

static void every_kind_of_tokenizer_json_works_as_in_its_library(void **state)
{
    (void)state;
    static const char *const kinds[] = {"prepend", "metaspace", "wordpiece", "split"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(kinds); i++) {
        char path[256];
        snprintf(path, sizeof(path), "kinds/%s.tokenizer.json", kinds[i]);
        text_tokenizer_t *tokenizer = load_json_tokenizer(path, NULL);
        snprintf(path, sizeof(path), "text/kinds/%s.json", kinds[i]);
        json_t *vectors = read_json_vector(path);
        size_t index;
        json_t *item;
        json_array_foreach(json_object_get(vectors, "cases"), index, item)
        {
            const json_t *text = json_object_get(item, "text");
            const json_t *ids = json_object_get(item, "ids");
            print_message("%s: %s\n", kinds[i], json_string_value(text));
            assert_encodes(tokenizer, text, true, true, ids);
            assert_encodes(tokenizer, text, false, true, json_object_get(item, "ids_plain"));
            assert_decodes(tokenizer, ids, true, json_object_get(item, "decoded"));
            assert_decodes(tokenizer, ids, false, json_object_get(item, "decoded_all"));
        }
        json_decref(vectors);
        text_tokenizer_destroy(tokenizer);
    }
}

static void a_gguf_vocabulary_with_scores_works_as_in_sentencepiece(void **state)
{
    (void)state;
    json_t *vectors = read_json_vector("text/kinds/sentencepiece.json");
    text_tokenizer_t *tokenizer = load_sentencepiece(vectors);
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(vectors, "cases"), index, item)
    {
        const json_t *text = json_object_get(item, "text");
        const json_t *ids = json_object_get(item, "ids");
        print_message("%s\n", json_string_value(text));
        assert_encodes(tokenizer, text, false, false, ids);
        assert_decodes(tokenizer, ids, false, json_object_get(item, "decoded"));
    }
    assert_string_equal(text_tokenizer_describe(tokenizer), "SentencePiece BPE, 700 tokens");
    json_decref(vectors);
    text_tokenizer_destroy(tokenizer);
}

static void assert_text_encodes(const text_tokenizer_t *tokenizer, const char *text,
                                bool parse_special, const char *ids)
{
    json_t *input = json_string(text);
    json_t *expected = json_loads(ids, 0, NULL);
    assert_encodes(tokenizer, input, true, parse_special, expected);
    json_decref(input);
    json_decref(expected);
}

/* A word mark stands at the beginning and after each special token, as llama.cpp has it. */
static void special_tokens_in_a_text_count_only_when_asked_for(void **state)
{
    (void)state;
    json_t *vectors = read_json_vector("text/kinds/sentencepiece.json");
    text_tokenizer_t *tokenizer = load_sentencepiece(vectors);
    assert_text_encodes(tokenizer, "the</s>the", true, "[1, 263, 2, 263]");
    text_ids_t ids = {0};
    assert_status(text_tokenizer_encode(tokenizer, "</s>", 4, false, false, NULL, &ids), WEFT_OK);
    for (size_t i = 0; i < ids.length; i++) {
        assert_int_not_equal(ids.data[i], 2);
    }
    text_ids_free(ids);
    json_decref(vectors);
    text_tokenizer_destroy(tokenizer);
}

/* Texts made of the pieces, many times each: blanks, marks, unknown characters, decomposed ones. */
static void assert_extent_holds(const text_tokenizer_t *tokenizer, const char *name)
{
    static const char *const pieces[] = {
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "the ",
        "The",
        "\u2581",
        "_",
        "e\u0301",
        "\u1fd3\u0308\u0301",
        "\u212a",
        "\u0345",
        "\u4e2d",
        "\U0001f600",
        "[UNK]",
        "[MASK]",
        "<s>",
        "<unk>",
        "<eos>",
        "\u00ad",
        "\u200b",
        "word",
        "1234",
        "!?",
        "\x01",
    };
    const size_t extent = text_tokenizer_extent(tokenizer);
    test_random_t random = {.state = test_seed(3)};
    for (uint32_t round = 0; round < 400; round++) {
        char text[4096] = "";
        size_t length = 0;
        for (uint32_t n = 1 + test_random_below(&random, 4); n > 0; n--) {
            const char *piece = pieces[test_random_below(&random, WEFT_ARRAY_LEN(pieces))];
            for (uint32_t k = 1 + test_random_below(&random, 60); k > 0; k--) {
                length += (size_t)sprintf(text + length, "%s", piece);
            }
        }
        text_ids_t ids = {0};
        assert_status(text_tokenizer_encode(tokenizer, text, length, false, true, NULL, &ids),
                      WEFT_OK);
        if (length / extent > ids.length) {
            fail_msg("%s: %zu tokens of %zu bytes: %s", name, ids.length, length, text);
        }
        text_ids_free(ids);
    }
}

static void no_token_stands_for_more_text_than_the_extent(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool is_bounded;
    } kinds[] = {
        {"byte-level/tokenizer.json", true},       {"kinds/prepend.tokenizer.json", true},
        {"kinds/metaspace.tokenizer.json", false}, {"kinds/wordpiece.tokenizer.json", false},
        {"kinds/split.tokenizer.json", true},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(kinds); i++) {
        text_tokenizer_t *tokenizer = load_json_tokenizer(kinds[i].name, NULL);
        print_message("%s: %zu\n", kinds[i].name, text_tokenizer_extent(tokenizer));
        assert_int_equal(text_tokenizer_extent(tokenizer) < 512, kinds[i].is_bounded);
        assert_extent_holds(tokenizer, kinds[i].name);
        text_tokenizer_destroy(tokenizer);
    }
    json_t *vectors = read_json_vector("text/kinds/sentencepiece.json");
    text_tokenizer_t *tokenizer = load_sentencepiece(vectors);
    assert_true(text_tokenizer_extent(tokenizer) < 512);
    assert_extent_holds(tokenizer, "sentencepiece");
    text_tokenizer_destroy(tokenizer);
    json_decref(vectors);
}

static void bad_arguments_are_refused(void **state)
{
    (void)state;
    text_tokenizer_t *tokenizer = load_json_tokenizer("byte-level/tokenizer.json", NULL);
    const int32_t unknown[] = {5, 320};
    const int32_t negative[] = {-1};
    weft_diag_t diag = {0};
    text_ids_t ids = {0};
    text_bytes_t text = {0};
    assert_status(text_tokenizer_encode(tokenizer, "a\xc3", 2, true, true, &diag, &ids),
                  WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "byte 1"));
    assert_status(text_tokenizer_decode(tokenizer, unknown, 2, true, &diag, &text),
                  WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "320"));
    assert_status(text_tokenizer_decode(tokenizer, negative, 1, true, &diag, &text),
                  WEFT_ERR_INVALID);
    assert_status(text_tokenizer_token_bytes(tokenizer, 320, &text), WEFT_ERR_INVALID);
    assert_int_equal(text_tokenizer_find(tokenizer, "no such token"), -1);
    assert_false(text_tokenizer_is_special(tokenizer, -1));
    text_tokenizer_destroy(tokenizer);
    text_tokenizer_destroy(NULL);
    text_bytes_free((text_bytes_t){0});
    text_ids_free((text_ids_t){0});
}

/* "Ġ" is how byte-level vocabularies write a space. */
static void a_token_has_a_written_form_and_bytes(void **state)
{
    (void)state;
    text_tokenizer_t *tokenizer = load_json_tokenizer("byte-level/tokenizer.json", NULL);
    int32_t id = text_tokenizer_find(tokenizer, "Ġ");
    text_bytes_t written = {0};
    text_bytes_t bytes = {0};
    assert_status(text_tokenizer_token_string(tokenizer, id, &written), WEFT_OK);
    assert_status(text_tokenizer_token_bytes(tokenizer, id, &bytes), WEFT_OK);
    assert_int_equal(written.length, 2);
    assert_memory_equal(written.data, "Ġ", 2);
    assert_int_equal(bytes.length, 1);
    assert_memory_equal(bytes.data, " ", 1);
    text_bytes_free(written);
    text_bytes_free(bytes);
    text_tokenizer_destroy(tokenizer);
}

static void an_unknown_splitting_rule_is_described(void **state)
{
    (void)state;
    const char *const tokens[] = {"a", "b", "ab"};
    const size_t lengths[] = {1, 1, 2};
    const char *const merges[] = {"a b"};
    const size_t merge_lengths[] = {3};
    text_gguf_vocab_t vocab = {.model = "gpt2",
                               .pre = "brand-new",
                               .tokens = tokens,
                               .token_lengths = lengths,
                               .n_tokens = 3,
                               .merges = merges,
                               .merge_lengths = merge_lengths,
                               .n_merges = 1,
                               .bos = -1,
                               .eos = -1,
                               .unknown = -1};
    text_tokenizer_t *tokenizer = NULL;
    weft_diag_t diag = {0};
    assert_status(text_tokenizer_from_gguf(&vocab, &diag, &tokenizer), WEFT_OK);
    assert_non_null(strstr(text_tokenizer_describe(tokenizer), "\"brand-new\" is unknown"));
    assert_text_encodes(tokenizer, "abba", true, "[2, 1, 0]");
    text_tokenizer_destroy(tokenizer);
}

static void unsound_gguf_vocabularies_are_refused_with_a_line(void **state)
{
    (void)state;
    const char *const tokens[] = {"a", "b", "ab"};
    const size_t lengths[] = {1, 1, 2};
    const text_gguf_vocab_t sound = {.model = "gpt2",
                                     .tokens = tokens,
                                     .token_lengths = lengths,
                                     .n_tokens = 3,
                                     .bos = -1,
                                     .eos = -1,
                                     .unknown = -1};
    const char *const bad_merges[] = {"a", "a c", " ", ""};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(bad_merges); i++) {
        text_gguf_vocab_t vocab = sound;
        const size_t length = strlen(bad_merges[i]);
        text_tokenizer_t *tokenizer = NULL;
        weft_diag_t diag = {0};
        vocab.merges = &bad_merges[i];
        vocab.merge_lengths = &length;
        vocab.n_merges = 1;
        assert_status(text_tokenizer_from_gguf(&vocab, &diag, &tokenizer), WEFT_ERR_MALFORMED);
        assert_non_null(strstr(diag.text, "merges"));
    }
    text_gguf_vocab_t vocab = sound;
    text_tokenizer_t *tokenizer = NULL;
    weft_diag_t diag = {0};
    vocab.eos = 3;
    assert_status(text_tokenizer_from_gguf(&vocab, &diag, &tokenizer), WEFT_ERR_MALFORMED);
    vocab.eos = -1;
    vocab.model = "bert";
    assert_status(text_tokenizer_from_gguf(&vocab, &diag, &tokenizer), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "bert"));
    vocab.model = "llama";
    vocab.n_tokens = 0;
    assert_status(text_tokenizer_from_gguf(&vocab, &diag, &tokenizer), WEFT_ERR_MALFORMED);
}

static weft_status_t load_hostile(const char *name, weft_diag_t *diag)
{
    char path[256];
    size_t length;
    snprintf(path, sizeof(path), "hostile/%s", name);
    char *json = read_vector(path, &length);
    text_tokenizer_t *tokenizer = NULL;
    weft_status_t status = text_tokenizer_from_json(json, length, NULL, 0, 1024, diag, &tokenizer);
    assert_true((status == WEFT_OK) == (tokenizer != NULL));
    text_tokenizer_destroy(tokenizer);
    weft_free(json);
    return status;
}

static void hostile_files_get_what_their_index_expects(void **state)
{
    (void)state;
    json_t *vectors = read_json_vector("hostile/index.json");
    size_t seen = 0;
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(vectors, "files"), index, item)
    {
        const char *path = json_string_value(json_object_get(item, "path"));
        const char *expect = json_string_value(json_object_get(item, "expect"));
        if (strcmp(json_string_value(json_object_get(item, "format")), "tokenizer") != 0) {
            continue;
        }
        weft_diag_t diag = {0};
        weft_status_t status = load_hostile(path, &diag);
        print_message("%s: %s\n", path, diag.text);
        if (strcmp(expect, "accept") == 0) {
            assert_status(status, WEFT_OK);
        } else {
            assert_status(status, WEFT_ERR_MALFORMED);
            assert_string_not_equal(diag.text, "");
        }
        seen++;
    }
    assert_int_equal(seen, 8);
    json_decref(vectors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_equal_those_of_the_tokenizers_library),
        cmocka_unit_test(every_kind_of_tokenizer_json_works_as_in_its_library),
        cmocka_unit_test(a_gguf_vocabulary_with_scores_works_as_in_sentencepiece),
        cmocka_unit_test(special_tokens_in_a_text_count_only_when_asked_for),
        cmocka_unit_test(no_token_stands_for_more_text_than_the_extent),
        cmocka_unit_test(bad_arguments_are_refused),
        cmocka_unit_test(a_token_has_a_written_form_and_bytes),
        cmocka_unit_test(an_unknown_splitting_rule_is_described),
        cmocka_unit_test(unsound_gguf_vocabularies_are_refused_with_a_line),
        cmocka_unit_test(hostile_files_get_what_their_index_expects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
