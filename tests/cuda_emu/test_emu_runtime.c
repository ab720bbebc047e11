/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, events, graphs and memory, as a GPU's runtime keeps them and as late as it may. */
#include "tests/cuda_emu/cuda_check.h"
#include "tests/cuda_emu/samples/warps.h"

enum { N = 100 };

static cudaStream_t open_stream(void)
{
    cudaStream_t stream = NULL;
    assert_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static cudaEvent_t open_event(void)
{
    cudaEvent_t event = NULL;
    assert_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
}

static float *open_pinned(float value)
{
    float *pinned = NULL;
    assert_cuda(cudaHostAlloc((void **)&pinned, N * sizeof(*pinned), cudaHostAllocDefault));
    for (int i = 0; i < N; i++) {
        pinned[i] = value;
    }
    return pinned;
}

static void assert_all(const float *device, float value)
{
    float *host = cuda_download(device, N * sizeof(*host));
    for (int i = 0; i < N; i++) {
        assert_true(host[i] == value);
    }
    test_free(host);
}

static void fresh_memory_is_poison(void **state)
{
    (void)state;
    if (!emu_is_emulated()) {
        skip();
    }
    float *x = cuda_upload(NULL, N * sizeof(*x));
    float *host = cuda_download(x, N * sizeof(*host));
    for (int i = 0; i < N; i++) {
        assert_true(host[i] != host[i]);
    }
    test_free(host);
    assert_cuda(cudaFree(x));
}

/* What the host may not count on, the emulation does not do. */
static void stream_does_nothing_before_it_is_waited_for(void **state)
{
    (void)state;
    cudaStream_t stream = open_stream();
    float *pinned = open_pinned(1.0f);
    float *x = cuda_upload(NULL, N * sizeof(*x));
    assert_cuda(cudaMemcpyAsync(x, pinned, N * sizeof(*x), cudaMemcpyHostToDevice, stream));
    if (emu_is_emulated()) {
        pinned[7] = 2.0f; /* too early: the copy may still read it */
    }
    assert_cuda(cudaStreamSynchronize(stream));
    float *host = cuda_download(x, N * sizeof(*host));
    assert_true(host[7] == (emu_is_emulated() ? 2.0f : 1.0f));
    test_free(host);
    assert_cuda(cudaFree(x));
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaStreamDestroy(stream));
}

static void pageable_memory_is_read_at_the_call(void **state)
{
    (void)state;
    cudaStream_t stream = open_stream();
    float host[N] = {0};
    float *x = cuda_upload(NULL, sizeof(host));
    assert_cuda(cudaMemcpyAsync(x, host, sizeof(host), cudaMemcpyHostToDevice, stream));
    host[3] = 9.0f;
    assert_cuda(cudaStreamSynchronize(stream));
    assert_all(x, 0.0f);
    assert_cuda(cudaFree(x));
    assert_cuda(cudaStreamDestroy(stream));
}

/* Stream b waits for a's event: without the wait it would read poison. */
static void event_orders_two_streams(void **state)
{
    (void)state;
    cudaStream_t a = open_stream(), b = open_stream();
    cudaEvent_t event = open_event();
    float *pinned = open_pinned(3.0f);
    float *x = cuda_upload(NULL, N * sizeof(*x));
    float *y = cuda_upload(NULL, N * sizeof(*y));

    assert_cuda(cudaMemcpyAsync(x, pinned, N * sizeof(*x), cudaMemcpyHostToDevice, a));
    assert_cuda(cudaEventRecord(event, a));
    assert_cuda(cudaStreamWaitEvent(b, event, 0));
    assert_cuda((cudaError_t)sample_scale(x, y, N, 2.0, b));
    assert_cuda(cudaStreamSynchronize(b));
    assert_all(y, 6.0f);

    if (emu_is_emulated()) {
        assert_cuda(cudaMemsetAsync(x, 0, N * sizeof(*x), a));
        assert_cuda((cudaError_t)sample_scale(x, y, N, 1.0, b));
        assert_cuda(cudaStreamSynchronize(b));
        float *host = test_malloc(N * sizeof(*host));
        assert_cuda(cudaMemcpyAsync(host, y, N * sizeof(*host), cudaMemcpyDeviceToHost, b));
        assert_true(host[0] == 3.0f); /* nobody waited for the fill */
        test_free(host);
    }
    assert_cuda(cudaFree(x));
    assert_cuda(cudaFree(y));
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaEventDestroy(event));
    assert_cuda(cudaStreamDestroy(a));
    assert_cuda(cudaStreamDestroy(b));
}

static void queries_come_to_an_end(void **state)
{
    (void)state;
    cudaStream_t stream = open_stream();
    cudaEvent_t event = open_event();
    float *pinned = open_pinned(3.0f);
    float *x = cuda_upload(NULL, N * sizeof(*x));
    for (int i = 0; i < 5; i++) {
        assert_cuda(cudaMemcpyAsync(x, pinned, N * sizeof(*x), cudaMemcpyHostToDevice, stream));
    }
    assert_cuda(cudaEventRecord(event, stream));
    if (emu_is_emulated()) {
        assert_int_equal(cudaEventQuery(event), cudaErrorNotReady);
    }
    while (cudaEventQuery(event) == cudaErrorNotReady) {
    }
    assert_cuda(cudaStreamQuery(stream));
    assert_cuda(cudaFree(x));
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaEventDestroy(event));
    assert_cuda(cudaStreamDestroy(stream));
}

static void graph_repeats_what_was_captured(void **state)
{
    (void)state;
    cudaStream_t stream = open_stream();
    float *pinned = open_pinned(1.0f);
    float *x = cuda_upload(pinned, N * sizeof(*x));
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;

    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    assert_cuda((cudaError_t)sample_scale(x, x, N, 2.0, stream));
    assert_cuda((cudaError_t)sample_scale(x, x, N, 1.5, stream));
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphInstantiate(&exec, graph, 0));
    assert_cuda(cudaStreamSynchronize(stream));
    assert_all(x, 1.0f); /* capturing runs nothing */
    for (int i = 0; i < 3; i++) {
        assert_cuda(cudaGraphLaunch(exec, stream));
    }
    assert_cuda(cudaStreamSynchronize(stream));
    assert_all(x, 27.0f);
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaGraphDestroy(graph));
    assert_cuda(cudaFree(x));
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaStreamDestroy(stream));
}

static void waiting_inside_a_capture_breaks_it(void **state)
{
    (void)state;
    cudaStream_t stream = open_stream();
    cudaGraph_t graph = NULL;
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_int_not_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_not_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    (void)cudaGetLastError();
    assert_cuda(cudaStreamDestroy(stream));
}

static void allocation_fails_when_memory_is_gone_or_told_to(void **state)
{
    (void)state;
    void *x = NULL;
    assert_int_equal(cudaMalloc(&x, SIZE_MAX / 2), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_cuda(cudaGetLastError());
    if (emu_is_emulated()) {
        emu_fail_alloc(2);
        assert_cuda(cudaMalloc(&x, 16));
        assert_cuda(cudaFree(x));
        assert_int_equal(cudaMalloc(&x, 16), cudaErrorMemoryAllocation);
        (void)cudaGetLastError();
    }
    assert_cuda(cudaMalloc(&x, 16));
    assert_cuda(cudaFree(x));
}

/* Without access hooks the guard page behind an allocation finds it. */
static void guard_page_catches_what_hooks_would(void **state)
{
    (void)state;
    if (!emu_is_emulated()) {
        skip();
    }
    float *x = cuda_upload(NULL, 256 * sizeof(*x));
    assert_cuda(cudaMemset(x, 0, 256 * sizeof(*x)));
    assert_cuda((cudaError_t)sample_scale(x, x, 257, 1.0, NULL));
    assert_int_equal(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    assert_non_null(strstr(emu_fault(), "block 4 in scale: access at byte 1024"));
    emu_reset();
    assert_cuda(cudaFree(x));
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fresh_memory_is_poison),
        cmocka_unit_test(stream_does_nothing_before_it_is_waited_for),
        cmocka_unit_test(pageable_memory_is_read_at_the_call),
        cmocka_unit_test(event_orders_two_streams),
        cmocka_unit_test(queries_come_to_an_end),
        cmocka_unit_test(graph_repeats_what_was_captured),
        cmocka_unit_test(waiting_inside_a_capture_breaks_it),
        cmocka_unit_test(allocation_fails_when_memory_is_gone_or_told_to),
        cmocka_unit_test(guard_page_catches_what_hooks_would),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
