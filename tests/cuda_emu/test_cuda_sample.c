/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sampling and log-probabilities on the GPU against those of the CPU (k_sampling.h): the same token,
 * except where a rounding decides what top_p or min_p keeps.
 */
#include "kernels/k_sampling.h"
#include "tests/cuda_emu/device_arrays.h"
#include "tests/kernels/sampling_rows.h"

enum { ROUNDS = 160, MAX_ROWS = 6 };

/* ---- the CPU's answer ------------------------------------------------------------------------- */

static int32_t cpu_pick(const float *logits, uint32_t vocab, const k_sample_row_t *params)
{
    void *scratch = test_malloc(k_sampling_scratch_bytes(vocab));
    const int32_t token = k_sampling_pick(logits, vocab, params, scratch);
    test_free(scratch);
    return token;
}

/* The thresholds, moved by more than any rounding, choose another token. */
static bool is_doubtful(const float *logits, uint32_t vocab, const k_sample_row_t *params,
                        int32_t token)
{
    static const float moves[] = {-2e-6f, 2e-6f};
    for (int i = 0; i < 2; i++) {
        k_sample_row_t moved = *params;
        moved.top_p *= params->top_p < 1 ? 1 + moves[i] : 1;
        if (cpu_pick(logits, vocab, &moved) != token) {
            return true;
        }
        moved = *params;
        moved.min_p *= 1 + moves[i];
        if (cpu_pick(logits, vocab, &moved) != token) {
            return true;
        }
    }
    return false;
}

static void assert_logprob(float got, float expected)
{
    if (!(got == expected || fabsf(got - expected) <= 2e-5f + 1e-6f * fabsf(expected))) {
        fail_msg("log-probability %g, not %g", (double)got, (double)expected);
    }
}

static void assert_report(const float *logits, uint32_t vocab, uint32_t n_top,
                          const k_sampled_t *got)
{
    k_sampled_t expected = {0};
    k_sampling_report(logits, vocab, got->chosen.token, n_top, &expected);
    assert_int_equal(got->chosen.rank, expected.chosen.rank);
    assert_logprob(got->chosen.logprob, expected.chosen.logprob);
    assert_int_equal(got->n_top, expected.n_top);
    for (uint32_t i = 0; i < expected.n_top; i++) {
        assert_int_equal(got->top[i].token, expected.top[i].token);
        assert_int_equal(got->top[i].rank, i + 1);
        assert_logprob(got->top[i].logprob, expected.top[i].logprob);
    }
}

/* ---- the GPU's answer ------------------------------------------------------------------------- */

typedef struct batch {
    uint32_t rows;
    uint32_t vocab;
    size_t stride;
    float *logits;
    k_sample_row_t params[MAX_ROWS]; /* of the host */
    row_inputs_t inputs[MAX_ROWS];
} batch_t;

static k_sample_row_t params_on_device(const k_sample_row_t *host, uint32_t vocab,
                                       int32_t *append_to)
{
    k_sample_row_t params = *host;
    if (host->history != NULL) {
        params.history = device_array(host->history, host->history_tokens * sizeof(int32_t));
    }
    if (host->bias != NULL) {
        params.bias = device_array(host->bias, host->n_bias * sizeof(k_bias_t));
    }
    if (host->mask != NULL) {
        params.mask = device_array(host->mask, (vocab + 31) / 32 * sizeof(uint32_t));
    }
    params.append_to = append_to;
    return params;
}

/* out [rows] of rows first… of the batch, appended [rows] of those with an even index. */
static void gpu_sample(const batch_t *batch, uint32_t first, uint32_t rows, k_sampled_t *out,
                       int32_t *appended)
{
    const k_cuda_launch_t at = device_launch(k_cuda_sample_scratch_bytes(rows, batch->vocab));
    k_sample_row_t params[MAX_ROWS];
    memset(appended, 0xff, rows * sizeof(*appended));
    int32_t *device_appended = device_array(appended, rows * sizeof(*appended));
    for (uint32_t i = 0; i < rows; i++) {
        params[i] = params_on_device(&batch->params[first + i], batch->vocab,
                                     (first + i) % 2 == 0 ? device_appended + i : NULL);
    }
    k_sampled_t *device_out = device_array(NULL, rows * sizeof(*out));
    const k_sample_args_t args = {
        .logits = device_array(batch->logits + first * batch->stride,
                               rows * batch->stride * sizeof(float)),
        .params = device_array(params, rows * sizeof(params[0])),
        .out = device_out,
        .rows = rows,
        .vocab = batch->vocab,
        .logits_stride = batch->stride,
    };
    assert_cuda(k_cuda_sample(&at, &args));
    k_sampled_t *got = cuda_download(device_out, rows * sizeof(*got));
    int32_t *got_appended = cuda_download(device_appended, rows * sizeof(*got_appended));
    memcpy(out, got, rows * sizeof(*got));
    memcpy(appended, got_appended, rows * sizeof(*got_appended));
    test_free(got_appended);
    test_free(got);
    device_free_all();
}

static void batch_init(test_random_t *random, batch_t *batch)
{
    memset(batch, 0, sizeof(*batch));
    batch->rows = test_random_between(random, 1, MAX_ROWS);
    batch->vocab = test_random_between(random, 1, 200);
    if (test_random_below(random, 2) == 0) {
        batch->vocab = test_random_between(random, 3000, 9000);
    }
    batch->stride = batch->vocab + test_random_below(random, 5);
    batch->logits = random_floats(random, batch->rows * batch->stride);
    for (uint32_t i = 0; i < batch->rows; i++) {
        random_logits(random, batch->logits + i * batch->stride, batch->vocab);
        batch->params[i] = random_params(random, batch->vocab, &batch->inputs[i]);
    }
}

static void batch_fini(batch_t *batch)
{
    for (uint32_t i = 0; i < batch->rows; i++) {
        test_free(batch->inputs[i].mask);
    }
    test_free(batch->logits);
}

/* Returns whether rounding may decide the row. */
static bool check_row(const batch_t *batch, uint32_t row, const k_sampled_t *got, int32_t appended)
{
    const float *logits = batch->logits + row * batch->stride;
    const k_sample_row_t *params = &batch->params[row];
    const int32_t expected = cpu_pick(logits, batch->vocab, params);
    const bool may_differ =
        got->chosen.token != expected && is_doubtful(logits, batch->vocab, params, expected);
    if (got->chosen.token != expected && !may_differ) {
        fail_msg("vocab %u row %u: token %d, not %d: temperature %g top_k %d top_p %g min_p %g",
                 batch->vocab, row, got->chosen.token, expected, (double)params->temperature,
                 params->top_k, (double)params->top_p, (double)params->min_p);
    }
    assert_int_equal(appended, row % 2 == 0 ? got->chosen.token : -1);
    if (params->wants_logprob || params->n_top > 0) {
        assert_report(logits, batch->vocab, params->n_top, got);
    } else {
        assert_int_equal(got->n_top, 0);
        assert_int_equal(got->chosen.rank, 0);
    }
    return may_differ;
}

/* Each batch also one row at a time: the others change nothing. */
static void gpu_samples_what_the_cpu_samples(void **state)
{
    (void)state;
    test_random_t random = {test_seed(71)};
    uint32_t n_rows = 0;
    uint32_t n_doubtful = 0;
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        batch_t batch;
        batch_init(&random, &batch);
        k_sampled_t out[MAX_ROWS];
        int32_t appended[MAX_ROWS];
        gpu_sample(&batch, 0, batch.rows, out, appended);
        for (uint32_t i = 0; i < batch.rows; i++) {
            n_doubtful += check_row(&batch, i, &out[i], appended[i]) ? 1 : 0;
            n_rows++;
        }
        const uint32_t alone = test_random_below(&random, batch.rows);
        k_sampled_t out_alone;
        int32_t appended_alone;
        gpu_sample(&batch, alone, 1, &out_alone, &appended_alone);
        assert_memory_equal(&out_alone.chosen, &out[alone].chosen, sizeof(out_alone.chosen));
        batch_fini(&batch);
    }
    assert_true(n_doubtful <= n_rows / 50);
}

/* One row, many draws: what is kept, and how often, is the CPU's draw for draw. */
static void gpu_draws_the_same_tokens_for_every_output(void **state)
{
    (void)state;
    enum { VOCAB = 700, DRAWS = 60 };
    test_random_t random = {test_seed(72)};
    batch_t batch = {.rows = 1, .vocab = VOCAB, .stride = VOCAB};
    batch.logits = random_floats(&random, VOCAB);
    for (uint32_t t = 0; t < VOCAB; t++) {
        batch.logits[t] *= 5;
    }
    batch.params[0] = (k_sample_row_t){
        .temperature = 0.8f, .top_p = 0.9f, .top_k = 300, .repetition_penalty = 1, .seed = 5};
    for (uint32_t i = 0; i < test_scaled(DRAWS * 20); i++) {
        k_sampled_t out;
        int32_t appended;
        batch.params[0].output_index = i;
        gpu_sample(&batch, 0, 1, &out, &appended);
        check_row(&batch, 0, &out, appended);
    }
    test_free(batch.logits);
}

/* Every token in one bucket, and more of them than any shared memory would hold. */
static void equal_logits_are_cut_by_id(void **state)
{
    (void)state;
    enum { VOCAB = 9000, ROWS = 4 };
    static const struct {
        float top_p;
        int32_t top_k;
        int32_t last; /* token kept */
    } cuts[ROWS] = {{0.3f, 0, 2700}, {0.5f, 6000, 3000}, {1, 7, 6}, {0.5f, 1, 0}};
    batch_t batch = {.rows = ROWS, .vocab = VOCAB, .stride = VOCAB};
    batch.logits = test_calloc((size_t)ROWS * VOCAB, sizeof(float));
    for (uint32_t i = 0; i < 5; i++) {
        k_sampled_t out[ROWS];
        int32_t appended[ROWS];
        for (uint32_t row = 0; row < ROWS; row++) {
            batch.params[row] = (k_sample_row_t){.temperature = 1,
                                                 .top_p = cuts[row].top_p,
                                                 .top_k = cuts[row].top_k,
                                                 .repetition_penalty = 1,
                                                 .seed = row,
                                                 .output_index = i};
        }
        gpu_sample(&batch, 0, ROWS, out, appended);
        for (uint32_t row = 0; row < ROWS; row++) {
            check_row(&batch, row, &out[row], appended[row]);
            assert_in_range(out[row].chosen.token, 0, cuts[row].last);
        }
    }
    test_free(batch.logits);
}

static void logprobs_report_prompt_targets(void **state)
{
    (void)state;
    test_random_t random = {test_seed(73)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS / 2); round++) {
        batch_t batch;
        batch_init(&random, &batch);
        int32_t targets[MAX_ROWS];
        uint32_t n_top[MAX_ROWS];
        for (uint32_t i = 0; i < batch.rows; i++) {
            targets[i] = (int32_t)test_random_below(&random, batch.vocab);
            n_top[i] = test_random_below(&random, K_MAX_LOGPROBS + 1);
        }
        const k_cuda_launch_t at =
            device_launch(k_cuda_sample_scratch_bytes(batch.rows, batch.vocab));
        k_sampled_t *device_out = device_array(NULL, batch.rows * sizeof(*device_out));
        const k_logprobs_args_t args = {
            .logits = device_array(batch.logits, batch.rows * batch.stride * sizeof(float)),
            .targets = device_array(targets, sizeof(targets)),
            .n_top = device_array(n_top, sizeof(n_top)),
            .out = device_out,
            .rows = batch.rows,
            .vocab = batch.vocab,
            .logits_stride = batch.stride,
        };
        assert_cuda(k_cuda_logprobs(&at, &args));
        k_sampled_t *out = cuda_download(device_out, batch.rows * sizeof(*out));
        for (uint32_t i = 0; i < batch.rows; i++) {
            assert_int_equal(out[i].chosen.token, targets[i]);
            assert_report(batch.logits + i * batch.stride, batch.vocab, n_top[i], &out[i]);
        }
        test_free(out);
        device_free_all();
        batch_fini(&batch);
    }
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpu_samples_what_the_cpu_samples),
        cmocka_unit_test(gpu_draws_the_same_tokens_for_every_output),
        cmocka_unit_test(equal_logits_are_cut_by_id),
        cmocka_unit_test(logprobs_report_prompt_targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
