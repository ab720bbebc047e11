/* SPDX-License-Identifier: Apache-2.0 */
/* Products with many matrices against sums in double, and against themselves at other row counts. */
#include "tests/cuda_emu/cuda_check.h"
/* */
#include "kernels/cuda/linear/cuda_groups.h"
#include "kernels/cuda/linear/cuda_groups_priv.h"
#include "tests/kernels/kernels_support.h"

enum { MAX_GROUPS = 12, PAD = 5 }; /* PAD: elements behind each row of y, which nobody may write */

static uint64_t seed;

/* Random matrices, packed a step apart, and rows of x that they multiply. */
typedef struct groups_case {
    k_cuda_weight_t w;
    size_t w_step;
    uint32_t n;
    float *weights; /* [n, rows, columns] */
    float *bias;    /* [n, rows] */
    float *x;       /* [x_rows, x_stride]: what the bf16 numbers on the device are */
    size_t x_stride;
    uint32_t x_rows;
    float *bias_device;
    uint16_t *x_device;
} groups_case_t;

static void pack(groups_case_t *c, const uint8_t *source)
{
    const size_t bytes = k_cuda_weight_bytes(c->w.dtype, false, c->w.rows, c->w.columns);
    size_t row_bytes = 0;
    assert_status(k_dtype_row_bytes(c->w.dtype, c->w.columns, &row_bytes), WEFT_OK);
    uint8_t *raw = cuda_upload(source, c->n * c->w.rows * row_bytes);
    c->w_step = (bytes + 127) / 128 * 128 + 128;
    char *packed = cuda_upload(NULL, c->n * c->w_step);
    c->w.data = packed;
    for (uint32_t g = 0; g < c->n; g++) {
        k_cuda_weight_t w = c->w;
        w.data = packed + g * c->w_step;
        assert_cuda((cudaError_t)k_cuda_weight_clear(&w, NULL));
        assert_cuda((cudaError_t)k_cuda_weight_pack_rows(&w, raw + g * w.rows * row_bytes, 0,
                                                         w.rows, NULL));
    }
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaFree(raw));
}

static groups_case_t make_case(test_random_t *random, k_dtype_t dtype, uint32_t n, uint32_t rows,
                               uint32_t columns, uint32_t x_rows, size_t x_stride)
{
    groups_case_t c = {.w = {.dtype = dtype, .rows = rows, .columns = columns},
                       .n = n,
                       .x_stride = x_stride,
                       .x_rows = x_rows};
    const size_t elements = (size_t)n * rows * columns;
    uint8_t *source = random_weights(random, dtype, elements);
    for (size_t i = 0; dtype == K_I4_32 && i < elements / 32; i++) {
        source[i * 19 + 2] &= 15; /* the zero of four bits */
    }
    for (uint32_t i = 0; dtype == K_F8_8X32 && i < n; i++) {
        share_f8_scales(source + i * (elements / n / 32) * 36, rows, columns / 32);
    }
    c.weights = test_malloc(elements * sizeof(float));
    k_dequantize(dtype, source, c.weights, elements);
    pack(&c, source);
    test_free(source);
    c.bias = random_floats(random, (size_t)n * rows);
    c.bias_device = cuda_upload(c.bias, (size_t)n * rows * sizeof(float));
    c.x = random_floats(random, x_rows * x_stride);
    uint16_t *halves = test_malloc(x_rows * x_stride * sizeof(*halves));
    for (size_t i = 0; i < x_rows * x_stride; i++) {
        halves[i] = k_f32_to_bf16(c.x[i]);
        c.x[i] = k_bf16_to_f32(halves[i]);
    }
    c.x_device = cuda_upload(halves, x_rows * x_stride * sizeof(*halves));
    test_free(halves);
    return c;
}

static void free_case(groups_case_t *c)
{
    assert_cuda(cudaFree((void *)c->w.data));
    assert_cuda(cudaFree(c->bias_device));
    assert_cuda(cudaFree(c->x_device));
    test_free(c->weights);
    test_free(c->bias);
    test_free(c->x);
}

/* ---- running ---------------------------------------------------------------------------------- */

#define MARK 77.0f /* in y before */

/* y [y_rows, stride] as f32; free with test_free. */
static float *run(k_cuda_groups_t args, uint32_t y_rows, size_t stride)
{
    float *y = test_malloc(y_rows * stride * sizeof(*y));
    uint16_t *halves = test_malloc(y_rows * stride * sizeof(*halves));
    for (size_t i = 0; i < y_rows * stride; i++) {
        halves[i] = k_f32_to_bf16(MARK);
    }
    args.y = cuda_upload(halves, y_rows * stride * sizeof(*halves));
    args.y_stride = stride;
    args.gathered = cuda_upload(NULL, (args.rows * args.x_stride + 8) * sizeof(*halves));
    assert_cuda((cudaError_t)k_cuda_groups(&args, NULL));
    uint16_t *got = cuda_download(args.y, y_rows * stride * sizeof(*halves));
    for (size_t i = 0; i < y_rows * stride; i++) {
        y[i] = k_bf16_to_f32(got[i]);
    }
    assert_cuda(cudaFree(args.gathered));
    assert_cuda(cudaFree(args.y));
    test_free(got);
    test_free(halves);
    return y;
}

/* Rows [offsets[g], offsets[g + 1]) of y from rows row_of of x. */
static float *run_experts(const groups_case_t *c, const uint32_t *offsets, const uint32_t *row_of,
                          bool has_bias, k_cuda_linear_path_t path)
{
    const uint32_t slots = offsets[c->n];
    uint32_t *offsets_device = cuda_upload(offsets, (c->n + 1) * sizeof(*offsets));
    uint32_t *row_of_device = cuda_upload(row_of, slots * sizeof(*row_of));
    const k_cuda_groups_t args = {.w = c->w,
                                  .w_step = c->w_step,
                                  .n = c->n,
                                  .bias = has_bias ? c->bias_device : NULL,
                                  .offsets = offsets_device,
                                  .rows = slots,
                                  .x = c->x_device,
                                  .row_of = row_of_device,
                                  .x_stride = c->x_stride,
                                  .path = path};
    float *y = run(args, slots, c->w.rows + PAD);
    assert_cuda(cudaFree(offsets_device));
    assert_cuda(cudaFree(row_of_device));
    return y;
}

static void assert_right(const groups_case_t *c, uint32_t group, const float *x, bool has_bias,
                         const float *y)
{
    for (uint32_t o = 0; o < c->w.rows; o++) {
        const float *w = c->weights + ((size_t)group * c->w.rows + o) * c->w.columns;
        double sum = has_bias ? (double)c->bias[group * c->w.rows + o] : 0;
        double size = fabs(sum);
        for (uint32_t i = 0; i < c->w.columns; i++) {
            sum += (double)w[i] * (double)x[i];
            size += fabs((double)w[i] * (double)x[i]);
        }
        const double bound = 1e-5 * size + 1e-6 + fabs(sum) * 0x1p-8;
        if (!(fabs((double)y[o] - sum) <= bound)) {
            fail_msg("%s [%u, %u] matrix %u output %u: %g, expected %g ± %g",
                     k_dtype_info(c->w.dtype)->name, c->w.rows, c->w.columns, group, o,
                     (double)y[o], sum, bound);
        }
    }
}

static void assert_unwritten(const float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert_true(y[i] == MARK);
    }
}

/* ---- experts ---------------------------------------------------------------------------------- */

/* Slots of random rows, some experts without any. */
static void deal_out(test_random_t *random, const groups_case_t *c, uint32_t slots,
                     uint32_t *offsets, uint32_t *row_of)
{
    uint32_t counts[MAX_GROUPS] = {0};
    const uint32_t some = test_random_between(random, 1, c->n);
    for (uint32_t s = 0; s < slots; s++) {
        counts[test_random_below(random, some) * c->n / some]++;
        row_of[s] = test_random_below(random, c->x_rows);
    }
    offsets[0] = 0;
    for (uint32_t g = 0; g < c->n; g++) {
        offsets[g + 1] = offsets[g] + counts[g];
    }
}

/* Right in the whole; each of some slots alone has the same bits. */
static void check_experts(test_random_t *random, const groups_case_t *c, uint32_t slots,
                          k_cuda_linear_path_t path)
{
    uint32_t offsets[MAX_GROUPS + 1];
    uint32_t *row_of = test_malloc(slots * sizeof(*row_of));
    const size_t stride = c->w.rows + PAD;
    const bool has_bias = test_random_below(random, 2) == 0;
    deal_out(random, c, slots, offsets, row_of);
    float *y = run_experts(c, offsets, row_of, has_bias, path);
    for (uint32_t g = 0; g < c->n; g++) {
        for (uint32_t s = offsets[g]; s < offsets[g + 1]; s++) {
            assert_right(c, g, c->x + row_of[s] * c->x_stride, has_bias, y + s * stride);
            assert_unwritten(y + s * stride + c->w.rows, PAD);
        }
        if (offsets[g + 1] > offsets[g]) {
            const uint32_t slot = test_random_between(random, offsets[g], offsets[g + 1] - 1);
            uint32_t alone[MAX_GROUPS + 1];
            for (uint32_t i = 0; i <= c->n; i++) {
                alone[i] = i > g;
            }
            float *one = run_experts(c, alone, row_of + slot, has_bias, path);
            assert_same_bits(one, y + slot * stride, stride, "a slot alone");
            test_free(one);
        }
    }
    test_free(y);
    test_free(row_of);
}

static void experts_of_every_dtype_multiply_their_slots(void **state)
{
    (void)state;
    test_random_t random = {seed};
    for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
        const uint32_t block = k_dtype_info(dtype)->block_elements;
        if (k_cuda_weight_bytes(dtype, false, 64, 256) == SIZE_MAX) {
            continue;
        }
        const uint32_t k = block == 1    ? test_random_between(&random, 1, 150)
                           : block == 32 ? 32 * test_random_between(&random, 1, 5)
                                         : 256;
        groups_case_t c = make_case(&random, dtype, test_random_between(&random, 1, MAX_GROUPS),
                                    test_random_between(&random, 5, 60), k, 7, k + 3);
        check_experts(&random, &c, test_random_between(&random, 1, 30), K_CUDA_LINEAR_MMA);
        free_case(&c);
    }
}

/* More rows an expert than a tile, with the kernels of few and of many; more units than blocks. */
static void experts_with_many_slots_multiply_them_all(void **state)
{
    static const uint32_t slots[] = {9, 40, 150};
    (void)state;
    test_random_t random = {seed};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(slots); i++) {
        groups_case_t c = make_case(&random, i == 1 ? K_Q4_1 : K_BF16, 3, 60, 64 * 9, 20, 64 * 9);
        check_experts(&random, &c, slots[i], K_CUDA_LINEAR_MMA);
        free_case(&c);
    }
    groups_case_t c = make_case(&random, K_Q8_0, 4, 5000, 64, 5, 64);
    check_experts(&random, &c, 8, K_CUDA_LINEAR_MMA);
    free_case(&c);
}

/* Offsets begin in the middle: slots of experts that are elsewhere stay as they are. */
static void slots_of_experts_elsewhere_stay(void **state)
{
    static const uint32_t offsets[] = {3, 3, 6, 8}; /* of 12 slots, three experts here */
    static const uint32_t row_of[] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1};
    (void)state;
    test_random_t random = {seed};
    for (int path = K_CUDA_LINEAR_AUTO; path <= K_CUDA_LINEAR_MMA; path++) {
        groups_case_t c = make_case(&random, K_BF16, 3, 40, 72, 5, 72);
        const size_t stride = c.w.rows + PAD;
        uint32_t *offsets_device = cuda_upload(offsets, sizeof(offsets));
        uint32_t *row_of_device = cuda_upload(row_of, sizeof(row_of));
        const k_cuda_groups_t args = {.w = c.w,
                                      .w_step = c.w_step,
                                      .n = 3,
                                      .offsets = offsets_device,
                                      .rows = 12,
                                      .x = c.x_device,
                                      .row_of = row_of_device,
                                      .x_stride = c.x_stride,
                                      .path = (k_cuda_linear_path_t)path};
        float *y = run(args, 12, stride);
        assert_unwritten(y, (uint32_t)(3 * stride));
        assert_unwritten(y + 8 * stride, (uint32_t)(4 * stride));
        for (uint32_t s = 3; s < 8; s++) {
            assert_right(&c, s < 6 ? 1 : 2, c.x + row_of[s] * c.x_stride, false, y + s * stride);
        }
        assert_cuda(cudaFree(offsets_device));
        assert_cuda(cudaFree(row_of_device));
        test_free(y);
        free_case(&c);
    }
}

/* Two types in turn, the matrices of each a step apart: runs of one launch each. */
static void experts_of_several_types_multiply_their_slots(void **state)
{
    enum { EXPERTS = 6, ROWS = 24, COLUMNS = 64, SLOTS = 8 };
    static const uint32_t offsets[] = {0, 2, 2, 3, 5, 6, 8};
    static const bool is_second[EXPERTS] = {false, false, true, true, false, true};
    (void)state;
    test_random_t random = {seed};
    groups_case_t cases[] = {make_case(&random, K_BF16, EXPERTS, ROWS, COLUMNS, SLOTS, COLUMNS),
                             make_case(&random, K_Q8_0, EXPERTS, ROWS, COLUMNS, SLOTS, COLUMNS)};
    k_weight_t weights[EXPERTS];
    for (uint32_t e = 0; e < EXPERTS; e++) {
        const groups_case_t *c = &cases[is_second[e]];
        weights[e] = (k_weight_t){.dtype = c->w.dtype,
                                  .rows = ROWS,
                                  .columns = COLUMNS,
                                  .data = (const char *)c->w.data + e * c->w_step};
    }
    uint32_t *offsets_device = cuda_upload(offsets, sizeof(offsets));
    uint16_t *y = cuda_upload(NULL, SLOTS * ROWS * sizeof(*y));
    const k_cuda_groups_t groups = {.offsets = offsets_device,
                                    .rows = SLOTS,
                                    .x = cases[0].x_device,
                                    .x_stride = COLUMNS,
                                    .y = y,
                                    .y_stride = ROWS};
    assert_cuda((cudaError_t)k_cuda_groups_of(weights, EXPERTS, &groups, NULL));
    uint16_t *got = cuda_download(y, SLOTS * ROWS * sizeof(*got));
    for (uint32_t e = 0; e < EXPERTS; e++) {
        for (uint32_t s = offsets[e]; s < offsets[e + 1]; s++) {
            float row[ROWS];
            for (uint32_t o = 0; o < ROWS; o++) {
                row[o] = k_bf16_to_f32(got[s * ROWS + o]);
            }
            assert_right(&cases[is_second[e]], e, cases[0].x + s * COLUMNS, false, row);
        }
    }
    assert_cuda(cudaFree(offsets_device));
    assert_cuda(cudaFree(y));
    test_free(got);
    free_case(&cases[0]);
    free_case(&cases[1]);
}

/* ---- heads ------------------------------------------------------------------------------------ */

static void check_heads(k_dtype_t dtype, uint32_t rows, uint32_t columns, uint32_t x_rows,
                        k_cuda_linear_path_t path)
{
    enum { HEADS = 5 };
    test_random_t random = {seed};
    const size_t step = columns + 8;
    groups_case_t c = make_case(&random, dtype, HEADS, rows, columns, x_rows, HEADS * step);
    const size_t stride = (size_t)HEADS * rows + PAD;
    k_cuda_groups_t args = {.w = c.w,
                            .w_step = c.w_step,
                            .n = HEADS,
                            .rows = x_rows,
                            .x_step = step,
                            .y_step = rows,
                            .x = c.x_device,
                            .x_stride = c.x_stride,
                            .path = path};
    float *y = run(args, x_rows, stride);
    for (uint32_t r = 0; r < x_rows; r++) {
        for (uint32_t h = 0; h < HEADS; h++) {
            assert_right(&c, h, c.x + r * c.x_stride + h * step, false, y + r * stride + h * rows);
        }
        assert_unwritten(y + r * stride + (size_t)HEADS * rows, PAD);
    }
    args.rows = 1;
    float *one = run(args, 1, stride);
    assert_same_bits(one, y, stride, "one row of all heads");
    test_free(one);
    test_free(y);
    free_case(&c);
}

static void heads_multiply_the_rows_of_all(void **state)
{
    (void)state;
    check_heads(K_BF16, 24, 40, 9, K_CUDA_LINEAR_MMA);
    check_heads(K_F8_32, 33, 64, 3, K_CUDA_LINEAR_MMA);
    check_heads(K_F32, 16, 16, 20, K_CUDA_LINEAR_AUTO);
}

/* ---- Hopper ----------------------------------------------------------------------------------- */

static void wgmma_multiplies_slots_and_heads(void **state)
{
    (void)state;
    test_random_t random = {seed};
    if (!cuda_is_hopper()) {
        skip();
    }
    groups_case_t c = make_case(&random, K_BF16, 5, 100, 136, 9, 136);
    check_experts(&random, &c, 13, K_CUDA_LINEAR_WGMMA);
    check_experts(&random, &c, 110, K_CUDA_LINEAR_WGMMA);
    free_case(&c);
    check_heads(K_BF16, 80, 128, 20, K_CUDA_LINEAR_WGMMA);
    static const k_dtype_t scaled[] = {K_Q4_K, K_MXFP4, K_Q8_0};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(scaled); i++) {
        c = make_case(&random, scaled[i], 3, 100, 256, 9, 256);
        check_experts(&random, &c, 30 + 50 * (uint32_t)i, K_CUDA_LINEAR_AUTO);
        free_case(&c);
    }
    check_heads(K_F8_32, 80, 128, 70, K_CUDA_LINEAR_AUTO);
}

int main(void)
{
    cuda_skip_without_device();
    seed = test_seed(91);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_of_every_dtype_multiply_their_slots),
        cmocka_unit_test(experts_with_many_slots_multiply_them_all),
        cmocka_unit_test(slots_of_experts_elsewhere_stay),
        cmocka_unit_test(experts_of_several_types_multiply_their_slots),
        cmocka_unit_test(heads_multiply_the_rows_of_all),
        cmocka_unit_test(wgmma_multiplies_slots_and_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
