/* SPDX-License-Identifier: Apache-2.0 */
/* Every form of mma.sync and ldmatrix, on a GPU and as emulated. All sums are exact. */
#include "tests/cuda_emu/cuda_check.h"
#include "tests/cuda_emu/samples/mma.h"
#include "tests/cuda_emu/samples/small_codes.h"

enum { M = 16, N = 8, ROW_BYTES = 32 };

static void put(sample_mma_kind_t kind, uint8_t *matrix, size_t at, int v)
{
    const uint16_t *codes = kind == SAMPLE_MMA_F16 ? small_f16 : small_bf16;
    if (kind == SAMPLE_MMA_S8 || kind == SAMPLE_MMA_E4M3) {
        matrix[at] = (kind == SAMPLE_MMA_S8 ? small_s8 : small_e4m3)[v + 2];
    } else {
        memcpy(matrix + 2 * at, &codes[v + 2], sizeof(*codes));
    }
}

/* *state: the kind. */
static void form_multiplies_exactly(void **state)
{
    sample_mma_kind_t kind = *(const sample_mma_kind_t *)*state;
    uint32_t k = kind == SAMPLE_MMA_S8 || kind == SAMPLE_MMA_E4M3 ? 32 : 16;
    uint8_t a[M * ROW_BYTES], b[N * ROW_BYTES];
    for (uint32_t i = 0; i < k; i++) {
        for (uint32_t row = 0; row < M; row++) {
            put(kind, a, (size_t)row * k + i, small_value(row, i));
        }
        for (uint32_t row = 0; row < N; row++) {
            size_t at = kind == SAMPLE_MMA_BF16_TRANS ? (size_t)i * N + row : (size_t)row * k + i;
            put(kind, b, at, small_value(100 + row, i));
        }
    }
    void *device_a = cuda_upload(a, sizeof(a)), *device_b = cuda_upload(b, sizeof(b));
    void *d = cuda_upload(NULL, M * N * 4);
    assert_cuda((cudaError_t)sample_mma(kind, device_a, device_b, d, NULL));
    void *host = cuda_download(d, M * N * 4);
    for (uint32_t i = 0; i < M * N; i++) {
        int sum = 0;
        for (uint32_t j = 0; j < k; j++) {
            sum += small_value(i / N, j) * small_value(100 + i % N, j);
        }
        if (kind == SAMPLE_MMA_S8) {
            assert_int_equal(((int32_t *)host)[i], sum);
        } else {
            assert_true(((float *)host)[i] == (float)sum);
        }
    }
    test_free(host);
    assert_cuda(cudaFree(device_a));
    assert_cuda(cudaFree(device_b));
    assert_cuda(cudaFree(d));
}

int main(void)
{
    cuda_skip_without_device();
    static sample_mma_kind_t kinds[] = {SAMPLE_MMA_BF16, SAMPLE_MMA_BF16_TRANS, SAMPLE_MMA_F16,
                                        SAMPLE_MMA_S8, SAMPLE_MMA_E4M3};
#define FORM(kind)                                                                                 \
    {"form_multiplies_exactly(" #kind ")", form_multiplies_exactly, NULL, NULL, &kinds[kind]}
    const struct CMUnitTest tests[] = {
        FORM(SAMPLE_MMA_BF16),
        FORM(SAMPLE_MMA_BF16_TRANS),
        FORM(SAMPLE_MMA_F16),
        FORM(SAMPLE_MMA_S8),
    };
    const struct CMUnitTest hopper_tests[] = {FORM(SAMPLE_MMA_E4M3)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (cuda_is_hopper()) {
        failed += cmocka_run_group_tests(hopper_tests, NULL, NULL);
    }
    return failed;
}
