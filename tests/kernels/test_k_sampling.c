/* SPDX-License-Identifier: Apache-2.0 */
#include <float.h>

#include "kernels/k_philox.h"
#include "kernels/k_sampling.h"
#include "tests/kernels/kernels_support.h"

enum { MAX_VOCAB = 3000 };

static const k_sample_row_t plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};

static int32_t pick(const float *logits, uint32_t vocab, const k_sample_row_t *params)
{
    void *scratch = test_malloc(k_sampling_scratch_bytes(vocab));
    memset(scratch, 0x5a, k_sampling_scratch_bytes(vocab));
    const int32_t token = k_sampling_pick(logits, vocab, params, scratch);
    test_free(scratch);
    return token;
}

/* Marks every token that n draws give. */
static void draw(const float *logits, uint32_t vocab, k_sample_row_t params, uint32_t n,
                 uint32_t *counts)
{
    memset(counts, 0, vocab * sizeof(*counts));
    for (uint32_t i = 0; i < n; i++) {
        params.output_index = i;
        counts[pick(logits, vocab, &params)]++;
    }
}

/* ---- the distribution ---------------------------------------------------------------------- */

/* Pearson's statistic of counts against p, over tokens expected at least 5 times. */
static double chi_square(const uint32_t *counts, const double *p, uint32_t vocab, uint32_t n,
                         uint32_t *freedom_out)
{
    double sum = 0;
    double rare_expected = 0;
    double rare_count = 0;
    uint32_t cells = 0;
    for (uint32_t t = 0; t < vocab; t++) {
        const double expected = p[t] * n;
        if (expected < 5) {
            rare_expected += expected;
            rare_count += counts[t];
            continue;
        }
        sum += (counts[t] - expected) * (counts[t] - expected) / expected;
        cells++;
    }
    if (rare_expected > 0) {
        sum += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
        cells++;
    }
    *freedom_out = cells - 1;
    return sum;
}

/* Wilson and Hilferty: the cube root is nearly normal. 4.5 deviations: one in 300,000. */
static void assert_distributed(const uint32_t *counts, const double *p, uint32_t vocab, uint32_t n)
{
    uint32_t freedom;
    const double sum = chi_square(counts, p, vocab, n, &freedom);
    const double spread = 2.0 / (9.0 * freedom);
    const double deviations = (cbrt(sum / freedom) - (1 - spread)) / sqrt(spread);
    if (!(deviations < 4.5)) {
        fail_msg("chi square %f with %u degrees of freedom", sum, freedom);
    }
}

static void softmax(const float *logits, uint32_t vocab, double temperature, double *p)
{
    double sum = 0;
    for (uint32_t t = 0; t < vocab; t++) {
        p[t] = exp((double)logits[t] / temperature);
        sum += p[t];
    }
    for (uint32_t t = 0; t < vocab; t++) {
        p[t] /= sum;
    }
}

static void draws_follow_the_softmax(void **state)
{
    (void)state;
    enum { VOCAB = 60, DRAWS = 20000 };
    static const float temperatures[] = {0.5f, 1, 2};
    test_random_t random = {test_seed(51)};
    float *logits = random_floats(&random, VOCAB);
    uint32_t counts[VOCAB];
    double p[VOCAB];
    for (uint32_t t = 0; t < VOCAB; t++) {
        logits[t] *= 4;
    }
    for (size_t i = 0; i < 3; i++) {
        k_sample_row_t params = plain;
        params.temperature = temperatures[i];
        params.seed = test_random_u64(&random);
        draw(logits, VOCAB, params, DRAWS, counts);
        softmax(logits, VOCAB, (double)temperatures[i], p);
        assert_distributed(counts, p, VOCAB, DRAWS);
    }
    test_free(logits);
}

/* argmax over log p + noise, every token's noise computed. */
static int32_t pick_by_definition(const float *logits, uint32_t vocab, const k_sample_row_t *params)
{
    const uint32_t key[2] = {(uint32_t)params->seed, (uint32_t)(params->seed >> 32)};
    float max = -INFINITY;
    double best = -INFINITY;
    int32_t token = 0;
    for (uint32_t t = 0; t < vocab; t++) {
        max = logits[t] > max ? logits[t] : max;
    }
    for (uint32_t t = 0; t < vocab; t++) {
        const uint32_t counter[4] = {(uint32_t)params->output_index,
                                     (uint32_t)(params->output_index >> 32), t, 0};
        uint32_t words[4];
        k_philox4x32_10(counter, key, words);
        const float scaled = (logits[t] - max) / params->temperature;
        const double value = scaled - log(-log((words[0] + 0.5) * 0x1p-32));
        token = value > best ? (int32_t)t : token;
        best = value > best ? value : best;
    }
    return token;
}

static void no_token_is_passed_over_that_noise_would_lift(void **state)
{
    (void)state;
    static const float spreads[] = {0.01f, 1, 5, 40};
    test_random_t random = {test_seed(58)};
    for (uint32_t round = 0; round < test_rounds(400); round++) {
        const uint32_t vocab = test_random_between(&random, 1, MAX_VOCAB);
        float *logits = random_floats(&random, vocab);
        for (uint32_t t = 0; t < vocab; t++) {
            logits[t] *= spreads[round % 4];
        }
        k_sample_row_t params = plain;
        params.seed = test_random_u64(&random);
        params.output_index = round;
        params.temperature = 0.3f + (float)test_random_below(&random, 30) * 0.1f;
        assert_int_equal(pick(logits, vocab, &params), pick_by_definition(logits, vocab, &params));
        test_free(logits);
    }
}

/* ---- what is kept, against a sort of everything -------------------------------------------- */

typedef struct ranked {
    double p;
    float logit;
    uint32_t token;
} ranked_t;

static int compare_ranked(const void *a, const void *b)
{
    const ranked_t *x = a;
    const ranked_t *y = b;
    if (x->logit != y->logit) {
        return x->logit > y->logit ? -1 : 1;
    }
    return x->token < y->token ? -1 : 1;
}

/* The tokens that min_p, then top_k, then top_p keep, by definition. */
static uint32_t keep_by_sorting(const float *logits, uint32_t vocab, const k_sample_row_t *params,
                                bool *is_kept, bool *is_doubtful)
{
    static ranked_t all[MAX_VOCAB];
    for (uint32_t t = 0; t < vocab; t++) {
        all[t] = (ranked_t){exp((double)logits[t] / (double)params->temperature), logits[t], t};
        is_kept[t] = false;
        is_doubtful[t] = false;
    }
    qsort(all, vocab, sizeof(all[0]), compare_ranked);
    uint32_t n = vocab;
    while (n > 1 && all[n - 1].p < (double)params->min_p * all[0].p) {
        n--;
    }
    n = params->top_k > 0 && (uint32_t)params->top_k < n ? (uint32_t)params->top_k : n;
    double total = 0;
    for (uint32_t i = 0; i < n; i++) {
        total += all[i].p;
    }
    double sum = 0;
    uint32_t kept = 0;
    while (kept < n) {
        /* Where the sum meets top_p to a rounding the token may fall either way. */
        is_doubtful[all[kept].token] = fabs(sum - (double)params->top_p * total) < 1e-5 * total;
        if (params->top_p < 1 && kept > 0 && sum >= (double)params->top_p * total) {
            break;
        }
        is_kept[all[kept].token] = true;
        sum += all[kept].p;
        kept++;
    }
    return kept;
}

/* Half of the cases have logits in steps of 1/2, so that ties are everywhere. */
static void filters_keep_what_a_sort_would_keep(void **state)
{
    (void)state;
    static bool is_kept[MAX_VOCAB];
    static bool is_doubtful[MAX_VOCAB];
    static uint32_t counts[MAX_VOCAB];
    test_random_t random = {test_seed(52)};
    for (uint32_t round = 0; round < test_rounds(2000); round++) {
        const uint32_t vocab = test_random_between(&random, 1, round % 10 == 0 ? MAX_VOCAB : 40);
        float *logits = random_floats(&random, vocab);
        for (uint32_t t = 0; t < vocab; t++) {
            logits[t] = round % 2 == 0 ? logits[t] * 5 : floorf(logits[t] * 6) / 2;
        }
        k_sample_row_t params = plain;
        params.seed = test_random_u64(&random);
        params.temperature = 0.3f + (float)test_random_below(&random, 30) * 0.1f;
        if (test_random_below(&random, 2) == 0) {
            params.top_k = (int32_t)test_random_between(&random, 1, 2 * vocab);
        }
        if (test_random_below(&random, 2) == 0) {
            params.top_p = (float)test_random_below(&random, 101) / 100.0f;
        }
        if (test_random_below(&random, 3) == 0) {
            params.min_p = (float)test_random_below(&random, 101) / 150.0f;
        }
        const uint32_t kept = keep_by_sorting(logits, vocab, &params, is_kept, is_doubtful);
        draw(logits, vocab, params, 300, counts);
        uint32_t drawn = 0;
        for (uint32_t t = 0; t < vocab; t++) {
            drawn += counts[t] > 0;
            if (counts[t] > 0 && !is_kept[t] && !is_doubtful[t]) {
                fail_msg("round %u: token %u of %u drawn, which top_k %d top_p %f min_p %f drop",
                         round, t, vocab, params.top_k, (double)params.top_p, (double)params.min_p);
            }
        }
        assert_true(drawn > 0 && (kept < 2 || kept > 4 || params.temperature < 1 || drawn > 1));
        test_free(logits);
    }
}

static void draws_under_top_p_follow_the_renormalized_softmax(void **state)
{
    (void)state;
    enum { VOCAB = 30, DRAWS = 20000 };
    static bool is_kept[MAX_VOCAB];
    static bool is_doubtful[MAX_VOCAB];
    test_random_t random = {test_seed(53)};
    float *logits = random_floats(&random, VOCAB);
    uint32_t counts[VOCAB];
    double p[VOCAB];
    k_sample_row_t params = plain;
    params.seed = test_random_u64(&random);
    params.top_p = 0.7f;
    params.top_k = 20;
    keep_by_sorting(logits, VOCAB, &params, is_kept, is_doubtful);
    double sum = 0;
    softmax(logits, VOCAB, 1, p);
    for (uint32_t t = 0; t < VOCAB; t++) {
        p[t] = is_kept[t] ? p[t] : 0;
        sum += p[t];
    }
    for (uint32_t t = 0; t < VOCAB; t++) {
        p[t] /= sum;
    }
    draw(logits, VOCAB, params, DRAWS, counts);
    assert_distributed(counts, p, VOCAB, DRAWS);
    test_free(logits);
}

/* ---- edges --------------------------------------------------------------------------------- */

static void top_p_0_and_top_k_1_are_argmax_with_ties_to_the_lower_id(void **state)
{
    (void)state;
    const float logits[] = {1, 3, 2, 3, 3, -1};
    k_sample_row_t top_p = plain;
    top_p.top_p = 0;
    k_sample_row_t top_k = plain;
    top_k.top_k = 1;
    k_sample_row_t greedy = plain;
    greedy.temperature = 0;
    for (uint64_t i = 0; i < 50; i++) {
        top_p.output_index = i;
        top_k.output_index = i;
        assert_int_equal(pick(logits, 6, &top_p), 1);
        assert_int_equal(pick(logits, 6, &top_k), 1);
        assert_int_equal(pick(logits, 6, &greedy), 1);
    }
}

static void a_mask_with_one_token_leaves_no_choice(void **state)
{
    (void)state;
    test_random_t random = {test_seed(54)};
    float *logits = random_floats(&random, MAX_VOCAB);
    uint32_t mask[MAX_VOCAB / 32 + 1];
    for (uint32_t round = 0; round < 50; round++) {
        const uint32_t token = test_random_below(&random, MAX_VOCAB);
        memset(mask, 0, sizeof(mask));
        mask[token / 32] = UINT32_C(1) << token % 32;
        k_sample_row_t params = plain;
        params.mask = mask;
        params.temperature = (float)(round % 3);
        params.top_p = round % 2 == 0 ? 1 : 0.5f;
        params.top_k = (int32_t)(round % 5);
        assert_int_equal(pick(logits, MAX_VOCAB, &params), token);
        logits[token] = -INFINITY;
        assert_int_equal(pick(logits, MAX_VOCAB, &params), token);
        logits[token] = NAN;
        assert_int_equal(pick(logits, MAX_VOCAB, &params), token);
        logits[token] = 0;
    }
    test_free(logits);
}

static void hostile_logits_still_give_a_token(void **state)
{
    (void)state;
    static const float poison[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0, 1e-45f};
    enum { VOCAB = 200 };
    test_random_t random = {test_seed(55)};
    float logits[VOCAB];
    int32_t history[40];
    uint32_t mask[VOCAB / 32 + 1];
    for (uint32_t round = 0; round < test_rounds(20000); round++) {
        const uint32_t kinds = test_random_between(&random, 1, 7);
        const uint32_t first = test_random_below(&random, 7);
        for (uint32_t t = 0; t < VOCAB; t++) {
            logits[t] = poison[(first + test_random_below(&random, kinds)) % 7];
        }
        for (uint32_t i = 0; i < 40; i++) {
            history[i] = (int32_t)test_random_below(&random, VOCAB + 20) - 10;
        }
        for (size_t i = 0; i < VOCAB / 32 + 1; i++) {
            mask[i] = round % 3 == 0 ? 0 : (uint32_t)test_random_u64(&random);
        }
        const k_bias_t bias[] = {{-5, 3}, {VOCAB + 7, 3}, {3, poison[round % 7]}};
        const k_sample_row_t params = {.temperature = poison[test_random_below(&random, 7)],
                                       .top_p = poison[test_random_below(&random, 7)],
                                       .min_p = poison[test_random_below(&random, 7)],
                                       .top_k = (int32_t)test_random_below(&random, 400) - 100,
                                       .repetition_penalty = poison[test_random_below(&random, 7)],
                                       .frequency_penalty = poison[test_random_below(&random, 7)],
                                       .seed = round,
                                       .history = history,
                                       .history_tokens = 40,
                                       .prompt_tokens = 20,
                                       .bias = bias,
                                       .n_bias = 3,
                                       .mask = round % 2 == 0 ? mask : NULL};
        const int32_t token = pick(logits, VOCAB, &params);
        assert_in_range(token, 0, VOCAB - 1);
        k_sampled_t out;
        k_sampling_report(logits, VOCAB, token, 20, &out);
        assert_false(isnan(out.chosen.logprob));
        assert_in_range(out.chosen.rank, 1, VOCAB);
        for (uint32_t i = 0; i < out.n_top; i++) {
            assert_false(isnan(out.top[i].logprob));
        }
    }
}

static void an_infinite_logit_wins(void **state)
{
    (void)state;
    const float logits[] = {1, NAN, INFINITY, 5, -INFINITY};
    for (uint64_t i = 0; i < 50; i++) {
        k_sample_row_t params = plain;
        params.output_index = i;
        assert_int_equal(pick(logits, 5, &params), 2);
    }
}

/* ---- bias and penalties -------------------------------------------------------------------- */

static void bias_comes_before_penalties_and_prompts_count_for_repetition_only(void **state)
{
    (void)state;
    const float logits[] = {2.0f, 1.9f, -1.0f, 1.0f};
    const int32_t history[] = {0, 1, 1};
    k_sample_row_t params = {.temperature = 0,
                             .top_p = 1,
                             .repetition_penalty = 1,
                             .presence_penalty = 0.5f,
                             .history = history,
                             .history_tokens = 3,
                             .prompt_tokens = 1};
    assert_int_equal(pick(logits, 4, &params), 0); /* 0 is of the prompt: no presence penalty */
    params.repetition_penalty = 2;                 /* 1, 0.95 − 0.5, −1, 1: the tie goes to 0 */
    assert_int_equal(pick(logits, 4, &params), 0);
    params.prompt_tokens = 0; /* 1 − 0.5, 0.95 − 0.5, −1, 1 */
    assert_int_equal(pick(logits, 4, &params), 3);
    const k_bias_t bias[] = {{1, 2.5f}}; /* (1.9 + 2.5) / 2 − 0.5 = 1.7 */
    params.bias = bias;
    params.n_bias = 1;
    assert_int_equal(pick(logits, 4, &params), 1);
    params.frequency_penalty = 0.4f; /* twice: 0.9 */
    assert_int_equal(pick(logits, 4, &params), 3);
}

/* ---- log-probabilities --------------------------------------------------------------------- */

static void reports_are_the_log_softmax_in_order(void **state)
{
    (void)state;
    static ranked_t all[MAX_VOCAB];
    test_random_t random = {test_seed(56)};
    for (uint32_t round = 0; round < test_rounds(1000); round++) {
        const uint32_t vocab = test_random_between(&random, 1, round % 5 == 0 ? MAX_VOCAB : 50);
        const uint32_t n_top = test_random_below(&random, K_MAX_LOGPROBS + 1);
        float *logits = random_floats(&random, vocab);
        double sum = 0;
        for (uint32_t t = 0; t < vocab; t++) {
            logits[t] = round % 2 == 0 ? logits[t] * 30 : floorf(logits[t] * 6);
            sum += exp((double)logits[t]);
        }
        for (uint32_t t = 0; t < vocab; t++) {
            all[t] = (ranked_t){exp((double)logits[t]), logits[t], t};
        }
        qsort(all, vocab, sizeof(all[0]), compare_ranked);
        const uint32_t rank = test_random_between(&random, 1, vocab);
        const uint32_t target = all[rank - 1].token;
        k_sampled_t out;
        k_sampling_report(logits, vocab, (int32_t)target, n_top, &out);
        assert_int_equal(out.chosen.token, target);
        assert_int_equal(out.chosen.rank, rank);
        assert_true(fabs((double)out.chosen.logprob - ((double)logits[target] - log(sum))) < 2e-5);
        assert_int_equal(out.n_top, n_top < vocab ? n_top : vocab);
        for (uint32_t i = 0; i < out.n_top; i++) {
            assert_int_equal(out.top[i].token, all[i].token);
            assert_int_equal(out.top[i].rank, i + 1);
            const double expected = (double)all[i].logit - log(sum);
            assert_true(fabs((double)out.top[i].logprob - expected) < 2e-5);
        }
        test_free(logits);
    }
}

/* ---- the ops ------------------------------------------------------------------------------- */

static void check_ops(const char *isa, test_random_t *random)
{
    enum { VOCAB = 1000, ROWS = 7 };
    k_stream_t *one = open_stream(isa, 1, ROWS, VOCAB);
    k_stream_t *four = open_stream(isa, 4, ROWS, VOCAB);
    float *logits = random_floats(random, ROWS * VOCAB);
    float *copy = test_malloc(ROWS * VOCAB * sizeof(*copy));
    static k_sampled_t rows[ROWS];
    static k_sampled_t alone;
    k_sample_row_t params[ROWS];
    for (uint32_t r = 0; r < ROWS; r++) {
        params[r] = plain;
        params[r].seed = test_random_u64(random);
        params[r].top_p = r % 2 == 0 ? 1 : 0.8f;
        params[r].top_k = r % 3 == 0 ? 0 : 50;
        params[r].n_top = r;
        params[r].wants_logprob = r % 2 == 0;
    }
    memcpy(copy, logits, ROWS * VOCAB * sizeof(*copy));
    const k_sample_args_t batch = {copy, params, rows, ROWS, VOCAB, VOCAB};
    four->ops->sample(four, &batch);
    for (uint32_t r = 0; r < ROWS; r++) {
        memcpy(copy, logits + r * VOCAB, VOCAB * sizeof(*copy));
        const k_sample_args_t single = {copy, &params[r], &alone, 1, VOCAB, VOCAB};
        one->ops->sample(one, &single);
        assert_int_equal(rows[r].chosen.token, alone.chosen.token);
        assert_int_equal(rows[r].n_top, r);
        if (params[r].wants_logprob) {
            const uint32_t n_top = r;
            const k_logprobs_args_t report = {
                logits + r * VOCAB, &alone.chosen.token, &n_top, &alone, 1, VOCAB, VOCAB};
            one->ops->logprobs(one, &report);
            assert_memory_equal(&rows[r].chosen, &alone.chosen, sizeof(alone.chosen));
            assert_memory_equal(rows[r].top, alone.top, r * sizeof(alone.top[0]));
        }
    }
    test_free(logits);
    test_free(copy);
    k_stream_destroy(one);
    k_stream_destroy(four);
}

static void sampled_rows_do_not_depend_on_their_neighbours(void **state)
{
    (void)state;
    each_isa(check_ops, 57);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(no_token_is_passed_over_that_noise_would_lift),
        cmocka_unit_test(filters_keep_what_a_sort_would_keep),
        cmocka_unit_test(draws_under_top_p_follow_the_renormalized_softmax),
        cmocka_unit_test(top_p_0_and_top_k_1_are_argmax_with_ties_to_the_lower_id),
        cmocka_unit_test(a_mask_with_one_token_leaves_no_choice),
        cmocka_unit_test(hostile_logits_still_give_a_token),
        cmocka_unit_test(an_infinite_logit_wins),
        cmocka_unit_test(bias_comes_before_penalties_and_prompts_count_for_repetition_only),
        cmocka_unit_test(reports_are_the_log_softmax_in_order),
        cmocka_unit_test(sampled_rows_do_not_depend_on_their_neighbours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
