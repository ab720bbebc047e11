/* SPDX-License-Identifier: Apache-2.0 */
/* The default model's tokenizer and chat template, from its own file. */
#include "tests/support/gguf_vocab.h"
#include "tests/support/text_check.h"

typedef struct fixture {
    text_tokenizer_t *tokenizer;
    char *chat_template;
} fixture_t;

static int set_up(void **state)
{
    const char *path = getenv("WEFT_TEST_MODEL");
    if (path == NULL) {
        puts("skipped: WEFT_TEST_MODEL names no model file");
        exit(77);
    }
    static fixture_t fixture;
    fixture.tokenizer = read_gguf_tokenizer(path, &fixture.chat_template);
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    fixture_t *fixture = *state;
    text_tokenizer_destroy(fixture->tokenizer);
    weft_free(fixture->chat_template);
    return 0;
}

static void check_encodings(const fixture_t *fixture, const json_t *cases)
{
    size_t index;
    json_t *item;
    json_array_foreach(cases, index, item)
    {
        const json_t *text = json_object_get(item, "text");
        const json_t *plain = json_object_get(item, "ids_no_special");
        assert_encodes(fixture->tokenizer, text, false, true, json_object_get(item, "ids"));
        if (plain != NULL) {
            assert_encodes(fixture->tokenizer, text, false, false, plain);
        }
    }
}

static void ids_equal_those_of_transformers_and_llama_cpp(void **state)
{
    json_t *vectors = read_json_vector("smollm2/tokenize.json");
    json_t *prompts = json_object_get(vectors, "prompts");
    json_t *strings = json_object_get(vectors, "strings");
    assert_int_equal(json_array_size(prompts), 14);
    assert_int_equal(json_array_size(strings), 80);
    check_encodings(*state, prompts);
    check_encodings(*state, strings);
    json_decref(vectors);
}

static void decoding_gives_the_text_back(void **state)
{
    const fixture_t *fixture = *state;
    json_t *vectors = read_json_vector("smollm2/tokenize.json");
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(vectors, "strings"), index, item)
    {
        const json_t *text = json_object_get(item, "text");
        const json_t *ids = json_object_get(item, "ids");
        int32_t buffer[4096];
        size_t length = json_array_size(ids);
        assert_true(length <= 4096);
        for (size_t i = 0; i < length; i++) {
            buffer[i] = (int32_t)json_integer_value(json_array_get(ids, i));
        }
        text_bytes_t out = {0};
        assert_status(text_tokenizer_decode(fixture->tokenizer, buffer, length, false, NULL, &out),
                      WEFT_OK);
        assert_text(out.data, out.length, text);
        text_bytes_free(out);
    }
    json_decref(vectors);
}

static void renderings_and_their_ids_equal_those_of_transformers(void **state)
{
    const fixture_t *fixture = *state;
    json_t *vectors = read_json_vector("smollm2/chat_template.json");
    weft_diag_t diag = {0};
    text_template_t *chat_template = NULL;
    assert_non_null(fixture->chat_template);
    assert_status(text_template_create(fixture->chat_template, strlen(fixture->chat_template),
                                       "<|im_start|>", "<|im_end|>", &diag, &chat_template),
                  WEFT_OK);
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(vectors, "cases"), index, item)
    {
        char *request = json_dumps(item, 0);
        text_bytes_t text = {0};
        assert_status(text_template_render(chat_template, request, strlen(request), &diag, &text),
                      WEFT_OK);
        assert_text(text.data, text.length, json_object_get(item, "rendered"));
        text_bytes_free(text);
        free(request);
        assert_encodes(fixture->tokenizer, json_object_get(item, "rendered"), false, true,
                       json_object_get(item, "ids"));
    }
    text_template_destroy(chat_template);
    json_decref(vectors);
}

static void it_is_described(void **state)
{
    const fixture_t *fixture = *state;
    assert_string_equal(text_tokenizer_describe(fixture->tokenizer),
                        "byte-level BPE (smollm), 49152 tokens");
    assert_int_equal(text_tokenizer_size(fixture->tokenizer), 49152);
    assert_int_equal(text_tokenizer_find(fixture->tokenizer, "<|im_end|>"), 2);
    assert_int_equal(text_tokenizer_eos(fixture->tokenizer), 2);
    assert_true(text_tokenizer_is_special(fixture->tokenizer, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_equal_those_of_transformers_and_llama_cpp),
        cmocka_unit_test(decoding_gives_the_text_back),
        cmocka_unit_test(renderings_and_their_ids_equal_those_of_transformers),
        cmocka_unit_test(it_is_described),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
