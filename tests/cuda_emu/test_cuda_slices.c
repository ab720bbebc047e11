/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sampling and log-probabilities from slices of a vocabulary, as ranks have them, against those from
 * whole rows on the same device: the same tokens, always.
 */
#include "tests/cuda_emu/device_arrays.h"
#include "tests/kernels/sampling_rows.h"

enum { ROUNDS = 60, MAX_ROWS = 4, MAX_RANKS = 5 };

typedef struct cut {
    uint32_t rows;
    uint32_t vocab;
    uint32_t ranks;
    uint32_t first[MAX_RANKS + 1]; /* token of each rank; then vocab */
    float *logits;                 /* [rows, vocab] on the host, so for the next three */
    k_sample_row_t params[MAX_ROWS];
    row_inputs_t inputs[MAX_ROWS];
    bool has_targets; /* log-probabilities of these instead of sampling */
    int32_t targets[MAX_ROWS];
    uint32_t n_top[MAX_ROWS];
    /* On the device. */
    k_cuda_launch_t at;
    k_sample_row_t *device_params; /* NULL with targets */
    int32_t *device_targets;
    uint32_t *device_n_top;
    float *slices[MAX_RANKS];
    float *z[MAX_RANKS];
    k_slice_row_t *state[MAX_RANKS];
    k_slice_cuts_t *cuts[MAX_RANKS];
    k_sampled_t *out[MAX_RANKS];
} cut_t;

static uint32_t slice_of(const cut_t *cut, uint32_t r)
{
    return cut->first[r + 1] - cut->first[r];
}

static void cut_init(test_random_t *random, cut_t *cut, bool has_targets)
{
    memset(cut, 0, sizeof(*cut));
    cut->has_targets = has_targets;
    cut->rows = test_random_between(random, 1, MAX_ROWS);
    cut->vocab = test_random_between(random, 5, 200);
    if (test_random_below(random, 2) == 0) {
        cut->vocab = test_random_between(random, 5000, 11000); /* several tiles */
    }
    cut->ranks = test_random_between(random, 1, MAX_RANKS);
    for (uint32_t r = 1; r < cut->ranks; r++) {
        const uint32_t even = (uint32_t)((uint64_t)cut->vocab * r / cut->ranks);
        const uint32_t least = cut->first[r - 1] + 1;
        cut->first[r] = test_random_below(random, 2) == 0 && even >= least ? even : least;
    }
    cut->first[cut->ranks] = cut->vocab;
    cut->logits = random_floats(random, (size_t)cut->rows * cut->vocab);
    for (uint32_t i = 0; i < cut->rows; i++) {
        random_logits(random, cut->logits + (size_t)i * cut->vocab, cut->vocab);
        cut->params[i] = random_params(random, cut->vocab, &cut->inputs[i]);
        if (test_random_below(random, 4) == 0) {
            cut->params[i].temperature = ONE_OF(random, INFINITY, 1e30f, 1e8f, 1e-30f);
        }
        cut->targets[i] = (int32_t)test_random_below(random, cut->vocab);
        cut->n_top[i] = test_random_below(random, K_MAX_LOGPROBS + 1);
    }
}

static void cut_fini(cut_t *cut)
{
    for (uint32_t i = 0; i < cut->rows; i++) {
        test_free(cut->inputs[i].mask);
    }
    test_free(cut->logits);
}

/* ---- on the device ---------------------------------------------------------------------------- */

static k_sample_row_t *upload_params(const cut_t *cut, int32_t *append_to)
{
    k_sample_row_t params[MAX_ROWS];
    for (uint32_t i = 0; i < cut->rows; i++) {
        const k_sample_row_t *host = &cut->params[i];
        params[i] = *host;
        if (host->history != NULL) {
            params[i].history = device_array(host->history, host->history_tokens * sizeof(int32_t));
        }
        if (host->bias != NULL) {
            params[i].bias = device_array(host->bias, host->n_bias * sizeof(k_bias_t));
        }
        if (host->mask != NULL) {
            params[i].mask = device_array(host->mask, (cut->vocab + 31) / 32 * sizeof(uint32_t));
        }
        params[i].append_to = append_to + i;
    }
    return device_array(params, cut->rows * sizeof(params[0]));
}

static float *upload_slice(const cut_t *cut, uint32_t r)
{
    const uint32_t n = slice_of(cut, r);
    float *slice = test_malloc((size_t)cut->rows * n * sizeof(*slice));
    for (uint32_t i = 0; i < cut->rows; i++) {
        memcpy(slice + (size_t)i * n, cut->logits + (size_t)i * cut->vocab + cut->first[r],
               n * sizeof(*slice));
    }
    float *device = device_array(slice, (size_t)cut->rows * n * sizeof(*slice));
    test_free(slice);
    return device;
}

static void cut_upload(cut_t *cut, int32_t *append_to)
{
    const size_t sampling = k_cuda_sample_scratch_bytes(cut->rows, cut->vocab);
    const size_t slices = k_cuda_slices_scratch_bytes(cut->rows, cut->vocab);
    cut->at = device_launch(sampling > slices ? sampling : slices);
    if (cut->has_targets) {
        cut->device_targets = device_array(cut->targets, sizeof(cut->targets));
        cut->device_n_top = device_array(cut->n_top, sizeof(cut->n_top));
    } else {
        cut->device_params = upload_params(cut, append_to);
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        cut->slices[r] = upload_slice(cut, r);
        cut->z[r] = device_array(NULL, (size_t)cut->rows * slice_of(cut, r) * sizeof(float));
        cut->state[r] = device_array(NULL, cut->rows * sizeof(k_slice_row_t));
        cut->cuts[r] = device_array(NULL, cut->rows * sizeof(k_slice_cuts_t));
        cut->out[r] = device_array(NULL, cut->rows * sizeof(k_sampled_t));
    }
}

static void find_maxima(cut_t *cut)
{
    k_slice_max_t *all = device_array(NULL, cut->ranks * cut->rows * sizeof(*all));
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_slice_max_args_t args = {.logits = cut->slices[r],
                                         .params = cut->device_params,
                                         .targets = cut->device_targets,
                                         .z = cut->z[r],
                                         .out = all + (size_t)r * cut->rows,
                                         .rows = cut->rows,
                                         .first_token = cut->first[r],
                                         .tokens = slice_of(cut, r),
                                         .stride = slice_of(cut, r)};
        assert_cuda(k_cuda_slice_max(&cut->at, &args));
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_merge_max_args_t args = {.maxima = all,
                                         .params = cut->device_params,
                                         .targets = cut->device_targets,
                                         .n_top = cut->device_n_top,
                                         .state = cut->state[r],
                                         .out = cut->out[r],
                                         .rows = cut->rows,
                                         .ranks = cut->ranks};
        assert_cuda(k_cuda_merge_max(&cut->at, &args));
    }
}

static void find_digit(cut_t *cut, bool by_top_p, uint32_t round, k_masses_t *all)
{
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_slice_masses_args_t args = {.z = cut->z[r],
                                            .params = cut->device_params,
                                            .state = cut->state[r],
                                            .cuts = cut->cuts[r],
                                            .out = all + (size_t)r * cut->rows,
                                            .by_top_p = by_top_p,
                                            .round = round,
                                            .rows = cut->rows,
                                            .tokens = slice_of(cut, r),
                                            .stride = slice_of(cut, r)};
        assert_cuda(k_cuda_slice_masses(&cut->at, &args));
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_merge_masses_args_t args = {.masses = all,
                                            .params = cut->device_params,
                                            .state = cut->state[r],
                                            .cuts = cut->cuts[r],
                                            .by_top_p = by_top_p,
                                            .round = round,
                                            .rows = cut->rows,
                                            .ranks = cut->ranks,
                                            .rank = r};
        assert_cuda(k_cuda_merge_masses(&cut->at, &args));
    }
}

static void find_cuts(cut_t *cut)
{
    k_masses_t *all = device_array(NULL, cut->ranks * cut->rows * sizeof(*all));
    for (uint32_t i = 0; i < 2 * K_CUT_ROUNDS; i++) {
        find_digit(cut, i >= K_CUT_ROUNDS, i % K_CUT_ROUNDS, all);
    }
}

static void find_winners(cut_t *cut)
{
    const size_t bytes = cut->rows * k_candidates_bytes(1);
    char *all = device_array(NULL, cut->ranks * bytes);
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_slice_candidates_args_t args = {.logits = cut->slices[r],
                                                .z = cut->z[r],
                                                .params = cut->device_params,
                                                .state = cut->state[r],
                                                .cuts = cut->cuts[r],
                                                .out = all + r * bytes,
                                                .most = 1,
                                                .rows = cut->rows,
                                                .first_token = cut->first[r],
                                                .tokens = slice_of(cut, r),
                                                .stride = slice_of(cut, r)};
        assert_cuda(k_cuda_slice_candidates(&cut->at, &args));
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_merge_candidates_args_t args = {.candidates = all,
                                                .params = cut->device_params,
                                                .state = cut->state[r],
                                                .out = cut->out[r],
                                                .is_cut = true,
                                                .most = 1,
                                                .rows = cut->rows,
                                                .ranks = cut->ranks};
        assert_cuda(k_cuda_merge_candidates(&cut->at, &args));
    }
}

static void report(cut_t *cut)
{
    const size_t bytes = cut->rows * k_tally_bytes(K_MAX_LOGPROBS);
    char *all = device_array(NULL, cut->ranks * bytes);
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_slice_logprobs_args_t args = {.logits = cut->slices[r],
                                              .state = cut->state[r],
                                              .out = all + r * bytes,
                                              .max_top = K_MAX_LOGPROBS,
                                              .rows = cut->rows,
                                              .first_token = cut->first[r],
                                              .tokens = slice_of(cut, r),
                                              .stride = slice_of(cut, r)};
        assert_cuda(k_cuda_slice_logprobs(&cut->at, &args));
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_merge_logprobs_args_t args = {.tallies = all,
                                              .state = cut->state[r],
                                              .out = cut->out[r],
                                              .max_top = K_MAX_LOGPROBS,
                                              .rows = cut->rows,
                                              .ranks = cut->ranks};
        assert_cuda(k_cuda_merge_logprobs(&cut->at, &args));
    }
}

/* ---- against whole rows ----------------------------------------------------------------------- */

/* A sum's order is another one. */
static void assert_logprob(float got, float expected)
{
    if (!(got == expected || fabsf(got - expected) <= 2e-5f + 1e-6f * fabsf(expected))) {
        fail_msg("log-probability %g, not %g", (double)got, (double)expected);
    }
}

static void assert_same(const cut_t *cut, uint32_t row, const k_sampled_t *got,
                        const k_sampled_t *whole)
{
    const k_sample_row_t *params = &cut->params[row];
    if (got->chosen.token != whole->chosen.token) {
        fail_msg("vocab %u over %u ranks: token %d, not %d: temperature %g top_k %d top_p %g",
                 cut->vocab, cut->ranks, got->chosen.token, whole->chosen.token,
                 (double)params->temperature, params->top_k, (double)params->top_p);
    }
    assert_int_equal(got->chosen.rank, whole->chosen.rank);
    assert_logprob(got->chosen.logprob, whole->chosen.logprob);
    assert_int_equal(got->n_top, whole->n_top);
    for (uint32_t i = 0; i < got->n_top; i++) {
        assert_int_equal(got->top[i].token, whole->top[i].token);
        assert_int_equal(got->top[i].rank, whole->top[i].rank);
        assert_logprob(got->top[i].logprob, whole->top[i].logprob);
    }
}

static void check_ranks(const cut_t *cut, const k_sampled_t *device_whole)
{
    k_sampled_t *whole = cuda_download(device_whole, cut->rows * sizeof(*whole));
    for (uint32_t r = 0; r < cut->ranks; r++) {
        k_sampled_t *got = cuda_download(cut->out[r], cut->rows * sizeof(*got));
        for (uint32_t i = 0; i < cut->rows; i++) {
            assert_same(cut, i, &got[i], &whole[i]);
        }
        test_free(got);
    }
    test_free(whole);
}

static void check_appended(const cut_t *cut, const int32_t *device_appended)
{
    int32_t *appended = cuda_download(device_appended, sizeof(int32_t) * MAX_ROWS);
    k_sampled_t *got = cuda_download(cut->out[0], cut->rows * sizeof(*got));
    for (uint32_t i = 0; i < cut->rows; i++) {
        assert_int_equal(appended[i], got[i].chosen.token);
    }
    test_free(got);
    test_free(appended);
}

static void slices_sample_what_whole_rows_do(void **state)
{
    (void)state;
    test_random_t random = {test_seed(91)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        cut_t cut;
        int32_t *appended = device_array(NULL, sizeof(int32_t) * MAX_ROWS);
        cut_init(&random, &cut, false);
        cut_upload(&cut, appended);
        find_maxima(&cut);
        find_cuts(&cut);
        find_winners(&cut);
        report(&cut);
        check_appended(&cut, appended);
        k_sampled_t *whole = device_array(NULL, cut.rows * sizeof(*whole));
        const k_sample_args_t args = {
            .logits = device_array(cut.logits, (size_t)cut.rows * cut.vocab * sizeof(float)),
            .params = cut.device_params,
            .out = whole,
            .rows = cut.rows,
            .vocab = cut.vocab,
            .logits_stride = cut.vocab};
        assert_cuda(k_cuda_sample(&cut.at, &args));
        check_ranks(&cut, whole);
        device_free_all();
        cut_fini(&cut);
    }
}

static void slices_report_prompts_as_whole_rows_do(void **state)
{
    (void)state;
    test_random_t random = {test_seed(92)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS / 3); round++) {
        cut_t cut;
        cut_init(&random, &cut, true);
        cut_upload(&cut, NULL);
        find_maxima(&cut);
        report(&cut);
        k_sampled_t *whole = device_array(NULL, cut.rows * sizeof(*whole));
        const k_logprobs_args_t args = {
            .logits = device_array(cut.logits, (size_t)cut.rows * cut.vocab * sizeof(float)),
            .targets = cut.device_targets,
            .n_top = cut.device_n_top,
            .out = whole,
            .rows = cut.rows,
            .vocab = cut.vocab,
            .logits_stride = cut.vocab};
        assert_cuda(k_cuda_logprobs(&cut.at, &args));
        check_ranks(&cut, whole);
        device_free_all();
        cut_fini(&cut);
    }
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slices_sample_what_whole_rows_do),
        cmocka_unit_test(slices_report_prompts_as_whole_rows_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
