/* SPDX-License-Identifier: Apache-2.0 */
/* Planted faults are reported in every schedule, and their twins without the fault are not. */
#include "tests/cuda_emu/cuda_check.h"
#include "tests/cuda_emu/samples/faults.h"

enum { N = 1000 };

typedef struct fault {
    const char *text;
    sample_fault_fn run;
} fault_t;

static void run(const fault_t *fault, bool is_faulty)
{
    emu_reset();
    float *host = test_calloc(N, sizeof(*host));
    float *x = cuda_upload(host, N * sizeof(*host));
    float *y = cuda_upload(host, N * sizeof(*host));
    assert_cuda((cudaError_t)fault->run(is_faulty, x, y, host));
    cudaError_t error = cudaDeviceSynchronize();
    if (!is_faulty) {
        assert_cuda(error);
    } else if (error == cudaSuccess || strstr(emu_fault(), fault->text) == NULL) {
        fail_msg("%s: \"%s\", and not \"%s\"", cudaGetErrorName(error), emu_fault(), fault->text);
    }
    emu_reset();
    test_free(host);
    assert_cuda(cudaFree(x));
    assert_cuda(cudaFree(y));
}

static void fault_is_reported(void **state)
{
    run(*state, true);
}

static void twin_is_not(void **state)
{
    run(*state, false);
}

static void fault_stays_until_the_device_is_reset(void **state)
{
    (void)state;
    emu_reset();
    float *x = cuda_upload(NULL, N * sizeof(*x));
    float *y = cuda_upload(NULL, N * sizeof(*y));
    assert_cuda((cudaError_t)sample_global_past_end(true, x, y, x));
    assert_int_equal(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    assert_int_equal(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    void *more = NULL;
    assert_int_equal(cudaMalloc(&more, 16), cudaErrorIllegalAddress);
    emu_reset();
    assert_cuda(cudaMalloc(&more, 16));
    assert_cuda(cudaFree(more));
    assert_cuda(cudaFree(x));
    assert_cuda(cudaFree(y));
}

int main(void)
{
#define FAULT(name, text) static const fault_t name = {text, sample_##name};
#include "tests/cuda_emu/samples/faults.def"
#undef FAULT
    const struct CMUnitTest tests[] = {
#define FAULT(name, text)                                                                          \
    {"fault_is_reported(" #name ")", fault_is_reported, NULL, NULL, (void *)(uintptr_t)&name},     \
        {"twin_is_not(" #name ")", twin_is_not, NULL, NULL, (void *)(uintptr_t)&name},
#include "tests/cuda_emu/samples/faults.def"
#undef FAULT
        cmocka_unit_test(fault_stays_until_the_device_is_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
