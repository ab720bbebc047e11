/* SPDX-License-Identifier: Apache-2.0 */
/* What models say, taken apart the same way wherever the stream is cut. */
#include "tests/support/random.h"
#include "tests/support/text_check.h"

#define MAX_CALLS 16
#define MAX_TEXT  1024

typedef struct joined {
    char content[MAX_TEXT];
    char thought[MAX_TEXT];
    char names[MAX_CALLS][MAX_TEXT];
    char arguments[MAX_CALLS][MAX_TEXT];
} joined_t;

static void append(char *to, const char *text, size_t length)
{
    size_t old = strlen(to);
    assert_true(old + length < MAX_TEXT);
    memcpy(to + old, text, length);
    to[old + length] = '\0';
}

static void join(void *user, text_delta_kind_t kind, uint32_t tool_index, const char *text,
                 size_t length)
{
    joined_t *joined = user;
    assert_true(tool_index < MAX_CALLS);
    assert_true(length > 0);
    switch (kind) {
    case TEXT_DELTA_CONTENT:
        append(joined->content, text, length);
        break;
    case TEXT_DELTA_REASONING:
        append(joined->thought, text, length);
        break;
    case TEXT_DELTA_TOOL_BEGIN:
        assert_string_equal(joined->names[tool_index], "");
        append(joined->names[tool_index], text, length);
        break;
    case TEXT_DELTA_TOOL_ARGUMENTS:
        assert_string_not_equal(joined->names[tool_index], "");
        append(joined->arguments[tool_index], text, length);
        break;
    }
}

/* The end of a piece of text, drawn at a character's border; all of it without randomness. */
static size_t cut(const char *text, size_t begin, size_t length, test_random_t *random)
{
    size_t end = length;
    if (random != NULL && begin < length) {
        uint32_t most = test_random_below(random, 2) == 0 ? 3 : 40;
        end = begin + test_random_below(random, most);
        end = end < length ? end : length;
    }
    while (end < length && ((unsigned char)text[end] & 0xc0) == 0x80) {
        end++;
    }
    return end;
}

static void parse(const json_t *item, test_random_t *random, joined_t *joined)
{
    const char *text = json_string_value(json_object_get(item, "text"));
    size_t length = strlen(text);
    weft_diag_t diag = {0};
    text_output_t *output = NULL;
    weft_status_t status =
        text_output_create(json_string_value(json_object_get(item, "tool")),
                           json_string_value(json_object_get(item, "reasoning")),
                           json_is_true(json_object_get(item, "inside")), &diag, &output);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    for (size_t begin = 0; begin < length;) {
        size_t end = cut(text, begin, length, random);
        assert_status(text_output_push(output, text + begin, end - begin, false, join, joined),
                      WEFT_OK);
        begin = end;
    }
    assert_status(text_output_push(output, "", 0, true, join, joined), WEFT_OK);
    text_output_destroy(output);
}

static void check(const json_t *item, const joined_t *joined)
{
    const json_t *calls = json_object_get(item, "calls");
    assert_string_equal(joined->content, json_string_value(json_object_get(item, "content")));
    assert_string_equal(joined->thought, json_string_value(json_object_get(item, "thought")));
    for (size_t i = 0; i < MAX_CALLS; i++) {
        const json_t *call = json_array_get(calls, i);
        const char *name = json_string_value(json_array_get(call, 0));
        const char *arguments = json_string_value(json_array_get(call, 1));
        assert_string_equal(joined->names[i], name == NULL ? "" : name);
        assert_string_equal(joined->arguments[i], arguments == NULL ? "" : arguments);
    }
}

static void every_way_of_writing_calls_and_reasoning_is_understood(void **state)
{
    (void)state;
    json_t *vectors = read_json_vector("text/outputs.json");
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(vectors, "cases"), index, item)
    {
        joined_t joined = {0};
        print_message("%s\n", json_string_value(json_object_get(item, "name")));
        parse(item, NULL, &joined);
        check(item, &joined);
    }
    json_decref(vectors);
}

static void any_cutting_gives_the_same_answer(void **state)
{
    (void)state;
    test_random_t random = {.state = test_seed(7)};
    json_t *vectors = read_json_vector("text/outputs.json");
    uint32_t rounds = test_rounds(4000);
    for (uint32_t round = 0; round < rounds; round++) {
        size_t index;
        json_t *item;
        json_array_foreach(json_object_get(vectors, "cases"), index, item)
        {
            joined_t joined = {0};
            parse(item, &random, &joined);
            check(item, &joined);
        }
    }
    json_decref(vectors);
}

/* Texts of what calls are made of, in any order. */
static void any_cutting_of_anything_gives_the_same_answer(void **state)
{
    (void)state;
    static const char *const tools[] = {"hermes",      "llama3_json", "mistral",
                                        "deepseek_v3", "pythonic",    "qwen3_coder"};
    static const char *const pieces[] = {
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "f",
        "[",
        "]",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "{\"name\": \"f\", \"arguments\": ",
        "{\"name\": \"f\", \"parameters\": {",
        "{\"k\": [\"}\", 2]}",
        "{}",
        "{",
        "}",
        "}}",
        "\"",
        ",",
        ";",
        " ",
        "\n",
        "word",
        "\\\"",
        "\"{\\\"k\\\": 1}\"",
        "\"name\"",
        ":",
        "null",
        "<function=f>",
        "</function>",
        "(x=1)",
        "é",
    };
    test_random_t random = {.state = test_seed(11)};
    uint32_t rounds = test_rounds(200000);
    for (uint32_t round = 0; round < rounds; round++) {
        char text[MAX_TEXT] = "";
        for (uint32_t n = 1 + test_random_below(&random, 16); n > 0; n--) {
            const char *piece = pieces[test_random_below(&random, WEFT_ARRAY_LEN(pieces))];
            append(text, piece, strlen(piece));
        }
        const char *tool = tools[test_random_below(&random, WEFT_ARRAY_LEN(tools))];
        json_t *item = json_pack("{s:s,s:s}", "tool", tool, "text", text);
        joined_t whole = {0};
        joined_t joined = {0};
        parse(item, NULL, &whole);
        parse(item, &random, &joined);
        if (memcmp(&whole, &joined, sizeof(whole)) != 0) {
            fail_msg("%s depends on its pieces: %s", tool, text);
        }
        json_decref(item);
    }
}

/* What is known of the first call's arguments after `text` without its last `held` bytes. */
static void assert_arguments_so_far(const char *tool, const char *text, size_t held,
                                    const char *arguments)
{
    joined_t joined = {0};
    text_output_t *output = NULL;
    assert_status(text_output_create(tool, NULL, false, NULL, &output), WEFT_OK);
    for (const char *at = text; at < text + strlen(text) - held;) {
        size_t end = 1;
        while (((unsigned char)at[end] & 0xc0) == 0x80) {
            end++;
        }
        assert_status(text_output_push(output, at, end, false, join, &joined), WEFT_OK);
        at += end;
    }
    assert_string_equal(joined.names[0], "f");
    assert_string_equal(joined.arguments[0], arguments);
    text_output_destroy(output);
}

static void arguments_are_given_out_while_they_are_written(void **state)
{
    (void)state;
    static const struct {
        const char *tool;
        const char *text;
    } cases[] = {
        {"hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"k\": [\"}\", 2"},
        {"llama3_json", "{\"name\": \"f\", \"parameters\": {\"k\": [\"}\", 2"},
        {"mistral", "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"k\": [\"}\", 2"},
        {"mistral", "[TOOL_CALLS]f[ARGS]{\"k\": [\"}\", 2"},
        {"deepseek_v3",
         "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
         "{\"k\": [\"}\", 2"},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(cases); i++) {
        assert_arguments_so_far(cases[i].tool, cases[i].text, 0, "{\"k\": [\"}\", 2");
        assert_arguments_so_far(cases[i].tool, cases[i].text, 5, "{\"k\": [\"");
        assert_arguments_so_far(cases[i].tool, cases[i].text, 12, "{");
    }
}

static void an_unknown_parser_is_named_with_the_known_ones(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    text_output_t *output = NULL;
    assert_status(text_output_create("hermit", NULL, false, &diag, &output), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "hermit"));
    assert_non_null(strstr(diag.text, "hermes"));
    assert_status(text_output_create(NULL, "none", false, &diag, &output), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "deepseek_r1"));
}

static const char *guess_tool(const char *chat_template)
{
    const char *name = text_output_guess_tool_parser(chat_template, strlen(chat_template));
    return name == NULL ? "" : name;
}

static const char *guess_reasoning(const char *chat_template)
{
    const char *name = text_output_guess_reasoning_parser(chat_template, strlen(chat_template));
    return name == NULL ? "" : name;
}

static void parsers_are_guessed_from_the_template(void **state)
{
    (void)state;
    assert_string_equal(guess_tool("{{ '<tool_call>' }}"), "hermes");
    assert_string_equal(guess_tool("<tool_call><function=x><parameter=y>"), "qwen3_coder");
    assert_string_equal(guess_tool("{{ '[TOOL_CALLS]' }}"), "mistral");
    assert_string_equal(guess_tool("{{ '<|python_tag|>' }}"), "llama3_json");
    assert_string_equal(guess_tool("{{ messages }}"), "");
    assert_string_equal(guess_reasoning("content.split('</think>')"), "qwen3");
    assert_string_equal(guess_reasoning("<｜Assistant｜><think>\\n"), "deepseek_r1");
    assert_string_equal(guess_reasoning("[THINK]"), "mistral");
    assert_string_equal(guess_reasoning("{{ messages }}"), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_of_writing_calls_and_reasoning_is_understood),
        cmocka_unit_test(any_cutting_gives_the_same_answer),
        cmocka_unit_test(any_cutting_of_anything_gives_the_same_answer),
        cmocka_unit_test(arguments_are_given_out_while_they_are_written),
        cmocka_unit_test(an_unknown_parser_is_named_with_the_known_ones),
        cmocka_unit_test(parsers_are_guessed_from_the_template),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
