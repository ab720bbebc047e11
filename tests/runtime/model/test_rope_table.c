/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/compiler.h"
#include "runtime/model/rope_table.h"
#include "tests/support/check.h"

#define DIM   16
#define PAIRS (DIM / 2)

static const model_rope_t plain = {
    .kind = MODEL_ROPE_PLAIN, .theta = 10000.0f, .dim = DIM, .factor = 1.0f, .mscale = 1.0f};

static void assert_close(float value, double expected)
{
    assert_true(fabs(value - expected) <= 1e-6 * fabs(expected));
}

static void plain_frequencies_fall_geometrically(void **state)
{
    (void)state;
    float freq[PAIRS];
    assert_status(rope_table_fill(&plain, NULL, NULL, freq), WEFT_OK);
    for (int i = 0; i < PAIRS; i++) {
        assert_close(freq[i], pow(10.0, -i * 4.0 / PAIRS));
    }
}

static void linear_divides_all_frequencies(void **state)
{
    (void)state;
    float base[PAIRS];
    float freq[PAIRS];
    model_rope_t rope = plain;
    rope.kind = MODEL_ROPE_LINEAR;
    rope.factor = 4.0f;
    assert_status(rope_table_fill(&plain, NULL, NULL, base), WEFT_OK);
    assert_status(rope_table_fill(&rope, NULL, NULL, freq), WEFT_OK);
    for (int i = 0; i < PAIRS; i++) {
        assert_close(freq[i], base[i] / 4.0);
    }
}

static void factors_divide_pair_by_pair(void **state)
{
    (void)state;
    float base[PAIRS];
    float freq[PAIRS];
    float factors[PAIRS];
    model_rope_t rope = plain;
    rope.kind = MODEL_ROPE_FACTORS;
    for (int i = 0; i < PAIRS; i++) {
        factors[i] = 1.0f + (float)i;
    }
    assert_status(rope_table_fill(&plain, NULL, NULL, base), WEFT_OK);
    assert_status(rope_table_fill(&rope, factors, NULL, freq), WEFT_OK);
    for (int i = 0; i < PAIRS; i++) {
        assert_close(freq[i], base[i] / (1.0 + i));
    }
}

/* The published code's way: by wavelengths. */
static double llama3_by_wavelength(const model_rope_t *rope, double freq)
{
    const double wave = 2.0 * M_PI / freq;
    if (wave < rope->original_context / (double)rope->high_freq_factor) {
        return freq;
    }
    if (wave > rope->original_context / (double)rope->low_freq_factor) {
        return freq / rope->factor;
    }
    const double smooth = (rope->original_context / wave - rope->low_freq_factor) /
                          (rope->high_freq_factor - rope->low_freq_factor);
    return (1.0 - smooth) * freq / rope->factor + smooth * freq;
}

static void llama3_equals_the_definition_by_wavelength(void **state)
{
    (void)state;
    float base[64];
    float freq[64];
    model_rope_t rope = {.kind = MODEL_ROPE_PLAIN, .theta = 500000.0f, .dim = 128};
    assert_status(rope_table_fill(&rope, NULL, NULL, base), WEFT_OK);
    rope.kind = MODEL_ROPE_LLAMA3;
    rope.factor = 8.0f;
    rope.low_freq_factor = 1.0f;
    rope.high_freq_factor = 4.0f;
    rope.original_context = 8192;
    assert_status(rope_table_fill(&rope, NULL, NULL, freq), WEFT_OK);

    int ramp = 0;
    for (int i = 0; i < 64; i++) {
        assert_close(freq[i], llama3_by_wavelength(&rope, base[i]));
        ramp += freq[i] < base[i] && freq[i] > base[i] / 8.0f * 1.001f;
    }
    assert_true(ramp > 2); /* all three zones were met */
    assert_true(freq[0] == base[0]);
    assert_close(freq[63], base[63] / 8.0);
}

static void yarn_keeps_fast_pairs_and_divides_slow_ones(void **state)
{
    (void)state;
    float base[64];
    float freq[64];
    model_rope_t rope = {.kind = MODEL_ROPE_PLAIN, .theta = 10000.0f, .dim = 128};
    assert_status(rope_table_fill(&rope, NULL, NULL, base), WEFT_OK);
    rope.kind = MODEL_ROPE_YARN;
    rope.factor = 16.0f;
    rope.beta_fast = 32.0f;
    rope.beta_slow = 1.0f;
    rope.original_context = 4096;
    assert_status(rope_table_fill(&rope, NULL, NULL, freq), WEFT_OK);

    /* d·ln(4096 / (32·2π)) / (2 ln 10000) = 20.94 → 20; with 1 turn 45.03 → 46 */
    for (int i = 0; i < 64; i++) {
        const double kept = i <= 20 ? 1.0 : i >= 46 ? 0.0 : 1.0 - (i - 20) / 26.0;
        assert_close(freq[i], base[i] * kept + base[i] / 16.0 * (1.0 - kept));
    }
}

static void a_frequency_that_is_no_number_is_refused(void **state)
{
    (void)state;
    const float bad[] = {0.0f, -1.0f, NAN, INFINITY};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(bad); i++) {
        float freq[PAIRS];
        float factors[PAIRS] = {1, 1, 1, 1, 1, 1, 1, 1};
        weft_diag_t diag = {0};
        factors[3] = bad[i];
        assert_status(rope_table_fill(&plain, factors, &diag, freq), WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, "pair 3"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_frequencies_fall_geometrically),
        cmocka_unit_test(linear_divides_all_frequencies),
        cmocka_unit_test(factors_divide_pair_by_pair),
        cmocka_unit_test(llama3_equals_the_definition_by_wavelength),
        cmocka_unit_test(yarn_keeps_fast_pairs_and_divides_slow_ones),
        cmocka_unit_test(a_frequency_that_is_no_number_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
