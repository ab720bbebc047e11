/* SPDX-License-Identifier: Apache-2.0 */
/* Guesses from the history, and the option that asks for them. */
#include "runtime/draft/draft_lookup.h"
#include "runtime/draft/drafter.h"
#include <string.h>

#include "base/compiler.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

enum { MOST = 16 };

#define LOOKUP(out, min, max, most, ...)                                                           \
    draft_lookup((const int32_t[]){__VA_ARGS__},                                                   \
                 sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t), min, max, most, out)

static void what_followed_the_same_tokens_is_the_guess(void **state)
{
    (void)state;
    int32_t out[MOST];
    assert_int_equal(LOOKUP(out, 2, 2, 3, 7, 8, 9, 10, 11, 7, 8), 3);
    assert_memory_equal(out, ((const int32_t[]){9, 10, 11}), 3 * sizeof(int32_t));
}

static void the_longest_end_wins_over_the_newest_place(void **state)
{
    (void)state;
    int32_t out[MOST];
    assert_int_equal(LOOKUP(out, 1, 3, 1, 1, 2, 3, 40, 9, 3, 50, 1, 2, 3), 1);
    assert_int_equal(out[0], 40);
    /* With one token only, the newest place. */
    assert_int_equal(LOOKUP(out, 1, 1, 1, 1, 2, 3, 40, 9, 3, 50, 1, 2, 3), 1);
    assert_int_equal(out[0], 50);
}

static void a_loop_is_guessed_to_go_on(void **state)
{
    (void)state;
    int32_t out[MOST];
    assert_int_equal(LOOKUP(out, 1, 2, 5, 9, 1, 2, 3, 1, 2, 3, 1), 5);
    assert_memory_equal(out, ((const int32_t[]){2, 3, 1, 2, 3}), 5 * sizeof(int32_t));
}

static void without_a_place_there_is_no_guess(void **state)
{
    (void)state;
    int32_t out[MOST];
    assert_int_equal(LOOKUP(out, 1, 4, 8, 1, 2, 3, 4), 0);
    assert_int_equal(LOOKUP(out, 2, 4, 8, 1, 9, 3, 9), 0);
    assert_int_equal(LOOKUP(out, 1, 4, 8, 1), 0);
}

/* The definition, in the plainest words. */
static uint32_t lookup_plainly(const int32_t *tokens, uint32_t n, uint32_t min, uint32_t max,
                               uint32_t most, int32_t *out)
{
    for (uint32_t length = max; length >= min; length--) {
        for (uint32_t end = n - 1; end >= length && end > 0; end--) {
            if (n >= length &&
                memcmp(tokens + end - length, tokens + n - length, length * sizeof(int32_t)) == 0) {
                for (uint32_t i = 0; i < most; i++) {
                    out[i] = end + i < n ? tokens[end + i] : out[end + i - n];
                }
                return most;
            }
        }
    }
    return 0;
}

static void random_histories_are_looked_up_as_defined(void **state)
{
    (void)state;
    const uint64_t seed = test_seed(1);
    test_random_t random = {seed};
    uint32_t n_found = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 3000; round++) {
        int32_t tokens[40];
        int32_t out[MOST] = {0};
        int32_t plain[MOST] = {0};
        const uint32_t n = test_random_between(&random, 1, 40);
        const uint32_t kinds = test_random_between(&random, 1, 6);
        for (uint32_t i = 0; i < n; i++) {
            tokens[i] = (int32_t)test_random_below(&random, kinds);
        }
        const uint32_t min = test_random_between(&random, 1, 4);
        const uint32_t max = min + test_random_below(&random, 4);
        const uint32_t most = test_random_between(&random, 1, MOST);
        const uint32_t found = draft_lookup(tokens, n, min, max, most, out);
        assert_int_equal(found, lookup_plainly(tokens, n, min, max, most, plain));
        assert_memory_equal(out, plain, sizeof(out));
        n_found += found > 0;
    }
    assert_in_range(n_found, 100, 2900);
}

static void the_option_is_read_as_vllm_s(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    draft_config_t config;
    assert_status(draft_config_parse("", &diag, &config), WEFT_OK);
    assert_true(config.kind == NULL && config.n_tokens == 0);
    assert_status(draft_config_parse("{\"method\": \"ngram\", \"num_speculative_tokens\": 4, "
                                     "\"prompt_lookup_min\": 2, \"prompt_lookup_max\": 3}",
                                     &diag, &config),
                  WEFT_OK);
    assert_string_equal(config.kind->method, "ngram");
    assert_true(config.n_tokens == 4 && config.min_lookup == 2 && config.max_lookup == 3);
    draft_config_fini(&config);
    assert_status(draft_config_parse("{\"method\": \"ngram\", \"num_speculative_tokens\": 1}",
                                     &diag, &config),
                  WEFT_OK);
    assert_true(config.min_lookup == 5 && config.max_lookup == 5);
    draft_config_fini(&config);
}

static void a_model_alone_is_one_that_guesses(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"model\": \"m.gguf\", \"num_speculative_tokens\": 3, \"max_model_len\": 64}",
        "{\"method\": \"draft_model\", \"model\": \"m.gguf\", \"num_speculative_tokens\": 3, "
        "\"max_model_len\": 64, \"draft_tensor_parallel_size\": 1}",
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(texts); i++) {
        weft_diag_t diag = {0};
        draft_config_t config;
        assert_status(draft_config_parse(texts[i], &diag, &config), WEFT_OK);
        assert_string_equal(config.kind->method, "draft_model");
        assert_string_equal(config.model, "m.gguf");
        assert_true(config.n_tokens == 3 && config.max_context == 64);
        draft_config_fini(&config);
        assert_true(config.kind == NULL && config.model == NULL);
    }
}

static void a_wrong_option_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *told;
    } rows[] = {
        {"[]", "object"},
        {"{\"method\": \"ngram\"}", "num_speculative_tokens is missing"},
        {"{\"method\": \"ngram\", \"num_speculative_tokens\": 17}",
         "num_speculative_tokens: not a whole number from 1 to 16"},
        {"{\"num_speculative_tokens\": 2}", "method is missing; known: "},
        {"{\"method\": \"eagle\", \"num_speculative_tokens\": 2}", "eagle"},
        {"{\"model\": \"m.gguf\"}", "num_speculative_tokens"},
        {"{\"method\": \"draft_model\", \"num_speculative_tokens\": 2}", "needs a model"},
        {"{\"method\": \"ngram\", \"model\": \"m.gguf\", \"num_speculative_tokens\": 2}",
         "has no model"},
        {"{\"model\": \"m.gguf\", \"num_speculative_tokens\": 2, "
         "\"draft_tensor_parallel_size\": 2}",
         "draft_tensor_parallel_size 2: the model that guesses is on one rank"},
        {"{\"methods\": \"ngram\"}", "methods"},
        {"{\"method\": \"ngram\", \"num_speculative_tokens\": 2, \"prompt_lookup_min\": 4, "
         "\"prompt_lookup_max\": 3}",
         "prompt_lookup_min"},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        weft_diag_t diag = {0};
        draft_config_t config;
        assert_true(draft_config_parse(rows[i].text, &diag, &config) < 0);
        assert_non_null(strstr(diag.text, "--speculative-config: "));
        assert_non_null(strstr(diag.text, rows[i].told));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_followed_the_same_tokens_is_the_guess),
        cmocka_unit_test(the_longest_end_wins_over_the_newest_place),
        cmocka_unit_test(a_loop_is_guessed_to_go_on),
        cmocka_unit_test(without_a_place_there_is_no_guess),
        cmocka_unit_test(random_histories_are_looked_up_as_defined),
        cmocka_unit_test(the_option_is_read_as_vllm_s),
        cmocka_unit_test(a_model_alone_is_one_that_guesses),
        cmocka_unit_test(a_wrong_option_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
