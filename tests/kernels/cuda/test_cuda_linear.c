/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA linears against sums in double, and against themselves at other row counts. */
#include "tests/cuda_emu/cuda_check.h"
/* */
#include "kernels/cuda/linear/cuda_linear.h"
#include "kernels/cuda/linear/cuda_linear_priv.h"
#include "tests/kernels/kernels_support.h"

static uint64_t seed;

/* A random W [n, k], packed, and x [rows, k] bf16. */
typedef struct linear_case {
    k_cuda_weight_t w;
    float *weights; /* [n, k] */
    float *bias;
    float *x; /* what the bf16 numbers at x_device are */
    float *bias_device;
    uint16_t *x_device;
    uint32_t rows;
    size_t x_stride;
} linear_case_t;

/* Two ranges, the later one first. */
static void pack(linear_case_t *c, const uint8_t *source)
{
    const size_t bytes = k_cuda_weight_bytes(c->w.dtype, c->w.is_gate_up, c->w.rows, c->w.columns);
    const uint32_t first = c->w.rows / 3;
    size_t row_bytes = 0;
    assert_status(k_dtype_row_bytes(c->w.dtype, c->w.columns, &row_bytes), WEFT_OK);
    uint8_t *raw = cuda_upload(source, c->w.rows * row_bytes);
    c->w.data = cuda_upload(NULL, bytes);
    assert_cuda((cudaError_t)k_cuda_weight_clear(&c->w, NULL));
    assert_cuda(
        k_cuda_weight_pack_rows(&c->w, raw + first * row_bytes, first, c->w.rows - first, NULL));
    assert_cuda((cudaError_t)k_cuda_weight_pack_rows(&c->w, raw, 0, first, NULL));
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaFree(raw));
}

static linear_case_t make_case(test_random_t *random, k_dtype_t dtype, bool is_gate_up, uint32_t n,
                               uint32_t k, uint32_t rows, size_t x_stride)
{
    linear_case_t c = {.w = {.dtype = dtype, .is_gate_up = is_gate_up, .rows = n, .columns = k}};
    uint8_t *source = random_weights(random, dtype, (size_t)n * k);
    for (size_t i = 0; dtype == K_I4_32 && i < (size_t)n * k / 32; i++) {
        source[i * 19 + 2] &= 15; /* the zero of four bits */
    }
    if (dtype == K_F8_8X32) {
        const uint32_t rows_each = is_gate_up ? n / 2 : n;
        for (uint32_t first = 0; first < n; first += rows_each) {
            share_f8_scales(source + first * (size_t)(k / 32) * 36, rows_each, k / 32);
        }
    }
    c.rows = rows;
    c.x_stride = x_stride;
    c.weights = test_malloc((size_t)n * k * sizeof(float));
    k_dequantize(dtype, source, c.weights, (size_t)n * k);
    pack(&c, source);
    test_free(source);

    c.bias = random_floats(random, n);
    c.bias_device = cuda_upload(c.bias, n * sizeof(float));
    c.x = random_floats(random, rows * x_stride);
    uint16_t *halves = test_malloc(rows * x_stride * sizeof(*halves));
    for (size_t i = 0; i < rows * x_stride; i++) {
        halves[i] = k_f32_to_bf16(c.x[i]);
        c.x[i] = k_bf16_to_f32(halves[i]);
    }
    c.x_device = cuda_upload(halves, rows * x_stride * sizeof(*halves));
    test_free(halves);
    return c;
}

static void free_case(linear_case_t *c)
{
    assert_cuda(cudaFree((void *)c->w.data));
    assert_cuda(cudaFree(c->bias_device));
    assert_cuda(cudaFree(c->x_device));
    test_free(c->weights);
    test_free(c->bias);
    test_free(c->x);
}

static bool is_bf16(k_cuda_out_t out)
{
    return out == K_CUDA_OUT_BF16 || out == K_CUDA_OUT_SWIGLU;
}

static uint32_t outputs_of(const linear_case_t *c, k_cuda_out_t out)
{
    return out == K_CUDA_OUT_SWIGLU ? c->w.rows / 2 : c->w.rows;
}

enum { PAD = 5 }; /* elements behind each row of y, which nobody may write */

/* What y holds before: of the residual stream a small number, else a mark. */
static float before(uint32_t row, uint32_t o)
{
    return (float)((row * 7 + o) % 13) - 6;
}

/* Rows [first, first + rows) as f32, [rows][outputs + PAD]; free with test_free. */
static float *run(const linear_case_t *c, k_cuda_out_t out, uint32_t first, uint32_t rows,
                  bool has_bias, k_cuda_linear_path_t path)
{
    const size_t stride = outputs_of(c, out) + PAD;
    float *y = test_malloc(rows * stride * sizeof(*y));
    uint16_t *halves = test_malloc(rows * stride * sizeof(*halves));
    for (size_t i = 0; i < rows * stride; i++) {
        y[i] = before(first + (uint32_t)(i / stride), (uint32_t)(i % stride));
        halves[i] = k_f32_to_bf16(y[i]);
    }
    const size_t bytes = rows * stride * (is_bf16(out) ? sizeof(*halves) : sizeof(*y));
    void *device = cuda_upload(is_bf16(out) ? (void *)halves : (void *)y, bytes);
    const k_cuda_linear_t args = {.w = c->w,
                                  .bias = has_bias ? c->bias_device : NULL,
                                  .x = c->x_device + first * c->x_stride,
                                  .y = device,
                                  .out = out,
                                  .rows = rows,
                                  .x_stride = c->x_stride,
                                  .y_stride = stride,
                                  .path = path};
    assert_cuda((cudaError_t)k_cuda_linear(&args, NULL));
    void *got = cuda_download(device, bytes);
    for (size_t i = 0; i < rows * stride; i++) {
        y[i] = is_bf16(out) ? k_bf16_to_f32(((uint16_t *)got)[i]) : ((float *)got)[i];
    }
    assert_cuda(cudaFree(device));
    test_free(got);
    test_free(halves);
    return y;
}

/* The sum of output o and, in *size_out, that of its products' magnitudes. */
static double sum_of(const linear_case_t *c, uint32_t row, uint32_t o, bool has_bias,
                     double *size_out)
{
    const float *w = c->weights + (size_t)o * c->w.columns;
    const float *x = c->x + row * c->x_stride;
    double sum = has_bias ? (double)c->bias[o] : 0;
    *size_out = fabs(sum);
    for (uint32_t i = 0; i < c->w.columns; i++) {
        sum += (double)w[i] * (double)x[i];
        *size_out += fabs((double)w[i] * (double)x[i]);
    }
    return sum;
}

static void assert_right(const linear_case_t *c, k_cuda_out_t out, uint32_t first, uint32_t rows,
                         bool has_bias, const float *y)
{
    const uint32_t n = outputs_of(c, out);
    for (uint32_t i = 0; i < rows; i++) {
        const float *row = y + i * (n + PAD);
        for (uint32_t o = 0; o < n; o++) {
            double size;
            double up_size;
            double want = sum_of(c, first + i, o, has_bias, &size);
            double bound = 1e-5 * size + 1e-6;
            if (out == K_CUDA_OUT_SWIGLU) {
                const double up = sum_of(c, first + i, o + n, has_bias, &up_size);
                bound = bound * 1.1 * (fabs(up) + 1) + 1e-5 * up_size * (fabs(want) + 1);
                want = want / (1 + exp(-want)) * up;
            } else if (out == K_CUDA_OUT_ADD) {
                want += (double)before(first + i, o);
            }
            bound += is_bf16(out) ? fabs(want) * 0x1p-8 : fabs(want) * 1e-6;
            if (!(fabs((double)row[o] - want) <= bound)) {
                fail_msg("%s [%u, %u] out %d row %u of %u output %u: %g, expected %g ± %g",
                         k_dtype_info(c->w.dtype)->name, c->w.rows, c->w.columns, out, first + i,
                         rows, o, (double)row[o], want, bound);
            }
        }
        for (uint32_t o = n; o < n + PAD; o++) {
            assert_true(row[o] == before(first + i, o));
        }
    }
}

/* All ways out, right in the whole, and for few rows the same bits as among many. */
static void check_case(const linear_case_t *c, const uint32_t *counts, k_cuda_linear_path_t path)
{
    const int first_out = c->w.is_gate_up ? K_CUDA_OUT_SWIGLU : K_CUDA_OUT_BF16;
    const int last_out = c->w.is_gate_up ? K_CUDA_OUT_SWIGLU : K_CUDA_OUT_ADD;
    for (int out = first_out; out <= last_out; out++) {
        const bool has_bias = out != K_CUDA_OUT_ADD;
        const size_t stride = outputs_of(c, (k_cuda_out_t)out) + PAD;
        float *whole = run(c, (k_cuda_out_t)out, 0, c->rows, has_bias, path);
        assert_right(c, (k_cuda_out_t)out, 0, c->rows, has_bias, whole);
        for (int i = 0; counts[i] != 0; i++) {
            const uint32_t first = (c->rows - counts[i]) / 2;
            float *part = run(c, (k_cuda_out_t)out, first, counts[i], has_bias, path);
            assert_same_bits(part, whole + first * stride, counts[i] * stride, "few rows");
            test_free(part);
        }
        test_free(whole);
    }
}

/* ---- any GPU --------------------------------------------------------------------------------- */

static const uint32_t few[] = {1, 7, 16, 0};

static void mma_multiplies_every_dtype(void **state)
{
    (void)state;
    test_random_t random = {seed};
    for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
        const uint32_t block = k_dtype_info(dtype)->block_elements;
        if (k_cuda_weight_bytes(dtype, false, 64, 256) == SIZE_MAX) {
            continue;
        }
        for (int is_gate_up = 0; is_gate_up < 2; is_gate_up++) {
            const uint32_t n = 2 * test_random_between(&random, 5, 30);
            const uint32_t k = block == 1    ? test_random_between(&random, 1, 150)
                               : block == 32 ? 32 * test_random_between(&random, 1, 5)
                                             : 256;
            linear_case_t c = make_case(&random, dtype, is_gate_up != 0, n, k, 17, k);
            check_case(&c, few, K_CUDA_LINEAR_MMA);
            free_case(&c);
        }
    }
}

/* More K blocks than a warp has on their way, more rows than a block, than its memory holds. */
static void mma_walks_long_rows(void **state)
{
    static const uint32_t counts[] = {1, 9, 30, 64, 0};
    static const uint32_t two[] = {1, 2, 0};
    (void)state;
    test_random_t random = {seed};
    linear_case_t c = make_case(&random, K_Q4_1, false, 20, 64 * 8 * 5 + 32, 70, 64 * 8 * 5 + 32);
    check_case(&c, counts, K_CUDA_LINEAR_MMA);
    free_case(&c);
    c = make_case(&random, K_Q8_0, true, 20, 20000, 9, 20004);
    check_case(&c, two, K_CUDA_LINEAR_MMA);
    free_case(&c);
}

/* More units than a device has blocks at work, so that blocks go on to their next ones. */
static void mma_walks_many_units(void **state)
{
    static const uint32_t counts[] = {1, 5, 9, 0};
    (void)state;
    test_random_t random = {seed};
    for (int i = 0; i < 2; i++) { /* K for every warp, and for one only */
        const uint32_t k = i == 0 ? 64 * 9 : 40;
        linear_case_t c = make_case(&random, i == 0 ? K_Q8_0 : K_F16, i == 0, 7000, k, 16, k);
        check_case(&c, counts, K_CUDA_LINEAR_MMA);
        free_case(&c);
    }
}

/* The kernel of many tokens, whose last blocks are not full (a GPU's processors want more rows). */
static void mma_multiplies_many_tokens(void **state)
{
    static const uint32_t counts[] = {3, 40, 64, 0};
    (void)state;
    test_random_t random = {seed};
    static const k_dtype_t dtypes[] = {K_BF16, K_Q4_1, K_Q6_K};
    for (int i = 0; i < 3; i++) {
        linear_case_t c = make_case(&random, dtypes[i], i == 1, 170, 256, 75, 264);
        check_case(&c, counts, K_CUDA_LINEAR_MMA);
        free_case(&c);
    }
}

static void embed_gives_back_what_was_packed(void **state)
{
    (void)state;
    test_random_t random = {seed};
    for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
        const uint32_t k = k_dtype_info(dtype)->block_elements == 256 ? 512 : 96;
        const uint32_t n = 37;
        if (k_cuda_weight_bytes(dtype, false, n, k) == SIZE_MAX) {
            continue;
        }
        linear_case_t c = make_case(&random, dtype, false, n, k, 1, k);
        static const int32_t ids[] = {36, 0, 17, 5, 17};
        int32_t *ids_device = cuda_upload(ids, sizeof(ids));
        float *y = cuda_upload(NULL, 5 * k * sizeof(*y));
        assert_cuda((cudaError_t)k_cuda_embed(&c.w, ids_device, 0, y, 5, k, 1.0f, NULL));
        float *rows = cuda_download(y, 5 * k * sizeof(*y));
        for (int i = 0; i < 5; i++) {
            assert_same_bits(rows + i * k, c.weights + (size_t)ids[i] * k, k,
                             k_dtype_info(dtype)->name);
        }
        test_free(rows);
        assert_cuda(cudaFree(ids_device));
        assert_cuda(cudaFree(y));
        free_case(&c);
    }
}

/* ---- Hopper ---------------------------------------------------------------------------------- */

static bool has_wgmma(const linear_case_t *c)
{
    const k_cuda_linear_t args = {.w = c->w,
                                  .x = c->x_device,
                                  .out = c->w.is_gate_up ? K_CUDA_OUT_SWIGLU : K_CUDA_OUT_F32,
                                  .x_stride = c->x_stride,
                                  .path = K_CUDA_LINEAR_WGMMA};
    return k_cuda_linear(&args, NULL) != cudaErrorNotSupported;
}

static void wgmma_multiplies(uint32_t n, uint32_t k, uint32_t rows, const uint32_t *counts)
{
    test_random_t random = {seed};
    for (int is_gate_up = 0; is_gate_up < 2; is_gate_up++) {
        linear_case_t c = make_case(&random, K_BF16, is_gate_up != 0, n, k, rows, (k + 15) / 8 * 8);
        if (has_wgmma(&c)) {
            check_case(&c, counts, K_CUDA_LINEAR_WGMMA);
        }
        free_case(&c);
    }
}

static void wgmma_multiplies_a_few_tokens(void **state)
{
    static const uint32_t counts[] = {1, 8, 16, 0};
    (void)state;
    wgmma_multiplies(100, 328, 33, counts);
}

static void wgmma_multiplies_many_tokens(void **state)
{
    static const uint32_t counts[] = {5, 64, 100, 0};
    (void)state;
    wgmma_multiplies(150, 136, 270, counts);
}

static linear_wgmma_plan_t random_plan(test_random_t *random)
{
    linear_wgmma_plan_t p = {.tokens = 8u << test_random_below(random, 6)};
    p.span = test_random_between(random, 1, p.tokens <= 64 ? 16 : 8);
    p.groups = (p.span + 3) / 4;
    p.stage_blocks = p.tokens <= 64 ? test_random_between(random, 1, 2) : 1;
    p.stage_bytes = p.stage_blocks * (p.span * 2048 + p.tokens * 128) + p.groups * 8192;
    p.stage_bytes = (p.stage_bytes + 1023) / 1024 * 1024;
    p.stages = 3 * p.stage_bytes <= 224u << 10 ? test_random_between(random, 2, 3) : 2;
    p.blocks = test_random_between(random, 1, 6);
    return p;
}

/* Rings that wrap, blocks with many tiles or none: no cut of the product changes a bit. */
static void wgmma_sums_alike_however_cut(void **state)
{
    (void)state;
    test_random_t random = {seed};
    linear_case_t c = make_case(&random, K_BF16, false, 330, 600, 75, 600);
    if (has_wgmma(&c)) {
        float *want = run(&c, K_CUDA_OUT_F32, 0, c.rows, true, K_CUDA_LINEAR_WGMMA);
        for (int i = 0; i < 12; i++) {
            const linear_wgmma_plan_t plan = random_plan(&random);
            const size_t bytes = c.rows * (c.w.rows + PAD) * sizeof(float);
            float *y = cuda_upload(NULL, bytes);
            const k_cuda_linear_t args = {.w = c.w,
                                          .bias = c.bias_device,
                                          .x = c.x_device,
                                          .y = y,
                                          .out = K_CUDA_OUT_F32,
                                          .rows = c.rows,
                                          .x_stride = c.x_stride,
                                          .y_stride = c.w.rows + PAD};
            print_message("tokens %u span %u stages %u of %u blocks, grid %u\n", plan.tokens,
                          plan.span, plan.stages, plan.stage_blocks, plan.blocks);
            assert_cuda((cudaError_t)k_cuda_linear_wgmma(&args, &plan, NULL));
            float *got = cuda_download(y, bytes);
            for (uint32_t row = 0; row < c.rows; row++) {
                const size_t at = row * (c.w.rows + PAD);
                assert_same_bits(got + at, want + at, c.w.rows, "cut otherwise");
            }
            test_free(got);
            assert_cuda(cudaFree(y));
        }
        test_free(want);
    }
    free_case(&c);
}

/* Whatever the cut, every unit and token is made once and the ring holds what consumers read. */
static void plans_cover_the_product(void **state)
{
    (void)state;
    test_random_t random = {seed};
    for (int i = 0; i < 2000; i++) {
        const uint32_t units = test_random_between(&random, 1, 9000);
        const uint32_t k_blocks = test_random_between(&random, 1, 230);
        const uint32_t rows = test_random_between(&random, 1, 9000);
        const linear_wgmma_plan_t p = linear_wgmma_plan(units, k_blocks, rows, 132);
        assert_in_range(p.span, 1, 4 * p.groups);
        assert_in_range(p.groups, 1, p.tokens <= 64 ? 4 : 2);
        assert_in_range(p.blocks, 1, 132);
        assert_in_range(p.stages, 2, 32);
        assert_int_equal(p.stage_bytes % 1024, 0);
        assert_true(p.stage_bytes >= p.stage_blocks * (p.span * 2048 + p.tokens * 128));
        assert_true(p.stage_bytes >= (p.stage_blocks - 1) * p.span * 2048 + p.groups * 8192);
        assert_true(p.stages * (p.stage_bytes + 16) <= 227u << 10);
    }
}

/* Weights with scales: every cut of every format gives the bits of mma.sync. */
static void check_shapes(const linear_case_t *c, k_cuda_out_t out, const float *want)
{
    const size_t stride = outputs_of(c, out) + PAD;
    const size_t element = is_bf16(out) ? sizeof(uint16_t) : sizeof(float);
    const size_t bytes = c->rows * stride * element;
    for (int shape = 0; shape < LINEAR_SCALED_SHAPE_COUNT; shape++) {
        void *y = cuda_upload(NULL, bytes);
        assert_cuda(cudaMemset(y, 0, bytes));
        const k_cuda_linear_t args = {.w = c->w,
                                      .bias = c->bias_device,
                                      .x = c->x_device,
                                      .y = y,
                                      .out = out,
                                      .rows = c->rows,
                                      .x_stride = c->x_stride,
                                      .y_stride = stride};
        assert_cuda((cudaError_t)k_cuda_linear_scaled(&args, (linear_scaled_shape_t)shape, NULL));
        void *got = cuda_download(y, bytes);
        for (uint32_t row = 0; row < c->rows; row++) {
            for (uint32_t o = 0; o < outputs_of(c, out); o++) {
                const size_t at = row * stride + o;
                const float v =
                    is_bf16(out) ? k_bf16_to_f32(((uint16_t *)got)[at]) : ((float *)got)[at];
                if (memcmp(&v, &want[at], sizeof(v)) != 0) {
                    fail_msg("%s shape %d row %u output %u: %a, mma %a",
                             k_dtype_info(c->w.dtype)->name, shape, row, o, (double)v,
                             (double)want[at]);
                }
            }
        }
        test_free(got);
        assert_cuda(cudaFree(y));
    }
}

static void scaled_sums_are_those_of_mma(void **state)
{
    (void)state;
    test_random_t random = {seed};
    for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
        const uint32_t block = k_dtype_info(dtype)->block_elements;
        const bool is_gate_up = test_random_below(&random, 2) == 0;
        const uint32_t n = 2 * test_random_between(&random, 20, 100);
        const uint32_t k = block == 32 ? 32 * test_random_between(&random, 1, 40) : 1024;
        if (block == 1 || k_cuda_weight_bytes(dtype, false, 64, 256) == SIZE_MAX) {
            continue;
        }
        linear_case_t c = make_case(&random, dtype, is_gate_up, n, k, 21, k);
        const k_cuda_out_t out = is_gate_up ? K_CUDA_OUT_SWIGLU : K_CUDA_OUT_F32;
        float *want = run(&c, out, 0, c.rows, true, K_CUDA_LINEAR_MMA);
        if (has_wgmma(&c)) {
            check_shapes(&c, out, want);
        }
        test_free(want);
        free_case(&c);
    }
}

/* Rings that wrap, and the paths that are chosen by the number of rows. */
static void scaled_multiplies_many_tokens(void **state)
{
    static const uint32_t counts[] = {1, 8, 9, 33, 65, 130, 0};
    (void)state;
    test_random_t random = {seed};
    static const k_dtype_t dtypes[] = {K_Q8_0, K_Q4_1};
    for (int i = 0; i < 2; i++) {
        linear_case_t c = make_case(&random, dtypes[i], i == 1, 140, 64 * 21, 140, 64 * 21);
        check_case(&c, counts, K_CUDA_LINEAR_AUTO);
        free_case(&c);
    }
}

int main(void)
{
    seed = test_seed(8);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_cover_the_product),
        cmocka_unit_test(embed_gives_back_what_was_packed),
        cmocka_unit_test(mma_multiplies_every_dtype),
        cmocka_unit_test(mma_walks_long_rows),
        cmocka_unit_test(mma_walks_many_units),
        cmocka_unit_test(mma_multiplies_many_tokens),
        cmocka_unit_test(wgmma_multiplies_a_few_tokens),
        cmocka_unit_test(wgmma_multiplies_many_tokens),
        cmocka_unit_test(wgmma_sums_alike_however_cut),
        cmocka_unit_test(scaled_sums_are_those_of_mma),
        cmocka_unit_test(scaled_multiplies_many_tokens),
    };
    cuda_skip_without_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
