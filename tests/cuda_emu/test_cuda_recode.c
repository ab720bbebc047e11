/* SPDX-License-Identifier: Apache-2.0 */
/* Weights of every type of GGUF on a GPU: those without kernels of their own as well. */
#include "base/log.h"
#include "kernels/cuda/cuda_recode.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/kernels/kernels_support.h"

enum { ROWS = 40, COLUMNS = 512, X_ROWS = 3, HEADS = 2 };

#define BF16_BOUND (1.02 / 256)

typedef struct rig {
    weft_device_t *device;
    k_stream_t *stream;
    weft_mem_t packed;
    k_weight_t weight;
    uint8_t *source;
    float *numbers; /* as k_dequantize has them */
} rig_t;

static bool is_type_of_gguf(k_dtype_t dtype)
{
    return k_dtype_info(dtype)->gguf_type >= 0;
}

static void rig_init(rig_t *rig)
{
    *rig = (rig_t){0};
    assert_status(weft_device_open("cuda", 0, NULL, &rig->device), WEFT_OK);
    assert_status(k_stream_create(rig->device, "auto", 0, NULL, &rig->stream), WEFT_OK);
    assert_status(k_stream_reserve(rig->stream, X_ROWS, COLUMNS), WEFT_OK);
}

static void rig_fini(rig_t *rig)
{
    k_stream_destroy(rig->stream);
    weft_device_close(rig->device);
}

/* As models are loaded; the second half of the rows is another part. */
static void pack(rig_t *rig, test_random_t *random, k_dtype_t dtype)
{
    const k_ops_t *ops = rig->stream->ops;
    const size_t n = (size_t)ROWS * COLUMNS;
    size_t row_bytes = 0;
    const size_t bytes = ops->weight_bytes(dtype, K_WEIGHT_ROWS, ROWS, COLUMNS);
    assert_true(bytes > 0 && bytes != SIZE_MAX);
    assert_status(k_dtype_row_bytes(dtype, COLUMNS, &row_bytes), WEFT_OK);
    rig->source = random_weights(random, dtype, n);
    rig->numbers = test_malloc(n * sizeof(float));
    k_dequantize(dtype, rig->source, rig->numbers, n);
    const k_weight_part_t parts[] = {
        {.data = rig->source, .rows = ROWS / 2},
        {.data = rig->source + ROWS / 2 * row_bytes, .rows = ROWS / 2},
    };
    assert_status(rig->device->ops->alloc(rig->device, bytes, 0, &rig->packed), WEFT_OK);
    ops->weight_pack(rig->stream, dtype, K_WEIGHT_ROWS, COLUMNS, parts, 2, rig->packed.addr);
    assert_status(k_stream_sync(rig->stream), WEFT_OK);
    rig->weight =
        (k_weight_t){.dtype = dtype, .rows = ROWS, .columns = COLUMNS, .data = rig->packed.addr};
}

static void drop(rig_t *rig)
{
    rig->device->ops->free(rig->device, &rig->packed);
    test_free(rig->source);
    test_free(rig->numbers);
}

static void embedded_rows_are_those_of_the_file(void **state)
{
    (void)state;
    test_random_t random = {test_seed(81)};
    rig_t rig;
    rig_init(&rig);
    for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
        int32_t ids[ROWS];
        const size_t bytes = (size_t)ROWS * COLUMNS * sizeof(float);
        if (!is_type_of_gguf(dtype)) {
            continue;
        }
        pack(&rig, &random, dtype);
        for (int32_t i = 0; i < ROWS; i++) {
            ids[i] = ROWS - 1 - i;
        }
        const k_embed_args_t args = {.table = &rig.weight,
                                     .ids = cuda_upload(ids, sizeof(ids)),
                                     .y = cuda_upload(NULL, bytes),
                                     .rows = ROWS,
                                     .y_stride = COLUMNS,
                                     .scale = 1};
        rig.stream->ops->embed(rig.stream, &args);
        assert_status(k_stream_sync(rig.stream), WEFT_OK);
        float *y = cuda_download(args.y, bytes);
        for (uint32_t i = 0; i < ROWS; i++) {
            assert_same_bits(y + (size_t)i * COLUMNS,
                             rig.numbers + (size_t)(ROWS - 1 - i) * COLUMNS, COLUMNS,
                             k_dtype_info(dtype)->name);
        }
        test_free(y);
        assert_cuda(cudaFree((void *)(uintptr_t)args.ids));
        assert_cuda(cudaFree(args.y));
        drop(&rig);
    }
    rig_fini(&rig);
}

/* y [X_ROWS] of weight row `row`, of x [X_ROWS, COLUMNS]. */
static void check_product(const rig_t *rig, const float *x, uint32_t row, const uint16_t *y,
                          size_t y_stride)
{
    for (uint32_t i = 0; i < X_ROWS; i++) {
        double sum = 0;
        double size = 0;
        for (uint32_t k = 0; k < COLUMNS; k++) {
            const double term = (double)x[(size_t)i * COLUMNS + k] *
                                (double)rig->numbers[(size_t)row * COLUMNS + k];
            sum += term;
            size += fabs(term);
        }
        const double got = (double)k_bf16_to_f32(y[i * y_stride]);
        if (!(fabs(got - sum) <= 1e-5 * size + BF16_BOUND * fabs(sum))) {
            fail_msg("%s row %u: %g, not %g", k_dtype_info(rig->weight.dtype)->name, row, got, sum);
        }
    }
}

/* As one matrix, then as two of half the rows each. */
static void check_products(rig_t *rig, test_random_t *random)
{
    float *x = random_floats(random, (size_t)X_ROWS * COLUMNS);
    uint16_t *x_bf16 = test_malloc((size_t)X_ROWS * COLUMNS * sizeof(uint16_t));
    const size_t bytes = (size_t)X_ROWS * ROWS * sizeof(uint16_t);
    for (size_t i = 0; i < (size_t)X_ROWS * COLUMNS; i++) {
        x_bf16[i] = k_f32_to_bf16(x[i]);
        x[i] = k_bf16_to_f32(x_bf16[i]);
    }
    const k_linear_args_t args = {.w = &rig->weight,
                                  .x = cuda_upload(x_bf16, X_ROWS * COLUMNS * sizeof(uint16_t)),
                                  .y = cuda_upload(NULL, bytes),
                                  .y_dtype = K_BF16,
                                  .rows = X_ROWS,
                                  .x_stride = COLUMNS,
                                  .y_stride = ROWS};
    rig->stream->ops->linear(rig->stream, &args);
    assert_status(k_stream_sync(rig->stream), WEFT_OK);
    uint16_t *y = cuda_download(args.y, bytes);
    for (uint32_t row = 0; row < ROWS; row++) {
        check_product(rig, x, row, y + row, ROWS);
    }
    test_free(y);
    const k_weight_t heads[HEADS] = {rig->weight, rig->weight};
    const k_head_linear_args_t of_heads = {.heads = heads,
                                           .x = args.x,
                                           .y = cuda_upload(NULL, HEADS * bytes),
                                           .n_heads = HEADS,
                                           .x_dim = 0,
                                           .y_dim = ROWS,
                                           .rows = X_ROWS,
                                           .x_stride = COLUMNS,
                                           .y_stride = (size_t)HEADS * ROWS};
    rig->stream->ops->head_linear(rig->stream, &of_heads);
    assert_status(k_stream_sync(rig->stream), WEFT_OK);
    y = cuda_download(of_heads.y, HEADS * bytes);
    for (uint32_t row = 0; row < HEADS * ROWS; row++) {
        check_product(rig, x, row % ROWS, y + row, (size_t)HEADS * ROWS);
    }
    test_free(y);
    test_free(x);
    test_free(x_bf16);
    assert_cuda(cudaFree((void *)(uintptr_t)args.x));
    assert_cuda(cudaFree(args.y));
    assert_cuda(cudaFree(of_heads.y));
}

static void products_are_those_of_the_file_s_numbers(void **state)
{
    (void)state;
    test_random_t random = {test_seed(82)};
    rig_t rig;
    rig_init(&rig);
    for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
        if (is_type_of_gguf(dtype)) {
            pack(&rig, &random, dtype);
            check_products(&rig, &random);
            drop(&rig);
        }
    }
    rig_fini(&rig);
}

int main(void)
{
    cuda_skip_without_device();
    weft_log_set_level(WEFT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embedded_rows_are_those_of_the_file),
        cmocka_unit_test(products_are_those_of_the_file_s_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
