/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "services/api/chat_messages.h"

static void assert_normal(const api_model_t *model, const char *given, const char *expected)
{
    api_error_t error = {0};
    json_t *messages = json_loads(given, 0, NULL);
    json_t *normal = NULL;

    assert_non_null(messages);
    assert_int_equal(chat_messages_normalize(messages, model, &normal, &error), WEFT_OK);
    json_t *wanted = json_loads(expected, 0, NULL);
    assert_non_null(wanted);
    assert_true(json_equal(normal, wanted));
    json_decref(wanted);
    json_decref(normal);
    json_decref(messages);
}

static void assert_violations(const char *given, uint32_t n, const char *param)
{
    api_error_t error = {0};
    json_t *messages = json_loads(given, 0, NULL);

    chat_messages_check(messages, &error);
    assert_int_equal(error.kind, API_ERROR_SCHEMA);
    assert_int_equal(error.n_violations, n);
    assert_string_equal(error.param, param);
    json_decref(messages);
}

static void text_parts_become_one_text(void **state)
{
    (void)state;
    const api_model_t model = {0};

    assert_normal(&model,
                  "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},\"b\"]}]",
                  "[{\"role\":\"user\",\"content\":\"a\\nb\"}]");
    assert_normal(&model, "[{\"role\":\"assistant\",\"content\":null}]",
                  "[{\"role\":\"assistant\",\"content\":\"\"}]");
}

static void a_template_that_loops_gets_parts(void **state)
{
    (void)state;
    const api_model_t model = {.template_takes_parts = true};

    assert_normal(&model, "[{\"role\":\"user\",\"content\":\"a\"}]",
                  "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]");
}

static void developer_is_system_to_a_template_that_does_not_know_it(void **state)
{
    (void)state;
    const api_model_t plain = {0};
    const api_model_t knowing = {.template_knows_developer = true};
    static const char given[] = "[{\"role\":\"developer\",\"content\":\"x\"}]";

    assert_normal(&plain, given, "[{\"role\":\"system\",\"content\":\"x\"}]");
    assert_normal(&knowing, given, given);
}

static void arguments_of_calls_become_objects(void **state)
{
    (void)state;
    const api_model_t model = {0};

    assert_normal(&model,
                  "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"1\","
                  "\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}}]}]",
                  "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"1\","
                  "\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}}]}]");
    assert_normal(&model, "[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[]}]",
                  "[{\"role\":\"assistant\",\"content\":\"x\"}]");
}

static void wrong_messages_are_named(void **state)
{
    (void)state;

    assert_violations("[]", 1, "messages");
    assert_violations("[{\"content\":\"x\"}]", 1, "messages.0.role");
    assert_violations("[1]", 1, "messages.0.role");
    assert_violations("[{\"role\":\"user\",\"content\":5}]", 1, "messages.0.content");
    assert_violations("[{\"role\":\"user\",\"content\":[5]}]", 1, "messages.0.content");
    assert_violations("[{\"role\":\"user\",\"content\":\"x\"},{\"role\":1,\"content\":5},2]", 3,
                      "messages.1.role");
}

static void parts_that_are_no_text_are_refused(void **state)
{
    (void)state;
    const api_model_t model = {0};
    api_error_t error = {0};
    json_t *messages =
        json_loads("[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]", 0, NULL);
    json_t *normal = NULL;

    chat_messages_check(messages, &error);
    assert_int_equal(api_error_status(&error), WEFT_OK);
    assert_int_equal(chat_messages_normalize(messages, &model, &normal, &error), WEFT_ERR_INVALID);
    assert_int_equal(error.kind, API_ERROR_BAD_REQUEST);
    assert_string_equal(error.param, "messages");
    json_decref(messages);
}

static void loops_over_content_are_told_from_questions_about_it(void **state)
{
    (void)state;
    static const char loop[] = "{%- for part in message['content'] %}{{ part.text }}{% endfor %}";
    static const char question[] =
        "{% for message in messages %}{% if '</think>' in message['content'] %}{% endif %}";

    assert_true(chat_messages_template_takes_parts(loop, sizeof(loop) - 1));
    assert_false(chat_messages_template_takes_parts(question, sizeof(question) - 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_parts_become_one_text),
        cmocka_unit_test(a_template_that_loops_gets_parts),
        cmocka_unit_test(developer_is_system_to_a_template_that_does_not_know_it),
        cmocka_unit_test(arguments_of_calls_become_objects),
        cmocka_unit_test(wrong_messages_are_named),
        cmocka_unit_test(parts_that_are_no_text_are_refused),
        cmocka_unit_test(loops_over_content_are_told_from_questions_about_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
