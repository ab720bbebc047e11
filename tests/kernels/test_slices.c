/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of logits cut over ranks: the ops on slices against those on whole rows. */
#include "tests/kernels/sampling_rows.h"

enum { MAX_VOCAB = 2500, MAX_RANKS = 7, MAX_ROWS = 5 };

/* Rows, and what each rank has of them. */
typedef struct cut {
    k_stream_t *stream;
    const float *logits; /* [rows, vocab] */
    const k_sample_row_t *params;
    const int32_t *targets; /* with params NULL */
    const uint32_t *n_top;
    uint32_t rows;
    uint32_t vocab;
    uint32_t ranks;
    uint32_t stride;                 /* of a slice */
    uint32_t first[MAX_RANKS + 1];   /* of each rank; then vocab */
    float *slices[MAX_RANKS];        /* [rows, stride] */
    float *z[MAX_RANKS];             /* [rows, stride] */
    k_slice_max_t *maxima;           /* [ranks, rows] */
    k_slice_row_t *state[MAX_RANKS]; /* [rows] */
    k_sampled_t *out[MAX_RANKS];     /* [rows] */
    bool has_cuts;                   /* one candidate of what they keep, instead of lists */
    k_slice_cuts_t *cuts[MAX_RANKS]; /* [rows] */
    uint32_t n_rounds;               /* of candidates */
} cut_t;

static uint32_t slice_of(const cut_t *cut, uint32_t r)
{
    return cut->first[r + 1] - cut->first[r];
}

/* Borders anywhere; every rank has a token. */
static void choose_borders(cut_t *cut, test_random_t *random)
{
    cut->first[0] = 0;
    for (uint32_t r = 1; r < cut->ranks; r++) {
        const bool is_even = test_random_below(random, 2) == 0;
        const uint32_t left = cut->ranks - r;
        const uint32_t even = (uint32_t)((uint64_t)cut->vocab * r / cut->ranks);
        const uint32_t least = cut->first[r - 1] + 1;
        cut->first[r] =
            is_even && even >= least ? even : test_random_between(random, least, cut->vocab - left);
    }
    cut->first[cut->ranks] = cut->vocab;
    for (uint32_t r = 0; r < cut->ranks; r++) {
        cut->stride = cut->stride < slice_of(cut, r) ? slice_of(cut, r) : cut->stride;
    }
}

static void cut_open(cut_t *cut, test_random_t *random)
{
    choose_borders(cut, random);
    const size_t rows = cut->rows;
    cut->maxima = test_malloc(cut->ranks * rows * sizeof(*cut->maxima));
    for (uint32_t r = 0; r < cut->ranks; r++) {
        cut->slices[r] = test_malloc(rows * cut->stride * sizeof(float));
        cut->z[r] = test_malloc(rows * cut->stride * sizeof(float));
        cut->state[r] = test_malloc(rows * sizeof(*cut->state[r]));
        cut->out[r] = test_malloc(rows * sizeof(*cut->out[r]));
        cut->cuts[r] = test_malloc(rows * sizeof(*cut->cuts[r]));
        for (uint32_t i = 0; i < rows; i++) {
            memcpy(cut->slices[r] + i * cut->stride, cut->logits + i * cut->vocab + cut->first[r],
                   slice_of(cut, r) * sizeof(float));
        }
    }
}

static void cut_close(cut_t *cut)
{
    for (uint32_t r = 0; r < cut->ranks; r++) {
        test_free(cut->slices[r]);
        test_free(cut->z[r]);
        test_free(cut->state[r]);
        test_free(cut->out[r]);
        test_free(cut->cuts[r]);
    }
    test_free(cut->maxima);
}

static void find_maxima(cut_t *cut)
{
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_slice_max_args_t args = {.logits = cut->slices[r],
                                         .params = cut->params,
                                         .targets = cut->targets,
                                         .z = cut->z[r],
                                         .out = cut->maxima + (size_t)r * cut->rows,
                                         .rows = cut->rows,
                                         .first_token = cut->first[r],
                                         .tokens = slice_of(cut, r),
                                         .stride = cut->stride};
        cut->stream->ops->slice_max(cut->stream, &args);
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_merge_max_args_t args = {.maxima = cut->maxima,
                                         .params = cut->params,
                                         .targets = cut->targets,
                                         .n_top = cut->n_top,
                                         .state = cut->state[r],
                                         .out = cut->out[r],
                                         .rows = cut->rows,
                                         .ranks = cut->ranks};
        cut->stream->ops->merge_max(cut->stream, &args);
    }
}

static void find_digit(cut_t *cut, bool by_top_p, uint32_t round, k_masses_t *all)
{
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_slice_masses_args_t args = {.z = cut->z[r],
                                            .params = cut->params,
                                            .state = cut->state[r],
                                            .cuts = cut->cuts[r],
                                            .out = all + (size_t)r * cut->rows,
                                            .by_top_p = by_top_p,
                                            .round = round,
                                            .rows = cut->rows,
                                            .tokens = slice_of(cut, r),
                                            .stride = cut->stride};
        cut->stream->ops->slice_masses(cut->stream, &args);
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_merge_masses_args_t args = {.masses = all,
                                            .params = cut->params,
                                            .state = cut->state[r],
                                            .cuts = cut->cuts[r],
                                            .by_top_p = by_top_p,
                                            .round = round,
                                            .rows = cut->rows,
                                            .ranks = cut->ranks,
                                            .rank = r};
        cut->stream->ops->merge_masses(cut->stream, &args);
    }
}

static void find_cuts(cut_t *cut)
{
    k_masses_t *all = test_malloc(cut->ranks * cut->rows * sizeof(*all));
    for (uint32_t i = 0; i < 2 * K_CUT_ROUNDS; i++) {
        find_digit(cut, i >= K_CUT_ROUNDS, i % K_CUT_ROUNDS, all);
    }
    test_free(all);
}

static void ask(cut_t *cut, uint32_t most)
{
    const size_t bytes = cut->rows * k_candidates_bytes(most);
    char *all = test_malloc(cut->ranks * bytes);
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_slice_candidates_args_t args = {.logits = cut->slices[r],
                                                .z = cut->z[r],
                                                .params = cut->params,
                                                .state = cut->state[r],
                                                .cuts = cut->has_cuts ? cut->cuts[r] : NULL,
                                                .out = all + r * bytes,
                                                .most = most,
                                                .is_again = cut->n_rounds > 0,
                                                .rows = cut->rows,
                                                .first_token = cut->first[r],
                                                .tokens = slice_of(cut, r),
                                                .stride = cut->stride};
        cut->stream->ops->slice_candidates(cut->stream, &args);
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_merge_candidates_args_t args = {.candidates = all,
                                                .params = cut->params,
                                                .state = cut->state[r],
                                                .out = cut->out[r],
                                                .is_cut = cut->has_cuts,
                                                .most = most,
                                                .rows = cut->rows,
                                                .ranks = cut->ranks};
        cut->stream->ops->merge_candidates(cut->stream, &args);
    }
    cut->n_rounds++;
    test_free(all);
}

static bool is_open(const cut_t *cut)
{
    for (uint32_t i = 0; i < cut->rows; i++) {
        if (cut->state[0][i].token < 0) {
            return true;
        }
    }
    return false;
}

static void report(cut_t *cut)
{
    uint32_t max_top = 0;
    for (uint32_t i = 0; i < cut->rows; i++) {
        max_top = cut->state[0][i].n_top > max_top ? cut->state[0][i].n_top : max_top;
    }
    const size_t bytes = cut->rows * k_tally_bytes(max_top);
    char *all = test_malloc(cut->ranks * bytes);
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_slice_logprobs_args_t args = {.logits = cut->slices[r],
                                              .state = cut->state[r],
                                              .out = all + r * bytes,
                                              .max_top = max_top,
                                              .rows = cut->rows,
                                              .first_token = cut->first[r],
                                              .tokens = slice_of(cut, r),
                                              .stride = cut->stride};
        cut->stream->ops->slice_logprobs(cut->stream, &args);
    }
    for (uint32_t r = 0; r < cut->ranks; r++) {
        const k_merge_logprobs_args_t args = {.tallies = all,
                                              .state = cut->state[r],
                                              .out = cut->out[r],
                                              .max_top = max_top,
                                              .rows = cut->rows,
                                              .ranks = cut->ranks};
        cut->stream->ops->merge_logprobs(cut->stream, &args);
    }
    test_free(all);
}

/* Asks for `most` candidates first, then for four times as many, until no row is open. */
static void sample_cut(cut_t *cut, uint32_t most)
{
    find_maxima(cut);
    if (cut->has_cuts) {
        find_cuts(cut);
        ask(cut, 1);
        assert_false(is_open(cut));
    }
    while (is_open(cut)) {
        ask(cut, most < cut->stride ? most : cut->stride);
        assert_true(most < 4 * cut->stride || !is_open(cut));
        most *= 4;
    }
    report(cut);
}

/* ---- against whole rows ----------------------------------------------------------------------- */

static void assert_same_logprob(const k_logprob_t *a, const k_logprob_t *b)
{
    if (memcmp(a, b, sizeof(*a)) != 0) {
        fail_msg("token %d rank %u of %a, not %d, %u, %a", a->token, a->rank, (double)a->logprob,
                 b->token, b->rank, (double)b->logprob);
    }
}

static void assert_as_whole(const cut_t *cut, const k_sampled_t *whole)
{
    for (uint32_t r = 0; r < cut->ranks; r++) {
        for (uint32_t i = 0; i < cut->rows; i++) {
            const k_sampled_t *one = &cut->out[r][i];
            assert_same_logprob(&one->chosen, &whole[i].chosen);
            assert_int_equal(one->n_top, whole[i].n_top);
            for (uint32_t j = 0; j < one->n_top; j++) {
                assert_same_logprob(&one->top[j], &whole[i].top[j]);
            }
        }
    }
}

static cut_t random_cut(test_random_t *random, k_stream_t *stream)
{
    cut_t cut = {.stream = stream};
    const bool is_small = test_random_below(random, 2) == 0;
    cut.vocab = test_random_between(random, 1, is_small ? 60 : MAX_VOCAB);
    cut.ranks = test_random_between(random, 1, cut.vocab < MAX_RANKS ? cut.vocab : MAX_RANKS);
    cut.rows = test_random_between(random, 1, MAX_ROWS);
    return cut;
}

/* Besides what random_params gives: odd temperatures, and a mask of one token. */
static k_sample_row_t odder_params(test_random_t *random, uint32_t vocab, row_inputs_t *inputs)
{
    k_sample_row_t params = random_params(random, vocab, inputs);
    if (test_random_below(random, 4) == 0) {
        params.temperature = ONE_OF(random, INFINITY, 1e30f, 1e8f, 1e-30f, NAN, -1);
    }
    if (params.mask != NULL && test_random_below(random, 3) == 0) {
        const uint32_t token = test_random_below(random, vocab);
        memset(inputs->mask, 0, (vocab + 31) / 32 * sizeof(uint32_t));
        inputs->mask[token / 32] = UINT32_C(1) << token % 32;
    }
    if (test_random_below(random, 4) == 0) {
        params.top_p = 0.999999f;
    }
    return params;
}

static void sampling_from_slices_gives_what_whole_rows_give(void **state)
{
    (void)state;
    test_random_t random = {test_seed(61)};
    k_stream_t *stream = open_stream("auto", 2, MAX_ROWS, MAX_VOCAB);
    uint32_t n_again = 0;
    uint32_t n_at_once = 0;
    for (uint32_t round = 0; round < test_rounds(20000); round++) {
        cut_t cut = random_cut(&random, stream);
        k_sample_row_t params[MAX_ROWS];
        row_inputs_t inputs[MAX_ROWS];
        k_sampled_t whole[MAX_ROWS];
        int32_t appended[MAX_ROWS];
        float *logits = test_malloc((size_t)cut.rows * cut.vocab * sizeof(float));
        for (uint32_t i = 0; i < cut.rows; i++) {
            random_logits(&random, logits + (size_t)i * cut.vocab, cut.vocab);
            params[i] = odder_params(&random, cut.vocab, &inputs[i]);
            params[i].append_to = &appended[i];
        }
        cut.logits = logits;
        cut.params = params;
        cut_open(&cut, &random);
        cut.has_cuts = round % 4 == 0; /* they take time */
        sample_cut(&cut, test_random_between(&random, 1, 40));
        n_again += cut.n_rounds > 1;
        n_at_once += cut.n_rounds == 1 && !cut.has_cuts;
        for (uint32_t i = 0; i < cut.rows; i++) {
            assert_int_equal(appended[i], cut.out[0][i].chosen.token);
        }
        const k_sample_args_t args = {.logits = logits,
                                      .params = params,
                                      .out = whole,
                                      .rows = cut.rows,
                                      .vocab = cut.vocab,
                                      .logits_stride = cut.vocab};
        stream->ops->sample(stream, &args);
        assert_as_whole(&cut, whole);
        for (uint32_t i = 0; i < cut.rows; i++) {
            test_free(inputs[i].mask);
        }
        cut_close(&cut);
        test_free(logits);
    }
    assert_true(n_again > 0 && n_at_once > 0);
    k_stream_destroy(stream);
}

static void logprobs_of_slices_are_those_of_whole_rows(void **state)
{
    (void)state;
    test_random_t random = {test_seed(62)};
    k_stream_t *stream = open_stream("auto", 2, MAX_ROWS, MAX_VOCAB);
    for (uint32_t round = 0; round < test_rounds(1000); round++) {
        cut_t cut = random_cut(&random, stream);
        int32_t targets[MAX_ROWS];
        uint32_t n_top[MAX_ROWS];
        k_sampled_t whole[MAX_ROWS];
        float *logits = test_malloc((size_t)cut.rows * cut.vocab * sizeof(float));
        for (uint32_t i = 0; i < cut.rows; i++) {
            random_logits(&random, logits + (size_t)i * cut.vocab, cut.vocab);
            targets[i] = (int32_t)test_random_below(&random, cut.vocab);
            n_top[i] = test_random_below(&random, K_MAX_LOGPROBS + 1);
        }
        cut.logits = logits;
        cut.targets = targets;
        cut.n_top = n_top;
        cut_open(&cut, &random);
        find_maxima(&cut);
        report(&cut);
        const k_logprobs_args_t args = {.logits = logits,
                                        .targets = targets,
                                        .n_top = n_top,
                                        .out = whole,
                                        .rows = cut.rows,
                                        .vocab = cut.vocab,
                                        .logits_stride = cut.vocab};
        stream->ops->logprobs(stream, &args);
        assert_as_whole(&cut, whole);
        cut_close(&cut);
        test_free(logits);
    }
    k_stream_destroy(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sampling_from_slices_gives_what_whole_rows_give),
        cmocka_unit_test(logprobs_of_slices_are_those_of_whole_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
