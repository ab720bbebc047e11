/* SPDX-License-Identifier: Apache-2.0 */
/* The device table's row for GPUs: memory, ordered queues, events, and an error that stays. */
#include "base/device_cuda.h"
#include "base/log.h"
#include "kernels/kernels.h"
#include "tests/cuda_emu/cuda_check.h"

enum { BYTES = 10000 };

static weft_device_t *open_cuda(void)
{
    weft_diag_t diag = {0};
    weft_device_t *device = NULL;
    const weft_status_t status = weft_device_open("cuda", 0, &diag, &device);
    if (status < 0) {
        print_error("%s\n", diag.text);
    }
    assert_status(status, WEFT_OK);
    return device;
}

static void auto_is_the_gpu(void **state)
{
    (void)state;
    weft_device_t *device = NULL;
    assert_status(weft_device_open("auto", 0, NULL, &device), WEFT_OK);
    assert_string_equal(device->ops->name, "cuda");
    assert_false(device->ops->is_host);
    weft_device_close(device);
}

static void an_index_that_is_not_there_is_told(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    weft_device_t *device = NULL;
    assert_status(weft_device_open("cuda:99", 0, &diag, &device), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "cuda:99"));
    assert_status(weft_device_open("cuda:x", 0, &diag, &device), WEFT_ERR_NOT_FOUND);
    assert_null(device);
}

static void memory_begins_as_zeroes(void **state)
{
    (void)state;
    static const uint32_t kinds[] = {0, WEFT_MEM_EXPORTABLE, WEFT_MEM_HOST};
    weft_device_t *device = open_cuda();
    for (size_t i = 0; i < WEFT_ARRAY_LEN(kinds); i++) {
        weft_mem_t mem = {0};
        weft_queue_t *queue = NULL;
        char host[BYTES];
        memset(host, 1, sizeof(host));
        assert_status(device->ops->alloc(device, BYTES, kinds[i], &mem), WEFT_OK);
        assert_true(mem.bytes == BYTES && mem.mapped >= BYTES);
        assert_status(device->ops->open_queue(device, &queue), WEFT_OK);
        device->ops->copy(queue, host, mem.addr, BYTES);
        assert_status(device->ops->sync(queue), WEFT_OK);
        for (size_t j = 0; j < BYTES; j++) {
            assert_int_equal(host[j], 0);
        }
        device->ops->close_queue(queue);
        device->ops->free(device, &mem);
        assert_null(mem.addr);
    }
    weft_device_close(device);
}

static void more_memory_than_there_is_is_refused(void **state)
{
    (void)state;
    weft_device_t *device = open_cuda();
    weft_mem_t mem = {0};
    const size_t total = device->ops->memory_total(device);
    assert_true(device->ops->memory_available(device) <= total);
    assert_status(device->ops->alloc(device, total * 2, 0, &mem), WEFT_ERR_NO_MEMORY);
    assert_status(device->ops->alloc(device, SIZE_MAX, 0, &mem), WEFT_ERR_NO_MEMORY);
    assert_status(device->ops->alloc(device, 1, 0, &mem), WEFT_OK); /* none of that stays */
    device->ops->free(device, &mem);
    weft_device_close(device);
}

/* As another process would; fds pass sockets. */
static void exported_memory_is_mapped_again_by_its_fd(void **state)
{
    (void)state;
    weft_device_t *device = open_cuda();
    weft_queue_t *queue = NULL;
    weft_mem_t mem = {0};
    weft_mem_t again = {0};
    char host[BYTES] = {0};
    assert_status(device->ops->open_queue(device, &queue), WEFT_OK);
    assert_status(device->ops->alloc(device, BYTES, WEFT_MEM_EXPORTABLE, &mem), WEFT_OK);
    if (mem.fd < 0) {
        print_message("skipped: this driver exports no memory\n");
    } else {
        const size_t available = device->ops->memory_available(device);
        assert_status(device->ops->import(device, mem.fd, mem.mapped + 1, &again),
                      WEFT_ERR_MALFORMED);
        assert_status(device->ops->import(device, mem.fd, BYTES, &again), WEFT_OK);
        device->ops->fill(queue, mem.addr, 7, BYTES);
        device->ops->copy(queue, host, again.addr, BYTES);
        assert_status(device->ops->sync(queue), WEFT_OK);
        assert_int_equal(host[BYTES - 1], 7);
        device->ops->free(device, &again);
        assert_true(!emu_is_emulated() || device->ops->memory_available(device) == available);
    }
    device->ops->free(device, &mem);
    device->ops->close_queue(queue);
    weft_device_close(device);
}

/* Without the event the second queue would copy what the first has not written yet. */
static void a_queue_follows_another_by_an_event(void **state)
{
    (void)state;
    weft_device_t *device = open_cuda();
    weft_queue_t *first = NULL;
    weft_queue_t *second = NULL;
    weft_mem_t a = {0};
    weft_mem_t b = {0};
    char host[BYTES] = {0};
    assert_status(device->ops->open_queue(device, &first), WEFT_OK);
    assert_status(device->ops->open_queue(device, &second), WEFT_OK);
    assert_status(device->ops->alloc(device, BYTES, 0, &a), WEFT_OK);
    assert_status(device->ops->alloc(device, BYTES, 0, &b), WEFT_OK);
    device->ops->fill(first, a.addr, 7, BYTES);
    weft_event_t *filled = device->ops->record(first);
    device->ops->follow(second, filled);
    device->ops->copy(second, b.addr, a.addr, BYTES);
    device->ops->copy(second, host, b.addr, BYTES);
    weft_event_t *copied = device->ops->record(second);
    assert_status(device->ops->wait(copied), WEFT_OK);
    assert_true(device->ops->is_done(filled) && device->ops->is_done(copied));
    assert_int_equal(host[0], 7);
    assert_int_equal(host[BYTES - 1], 7);
    device->ops->close_queue(first);
    device->ops->close_queue(second);
    device->ops->free(device, &a);
    device->ops->free(device, &b);
    weft_device_close(device);
}

static void a_graph_repeats_what_was_recorded(void **state)
{
    (void)state;
    weft_device_t *device = open_cuda();
    weft_diag_t diag = {0};
    k_stream_t *stream = NULL;
    k_graph_t *graph = NULL;
    weft_mem_t mem = {0};
    uint32_t host[2] = {0};
    assert_status(k_stream_create(device, "auto", 0, &diag, &stream), WEFT_OK);
    assert_status(device->ops->alloc(device, BYTES, 0, &mem), WEFT_OK);
    uint32_t *target = mem.addr;
    k_word_t *words = (k_word_t *)((char *)mem.addr + 256);
    assert_true(k_stream_has_graphs(stream));
    assert_status(k_stream_capture(stream), WEFT_OK);
    stream->ops->write_words(stream, &(k_write_words_args_t){.words = words, .n_words = 2});
    assert_status(k_stream_end_capture(stream, &graph), WEFT_OK);
    for (uint32_t round = 1; round < 3; round++) { /* other words at the same place */
        const k_word_t said[2] = {{target, round}, {target + 1, 10 * round}};
        device->ops->copy(stream->queue, words, said, sizeof(said));
        k_graph_launch(stream, graph);
        device->ops->copy(stream->queue, host, target, sizeof(host));
        assert_status(k_stream_sync(stream), WEFT_OK);
        assert_int_equal(host[0], round);
        assert_int_equal(host[1], 10 * round);
    }
    k_graph_destroy(stream, graph);
    device->ops->free(device, &mem);
    k_stream_destroy(stream);
    weft_device_close(device);
}

static void a_failure_stays(void **state)
{
    (void)state;
    weft_device_t *device = open_cuda();
    weft_queue_t *queue = NULL;
    weft_log_set_level(WEFT_LOG_ERROR);
    assert_status(device->ops->open_queue(device, &queue), WEFT_OK);
    assert_false(weft_device_cuda_note(device, cudaErrorIllegalAddress, "a test"));
    assert_status(device->ops->sync(queue), WEFT_ERR_DEVICE);
    assert_status(device->ops->wait(device->ops->record(queue)), WEFT_ERR_DEVICE);
    device->ops->close_queue(queue);
    weft_device_close(device);
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_is_the_gpu),
        cmocka_unit_test(an_index_that_is_not_there_is_told),
        cmocka_unit_test(memory_begins_as_zeroes),
        cmocka_unit_test(more_memory_than_there_is_is_refused),
        cmocka_unit_test(exported_memory_is_mapped_again_by_its_fd),
        cmocka_unit_test(a_queue_follows_another_by_an_event),
        cmocka_unit_test(a_graph_repeats_what_was_recorded),
        cmocka_unit_test(a_failure_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
