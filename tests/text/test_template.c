/* SPDX-License-Identifier: Apache-2.0 */
/* Chat templates render as transformers renders them, and cannot run away. */
#include <time.h>

#include "base/compiler.h"
#include "tests/support/text_check.h"

static text_template_t *create(const char *source)
{
    weft_diag_t diag = {0};
    text_template_t *chat_template = NULL;
    weft_status_t status =
        text_template_create(source, strlen(source), "<s>", "</s>", &diag, &chat_template);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    return chat_template;
}

static weft_status_t render(const char *source, const char *request, weft_diag_t *diag,
                            text_bytes_t *text)
{
    text_template_t *chat_template = create(source);
    weft_status_t status =
        text_template_render(chat_template, request, strlen(request), diag, text);
    text_template_destroy(chat_template);
    return status;
}

static void check_case(const json_t *item)
{
    char path[256];
    size_t length;
    snprintf(path, sizeof(path), "text/templates/%s.jinja",
             json_string_value(json_object_get(item, "template")));
    char *source = read_vector(path, &length);
    char *request = json_dumps(json_object_get(item, "request"), 0);
    const json_t *rendered = json_object_get(item, "rendered");
    weft_diag_t diag = {0};
    text_bytes_t text = {0};
    weft_status_t status = render(source, request, &diag, &text);
    if (rendered != NULL) {
        if (status < 0) {
            fail_msg("%s", diag.text);
        }
        assert_text(text.data, text.length, rendered);
    } else {
        assert_status(status, WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, json_string_value(json_object_get(item, "error"))));
    }
    text_bytes_free(text);
    free(request);
    weft_free(source);
}

static void renderings_equal_those_of_transformers(void **state)
{
    (void)state;
    json_t *vectors = read_json_vector("text/templates/cases.json");
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(vectors, "cases"), index, item)
    {
        print_message("%s: %s\n", json_string_value(json_object_get(item, "template")),
                      json_string_value(json_object_get(item, "about")));
        check_case(item);
    }
    json_decref(vectors);
}

static void a_template_with_bad_syntax_is_malformed(void **state)
{
    (void)state;
    static const char *const sources[] = {"{% if %}", "{{ a", "{% for x in y %}",
                                          "{{ x | nothing }}"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sources); i++) {
        weft_diag_t diag = {0};
        text_template_t *chat_template = NULL;
        weft_status_t status =
            text_template_create(sources[i], strlen(sources[i]), "", "", &diag, &chat_template);
        if (status == WEFT_OK) { /* filters are looked up when they run */
            text_bytes_t text = {0};
            assert_status(text_template_render(chat_template, "{}", 2, &diag, &text),
                          WEFT_ERR_INVALID);
        } else {
            assert_status(status, WEFT_ERR_MALFORMED);
        }
        assert_non_null(strstr(diag.text, "line 1"));
        text_template_destroy(chat_template);
    }
}

static void a_template_cannot_run_away(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{% for a in range(10000) %}{% for b in range(10000) %}{{ b }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(100) %}"
        "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'x' * 100000000000 }}",
        "{{ range(1000000000) }}",
        "{% set ns = namespace(l=[]) %}{% for a in range(100) %}"
        "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[]) %}{% for a in range(10000) %}"
        "{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l | tojson }}",
        "{{ 'a'.replace('', 'b' * 1000).replace('', 'c' * 1000).replace('', 'd' * 1000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format('a') }}",
        "{{ 'a' | indent(1000000000, true) }}",
        "{{ 2 ** 100000000 }}",
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sources); i++) {
        weft_diag_t diag = {0};
        text_bytes_t text = {0};
        weft_status_t status = render(sources[i], "{}", &diag, &text);
        print_message("%.60s: %s\n", sources[i], diag.text);
        assert_status(status, WEFT_ERR_INVALID);
        assert_string_not_equal(diag.text, "");
    }
}

static void a_request_that_is_no_json_object_is_invalid(void **state)
{
    (void)state;
    static const char *const requests[] = {"", "[]", "{", "{\"messages\": nothing}"};
    char nested[20002];
    memset(nested, '[', 10000);
    memset(nested + 10000, ']', 10000);
    nested[20000] = '\0';
    for (size_t i = 0; i <= WEFT_ARRAY_LEN(requests); i++) {
        weft_diag_t diag = {0};
        text_bytes_t text = {0};
        const char *request = i < WEFT_ARRAY_LEN(requests) ? requests[i] : nested;
        assert_status(render("{{ messages }}", request, &diag, &text), WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, "request"));
    }
}

static void a_final_message_that_the_template_changes_cannot_be_continued(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    text_bytes_t text = {0};
    const char *request = "{\"messages\":[{\"role\":\"assistant\",\"content\":\"so\"}],"
                          "\"continue_final_message\":true}";
    assert_status(render("{{ messages[0].content | upper }}", request, &diag, &text),
                  WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "continue"));
}

static void the_clock_is_local_time(void **state)
{
    (void)state;
    char before[32];
    char after[32];
    text_bytes_t text = {0};
    weft_diag_t diag = {0};
    time_t now = time(NULL);
    strftime(before, sizeof(before), "%d %b %Y", localtime(&now));
    assert_status(render("{{ strftime_now('%d %b %Y') }}", "{}", &diag, &text), WEFT_OK);
    now = time(NULL);
    strftime(after, sizeof(after), "%d %b %Y", localtime(&now));
    assert_true(strncmp(text.data, before, text.length) == 0 ||
                strncmp(text.data, after, text.length) == 0);
    text_bytes_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renderings_equal_those_of_transformers),
        cmocka_unit_test(a_template_with_bad_syntax_is_malformed),
        cmocka_unit_test(a_template_cannot_run_away),
        cmocka_unit_test(a_request_that_is_no_json_object_is_invalid),
        cmocka_unit_test(a_final_message_that_the_template_changes_cannot_be_continued),
        cmocka_unit_test(the_clock_is_local_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
