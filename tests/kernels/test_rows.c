/* SPDX-License-Identifier: Apache-2.0 */
/* The ops that pass over rows of activations, against the formula in double. */
#include "tests/kernels/kernels_support.h"

enum { ROUNDS = 200 };

static void assert_near(float got, double expected, double bound, const char *what)
{
    if (!(fabs((double)got - expected) <= bound)) {
        fail_msg("%s is %g, not %g ± %g", what, (double)got, expected, bound);
    }
}

static void check_norm(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const uint32_t rows = test_random_between(random, 1, 9);
        const uint32_t groups = test_random_between(random, 1, 3);
        const uint32_t dim = test_random_between(random, 1, 200);
        const size_t stride = (size_t)groups * dim + test_random_below(random, 4);
        float *x = random_floats(random, rows * stride);
        float *w = random_floats(random, dim);
        float *y = test_malloc(rows * stride * sizeof(*y));
        memcpy(y, x, rows * stride * sizeof(*y));
        const bool in_place = test_random_below(random, 2) == 0;
        const k_rms_norm_args_t args = {.x = in_place ? y : x,
                                        .w = w,
                                        .y = y,
                                        .rows = rows,
                                        .groups = groups,
                                        .dim = dim,
                                        .x_stride = stride,
                                        .y_stride = stride,
                                        .eps = 1e-5f};
        stream->ops->rms_norm(stream, &args);
        for (uint32_t i = 0; i < rows * groups; i++) {
            const size_t at = i / groups * stride + (size_t)(i % groups) * dim;
            double squares = 0;
            for (uint32_t j = 0; j < dim; j++) {
                squares += (double)x[at + j] * (double)x[at + j];
            }
            const double scale = 1 / sqrt(squares / dim + (double)1e-5f);
            for (uint32_t j = 0; j < dim; j++) {
                const double expected = (double)x[at + j] * scale * (double)w[j];
                assert_near(y[at + j], expected, 1e-5 * fabs(expected) + 1e-30, "rms_norm");
            }
        }
        test_free(x);
        test_free(w);
        test_free(y);
    }
    k_stream_destroy(stream);
}

static void rms_norm_divides_by_the_root_of_the_mean_square(void **state)
{
    (void)state;
    each_isa(check_norm, 31);
}

/* Gates from 1e-4 to over 100 in size: silu has to hold where exp overflows and vanishes. */
static void check_silu(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const uint32_t rows = test_random_between(random, 1, 9);
        const uint32_t dim = test_random_between(random, 1, 200);
        const size_t stride = dim + test_random_below(random, 4);
        float *gate = random_floats(random, rows * stride);
        float *up = random_floats(random, rows * stride);
        float *y = test_malloc(rows * stride * sizeof(*y));
        for (size_t i = 0; i < rows * stride; i++) {
            gate[i] *= powf(10, 6.5f * fabsf(random_float(random)) - 4);
        }
        memcpy(y, gate, rows * stride * sizeof(*y));
        const k_silu_mul_args_t args = {y, up, y, rows, dim, stride, stride, stride};
        stream->ops->silu_mul(stream, &args);
        for (uint32_t i = 0; i < rows; i++) {
            for (uint32_t j = 0; j < dim; j++) {
                const size_t at = i * stride + j;
                const double g = (double)gate[at];
                const double expected = g / (1 + exp(-g)) * (double)up[at];
                assert_near(y[at], expected, 1e-6 * fabs(expected) + 1e-30, "silu_mul");
            }
        }
        test_free(gate);
        test_free(up);
        test_free(y);
    }
    k_stream_destroy(stream);
}

static void silu_mul_holds_from_tiny_gates_to_huge_ones(void **state)
{
    (void)state;
    each_isa(check_silu, 32);
}

static void check_moves(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const uint32_t rows = test_random_between(random, 1, 9);
        const uint32_t dim = test_random_between(random, 1, 200);
        const size_t x_stride = dim + test_random_below(random, 4);
        const size_t y_stride = dim + test_random_below(random, 4);
        float *x = random_floats(random, rows * x_stride);
        float *before = random_floats(random, rows * y_stride);
        float *y = test_malloc(rows * y_stride * sizeof(*y));
        uint32_t index[9];
        memcpy(y, before, rows * y_stride * sizeof(*y));
        const k_add_args_t add = {x, y, rows, dim, x_stride, y_stride};
        stream->ops->add(stream, &add);
        for (uint32_t i = 0; i < rows; i++) {
            index[i] = test_random_below(random, rows);
            for (uint32_t j = 0; j < dim; j++) {
                const float sum = before[i * y_stride + j] + x[i * x_stride + j];
                assert_same_bits(&y[i * y_stride + j], &sum, 1, "add");
            }
        }
        const k_gather_rows_args_t gather = {x, index, y, rows, dim, x_stride, y_stride};
        stream->ops->gather_rows(stream, &gather);
        for (uint32_t i = 0; i < rows; i++) {
            assert_same_bits(y + i * y_stride, x + index[i] * x_stride, dim, "gather_rows");
        }
        test_free(x);
        test_free(before);
        test_free(y);
    }
    k_stream_destroy(stream);
}

static void add_and_gather_rows_are_exact(void **state)
{
    (void)state;
    each_isa(check_moves, 33);
}

/* Positions up to 131072, where an angle has lost all but a few bits below 1. */
static void check_rotation(const char *isa, test_random_t *random)
{
    enum { DIM = 64 };
    k_stream_t *stream = open_stream(isa, 1, 1, 1);
    float inv_freq[DIM / 2];
    for (uint32_t i = 0; i < DIM / 2; i++) {
        inv_freq[i] = powf(500000.0f, -2.0f * (float)i / DIM);
    }
    for (uint32_t round = 0; round < test_rounds(40000); round++) {
        const uint32_t position = test_random_below(random, 131072);
        uint32_t *table = test_calloc(position / 16 + 1, sizeof(*table)); /* all in block 0 */
        float cache[16 * 2 * DIM];
        float *q = random_floats(random, DIM);
        float *k = random_floats(random, DIM);
        float q_before[DIM];
        memcpy(q_before, q, sizeof(q_before));
        const k_seq_t seq = {.rows = 1, .start = position, .block_table = table};
        const k_rope_kv_write_args_t args = {.q = q,
                                             .k = k,
                                             .v = k,
                                             .q_stride = DIM,
                                             .k_stride = DIM,
                                             .v_stride = DIM,
                                             .q_heads = 1,
                                             .rotary = DIM,
                                             .inv_freq = inv_freq,
                                             .mscale = 1.25f,
                                             .kv = {.base = cache,
                                                    .dtype = K_F32,
                                                    .block_tokens = 16,
                                                    .heads = 1,
                                                    .head_dim = DIM,
                                                    .token_stride = 2 * DIM * sizeof(float),
                                                    .part_stride = DIM * sizeof(float)},
                                             .seqs = &seq,
                                             .n_seqs = 1};
        stream->ops->rope_kv_write(stream, &args);
        for (uint32_t i = 0; i < DIM / 2; i++) {
            const double angle = (double)((float)position * inv_freq[i]);
            const double a = (double)q_before[i];
            const double b = (double)q_before[i + DIM / 2];
            assert_near(q[i], 1.25 * (a * cos(angle) - b * sin(angle)), 5e-7, "rotated");
            assert_near(q[i + DIM / 2], 1.25 * (b * cos(angle) + a * sin(angle)), 5e-7, "rotated");
        }
        assert_same_bits(cache + (size_t)(position % 16) * 2 * DIM, k, DIM, "cached k");
        test_free(q);
        test_free(k);
        test_free(table);
    }
    k_stream_destroy(stream);
}

static void rope_rotates_exactly_at_far_positions(void **state)
{
    (void)state;
    each_isa(check_rotation, 34);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rms_norm_divides_by_the_root_of_the_mean_square),
        cmocka_unit_test(silu_mul_holds_from_tiny_gates_to_huge_ones),
        cmocka_unit_test(add_and_gather_rows_are_exact),
        cmocka_unit_test(rope_rotates_exactly_at_far_positions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
