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

/* Columns [first, first + n) of x, normed by what the sums of all columns say. */
static void norm_part(k_stream_t *stream, const k_rms_norm_args_t *whole, uint32_t first,
                      uint32_t n, const float *sums)
{
    k_rms_norm_args_t args = *whole;
    args.x = (const float *)whole->x + first;
    args.w = whole->w + first;
    args.y = (float *)whole->y + first;
    args.dim = n;
    args.sums = sums;
    args.sums_stride = 3;
    args.sums_dim = whole->dim;
    stream->ops->rms_norm(stream, &args);
}

/* A part of a row may be empty: keys that another rank counts. */
static void check_parts(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const uint32_t rows = test_random_between(random, 1, 9);
        const uint32_t dim = test_random_between(random, 2, 200);
        const uint32_t cut = test_random_below(random, dim);
        float *x = random_floats(random, (size_t)rows * dim);
        float *w = random_floats(random, dim);
        float *y = test_malloc((size_t)rows * dim * sizeof(*y));
        float sums[2][9 * 3];
        const k_rms_norm_args_t args = {.x = x,
                                        .w = w,
                                        .y = y,
                                        .rows = rows,
                                        .groups = 1,
                                        .dim = dim,
                                        .x_stride = dim,
                                        .y_stride = dim,
                                        .eps = 1e-5f};
        for (uint32_t i = 0; i < 2; i++) {
            const k_square_sums_args_t part = {x + (i == 0 ? 0 : cut),   sums[i], rows,
                                               i == 0 ? cut : dim - cut, dim,     3};
            stream->ops->square_sums(stream, &part);
        }
        for (uint32_t row = 0; row < rows; row++) {
            sums[0][row * 3] += sums[1][row * 3];
        }
        norm_part(stream, &args, 0, cut, sums[0]);
        norm_part(stream, &args, cut, dim - cut, sums[0]);
        for (uint32_t i = 0; i < rows; i++) {
            double squares = 0;
            for (uint32_t j = 0; j < dim; j++) {
                squares += (double)x[i * dim + j] * (double)x[i * dim + j];
            }
            const double scale = 1 / sqrt(squares / dim + (double)1e-5f);
            for (uint32_t j = 0; j < dim; j++) {
                const double expected = (double)x[i * dim + j] * scale * (double)w[j];
                assert_near(y[i * dim + j], expected, 1e-5 * fabs(expected) + 1e-30, "part");
            }
        }
        test_free(x);
        test_free(w);
        test_free(y);
    }
    k_stream_destroy(stream);
}

static void parts_of_a_row_are_normed_by_the_squares_of_all(void **state)
{
    (void)state;
    each_isa(check_parts, 37);
}

/* Which gated activation is at test. */
typedef enum gate { SILU, GELU, CLAMPED, GATES } gate_t;

#define LIMIT 7.0f

static double gated(gate_t kind, double gate, double up)
{
    const double g = fmin(gate, (double)LIMIT);
    const double u = fmax(fmin(up, (double)LIMIT), -(double)LIMIT);
    switch (kind) {
    case SILU:
        return gate / (1 + exp(-gate)) * up;
    case GELU:
        return gate / 2 * (1 + tanh(sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate))) * up;
    default:
        return (u + 1) * g / (1 + exp(-1.702 * g));
    }
}

static void run_gate(k_stream_t *stream, gate_t kind, float *y, const float *up, uint32_t rows,
                     uint32_t dim, size_t stride)
{
    const k_silu_mul_args_t args = {y, up, y, rows, dim, stride, stride, stride};
    const k_clamped_mul_args_t clamped = {y, up, y, rows, dim, stride, stride, stride, LIMIT};
    if (kind == SILU) {
        stream->ops->silu_mul(stream, &args);
    } else if (kind == GELU) {
        stream->ops->gelu_mul(stream, &args);
    } else {
        stream->ops->clamped_mul(stream, &clamped);
    }
}

/* Gates from 1e-4 to over 100 in size: exp overflows and vanishes there. */
static void check_gates(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const gate_t kind = (gate_t)(round % GATES);
        const uint32_t rows = test_random_between(random, 1, 9);
        const uint32_t dim = test_random_between(random, 1, 200);
        const size_t stride = dim + test_random_below(random, 4);
        float *gate = random_floats(random, rows * stride);
        float *up = random_floats(random, rows * stride);
        float *y = test_malloc(rows * stride * sizeof(*y));
        for (size_t i = 0; i < rows * stride; i++) {
            gate[i] *= powf(10, 6.5f * fabsf(random_float(random)) - 4);
            up[i] *= 10;
        }
        memcpy(y, gate, rows * stride * sizeof(*y));
        run_gate(stream, kind, y, up, rows, dim, stride);
        for (uint32_t i = 0; i < rows; i++) {
            for (uint32_t j = 0; j < dim; j++) {
                const size_t at = i * stride + j;
                const double expected = gated(kind, (double)gate[at], (double)up[at]);
                /* tanh through exp is off by 2^-23 of 1, not of what gelu leaves of it. */
                const double cancelled =
                    kind == GELU ? fabs((double)gate[at] * (double)up[at]) * 2.5e-7 : 0;
                /* exp(−1.702 g) of a large g amplifies the rounding of its argument. */
                const double wide = kind == CLAMPED ? 1 + fabs((double)gate[at]) : 1;
                assert_near(y[at], expected, 1e-6 * wide * fabs(expected) + cancelled + 1e-30,
                            "gated");
            }
        }
        test_free(gate);
        test_free(up);
        test_free(y);
    }
    k_stream_destroy(stream);
}

static void gated_activations_hold_from_tiny_gates_to_huge_ones(void **state)
{
    (void)state;
    each_isa(check_gates, 32);
}

static void check_softcap(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const uint32_t rows = test_random_between(random, 1, 5);
        const uint32_t dim = test_random_between(random, 1, 200);
        const size_t stride = dim + test_random_below(random, 4);
        const float cap = 30 * fabsf(random_float(random)) + 1;
        float *x = random_floats(random, rows * stride);
        float *y = test_malloc(rows * stride * sizeof(*y));
        for (size_t i = 0; i < rows * stride; i++) {
            x[i] *= 100;
        }
        memcpy(y, x, rows * stride * sizeof(*y));
        const k_softcap_args_t args = {y, rows, dim, stride, cap};
        stream->ops->softcap(stream, &args);
        for (size_t i = 0; i < rows * stride; i++) {
            const bool is_padding = i % stride >= dim;
            const double expected = (double)cap * tanh((double)x[i] / (double)cap);
            assert_near(y[i], is_padding ? (double)x[i] : expected, 5e-7 * (double)cap, "softcap");
        }
        test_free(x);
        test_free(y);
    }
    k_stream_destroy(stream);
}

static void softcap_bends_to_its_cap(void **state)
{
    (void)state;
    each_isa(check_softcap, 35);
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
        const float scale = round % 2 == 0 ? 1 : 0.5f; /* products without rounding */
        const k_add_args_t add = {x, y, rows, dim, x_stride, y_stride, scale};
        stream->ops->add(stream, &add);
        for (uint32_t i = 0; i < rows; i++) {
            index[i] = test_random_below(random, rows);
            for (uint32_t j = 0; j < dim; j++) {
                const float sum = before[i * y_stride + j] + scale * x[i * x_stride + j];
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
        cmocka_unit_test(parts_of_a_row_are_normed_by_the_squares_of_all),
        cmocka_unit_test(gated_activations_hold_from_tiny_gates_to_huge_ones),
        cmocka_unit_test(softcap_bends_to_its_cap),
        cmocka_unit_test(add_and_gather_rows_are_exact),
        cmocka_unit_test(rope_rotates_exactly_at_far_positions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
