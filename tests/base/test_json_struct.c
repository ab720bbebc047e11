/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_struct.h"

#include <string.h>

#include "base/compiler.h"
#include "tests/support/check.h"

typedef struct thing {
    bool is_on;
    uint64_t count;
    double number;
    char *text;
    char *maybe;
    char *names;
} thing_t;

static const weft_json_field_t fields[] = {
    {"is_on", WEFT_JSON_BOOL, offsetof(thing_t, is_on), 0, 0},
    {"count", WEFT_JSON_COUNT, offsetof(thing_t, count), 1, 100},
    {"number", WEFT_JSON_NUMBER, offsetof(thing_t, number), 0, 0},
    {"text", WEFT_JSON_TEXT, offsetof(thing_t, text), 0, 0},
    {"maybe", WEFT_JSON_OPTIONAL, offsetof(thing_t, maybe), 0, 0},
    {"names", WEFT_JSON_NAMES, offsetof(thing_t, names), 0, 0},
};

/* Sets every field that the object names. */
static weft_status_t read(const char *json, weft_diag_t *diag, thing_t *thing)
{
    json_t *object;
    weft_status_t status = weft_json_parse_object(json, "--thing: ", diag, &object);
    if (status < 0) {
        return status;
    }
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        const weft_json_field_t *field = weft_json_find_field(fields, WEFT_ARRAY_LEN(fields), name);
        assert_non_null(field);
        status = status < 0 ? status : weft_json_read_field(field, value, "--thing: ", diag, thing);
    }
    json_decref(object);
    return status;
}

static void values_go_where_their_fields_are(void **state)
{
    (void)state;
    thing_t thing = {0};
    assert_status(
        read("{\"is_on\": true, \"count\": 100, \"number\": 0.5, \"text\": \"a\", \"maybe\": \"c\","
             " \"names\": [\"UCX\", \"Tcp\"]}",
             NULL, &thing),
        WEFT_OK);
    assert_true(thing.is_on);
    assert_int_equal(thing.count, 100);
    assert_true(thing.number == 0.5);
    assert_string_equal(thing.text, "a");
    assert_string_equal(thing.names, "ucx,tcp");
    assert_status(read("{\"names\": \"SHM\", \"text\": \"b\", \"maybe\": null}", NULL, &thing),
                  WEFT_OK);
    assert_string_equal(thing.names, "shm");
    assert_string_equal(thing.text, "b");
    assert_null(thing.maybe);

    thing_t copy = thing;
    assert_status(weft_json_copy_texts(fields, WEFT_ARRAY_LEN(fields), &copy), WEFT_OK);
    weft_json_free_texts(fields, WEFT_ARRAY_LEN(fields), &thing);
    assert_null(thing.text);
    assert_string_equal(copy.text, "b");
    weft_json_free_texts(fields, WEFT_ARRAY_LEN(fields), &copy);
}

static void what_does_not_fit_is_named_and_changes_nothing(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"{\"is_on\": 1}", "--thing: is_on: not true or false"},
        {"{\"count\": 101}", "--thing: count: not a whole number from 1 to 100"},
        {"{\"count\": 0}", "--thing: count: not a whole number from 1 to 100"},
        {"{\"count\": -1}", "--thing: count: not a whole number from 1 to 100"},
        {"{\"count\": 1.0}", "--thing: count: not a whole number from 1 to 100"},
        {"{\"number\": 0}", "--thing: number: not a number above 0"},
        {"{\"text\": \"a\\u0000b\"}", "--thing: not JSON"},
        {"{\"text\": null}", "--thing: text: not a text"},
        {"{\"maybe\": 1}", "--thing: maybe: not a text or null"},
        {"{\"names\": [1]}", "--thing: names: not a list of texts"},
        {"{\"text\": \"a\", \"text\": \"b\"}", "--thing: not JSON"},
        {"[]", "--thing: not a JSON object"},
        {"", "--thing: not JSON"},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(wrong); i++) {
        thing_t thing = {0};
        weft_diag_t diag = {0};
        assert_status(read(wrong[i][0], &diag, &thing), WEFT_ERR_INVALID);
        assert_memory_equal(diag.text, wrong[i][1], strlen(wrong[i][1]));
        assert_memory_equal(&thing, &(thing_t){0}, sizeof(thing));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_go_where_their_fields_are),
        cmocka_unit_test(what_does_not_fit_is_named_and_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
