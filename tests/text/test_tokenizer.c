/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/text_check.h"

static text_tokenizer_t *load(const char *folder)
{
    char path[256];
    size_t json_length;
    size_t config_length;
    snprintf(path, sizeof(path), "%s/tokenizer.json", folder);
    char *json = read_vector(path, &json_length);
    snprintf(path, sizeof(path), "%s/tokenizer_config.json", folder);
    char *config = read_vector(path, &config_length);
    weft_diag_t diag = {0};
    text_tokenizer_t *tokenizer = NULL;
    weft_status_t status = text_tokenizer_from_json(json, json_length, config, config_length,
                                                    1 << 20, &diag, &tokenizer);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    weft_free(json);
    weft_free(config);
    return tokenizer;
}

static void ids_equal_those_of_the_tokenizers_library(void **state)
{
    (void)state;
    text_tokenizer_t *tokenizer = load("text/byte-level");
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
        cmocka_unit_test(hostile_files_get_what_their_index_expects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
