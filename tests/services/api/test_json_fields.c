/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "services/api/json_fields.h"

typedef struct example {
    bool flag;
    int64_t count;
    double ratio;
    const char *name;
    json_t *list;
} example_t;

static const json_field_t rows[] = {
    {"flag", JSON_FIELD_BOOL, offsetof(example_t, flag), 0, 0, ""},
    {"count", JSON_FIELD_I64, offsetof(example_t, count), 1, 10, "must be in [1, 10]"},
    {"ratio", JSON_FIELD_F64, offsetof(example_t, ratio), DBL_MIN, 1, "must be in (0, 1]"},
    {"name", JSON_FIELD_STR, offsetof(example_t, name), 0, 0, ""},
    {"list", JSON_FIELD_ARRAY, offsetof(example_t, list), 0, 0, ""},
};

static weft_status_t read_text(const char *text, example_t *example, api_error_t *error,
                               json_t **json)
{
    *json = NULL;
    if (json_fields_parse(text, strlen(text), json, error) == WEFT_OK) {
        json_fields_read(*json, rows, WEFT_ARRAY_LEN(rows), "", example, error);
    }
    return api_error_status(error);
}

static void members_reach_their_fields(void **state)
{
    (void)state;
    example_t example = {.count = 7};
    api_error_t error = {0};
    json_t *json;

    assert_int_equal(read_text("{\"flag\":true,\"count\":null,\"ratio\":1,\"name\":\"n\","
                               "\"list\":[1],\"unknown\":{}}",
                               &example, &error, &json),
                     WEFT_OK);
    assert_true(example.flag);
    assert_int_equal(example.count, 7);
    assert_true(example.ratio == 1.0);
    assert_string_equal(example.name, "n");
    assert_int_equal(json_array_size(example.list), 1);
    json_decref(json);
}

static void a_whole_real_number_is_an_integer(void **state)
{
    (void)state;
    example_t example = {0};
    api_error_t error = {0};
    json_t *json;

    assert_int_equal(read_text("{\"count\":5.0}", &example, &error, &json), WEFT_OK);
    assert_int_equal(example.count, 5);
    json_decref(json);
    assert_int_equal(read_text("{\"count\":5.5}", &example, &error, &json), WEFT_ERR_INVALID);
    json_decref(json);
}

static void every_wrong_type_is_named_and_counted(void **state)
{
    (void)state;
    example_t example = {0};
    api_error_t error = {0};
    json_t *json;

    assert_int_equal(read_text("{\"flag\":1,\"count\":\"5\",\"name\":[]}", &example, &error, &json),
                     WEFT_ERR_INVALID);
    assert_int_equal(error.kind, API_ERROR_SCHEMA);
    assert_int_equal(error.n_violations, 3);
    assert_string_equal(error.param, "flag");
    assert_non_null(strstr(error.message.text, "count: Input should be a valid integer"));
    json_decref(json);

    weft_buffer_t text = {0};
    weft_json_t out;
    weft_json_init(&out, &text);
    api_error_write(&error, &out);
    json_t *shape = json_loadb(text.data, text.length, 0, NULL);
    const json_t *inner = json_object_get(shape, "error");
    assert_int_equal(json_integer_value(json_object_get(inner, "code")), 400);
    assert_string_equal(json_string_value(json_object_get(inner, "type")), "Bad Request");
    assert_ptr_equal(
        strstr(json_string_value(json_object_get(inner, "message")), "3 validation errors:"),
        json_string_value(json_object_get(inner, "message")));
    json_decref(shape);
    weft_buffer_free(&text);
}

static char *message_of(const api_error_t *error)
{
    weft_buffer_t text = {0};
    weft_json_t out;

    weft_json_init(&out, &text);
    api_error_write(error, &out);
    json_t *shape = json_loadb(text.data, text.length, 0, NULL);
    char *message =
        strdup(json_string_value(json_object_get(json_object_get(shape, "error"), "message")));
    json_decref(shape);
    weft_buffer_free(&text);
    return message;
}

static void tables_of_one_body_report_together(void **state)
{
    (void)state;
    example_t example = {0};
    api_error_t error = {0};
    json_t *json = json_loads("{\"flag\":1,\"ratio\":7,\"list\":[1,\"a\",2.5,3.0]}", 0, NULL);

    json_fields_read(json, rows, WEFT_ARRAY_LEN(rows), "", &example, &error);
    json_fields_read(json, rows, 1, "again", &example, &error);
    json_fields_check_items(example.list, JSON_FIELD_I64, "list", &error);
    assert_int_equal(error.kind, API_ERROR_SCHEMA); /* outranks the ratio's range */
    assert_string_equal(error.param, "flag");
    char *message = message_of(&error);
    assert_string_equal(message, "4 validation errors: flag: Input should be a valid boolean; "
                                 "again.flag: Input should be a valid boolean; "
                                 "list.1: Input should be a valid integer; "
                                 "list.2: Input should be a valid integer");
    free(message);
    json_decref(json);
}

static void of_many_violations_the_first_are_listed_and_all_are_counted(void **state)
{
    (void)state;
    api_error_t error = {0};
    json_t *list = json_array();

    for (int i = 0; i < 1000; i++) {
        json_array_append_new(list, json_null());
    }
    json_fields_check_items(list, JSON_FIELD_STR, "stop", &error);
    char *message = message_of(&error);
    assert_ptr_equal(strstr(message, "1000 validation errors: stop.0: "), message);
    assert_non_null(strstr(message, "; stop.15: "));
    assert_null(strstr(message, "stop.16"));
    assert_string_equal(message + strlen(message) - strlen("; and 984 more"), "; and 984 more");
    free(message);
    json_decref(list);
}

static void a_number_outside_its_range_is_a_bad_request(void **state)
{
    (void)state;
    example_t example = {0};
    api_error_t error = {0};
    json_t *json;

    assert_int_equal(read_text("{\"ratio\":0}", &example, &error, &json), WEFT_ERR_INVALID);
    assert_int_equal(error.kind, API_ERROR_BAD_REQUEST);
    assert_string_equal(error.param, "ratio");
    assert_string_equal(error.message.text, "ratio must be in (0, 1], got 0.");
    json_decref(json);
}

static void assert_refused(const char *text, size_t length, api_error_kind_t kind)
{
    api_error_t error = {0};
    json_t *json = NULL;

    assert_int_equal(json_fields_parse(text, length, &json, &error), WEFT_ERR_INVALID);
    assert_int_equal(error.kind, kind);
    assert_null(json);
}

static void bodies_that_are_no_object_are_refused(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "", "{", "[]", "\"x\"", "{}{}", "{\"a\":}", "{\"a\":\"\xff\"}", "{'a':1}", "{\"a\":1e999}"};

    for (size_t i = 0; i < WEFT_ARRAY_LEN(bodies); i++) {
        assert_refused(bodies[i], strlen(bodies[i]), API_ERROR_SCHEMA);
    }
}

static void deep_nesting_is_refused_without_a_crash(void **state)
{
    (void)state;
    enum { DEPTH = 10000 };
    char *text = malloc(DEPTH + 6);

    memcpy(text, "{\"a\":", 5);
    memset(text + 5, '[', DEPTH);
    assert_refused(text, DEPTH + 5, API_ERROR_SCHEMA);
    free(text);
}

static void a_body_of_too_many_values_is_refused_before_it_is_parsed(void **state)
{
    (void)state;
    size_t length = 3 * (size_t)JSON_FIELDS_MAX_VALUES;
    char *text = malloc(length);
    api_error_t error = {0};
    json_t *json = NULL;

    for (size_t i = 0; i + 3 <= length; i += 3) {
        memcpy(text + i, "[],", 3);
    }
    size_t before = weft_alloc_live_bytes();
    assert_int_equal(json_fields_parse(text, length, &json, &error), WEFT_ERR_INVALID);
    assert_int_equal(api_error_http_status(&error), 413);
    assert_int_equal(weft_alloc_live_bytes(), before);
    free(text);
}

static void commas_inside_strings_are_no_values(void **state)
{
    (void)state;
    size_t length = 2 * (size_t)JSON_FIELDS_MAX_VALUES;
    char *text = malloc(length);
    api_error_t error = {0};
    json_t *json = NULL;

    memset(text, ',', length);
    memcpy(text, "{\"a\":\"\\\"", 8);
    memcpy(text + length - 2, "\"}", 2);
    assert_int_equal(json_fields_parse(text, length, &json, &error), WEFT_OK);
    json_decref(json);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(members_reach_their_fields),
        cmocka_unit_test(a_whole_real_number_is_an_integer),
        cmocka_unit_test(every_wrong_type_is_named_and_counted),
        cmocka_unit_test(tables_of_one_body_report_together),
        cmocka_unit_test(of_many_violations_the_first_are_listed_and_all_are_counted),
        cmocka_unit_test(a_number_outside_its_range_is_a_bad_request),
        cmocka_unit_test(bodies_that_are_no_object_are_refused),
        cmocka_unit_test(deep_nesting_is_refused_without_a_crash),
        cmocka_unit_test(a_body_of_too_many_values_is_refused_before_it_is_parsed),
        cmocka_unit_test(commas_inside_strings_are_no_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
