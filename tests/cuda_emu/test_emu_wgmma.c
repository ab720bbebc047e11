/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every form of wgmma, fed by TMA, on a Hopper GPU and as emulated. The elements are small integers,
 * so that each sum is exact and one answer is right.
 */
#include "tests/cuda_emu/cuda_check.h"
#include "tests/cuda_emu/samples/small_codes.h"
#include "tests/cuda_emu/samples/wgmma.h"

static size_t element_bytes(sample_wgmma_kind_t kind)
{
    return kind == SAMPLE_E4M3_K || kind == SAMPLE_E4M3_REGISTERS ? 1 : 2;
}

/* A matrix of small_value() on the device; is_transposed: [columns, rows]. */
static void *upload_matrix(sample_wgmma_kind_t kind, uint32_t rows, uint32_t columns,
                           bool is_transposed)
{
    size_t bytes = element_bytes(kind);
    uint8_t *host = test_malloc(bytes * rows * columns);
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t column = 0; column < columns; column++) {
            size_t at =
                is_transposed ? (size_t)column * rows + row : (size_t)row * columns + column;
            int v = small_value(row, column) + 2;
            uint16_t code = kind == SAMPLE_F16_K || kind == SAMPLE_F16_REGISTERS_MN ? small_f16[v]
                                                                                    : small_bf16[v];
            if (bytes == 1) {
                host[at] = small_e4m3[v];
            } else {
                memcpy(host + at * 2, &code, sizeof(code));
            }
        }
    }
    void *device = cuda_upload(host, bytes * rows * columns);
    test_free(host);
    return device;
}

/* b's rows begin at 1000 in small_value(), so that they are unlike a's. */
static void *upload_b(sample_wgmma_kind_t kind, uint32_t n, uint32_t k, bool is_transposed)
{
    size_t bytes = element_bytes(kind);
    uint8_t *all = cuda_download(upload_matrix(kind, 1000 + n, k, false), bytes * (1000 + n) * k);
    uint8_t *host = test_malloc(bytes * n * k);
    for (uint32_t row = 0; row < n; row++) {
        for (uint32_t i = 0; i < k; i++) {
            size_t at = is_transposed ? (size_t)i * n + row : (size_t)row * k + i;
            memcpy(host + at * bytes, all + ((size_t)(1000 + row) * k + i) * bytes, bytes);
        }
    }
    void *device = cuda_upload(host, bytes * n * k);
    test_free(all);
    test_free(host);
    return device;
}

static void assert_product(const float *device, uint32_t m, uint32_t n, uint32_t k)
{
    float *c = cuda_download(device, sizeof(*c) * m * n);
    for (uint32_t row = 0; row < m; row++) {
        for (uint32_t column = 0; column < n; column++) {
            int sum = 0;
            for (uint32_t i = 0; i < k; i++) {
                sum += small_value(row, i) * small_value(1000 + column, i);
            }
            if (c[(size_t)row * n + column] != (float)sum) {
                fail_msg("row %u column %u of %u x %u: %g, not %d", row, column, m, n,
                         (double)c[(size_t)row * n + column], sum);
            }
        }
    }
    test_free(c);
}

static void check_kind(sample_wgmma_kind_t kind, int n, bool is_mn)
{
    uint32_t columns = (uint32_t)n;
    void *a = upload_matrix(kind, 64, SAMPLE_WGMMA_K, false);
    void *b = upload_b(kind, columns, SAMPLE_WGMMA_K, is_mn);
    float *d = cuda_upload(NULL, sizeof(float) * 64 * columns);
    print_message("n %d\n", n);
    assert_cuda((cudaError_t)sample_wgmma(kind, n, a, b, d, NULL));
    assert_product(d, 64, columns, SAMPLE_WGMMA_K);
    assert_cuda(cudaFree(a));
    assert_cuda(cudaFree(b));
    assert_cuda(cudaFree(d));
}

/* *state: the kind. */
static void form_multiplies_exactly(void **state)
{
    static const int sizes[] = {8, 32, 64, 80, 96, 128, 192, 256};
    sample_wgmma_kind_t kind = *(const sample_wgmma_kind_t *)*state;
    bool is_mn = kind == SAMPLE_BF16_MN || kind == SAMPLE_BF16_REGISTERS_MN ||
                 kind == SAMPLE_F16_REGISTERS_MN;
    for (size_t i = is_mn ? 1 : 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        check_kind(kind, sizes[i], is_mn);
    }
}

static void ring_of_stages_multiplies_ragged_shapes(void **state)
{
    (void)state;
    static const uint32_t shapes[][3] = {{64, 128, 64}, {128, 256, 512}, {70, 136, 200}, {1, 8, 8}};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
        uint32_t m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
        void *a = upload_matrix(SAMPLE_BF16_K, m, k, false);
        void *b = upload_b(SAMPLE_BF16_K, n, k, false);
        float *c = cuda_upload(NULL, sizeof(float) * m * n);
        assert_cuda((cudaError_t)sample_wgmma_gemm(a, b, c, m, n, k, NULL));
        assert_product(c, m, n, k);
        assert_cuda(cudaFree(a));
        assert_cuda(cudaFree(b));
        assert_cuda(cudaFree(c));
    }
}

int main(void)
{
    cuda_skip_without_device();
    if (!cuda_is_hopper()) {
        puts("skipped: no Hopper device");
        return 77;
    }
    static sample_wgmma_kind_t kinds[] = {
        SAMPLE_BF16_K, SAMPLE_BF16_MN,          SAMPLE_BF16_REGISTERS, SAMPLE_BF16_REGISTERS_MN,
        SAMPLE_F16_K,  SAMPLE_F16_REGISTERS_MN, SAMPLE_E4M3_K,         SAMPLE_E4M3_REGISTERS,
    };
#define FORM(kind)                                                                                 \
    {"form_multiplies_exactly(" #kind ")", form_multiplies_exactly, NULL, NULL, &kinds[kind]}
    const struct CMUnitTest tests[] = {
        FORM(SAMPLE_BF16_K),
        FORM(SAMPLE_BF16_MN),
        FORM(SAMPLE_BF16_REGISTERS),
        FORM(SAMPLE_BF16_REGISTERS_MN),
        FORM(SAMPLE_F16_K),
        FORM(SAMPLE_F16_REGISTERS_MN),
        FORM(SAMPLE_E4M3_K),
        FORM(SAMPLE_E4M3_REGISTERS),
        cmocka_unit_test(ring_of_stages_multiplies_ragged_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
