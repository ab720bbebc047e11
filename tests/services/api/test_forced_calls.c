/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "services/api/forced_calls.h"
#include "tests/support/random.h"

static void note(void *user, text_delta_kind_t kind, uint32_t index, const char *text,
                 size_t length)
{
    weft_buffer_t *log = user;

    if (kind == TEXT_DELTA_TOOL_BEGIN) {
        weft_buffer_printf(log, "|%u:%.*s(", index, (int)length, text);
    } else {
        weft_buffer_append(log, text, length);
    }
}

/* What calls of text come to, fed in pieces that end where cuts says. */
static void assert_calls(const char *text, const char *expected, unsigned cut)
{
    chat_tools_t tools = {.mode = CHAT_TOOLS_REQUIRED};
    forced_calls_t calls;
    weft_buffer_t log = {0};
    size_t length = strlen(text);

    forced_calls_init(&calls, &tools);
    for (size_t at = 0; at < length;) {
        size_t step = cut == 0 ? length : 1 + (size_t)rand() % cut;
        step = step > length - at ? length - at : step;
        forced_calls_push(&calls, text + at, step, note, &log);
        at += step;
    }
    weft_buffer_append(&log, "", 1);
    assert_string_equal(log.data, expected);
    weft_buffer_free(&log);
    forced_calls_fini(&calls);
}

static void calls_come_out_the_same_wherever_the_text_is_cut(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"[{\"name\": \"f\", \"parameters\": {\"a\": [1, {\"b\": \"}],{\"}]}}]",
         "|0:f({\"a\": [1, {\"b\": \"}],{\"}]}"},
        {"[{\"name\":\"f\",\"parameters\":{}},{\"name\":\"g\",\"parameters\":{\"name\":\"x\"}}]",
         "|0:f({}|1:g({\"name\":\"x\"}"},
        {" [ { \"name\" : \"q\\\"\\u0041\" , \"parameters\" : \"\\\\\" } ] ", "|0:q\"A(\"\\\\\" "},
        {"[{\"name\":\"f\",\"parameters\":{\"cut\":", "|0:f({\"cut\":"},
        {"[]", ""},
        {"}}]],,::\"", ""},
    };
    srand((unsigned)test_seed(1));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_calls(cases[i][0], cases[i][1], 0);
        for (int round = 0; round < 50; round++) {
            assert_calls(cases[i][0], cases[i][1], 4);
        }
    }
}

static void a_named_function_takes_the_whole_text(void **state)
{
    (void)state;
    chat_tools_t tools = {.mode = CHAT_TOOLS_NAMED, .name = "f"};
    forced_calls_t calls;
    weft_buffer_t log = {0};

    forced_calls_init(&calls, &tools);
    forced_calls_push(&calls, "{\"a\"", 4, note, &log);
    forced_calls_push(&calls, ":1}", 3, note, &log);
    weft_buffer_append(&log, "", 1);
    assert_string_equal(log.data, "|0:f({\"a\":1}");
    weft_buffer_free(&log);
    forced_calls_fini(&calls);
}

static json_t *parse(const char *text)
{
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(json);
    return json;
}

static void a_required_call_is_constrained_to_one_of_the_tools(void **state)
{
    (void)state;
    weft_arena_t arena = {0};
    api_error_t error = {0};
    chat_tools_t chat;
    structured_output_t output;
    json_t *tools = parse("[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":"
                          "{\"type\":\"object\",\"$defs\":{\"d\":{\"type\":\"string\"}},"
                          "\"properties\":{\"x\":{\"$ref\":\"#/$defs/d\"}}}}},"
                          "{\"type\":\"function\",\"function\":{\"name\":\"g\"}}]");
    json_t *choice = parse("\"required\"");

    assert_int_equal(chat_tools_read(tools, choice, &arena, &chat, &error), WEFT_OK);
    assert_int_equal(chat.mode, CHAT_TOOLS_REQUIRED);
    assert_int_equal(chat_tools_constrain(&chat, tools, false, &arena, &output, &error), WEFT_OK);
    json_t *schema = parse(output.source);
    const json_t *items = json_object_get(json_object_get(schema, "items"), "anyOf");
    assert_int_equal(json_array_size(items), 2);
    assert_int_equal(json_integer_value(json_object_get(schema, "maxItems")), 1);
    assert_non_null(strstr(output.source, "\"#/items/anyOf/0/properties/parameters/$defs/d\""));
    assert_null(json_object_get(schema, "$defs"));
    json_decref(schema);
    json_decref(choice);
    json_decref(tools);
    weft_arena_free(&arena);
}

static void assert_choice(const char *tools_text, const char *choice_text, weft_status_t expected,
                          chat_tool_mode_t mode)
{
    weft_arena_t arena = {0};
    api_error_t error = {0};
    chat_tools_t chat;
    json_t *tools = tools_text != NULL ? parse(tools_text) : NULL;
    json_t *choice = choice_text != NULL ? parse(choice_text) : NULL;

    chat_tools_check(tools, choice, &error);
    weft_status_t status = api_error_status(&error);
    if (status == WEFT_OK) {
        status = chat_tools_read(tools, choice, &arena, &chat, &error);
    }
    assert_int_equal(status, expected);
    if (expected == WEFT_OK) {
        assert_int_equal(chat.mode, mode);
    }
    json_decref(tools);
    json_decref(choice);
    weft_arena_free(&arena);
}

static void a_choice_must_fit_the_tools(void **state)
{
    (void)state;
    static const char tools[] = "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]";
    static const char f[] = "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}";
    static const char g[] = "{\"type\":\"function\",\"function\":{\"name\":\"g\"}}";

    assert_choice(NULL, NULL, WEFT_OK, CHAT_TOOLS_NONE);
    assert_choice(NULL, "\"none\"", WEFT_OK, CHAT_TOOLS_NONE);
    assert_choice(NULL, "\"auto\"", WEFT_ERR_INVALID, CHAT_TOOLS_NONE);
    assert_choice(tools, NULL, WEFT_OK, CHAT_TOOLS_AUTO);
    assert_choice(tools, "\"none\"", WEFT_OK, CHAT_TOOLS_NONE);
    assert_choice(tools, f, WEFT_OK, CHAT_TOOLS_NAMED);
    assert_choice(tools, g, WEFT_ERR_INVALID, CHAT_TOOLS_NONE);
    assert_choice(tools, "\"maybe\"", WEFT_ERR_INVALID, CHAT_TOOLS_NONE);
    assert_choice("[{}]", NULL, WEFT_ERR_INVALID, CHAT_TOOLS_NONE);
    assert_choice("[1]", NULL, WEFT_ERR_INVALID, CHAT_TOOLS_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_come_out_the_same_wherever_the_text_is_cut),
        cmocka_unit_test(a_named_function_takes_the_whole_text),
        cmocka_unit_test(a_required_call_is_constrained_to_one_of_the_tools),
        cmocka_unit_test(a_choice_must_fit_the_tools),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
