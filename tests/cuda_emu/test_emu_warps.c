/* SPDX-License-Identifier: Apache-2.0 */
/* What the threads of a block do together, on a GPU and as emulated. */
#include "tests/cuda_emu/cuda_check.h"
#include "tests/cuda_emu/samples/warps.h"

static void block_sum_adds_every_thread(void **state)
{
    (void)state;
    for (unsigned n = 32; n <= 1024; n *= 2) {
        float *x = test_malloc(n * sizeof(*x));
        for (unsigned i = 0; i < n; i++) {
            x[i] = (float)i;
        }
        float *in = cuda_upload(x, n * sizeof(*x));
        float *out = cuda_upload(NULL, n * sizeof(*x));
        assert_cuda((cudaError_t)sample_block_sum(in, out, n, NULL));
        float *sums = cuda_download(out, n * sizeof(*x));
        for (unsigned i = 0; i < n; i++) {
            assert_int_equal((long)sums[i], n * (n - 1) / 2);
        }
        test_free(x);
        test_free(sums);
        assert_cuda(cudaFree(in));
        assert_cuda(cudaFree(out));
    }
}

static void shuffles_take_the_source_lanes_value(void **state)
{
    (void)state;
    int32_t *out = cuda_upload(NULL, 128 * sizeof(*out));
    assert_cuda((cudaError_t)sample_shuffles(out, NULL));
    int32_t *v = cuda_download(out, 128 * sizeof(*v));
    for (int lane = 0; lane < 32; lane++) {
        assert_int_equal(v[lane], (lane ^ 5) * 10);
        assert_int_equal(v[32 + lane], 70);
        assert_int_equal(v[64 + lane], (lane + 3 < 32 ? lane + 3 : lane) * 10);
        assert_int_equal(v[96 + lane], (lane - 2 >= 0 ? lane - 2 : lane) * 10);
    }
    test_free(v);
    assert_cuda(cudaFree(out));
}

static void halves_of_a_warp_meet_apart(void **state)
{
    (void)state;
    int32_t *out = cuda_upload(NULL, 32 * sizeof(*out));
    uint32_t *ballots = cuda_upload(NULL, 2 * sizeof(*ballots));
    assert_cuda((cudaError_t)sample_halves(out, ballots, NULL));
    int32_t *v = cuda_download(out, 32 * sizeof(*v));
    uint32_t *b = cuda_download(ballots, 2 * sizeof(*b));
    for (int lane = 0; lane < 32; lane++) {
        assert_int_equal(v[lane], lane < 16 ? lane ^ 1 : lane ^ 2);
    }
    assert_int_equal(b[0], 0x5555);
    assert_int_equal(b[1], 0x11110000);
    test_free(v);
    test_free(b);
    assert_cuda(cudaFree(out));
    assert_cuda(cudaFree(ballots));
}

static void last_block_sees_what_the_others_wrote(void **state)
{
    (void)state;
    enum { BLOCKS = 20 };
    float x[BLOCKS];
    uint32_t zero = 0;
    for (int i = 0; i < BLOCKS; i++) {
        x[i] = (float)i;
    }
    float *in = cuda_upload(x, sizeof(x));
    float *partial = cuda_upload(NULL, sizeof(x));
    uint32_t *count = cuda_upload(&zero, sizeof(zero));
    float *out = cuda_upload(NULL, sizeof(*out));
    for (int round = 0; round < 2; round++) {
        assert_cuda((cudaError_t)sample_last_block(in, partial, count, out, BLOCKS, NULL));
        float *sum = cuda_download(out, sizeof(*sum));
        assert_int_equal((long)*sum, BLOCKS * (BLOCKS - 1));
        test_free(sum);
    }
    assert_cuda(cudaFree(in));
    assert_cuda(cudaFree(partial));
    assert_cuda(cudaFree(count));
    assert_cuda(cudaFree(out));
}

static void block_waits_for_the_flag_of_another(void **state)
{
    (void)state;
    uint32_t zero = 0;
    uint32_t *flag = cuda_upload(&zero, sizeof(zero));
    uint32_t *out = cuda_upload(NULL, 2 * sizeof(*out));
    assert_cuda((cudaError_t)sample_flag(flag, out, NULL));
    uint32_t *v = cuda_download(out, 2 * sizeof(*v));
    assert_int_equal(v[0], 7);
    test_free(v);
    assert_cuda(cudaFree(flag));
    assert_cuda(cudaFree(out));
}

static void the_clock_goes_on_while_a_thread_spins(void **state)
{
    (void)state;
    uint64_t *out = cuda_upload(NULL, sizeof(*out));
    assert_cuda((cudaError_t)sample_clock(50000, out, NULL));
    uint64_t *v = cuda_download(out, sizeof(*v));
    assert_true(v[0] >= 50000);
    test_free(v);
    assert_cuda(cudaFree(out));
}

static void named_barriers_hand_values_over(void **state)
{
    (void)state;
    int32_t *out = cuda_upload(NULL, 10 * sizeof(*out));
    assert_cuda((cudaError_t)sample_named_barriers(out, 10, NULL));
    int32_t *v = cuda_download(out, 10 * sizeof(*v));
    for (int i = 0; i < 10; i++) {
        assert_int_equal(v[i], i * i);
    }
    test_free(v);
    assert_cuda(cudaFree(out));
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(block_sum_adds_every_thread),
        cmocka_unit_test(shuffles_take_the_source_lanes_value),
        cmocka_unit_test(halves_of_a_warp_meet_apart),
        cmocka_unit_test(last_block_sees_what_the_others_wrote),
        cmocka_unit_test(block_waits_for_the_flag_of_another),
        cmocka_unit_test(the_clock_goes_on_while_a_thread_spins),
        cmocka_unit_test(named_barriers_hand_values_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
