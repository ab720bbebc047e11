/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA ops that pass over rows, against their formulas in double. Activations are bf16: a result
 * is off by half a unit in the last of its 8 bits, plus what f32 arithmetic adds.
 */
#include "tests/cuda_emu/device_arrays.h"

enum { ROUNDS = 160 };

#define BF16_BOUND (1.02 / 256)

static void assert_near(double got, double expected, double relative, const char *what)
{
    if (!(fabs(got - expected) <= relative * fabs(expected) + 1e-30)) {
        fail_msg("%s is %g, not %g", what, got, expected);
    }
}

/* Rows of dim elements out of which every wide access is possible, or none. */
typedef struct shape {
    uint32_t rows;
    uint32_t dim;
    size_t stride;
} shape_t;

static shape_t random_shape(test_random_t *random, uint32_t max_dim)
{
    shape_t shape = {.rows = test_random_between(random, 1, 5)};
    if (test_random_below(random, 2) == 0) {
        shape.dim = test_random_between(random, 1, max_dim / 8) * 8;
        shape.stride = shape.dim + (size_t)test_random_below(random, 3) * 8;
    } else {
        shape.dim = test_random_between(random, 1, max_dim / 4);
        shape.stride = shape.dim + test_random_below(random, 4);
    }
    return shape;
}

/* What lies between the rows is as it was. */
static void assert_gaps_untouched(const void *before, const void *after, shape_t shape,
                                  uint32_t groups, size_t element)
{
    const size_t dim = (size_t)shape.dim * groups;
    for (uint32_t row = 0; row < shape.rows; row++) {
        const size_t at = (row * shape.stride + dim) * element;
        assert_memory_equal((const char *)before + at, (const char *)after + at,
                            (shape.stride - dim) * element);
    }
}

/* ---- rms_norm -------------------------------------------------------------------------------- */

static void check_norm(const float *x, const float *w, const uint16_t *y, shape_t shape,
                       uint32_t groups)
{
    for (uint32_t i = 0; i < shape.rows * groups; i++) {
        const size_t at = i / groups * shape.stride + (size_t)(i % groups) * shape.dim;
        double squares = 0;
        for (uint32_t j = 0; j < shape.dim; j++) {
            squares += (double)x[at + j] * (double)x[at + j];
        }
        const double scale = 1 / sqrt(squares / shape.dim + (double)1e-5f);
        for (uint32_t j = 0; j < shape.dim; j++) {
            assert_near((double)k_bf16_to_f32(y[at + j]), (double)x[at + j] * scale * (double)w[j],
                        BF16_BOUND, "rms_norm");
        }
    }
}

static void norm_round(test_random_t *random, bool is_f32, uint32_t max_dim)
{
    const k_cuda_launch_t at = device_launch(0);
    const uint32_t groups = test_random_between(random, 1, 3);
    shape_t shape = random_shape(random, max_dim);
    shape.stride += (size_t)(groups - 1) * shape.dim;
    const size_t n = shape.rows * shape.stride;
    float *x = random_floats(random, n);
    float *w = random_floats(random, shape.dim);
    uint16_t *x_bf16 = is_f32 ? NULL : bf16_of(x, n);
    uint16_t *before = test_malloc(n * sizeof(*before));
    memset(before, 0x3c, n * sizeof(*before));
    const bool in_place = !is_f32 && test_random_below(random, 2) == 0;
    if (in_place) {
        memcpy(before, x_bf16, n * sizeof(*before));
    }
    void *y = device_array(before, n * sizeof(*before));
    const void *device_x =
        is_f32 ? device_array(x, n * sizeof(*x)) : device_array(x_bf16, n * sizeof(*x_bf16));
    const k_rms_norm_args_t args = {.x = in_place ? y : device_x,
                                    .x_dtype = is_f32 ? K_F32 : K_BF16,
                                    .w = device_array(w, shape.dim * sizeof(*w)),
                                    .y = y,
                                    .rows = shape.rows,
                                    .groups = groups,
                                    .dim = shape.dim,
                                    .x_stride = shape.stride,
                                    .y_stride = shape.stride,
                                    .eps = 1e-5f};
    assert_cuda(k_cuda_rms_norm(&at, &args));
    uint16_t *got = cuda_download(y, n * sizeof(*got));
    check_norm(x, w, got, shape, groups);
    assert_gaps_untouched(before, got, shape, groups, sizeof(*got));
    device_free_all();
    test_free(got);
    test_free(before);
    if (x_bf16 != NULL) {
        test_free(x_bf16);
    }
    test_free(w);
    test_free(x);
}

static void rms_norm_divides_by_the_root_of_the_mean_square(void **state)
{
    (void)state;
    test_random_t random = {test_seed(61)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        norm_round(&random, round % 2 == 0, round % 4 < 2 ? 300 : 3000);
    }
    norm_round(&random, true, 16384);
    norm_round(&random, false, 16384);
}

/* Columns [0, cut) and [cut, dim) of rows of bf16, each a part; the first may be empty. */
static void parts_round(test_random_t *random)
{
    const k_cuda_launch_t at = device_launch(0);
    const uint32_t rows = test_random_between(random, 1, 5);
    const uint32_t dim = test_random_between(random, 2, 60) * 8;
    const uint32_t cut =
        test_random_below(random, 2) * (test_random_below(random, dim / 8) * 8 + 5);
    const uint32_t end = cut < dim ? cut : 0;
    const shape_t shape = {.rows = rows, .dim = dim, .stride = dim};
    float *x = random_floats(random, (size_t)rows * dim);
    float *w = random_floats(random, dim);
    uint16_t *x_bf16 = bf16_of(x, (size_t)rows * dim);
    uint16_t *device_x = device_array(x_bf16, (size_t)rows * dim * sizeof(*x_bf16));
    uint16_t *y = device_array(NULL, (size_t)rows * dim * sizeof(*y));
    const float *device_w = device_array(w, dim * sizeof(*w));
    float *sums = device_array(NULL, rows * 2 * sizeof(*sums));
    for (uint32_t i = 0; i < 2; i++) {
        const k_square_sums_args_t args = {.x = device_x + (i == 0 ? 0 : end),
                                           .sums = sums + i,
                                           .rows = rows,
                                           .dim = i == 0 ? end : dim - end,
                                           .x_stride = dim,
                                           .sums_stride = 2};
        assert_cuda(k_cuda_square_sums(&at, &args));
    }
    float *both = cuda_download(sums, rows * 2 * sizeof(*both));
    for (uint32_t row = 0; row < rows; row++) {
        both[row] = both[2 * row] + both[2 * row + 1];
    }
    const float *all = device_array(both, rows * sizeof(*both));
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t first = i == 0 ? 0 : end;
        const k_rms_norm_args_t args = {.x = device_x + first,
                                        .x_dtype = K_BF16,
                                        .w = device_w + first,
                                        .y = y + first,
                                        .rows = i == 0 && end == 0 ? 0 : rows,
                                        .groups = 1,
                                        .dim = i == 0 ? end : dim - end,
                                        .x_stride = dim,
                                        .y_stride = dim,
                                        .eps = 1e-5f,
                                        .sums = all,
                                        .sums_stride = 1,
                                        .sums_dim = dim};
        assert_cuda(k_cuda_rms_norm(&at, &args));
    }
    uint16_t *got = cuda_download(y, (size_t)rows * dim * sizeof(*got));
    check_norm(x, w, got, shape, 1);
    device_free_all();
    test_free(got);
    test_free(both);
    test_free(x_bf16);
    test_free(w);
    test_free(x);
}

static void parts_of_a_row_are_normed_by_the_squares_of_all(void **state)
{
    (void)state;
    test_random_t random = {test_seed(66)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        parts_round(&random);
    }
}

static void rms_norm_of_a_row_does_not_depend_on_the_others(void **state)
{
    (void)state;
    enum { ROWS = 7, DIM = 1096 };
    test_random_t random = {test_seed(62)};
    const k_cuda_launch_t at = device_launch(0);
    float *x = random_floats(&random, (size_t)ROWS * DIM);
    float *w = random_floats(&random, DIM);
    const float *device_x = device_array(x, (size_t)ROWS * DIM * sizeof(*x));
    const float *device_w = device_array(w, DIM * sizeof(*w));
    uint16_t *y = device_array(NULL, (size_t)ROWS * DIM * sizeof(*y));
    uint16_t *alone = device_array(NULL, (size_t)ROWS * DIM * sizeof(*alone));
    k_rms_norm_args_t args = {.x = device_x,
                              .x_dtype = K_F32,
                              .w = device_w,
                              .y = y,
                              .rows = ROWS,
                              .groups = 1,
                              .dim = DIM,
                              .x_stride = DIM,
                              .y_stride = DIM,
                              .eps = 1e-6f};
    assert_cuda(k_cuda_rms_norm(&at, &args));
    args.rows = 1;
    for (size_t row = 0; row < ROWS; row++) {
        args.x = device_x + row * DIM;
        args.y = alone + row * DIM;
        assert_cuda(k_cuda_rms_norm(&at, &args));
    }
    uint16_t *got = cuda_download(y, (size_t)ROWS * DIM * sizeof(*got));
    uint16_t *got_alone = cuda_download(alone, (size_t)ROWS * DIM * sizeof(*got));
    assert_memory_equal(got, got_alone, (size_t)ROWS * DIM * sizeof(*got));
    device_free_all();
    test_free(got_alone);
    test_free(got);
    test_free(w);
    test_free(x);
}

/* ---- gated ops ------------------------------------------------------------------------------- */

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double gelu(double x)
{
    return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double silu_product(double gate, double up)
{
    return silu(gate) * up;
}

static double gelu_product(double gate, double up)
{
    return gelu(gate) * up;
}

#define CLAMP_LIMIT 7.0f

static double clamped_product(double gate, double up)
{
    const double g = fmin(gate, (double)CLAMP_LIMIT);
    const double u = fmax(fmin(up, (double)CLAMP_LIMIT), -(double)CLAMP_LIMIT);
    return (u + 1) * g / (1 + exp(-1.702 * g));
}

static int launch_clamped(const k_cuda_launch_t *at, const k_silu_mul_args_t *args)
{
    const k_clamped_mul_args_t clamped = {args->gate,      args->up,       args->y,
                                          args->rows,      args->dim,      args->gate_stride,
                                          args->up_stride, args->y_stride, CLAMP_LIMIT};
    return k_cuda_clamped_mul(at, &clamped);
}

typedef int (*gated_fn)(const k_cuda_launch_t *at, const k_silu_mul_args_t *args);
typedef double (*product_fn)(double gate, double up);

/* Gates from 1e-4 to over 100 in size: it has to hold where exp overflows and vanishes. */
static void gated_round(test_random_t *random, gated_fn launch, product_fn product)
{
    const k_cuda_launch_t at = device_launch(0);
    const shape_t shape = random_shape(random, 3000);
    const size_t n = shape.rows * shape.stride;
    float *gate = random_floats(random, n);
    float *up = random_floats(random, n);
    for (size_t i = 0; i < n; i++) {
        gate[i] *= powf(10, 6.5f * fabsf(random_float(random)) - 4);
        up[i] *= 10;
    }
    uint16_t *gate_bf16 = bf16_of(gate, n);
    uint16_t *up_bf16 = bf16_of(up, n);
    uint16_t *y = device_array(gate_bf16, n * sizeof(*y));
    const k_silu_mul_args_t args = {.gate = y,
                                    .up = device_array(up_bf16, n * sizeof(*up_bf16)),
                                    .y = y,
                                    .rows = shape.rows,
                                    .dim = shape.dim,
                                    .gate_stride = shape.stride,
                                    .up_stride = shape.stride,
                                    .y_stride = shape.stride};
    assert_cuda(launch(&at, &args));
    uint16_t *got = cuda_download(y, n * sizeof(*got));
    for (size_t i = 0; i < n; i++) {
        const double expected = product((double)gate[i], (double)up[i]);
        /* Where 1 + tanh cancels, what is left is small beside the gate. */
        const double bound = BF16_BOUND * fabs(expected) + 1e-6 * fmin(fabs((double)gate[i]), 1);
        if (i % shape.stride < shape.dim &&
            !(fabs((double)k_bf16_to_f32(got[i]) - expected) <= bound)) {
            fail_msg("gate %g up %g: %g, not %g", (double)gate[i], (double)up[i],
                     (double)k_bf16_to_f32(got[i]), expected);
        }
    }
    assert_gaps_untouched(gate_bf16, got, shape, 1, sizeof(*got));
    device_free_all();
    test_free(got);
    test_free(up_bf16);
    test_free(gate_bf16);
    test_free(up);
    test_free(gate);
}

static void gated_ops_multiply_up_by_what_the_gate_lets_through(void **state)
{
    (void)state;
    test_random_t random = {test_seed(63)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        gated_round(&random, k_cuda_silu_mul, silu_product);
        gated_round(&random, k_cuda_gelu_mul, gelu_product);
        gated_round(&random, launch_clamped, clamped_product);
    }
}

/* ---- add, narrow, softcap -------------------------------------------------------------------- */

static void add_adds_scaled_activations(void **state)
{
    (void)state;
    test_random_t random = {test_seed(64)};
    const k_cuda_launch_t at = device_launch(0);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const shape_t shape = random_shape(&random, 3000);
        const size_t n = shape.rows * shape.stride;
        const float scale = round % 2 == 0 ? 1 : 0.22f;
        float *x = random_floats(&random, n);
        uint16_t *x_bf16 = bf16_of(x, n);
        float *before = random_floats(&random, n);
        float *y = device_array(before, n * sizeof(*y));
        const k_add_args_t args = {.x = device_array(x_bf16, n * sizeof(*x_bf16)),
                                   .scale = scale,
                                   .y = y,
                                   .rows = shape.rows,
                                   .dim = shape.dim,
                                   .x_stride = shape.stride,
                                   .y_stride = shape.stride};
        assert_cuda(k_cuda_add(&at, &args));
        float *got = cuda_download(y, n * sizeof(*got));
        for (size_t i = 0; i < n; i++) {
            before[i] = i % shape.stride < shape.dim ? fmaf(x[i], scale, before[i]) : before[i];
        }
        assert_same_bits(got, before, n, "add");
        device_free_all();
        test_free(got);
        test_free(before);
        test_free(x_bf16);
        test_free(x);
    }
}

static void narrow_rounds_to_bf16(void **state)
{
    (void)state;
    test_random_t random = {test_seed(67)};
    const k_cuda_launch_t at = device_launch(0);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const shape_t shape = random_shape(&random, 3000);
        const size_t n = shape.rows * shape.stride;
        float *x = random_floats(&random, n);
        uint16_t *expected = test_malloc(n * sizeof(*expected));
        memset(expected, 0x3c, n * sizeof(*expected));
        uint16_t *y = device_array(expected, n * sizeof(*y));
        const k_narrow_args_t args = {.x = device_array(x, n * sizeof(*x)),
                                      .y = y,
                                      .rows = shape.rows,
                                      .dim = shape.dim,
                                      .x_stride = shape.stride,
                                      .y_stride = shape.stride};
        assert_cuda(k_cuda_narrow(&at, &args));
        uint16_t *got = cuda_download(y, n * sizeof(*got));
        for (size_t i = 0; i < n; i++) {
            expected[i] = i % shape.stride < shape.dim ? k_f32_to_bf16(x[i]) : expected[i];
        }
        assert_memory_equal(got, expected, n * sizeof(*got));
        device_free_all();
        test_free(got);
        test_free(expected);
        test_free(x);
    }
}

static void softcap_bends_towards_the_cap(void **state)
{
    (void)state;
    test_random_t random = {test_seed(68)};
    const k_cuda_launch_t at = device_launch(0);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const shape_t shape = random_shape(&random, 3000);
        const size_t n = shape.rows * shape.stride;
        float *before = random_floats(&random, n);
        for (size_t i = 0; i < n; i++) {
            before[i] *= powf(10, 6 * fabsf(random_float(&random)) - 3);
        }
        float *x = device_array(before, n * sizeof(*x));
        const k_softcap_args_t args = {
            .x = x, .rows = shape.rows, .dim = shape.dim, .x_stride = shape.stride, .cap = 30};
        assert_cuda(k_cuda_softcap(&at, &args));
        float *got = cuda_download(x, n * sizeof(*got));
        for (size_t i = 0; i < n; i++) {
            if (i % shape.stride < shape.dim) {
                assert_near((double)got[i], 30 * tanh((double)before[i] / 30), 1e-6, "softcap");
            }
        }
        assert_gaps_untouched(before, got, shape, 1, sizeof(*got));
        device_free_all();
        test_free(got);
        test_free(before);
    }
}

/* ---- gathers --------------------------------------------------------------------------------- */

static void gather_rows_copies_the_rows_asked_for(void **state)
{
    (void)state;
    enum { SOURCE_ROWS = 9 };
    test_random_t random = {test_seed(65)};
    const k_cuda_launch_t at = device_launch(0);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const shape_t shape = random_shape(&random, 3000);
        const size_t n = shape.rows * shape.stride;
        float *x = random_floats(&random, SOURCE_ROWS * shape.stride);
        float *expected = random_floats(&random, n);
        uint32_t index[5];
        float *y = device_array(expected, n * sizeof(*y));
        for (uint32_t row = 0; row < shape.rows; row++) {
            index[row] = test_random_below(&random, SOURCE_ROWS);
            memcpy(expected + row * shape.stride, x + index[row] * shape.stride,
                   shape.dim * sizeof(*x));
        }
        const k_gather_rows_args_t args = {
            .x = device_array(x, SOURCE_ROWS * shape.stride * sizeof(*x)),
            .index = device_array(index, shape.rows * sizeof(*index)),
            .y = y,
            .rows = shape.rows,
            .dim = shape.dim,
            .x_stride = shape.stride,
            .y_stride = shape.stride};
        assert_cuda(k_cuda_gather_rows(&at, &args));
        float *got = cuda_download(y, n * sizeof(*got));
        assert_same_bits(got, expected, n, "gather_rows");
        device_free_all();
        test_free(got);
        test_free(expected);
        test_free(x);
    }
}

static void gather_tokens_reads_each_sequences_history(void **state)
{
    (void)state;
    enum { SEQS = 5, HISTORY = 700 };
    test_random_t random = {test_seed(66)};
    const k_cuda_launch_t at = device_launch(0);
    int32_t history[SEQS][HISTORY];
    int32_t expected[SEQS * HISTORY];
    k_seq_t seqs[SEQS];
    uint32_t rows = 0;
    for (uint32_t i = 0; i < SEQS; i++) {
        for (uint32_t t = 0; t < HISTORY; t++) {
            history[i][t] = (int32_t)test_random_below(&random, 100000);
        }
        const uint32_t n = i == 2 ? 300 : test_random_between(&random, 1, 3);
        const uint32_t start = test_random_below(&random, HISTORY - n);
        seqs[i] = (k_seq_t){.row = rows,
                            .rows = n,
                            .start = start,
                            .history = device_array(history[i], sizeof(history[i]))};
        memcpy(expected + rows, history[i] + start, n * sizeof(int32_t));
        rows += n;
    }
    int32_t *ids = device_array(NULL, rows * sizeof(*ids));
    const k_gather_tokens_args_t args = {
        .seqs = device_array(seqs, sizeof(seqs)), .n_seqs = SEQS, .ids = ids};
    assert_cuda(k_cuda_gather_tokens(&at, &args));
    int32_t *got = cuda_download(ids, rows * sizeof(*got));
    assert_memory_equal(got, expected, rows * sizeof(*got));
    device_free_all();
    test_free(got);
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rms_norm_divides_by_the_root_of_the_mean_square),
        cmocka_unit_test(parts_of_a_row_are_normed_by_the_squares_of_all),
        cmocka_unit_test(rms_norm_of_a_row_does_not_depend_on_the_others),
        cmocka_unit_test(gated_ops_multiply_up_by_what_the_gate_lets_through),
        cmocka_unit_test(add_adds_scaled_activations),
        cmocka_unit_test(narrow_rounds_to_bf16),
        cmocka_unit_test(softcap_bends_towards_the_cap),
        cmocka_unit_test(gather_rows_copies_the_rows_asked_for),
        cmocka_unit_test(gather_tokens_reads_each_sequences_history),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
