/* SPDX-License-Identifier: Apache-2.0 */
/* Answers under a grammar: they obey it, wait for it alone, and end when it is broken. */
#include "base/log.h"
#include "runtime/engine/engine_priv.h"
#include "tests/support/engine_rig.h"

#define EIGHT "s s s s s s s s "

static const int32_t prompt[24] = {1,  70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80,
                                   81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92};

typedef struct grammar_rig {
    engine_rig_t rig;
    text_tokenizer_t *tokenizer;
} grammar_rig_t;

static void open_rig(grammar_rig_t *g)
{
    const engine_options_t options = engine_rig_options();
    weft_diag_t diag = {0};
    *g = (grammar_rig_t){0};
    assert_status(model_source_open(WEFT_TEST_VECTORS "/tiny-models/llama", &diag, &g->rig.source),
                  WEFT_OK);
    assert_status(model_source_tokenizer(g->rig.source, &diag, &g->tokenizer), WEFT_OK);
    if (engine_create(&options, g->rig.source, g->tokenizer, NULL, &diag, &g->rig.engine) < 0) {
        fail_msg("%s", diag.text);
    }
    assert_status(engine_client_create(g->rig.engine, &g->rig.client), WEFT_OK);
}

static void close_rig(grammar_rig_t *g)
{
    engine_rig_close(&g->rig);
    text_tokenizer_destroy(g->tokenizer);
}

/* A request under a grammar, which is gone before it runs. */
static engine_request_t *send_under(grammar_rig_t *g, text_grammar_kind_t kind, const char *source,
                                    engine_submit_t submit)
{
    weft_diag_t diag = {0};
    text_grammar_t *grammar = NULL;
    if (text_grammar_create(engine_grammar_factory(g->rig.engine), kind, source, strlen(source),
                            NULL, &diag, &grammar) < 0) {
        fail_msg("%s", diag.text);
    }
    submit.grammar = grammar;
    engine_request_t *request = engine_rig_send(&g->rig, &submit);
    text_grammar_destroy(grammar);
    return request;
}

/* The answer's text, without the end token. */
static void text_of(const grammar_rig_t *g, const engine_request_t *request, uint32_t sample,
                    char *text, size_t capacity)
{
    const engine_answer_t a = engine_request_answer(request, sample);
    const uint32_t n = a.finish == ENGINE_FINISH_STOP ? a.n_tokens - 1 : a.n_tokens;
    text_bytes_t bytes = {0};
    assert_status(text_tokenizer_decode(g->tokenizer, a.tokens, n, true, NULL, &bytes), WEFT_OK);
    assert_true(bytes.length < capacity);
    memcpy(text, bytes.data, bytes.length);
    text[bytes.length] = '\0';
    text_bytes_free(bytes);
}

static void answers_obey_their_grammar_and_end_with_it(void **state)
{
    (void)state;
    grammar_rig_t g;
    char text[256];
    open_rig(&g);
    engine_submit_t submit = engine_rig_submit(prompt, 24, 40);
    submit.n = 3;
    submit.sampling.temperature = 1.5f;
    submit.sampling.seed = 5;
    engine_request_t *request =
        send_under(&g, TEXT_GRAMMAR_CHOICE, "[\"yes\", \"no\", \"perhaps\"]", submit);
    engine_rig_wait(&g.rig, request);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(engine_request_answer(request, i).finish, ENGINE_FINISH_STOP);
        assert_int_equal(engine_request_answer(request, i).stop_token, -1);
        text_of(&g, request, i, text, sizeof(text));
        assert_true(strcmp(text, "yes") == 0 || strcmp(text, "no") == 0 ||
                    strcmp(text, "perhaps") == 0);
    }
    engine_request_release(request);
    close_rig(&g);
}

static void an_unconstrained_request_goes_on_beside_a_constrained_one(void **state)
{
    (void)state;
    grammar_rig_t g;
    char text[256];
    open_rig(&g);
    engine_set_chaos(g.rig.engine, 77);
    weft_log_set_level(WEFT_LOG_WARN);
    const engine_submit_t submit = engine_rig_submit(prompt, 24, 60);
    engine_request_t *plain = engine_rig_send(&g.rig, &submit);
    engine_request_t *digits = send_under(&g, TEXT_GRAMMAR_REGEX, "[0-9]{20}", submit);
    engine_rig_wait(&g.rig, digits);
    engine_rig_wait(&g.rig, plain);
    text_of(&g, digits, 0, text, sizeof(text));
    assert_int_equal(strlen(text), 20);
    assert_int_equal(strspn(text, "0123456789"), 20);
    assert_int_equal(engine_request_answer(plain, 0).n_tokens, 60);
    engine_request_release(digits);
    engine_request_release(plain);
    close_rig(&g);
}

static void min_tokens_gives_way_to_a_grammar_that_is_over(void **state)
{
    (void)state;
    grammar_rig_t g;
    open_rig(&g);
    engine_submit_t submit = engine_rig_submit(prompt, 24, 60);
    submit.sampling.min_tokens = 50;
    engine_request_t *request = send_under(&g, TEXT_GRAMMAR_REGEX, "[ab]", submit);
    engine_rig_wait(&g.rig, request);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_STOP);
    assert_int_equal(engine_request_answer(request, 0).n_tokens, 2);
    engine_request_release(request);
    close_rig(&g);
}

static void a_grammar_against_the_allowed_ids_ends_its_request_alone(void **state)
{
    (void)state;
    grammar_rig_t g;
    open_rig(&g);
    weft_log_set_level(WEFT_LOG_ERROR);
    const int32_t allowed = 3;
    engine_submit_t submit = engine_rig_submit(prompt, 24, 60);
    engine_request_t *plain = engine_rig_send(&g.rig, &submit);
    submit.sampling.allowed_token_ids = &allowed;
    submit.sampling.n_allowed_token_ids = 1;
    engine_request_t *request = send_under(&g, TEXT_GRAMMAR_CHOICE, "[\"yes\"]", submit);
    engine_rig_wait(&g.rig, request);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_CONSTRAINT);
    assert_non_null(strstr(engine_request_answer(request, 0).reason, "allowed_token_ids"));
    engine_rig_wait(&g.rig, plain);
    assert_int_equal(engine_request_answer(plain, 0).finish, ENGINE_FINISH_LENGTH);
    engine_request_release(request);
    engine_request_release(plain);
    close_rig(&g);
}

static void an_answer_that_becomes_too_ambiguous_ends_with_the_reason(void **state)
{
    (void)state;
    grammar_rig_t g;
    open_rig(&g);
    engine_submit_t submit = engine_rig_submit(prompt, 24, 230);
    submit.sampling.min_tokens = 230;
    engine_request_t *request = send_under(
        &g, TEXT_GRAMMAR_LARK,
        "start: s\ns: " EIGHT EIGHT EIGHT EIGHT EIGHT EIGHT EIGHT EIGHT "| \"a\" | \"b\" | s s\n",
        submit);
    engine_rig_wait(&g.rig, request);
    const engine_answer_t answer = engine_request_answer(request, 0);
    assert_int_equal(answer.finish, ENGINE_FINISH_CONSTRAINT);
    assert_true(answer.n_tokens > 0);
    assert_non_null(strstr(answer.reason, "grammar: "));
    engine_request_release(request);
    assert_true(engine_is_healthy(g.rig.engine));
    close_rig(&g);
}

static void requests_given_up_at_once_leave_nothing(void **state)
{
    (void)state;
    grammar_rig_t g;
    const size_t live = weft_alloc_live_bytes();
    open_rig(&g);
    engine_submit_t submit = engine_rig_submit(prompt, 24, 200);
    for (int i = 0; i < 50; i++) {
        engine_request_release(send_under(&g, TEXT_GRAMMAR_JSON_OBJECT, "", submit));
        submit.n = 1 + (uint32_t)i % 3;
    }
    assert_int_equal(engine_rig_wait_idle(&g.rig).referenced_blocks, 0);
    close_rig(&g);
    assert_int_equal(weft_alloc_live_bytes(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_obey_their_grammar_and_end_with_it),
        cmocka_unit_test(an_unconstrained_request_goes_on_beside_a_constrained_one),
        cmocka_unit_test(min_tokens_gives_way_to_a_grammar_that_is_over),
        cmocka_unit_test(a_grammar_against_the_allowed_ids_ends_its_request_alone),
        cmocka_unit_test(an_answer_that_becomes_too_ambiguous_ends_with_the_reason),
        cmocka_unit_test(requests_given_up_at_once_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
