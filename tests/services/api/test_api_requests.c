/* SPDX-License-Identifier: Apache-2.0 */
/* What workers make of bodies, with every allocation failing once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/api_rig.h"

typedef void (*prepare_fn)(api_call_t *call);

static api_rig_t rig;

static int set_up(void **state)
{
    (void)state;
    api_rig_open(&rig);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    api_rig_close(&rig);
    return 0;
}

static void begin(prepare_fn prepare, const char *body, api_call_t *call)
{
    assert_true(api_rig_begin(&rig, body, strlen(body), call));
    prepare(call);
}

static void assert_prompt(const generation_prompt_t *prompt, const char *text)
{
    text_bytes_t decoded = {0};

    assert_int_equal(
        text_tokenizer_decode(rig.tokenizer, prompt->ids, prompt->n_ids, false, NULL, &decoded),
        WEFT_OK);
    assert_int_equal(decoded.length, strlen(text));
    assert_memory_equal(decoded.data, text, decoded.length);
    text_bytes_free(decoded);
}

static void assert_refused(prepare_fn prepare, const char *body, const char *param)
{
    api_call_t call;

    begin(prepare, body, &call);
    assert_int_not_equal(call.error.kind, API_ERROR_NONE);
    assert_string_equal(call.error.param, param);
    api_rig_end(&call);
}

static void a_completion_is_planned_as_asked(void **state)
{
    (void)state;
    api_call_t call;

    begin(completion_prepare,
          "{\"prompt\":[\"ab\",[98,99]],\"n\":2,\"temperature\":0,\"stop\":[\"x\",\"yz\"],"
          "\"logit_bias\":{\"5\":200,\"6\":-1},\"seed\":9,\"logprobs\":3,\"stream\":true,"
          "\"stream_options\":{\"include_usage\":true},\"bad_words\":[\"q\"],\"min_tokens\":2}",
          &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    const generation_t *generation = call.generation;
    assert_int_equal(generation->n_prompts, 2);
    assert_int_equal(generation->n_choices, 4);
    assert_prompt(&generation->prompts[0], "ab");
    assert_prompt(&generation->prompts[1], "ab");
    assert_int_equal(generation->prompts[0].max_tokens, 16);
    assert_int_equal(generation->sampling.n_logit_bias, 2);
    assert_true(generation->sampling.logit_bias[0].value == 100.0f);
    assert_int_equal(generation->sampling.logit_bias[1].token, 6);
    assert_int_equal(generation->sampling.seed, 9);
    assert_int_equal(generation->sampling.n_top_logprobs, 3);
    assert_int_equal(generation->sampling.n_bad_words, 2);
    assert_int_equal(generation->stops.count, 2);
    assert_string_equal(generation->stops.texts[1], "yz");
    assert_true(generation->is_stream && generation->includes_usage);
    assert_string_equal(generation->id, "cmpl-id");
    api_rig_end(&call);
}

static void a_chat_s_prompt_is_rendered(void **state)
{
    (void)state;
    api_call_t call;

    begin(chat_prepare,
          "{\"messages\":[{\"role\":\"developer\",\"content\":\"d\"},{\"role\":\"assistant\","
          "\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"city\\\":\\\"c\\\"}\""
          "}}]}],\"request_id\":\"mine\"}",
          &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    assert_prompt(&call.generation->prompts[0], "<system>d<assistant>[c]<assistant>");
    assert_int_equal(call.generation->prompts[0].max_tokens,
                     API_RIG_CONTEXT - call.generation->prompts[0].n_ids);
    assert_string_equal(call.generation->id, "chatcmpl-mine");
    api_rig_end(&call);
}

static void template_variables_have_defaults(void **state)
{
    (void)state;
    const api_model_t model = rig.model;
    json_t *defaults = json_loads("{\"a\":\"1\",\"b\":\"2\",\"messages\":[]}", 0, NULL);
    api_call_t call;

    assert_non_null(defaults);
    rig.model.template_kwargs = defaults;
    rig.model.is_template_overridable = true;
    begin(chat_prepare,
          "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
          "\"chat_template\":\"{{ a }}{{ b }}{{ messages[0].content }}\","
          "\"chat_template_kwargs\":{\"b\":\"3\"}}",
          &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    assert_prompt(&call.generation->prompts[0], "13x");
    api_rig_end(&call);
    rig.model = model;
    json_decref(defaults);
}

static void forced_tools_and_formats_bring_a_grammar(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tool_choice\":\"required\","
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
        "\"response_format\":{\"type\":\"json_object\"}}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
        "\"structured_outputs\":{\"regex\":\"a+\"}}",
    };

    for (size_t i = 0; i < WEFT_ARRAY_LEN(bodies); i++) {
        api_call_t call;
        begin(chat_prepare, bodies[i], &call);
        assert_int_equal(call.error.kind, API_ERROR_NONE);
        assert_non_null(call.generation->grammar);
        api_rig_end(&call);
    }
}

/* Two tools whose definitions of one name differ: f takes a string, g an integer. */
#define CLASHING_TOOLS                                                                             \
    "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tool_choice\":\"required\","          \
    "\"tools\":["                                                                                  \
    "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","     \
    "\"$id\":\"https://example.com/f\",\"required\":[\"x\"],\"properties\":{\"x\":{\"$ref\":"      \
    "\"#/$defs/d\"},\"again\":{\"$ref\":\"#\"}},\"$defs\":{\"d\":{\"$ref\":\"#/$defs/e\"},\"e\":"  \
    "{\"type\":\"string\"}}}}},"                                                                   \
    "{\"type\":\"function\",\"function\":{\"name\":\"g\",\"parameters\":{\"type\":\"object\","     \
    "\"required\":[\"x\"],\"properties\":{\"x\":{\"$ref\":\"#/$defs/"                              \
    "d\"},\"w\":{\"const\":{\"$ref\":"                                                             \
    "\"#/x\"}}},\"$defs\":{\"d\":{\"type\":\"integer\"}}}}}]}"

static bool follows(const text_grammar_t *grammar, const char *text)
{
    text_ids_t ids = {0};
    text_matcher_t *matcher = NULL;
    weft_status_t status = WEFT_OK;

    assert_int_equal(
        text_tokenizer_encode(rig.tokenizer, text, strlen(text), false, false, NULL, &ids),
        WEFT_OK);
    assert_int_equal(text_matcher_create(grammar, &matcher), WEFT_OK);
    for (size_t i = 0; i < ids.length && status == WEFT_OK; i++) {
        status = text_matcher_advance(matcher, ids.data[i], NULL);
    }
    text_matcher_destroy(matcher);
    text_ids_free(ids);
    return status == WEFT_OK;
}

static void each_tool_refers_to_its_own_definitions(void **state)
{
    (void)state;
    static const struct {
        const char *answer;
        bool is_right;
    } answers[] = {
        {"[{\"name\":\"f\",\"parameters\":{\"x\":\"s\"}}]", true},
        {"[{\"name\":\"g\",\"parameters\":{\"x\":5}}]", true},
        {"[{\"name\":\"f\",\"parameters\":{\"x\":\"s\",\"again\":{\"x\":\"t\"}}}]", true},
        {"[{\"name\":\"g\",\"parameters\":{\"x\":5,\"w\":{\"$ref\":\"#/x\"}}}]", true},
        {"[{\"name\":\"f\",\"parameters\":{\"x\":5}}]", false},
        {"[{\"name\":\"g\",\"parameters\":{\"x\":\"s\"}}]", false},
        {"[{\"name\":\"f\",\"parameters\":{\"x\":\"s\",\"again\":{\"x\":5}}}]", false},
    };
    api_call_t call;

    rig.model.max_context = 4096; /* the template shows the tools */
    begin(chat_prepare, CLASHING_TOOLS, &call);
    rig.model.max_context = API_RIG_CONTEXT;
    assert_string_equal(call.error.message.text, "");
    for (size_t i = 0; i < WEFT_ARRAY_LEN(answers); i++) {
        assert_int_equal(follows(call.generation->grammar, answers[i].answer), answers[i].is_right);
    }
    api_rig_end(&call);
}

static void lengths_are_bounded_by_the_context(void **state)
{
    (void)state;
    char body[4096];
    char text[3000];

    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    snprintf(body, sizeof(body), "{\"prompt\":\"%s\"}", text);
    assert_refused(completion_prepare, body, "input_tokens");
    text[API_RIG_CONTEXT] = '\0'; /* no room for an answer */
    snprintf(body, sizeof(body), "{\"prompt\":\"%s\"}", text);
    assert_refused(completion_prepare, body, "input_tokens");
    assert_refused(completion_prepare, "{\"prompt\":\"a\",\"max_tokens\":256}", "max_tokens");

    api_call_t call;
    text[API_RIG_CONTEXT - 1] = '\0';
    snprintf(body, sizeof(body), "{\"prompt\":\"%s\"}", text);
    begin(completion_prepare, body, &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    assert_int_equal(call.generation->prompts[0].max_tokens, 1);
    api_rig_end(&call);
}

static void every_wrong_field_of_a_body_is_reported(void **state)
{
    (void)state;
    static const struct {
        prepare_fn prepare;
        const char *body;
        uint32_t n;
    } bodies[] = {
        {completion_prepare,
         "{\"prompt\":[\"a\",1],\"n\":\"x\",\"stop\":[1,\"a\",2],\"stream\":1,\"logprobs\":true,"
         "\"logit_bias\":{\"5\":\"x\"},\"response_format\":{\"type\":\"poem\"}}",
         8},
        {chat_prepare,
         "{\"messages\":[{},{\"role\":\"user\",\"content\":1}],\"top_p\":[],\"tool_choice\":1,"
         "\"tools\":[1],\"structured_outputs\":{\"regex\":1,\"choice\":[],\"whitespace_pattern\":2}"
         "}",
         8},
        {generate_prepare,
         "{\"token_ids\":[1,\"a\"],\"sampling_params\":{\"n\":[],\"logprobs\":\"\"}}", 3},
        {tokenize_prepare, "{\"prompt\":1,\"model\":2,\"return_token_strs\":3}", 3},
        {detokenize_prepare, "{\"tokens\":[\"a\"],\"model\":2}", 2},
        {abort_prepare, "{\"request_ids\":[1,\"a\",2]}", 2},
    };

    for (size_t i = 0; i < WEFT_ARRAY_LEN(bodies); i++) {
        api_call_t call;
        begin(bodies[i].prepare, bodies[i].body, &call);
        assert_int_equal(call.error.kind, API_ERROR_SCHEMA);
        assert_int_equal(call.error.n_violations, bodies[i].n);
        api_rig_end(&call);
    }
}

static void a_request_id_fits_a_header_and_a_line(void **state)
{
    (void)state;
    static const prepare_fn prepares[] = {completion_prepare, chat_prepare, generate_prepare};
    char body[400];
    char id[258];
    api_call_t call;

    for (size_t i = 0; i < WEFT_ARRAY_LEN(prepares); i++) {
        begin(prepares[i],
              "{\"request_id\":\"a\\r\\nb\",\"prompt\":\"a\",\"token_ids\":[1],"
              "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
              &call);
        assert_int_equal(call.error.kind, API_ERROR_SCHEMA);
        assert_string_equal(call.error.param, "request_id");
        api_rig_end(&call);
    }
    assert_refused(completion_prepare, "{\"prompt\":\"a\",\"request_id\":\"\\u007f\"}",
                   "request_id");
    memset(id, 'a', sizeof(id) - 1);
    id[sizeof(id) - 1] = '\0';
    snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"request_id\":\"%s\"}", id);
    assert_refused(completion_prepare, body, "request_id");
    snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"request_id\":\"%s\"}", id + 1);
    begin(completion_prepare, body, &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    assert_string_equal(call.request_id, id + 1);
    api_rig_end(&call);
}

static void a_string_with_a_nul_is_refused_not_cut(void **state)
{
    (void)state;
    static const struct {
        prepare_fn prepare;
        const char *body;
        const char *param;
    } bodies[] = {
        {completion_prepare, "{\"prompt\":\"a\",\"stop\":\"a\\u0000b\"}", "stop"},
        {completion_prepare, "{\"prompt\":\"a\",\"stop\":[\"x\",\"\\u0000\"]}", "stop.1"},
        {completion_prepare, "{\"prompt\":\"a\",\"bad_words\":[\"a\\u0000b\"]}", "bad_words.0"},
        {generate_prepare, "{\"token_ids\":[1],\"sampling_params\":{\"stop\":\"a\\u0000\"}}",
         "sampling_params.stop"},
        {chat_prepare,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
         "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\\u0000\"}}]}",
         "tools.0.function.name"},
        {chat_prepare,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
         "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"tool_choice\":{"
         "\"type\":"
         "\"function\",\"function\":{\"name\":\"f\\u0000g\"}}}",
         "tool_choice"},
    };

    for (size_t i = 0; i < WEFT_ARRAY_LEN(bodies); i++) {
        assert_refused(bodies[i].prepare, bodies[i].body, bodies[i].param);
    }
}

/* What the engine would refuse later, without a name. */
static void numbers_outside_the_engine_s_ranges_are_named(void **state)
{
    (void)state;
    static const char *const numbers[][2] = {
        {"temperature", "1e38"},
        {"temperature", "1000001"},
        {"top_p", "1e-30"},
        {"top_p", "0"},
        {"repetition_penalty", "1e9"},
        {"repetition_penalty", "1e-7"},
        {"presence_penalty", "2.01"},
        {"frequency_penalty", "-2.01"},
        {"min_p", "1.01"},
    };
    static const char *const taken = "{\"prompt\":\"a\",\"temperature\":1e6,\"top_p\":1e-9,"
                                     "\"repetition_penalty\":1e-6}";
    static char body[32768];
    api_call_t call;

    for (size_t i = 0; i < WEFT_ARRAY_LEN(numbers); i++) {
        snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"%s\":%s}", numbers[i][0], numbers[i][1]);
        assert_refused(completion_prepare, body, numbers[i][0]);
    }
    begin(completion_prepare, taken, &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    /* The lowest are not below the engine's once they are floats. */
    assert_true(call.generation->sampling.top_p >= 1e-9f);
    assert_true(call.generation->sampling.repetition_penalty >= 1e-6f);
    api_rig_end(&call);
    int length = snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"logit_bias\":{");
    for (int i = 0; i < 1025; i++) { /* the count is looked at first, not the ids */
        length += snprintf(body + length, sizeof(body) - (size_t)length, "%s\"%d\":1",
                           i > 0 ? "," : "", i);
    }
    snprintf(body + length, sizeof(body) - (size_t)length, "}}");
    begin(completion_prepare, body, &call);
    assert_string_equal(call.error.message.text,
                        "logit_bias may have at most 1024 entries, got 1025.");
    assert_string_equal(call.error.param, "logit_bias");
    api_rig_end(&call);
}

static void the_limit_of_n_is_named_as_it_is(void **state)
{
    (void)state;
    const uint32_t max_samples = rig.model.max_samples;
    api_call_t call;

    begin(completion_prepare, "{\"prompt\":\"a\",\"n\":17}", &call);
    assert_string_equal(call.error.message.text,
                        "n must be at most the server's max_num_seqs (16), got 17.");
    api_rig_end(&call);
    rig.model.max_samples = ENGINE_MAX_SAMPLES;
    begin(completion_prepare, "{\"prompt\":\"a\",\"n\":200}", &call);
    rig.model.max_samples = max_samples;
    assert_string_equal(call.error.message.text, "n must be at most weft's limit (128), got 200.");
    api_rig_end(&call);
}

static void what_is_not_served_is_refused_not_ignored(void **state)
{
    (void)state;
    static const char *const tags[] = {"\"x\"", "{}", "{\"triggers\":[]}", "[]", "true"};
    char body[200];
    api_call_t call;

    for (size_t i = 0; i < WEFT_ARRAY_LEN(tags); i++) {
        snprintf(body, sizeof(body),
                 "{\"prompt\":\"a\",\"structured_outputs\":{\"structural_tag\":%s}}", tags[i]);
        assert_refused(completion_prepare, body, "structured_outputs.structural_tag");
    }
    assert_refused(generate_prepare, "{\"token_ids\":[1],\"output_mode\":\"speech\"}",
                   "output_mode");
    begin(generate_prepare, "{\"token_ids\":[1],\"output_mode\":\"tokens\"}", &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    api_rig_end(&call);
    begin(completion_prepare, "{\"prompt\":\"a\",\"structured_outputs\":{\"structural_tag\":null}}",
          &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    api_rig_end(&call);
}

static void a_salt_is_measured_in_characters(void **state)
{
    (void)state;
    char salt[1026 * 2] = "";
    char body[sizeof(salt) + 64];
    api_call_t call;

    for (size_t i = 0; i < 1025; i++) {
        memcpy(salt + 2 * i, "\xc3\xa9", 3);
    }
    snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"cache_salt\":\"%s\"}", salt);
    assert_refused(completion_prepare, body, "cache_salt");
    snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"cache_salt\":\"%s\"}", salt + 2);
    begin(completion_prepare, body, &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    assert_string_equal(call.generation->cache_salt, salt + 2);
    api_rig_end(&call);
}

/* {"prompt":"a","n":16,"stop":["aa…","aa…"]} with so many letters in all. */
static void write_stops(char *body, size_t size, size_t letters)
{
    int length = snprintf(body, size, "{\"prompt\":\"a\",\"n\":16,\"stop\":[\"");

    memset(body + length, 'a', letters);
    memcpy(body + length + letters / 2, "\",\"", 3);
    memset(body + (size_t)length + letters / 2 + 3, 'a', letters - letters / 2);
    snprintf(body + (size_t)length + letters + 3, 4, "\"]}");
}

static void stop_strings_are_bounded_in_all(void **state)
{
    (void)state;
    static char body[70000];
    api_call_t call;

    write_stops(body, sizeof(body), 65536);
    begin(completion_prepare, body, &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    assert_int_equal(call.generation->n_choices, 16);
    assert_non_null(call.generation->stop_table);
    api_rig_end(&call);
    write_stops(body, sizeof(body), 65537);
    assert_refused(completion_prepare, body, "stop");
}

static const struct {
    prepare_fn prepare;
    const char *body;
} samples[] = {
    {completion_prepare,
     "{\"prompt\":[\"ab\",\"c\"],\"n\":2,\"stop\":\"x\",\"logit_bias\":{\"5\":1},"
     "\"bad_words\":[\"q\"],\"stop_token_ids\":[3],\"echo\":true,"
     "\"cache_salt\":\"s\",\"structured_outputs\":{\"choice\":[\"a\",\"b\"]}}"},
    {chat_prepare,
     "{\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":"
     "\"d\"}]},{\"role\":\"assistant\",\"reasoning\":\"r\",\"tool_calls\":[{\"function\""
     ":{\"name\":\"f\",\"arguments\":\"{\\\"city\\\":\\\"c\\\"}\"}}]}],"
     "\"chat_template_kwargs\":{\"k\":1},\"documents\":[],\"reasoning_effort\":\"low\","
     "\"return_prompt_text\":true,\"tool_choice\":\"required\",\"parallel_tool_calls\":"
     "false,\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
     "\"parameters\":{\"type\":\"object\",\"$defs\":{\"d\":{\"type\":\"string\"}},"
     "\"properties\":{\"x\":{\"$ref\":\"#/$defs/d\"}}}}}]}"},
    {generate_prepare,
     "{\"token_ids\":[1,2,3],\"sampling_params\":{\"stop\":[\"x\"],\"logprobs\":1}}"},
    {chat_render_prepare, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}"},
    {completion_render_prepare, "{\"prompt\":\"ab\"}"},
    {tokenize_prepare, "{\"prompt\":\"ab\",\"return_token_strs\":true}"},
    {tokenize_prepare, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}"},
    {detokenize_prepare, "{\"tokens\":[98,99]}"},
    {abort_prepare, "{\"request_ids\":[\"a\",\"b\"]}"},
};

/* What a call came to, as one text. */
static void summarize(const api_call_t *call, weft_buffer_t *out)
{
    const generation_t *generation = call->generation;

    weft_buffer_append(out, call->answer.data, call->answer.length);
    weft_buffer_printf(out, "|%zu", call->n_abort_ids);
    for (uint32_t i = 0; generation != NULL && i < generation->n_prompts; i++) {
        weft_buffer_append(out, generation->prompts[i].ids,
                           generation->prompts[i].n_ids * sizeof(int32_t));
        weft_buffer_printf(out, "|%zu", generation->prompts[i].text_length);
    }
    if (generation != NULL) {
        weft_buffer_printf(out, "|%u %u %u %zu %s %s %d", generation->n_choices,
                           generation->sampling.n_bad_words, generation->sampling.n_logit_bias,
                           generation->stops.count, generation->id,
                           generation->cache_salt != NULL ? generation->cache_salt : "-",
                           generation->grammar != NULL);
    }
}

static void texts_longer_than_the_context_are_tokenized(void **state)
{
    (void)state;
    char body[8192];
    char text[6000];
    api_call_t call;

    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    snprintf(body, sizeof(body), "{\"prompt\":\"%s\"}", text);
    begin(tokenize_prepare, body, &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    json_t *answer = json_loadb(call.answer.data, call.answer.length, 0, NULL);
    assert_true(json_integer_value(json_object_get(answer, "count")) > API_RIG_CONTEXT);
    json_decref(answer);
    api_rig_end(&call);
}

static void an_allocation_that_fails_is_an_error_or_costs_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(samples); i++) {
        weft_buffer_t expected = {0};
        api_call_t call;
        begin(samples[i].prepare, samples[i].body, &call);
        assert_int_equal(call.error.kind, API_ERROR_NONE);
        summarize(&call, &expected);
        api_rig_end(&call);
        size_t before = weft_alloc_live_bytes();
        uint64_t n_allocations = UINT64_MAX;

        for (uint64_t nth = 1; nth <= n_allocations; nth++) {
            weft_alloc_fail_nth(nth);
            bool is_begun = api_rig_begin(&rig, samples[i].body, strlen(samples[i].body), &call);
            if (is_begun) {
                samples[i].prepare(&call);
            }
            uint64_t seen = weft_alloc_fail_nth(0);
            n_allocations = seen < nth ? seen : n_allocations; /* none failed: all were tried */
            if (is_begun && call.error.kind == API_ERROR_NONE && !call.answer.is_failed) {
                weft_buffer_t got = {0};
                summarize(&call, &got);
                assert_int_equal(got.length, expected.length);
                assert_memory_equal(got.data, expected.data, got.length);
                weft_buffer_free(&got);
            }
            api_rig_end(&call);
            assert_int_equal(weft_alloc_live_bytes(), before);
        }
        weft_buffer_free(&expected);
    }
}

static void wrong_bodies_are_refused_by_every_route(void **state)
{
    (void)state;
    static const char *const bodies[] = {"", "[]", "{", "{\"model\":\"other\"}", "{\"model\":5}"};

    for (size_t i = 0; i < WEFT_ARRAY_LEN(samples); i++) {
        for (size_t k = 0; k < WEFT_ARRAY_LEN(bodies); k++) {
            api_call_t call;
            begin(samples[i].prepare, bodies[k], &call);
            assert_int_not_equal(call.error.kind, API_ERROR_NONE);
            api_rig_end(&call);
        }
    }
}

static void blocks_of_another_worker_are_read(void **state)
{
    (void)state;
    api_call_t call;

    begin(completion_prepare,
          "{\"prompt\":\"ab\",\"kv_transfer_params\":{\"do_remote_prefill\":true,"
          "\"remote_block_ids\":[[4,5]],\"remote_engine_id\":\"e\",\"remote_request_id\":\"r\","
          "\"remote_host\":\"h\",\"remote_port\":5600,\"later\":[{}]}}",
          &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    assert_true(call.has_transfer && call.owes_release);
    assert_int_equal(call.transfer.n_blocks, 2);
    assert_int_equal(call.transfer.remote_port, 5600);
    assert_null(call.prefill_body);
    api_rig_end(&call);

    begin(chat_prepare,
          "{\"messages\":[],\"kv_transfer_params\":{\"do_remote_decode\":true},\"top_p\":7}",
          &call);
    assert_int_not_equal(call.error.kind, API_ERROR_NONE);
    assert_true(call.has_transfer && !call.owes_release);
    api_rig_end(&call);

    assert_refused(completion_prepare, "{\"prompt\":\"ab\",\"kv_transfer_params\":7}",
                   "kv_transfer_params");
    assert_refused(completion_prepare,
                   "{\"prompt\":\"ab\",\"kv_transfer_params\":{\"remote_port\":\"x\"}}",
                   "kv_transfer_params");
}

static void a_prefill_leg_is_made_for_workers_that_may_be_named(void **state)
{
    static const char *urls[] = {"http://a:1", "http://b:2"};
    static const char body[] =
        "{\"token_ids\":[97],\"stream\":true,\"sampling_params\":{\"max_tokens\":9},"
        "\"kv_transfer_params\":{\"do_remote_prefill\":true,\"prefill_url\":\"http://b:2\"}}";
    (void)state;
    api_call_t call;

    assert_refused(generate_prepare, body, "kv_transfer_params.prefill_url");
    rig.options.prefill_urls = (weft_list_t){.items = urls, .count = 2};
    begin(generate_prepare, body, &call);
    assert_int_equal(call.error.kind, API_ERROR_NONE);
    json_t *leg = json_loads(call.prefill_body, 0, NULL);
    const json_t *params = json_object_get(leg, "kv_transfer_params");
    assert_true(json_is_true(json_object_get(params, "do_remote_decode")));
    assert_string_equal(json_string_value(json_object_get(params, "transfer_id")),
                        call.transfer.transfer_id);
    assert_true(json_is_false(json_object_get(leg, "stream")));
    params = json_object_get(leg, "sampling_params");
    assert_int_equal(json_integer_value(json_object_get(params, "max_tokens")), 1);
    assert_int_equal(call.generation->prompts[0].max_tokens, 9);
    json_decref(leg);
    api_rig_end(&call);
    rig.options.prefill_urls = (weft_list_t){0};
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_of_another_worker_are_read),
        cmocka_unit_test(a_prefill_leg_is_made_for_workers_that_may_be_named),
        cmocka_unit_test(a_completion_is_planned_as_asked),
        cmocka_unit_test(a_chat_s_prompt_is_rendered),
        cmocka_unit_test(template_variables_have_defaults),
        cmocka_unit_test(forced_tools_and_formats_bring_a_grammar),
        cmocka_unit_test(each_tool_refers_to_its_own_definitions),
        cmocka_unit_test(every_wrong_field_of_a_body_is_reported),
        cmocka_unit_test(lengths_are_bounded_by_the_context),
        cmocka_unit_test(texts_longer_than_the_context_are_tokenized),
        cmocka_unit_test(a_request_id_fits_a_header_and_a_line),
        cmocka_unit_test(a_string_with_a_nul_is_refused_not_cut),
        cmocka_unit_test(numbers_outside_the_engine_s_ranges_are_named),
        cmocka_unit_test(the_limit_of_n_is_named_as_it_is),
        cmocka_unit_test(what_is_not_served_is_refused_not_ignored),
        cmocka_unit_test(a_salt_is_measured_in_characters),
        cmocka_unit_test(stop_strings_are_bounded_in_all),
        cmocka_unit_test(an_allocation_that_fails_is_an_error_or_costs_nothing),
        cmocka_unit_test(wrong_bodies_are_refused_by_every_route),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
