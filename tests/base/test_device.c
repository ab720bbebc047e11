/* SPDX-License-Identifier: Apache-2.0 */
#include "base/device.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/support/check.h"

static int open_cpu(void **state)
{
    weft_device_t *device = NULL;
    weft_diag_t diag = {0};
    const weft_status_t status = weft_device_open("cpu", 0, &diag, &device);
    *state = device;
    return status == WEFT_OK ? 0 : -1;
}

static int close_cpu(void **state)
{
    weft_device_close(*state);
    return 0;
}

static void auto_opens_a_device(void **state)
{
    (void)state;
    weft_device_t *device = NULL;
    assert_status(weft_device_open("auto", 0, NULL, &device), WEFT_OK);
    assert_non_null(device->ops->name);
    weft_device_close(device);
    weft_device_close(NULL);
}

static void an_unknown_device_gets_the_known_ones_listed(void **state)
{
    (void)state;
    weft_device_t *device = NULL;
    weft_diag_t diag = {0};
    assert_status(weft_device_open("tpu", 0, &diag, &device), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "\"tpu\""));
    assert_non_null(strstr(diag.text, "auto"));
    assert_non_null(strstr(diag.text, "cpu"));
    assert_status(weft_device_open("cpu:1", 0, &diag, &device), WEFT_ERR_NOT_FOUND);
    assert_null(device);
}

/* Ranks of a host that has fewer devices share them; a name's own index is meant. */
static void an_index_beyond_the_devices_counts_on_from_the_first(void **state)
{
    (void)state;
    weft_device_t *device = NULL;
    assert_status(weft_device_open("cpu", 3, NULL, &device), WEFT_OK);
    assert_int_equal(device->index, 0);
    weft_device_close(device);
}

/* This program has no cuda; one that has may still lack a GPU, and then goes on to the cpu. */
static void a_device_left_out_is_told_as_such(void **state)
{
    (void)state;
    weft_device_t *device = NULL;
    weft_diag_t diag = {0};
    assert_status(weft_device_open("cuda:1", 0, &diag, &device), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "built without"));
    assert_null(device);
}

/* Else the failure of one that was tried first would be told as the reason of a later one. */
static void an_opened_device_leaves_no_line_behind(void **state)
{
    (void)state;
    weft_device_t *device = NULL;
    weft_diag_t diag = {"device cuda: no NVIDIA driver"};
    assert_status(weft_device_open("auto", 0, &diag, &device), WEFT_OK);
    assert_string_equal(diag.text, "");
    weft_device_close(device);
}

static void memory_is_zeroed_and_page_aligned(void **state)
{
    weft_device_t *device = *state;
    const size_t sizes[] = {0, 1, 4096, 4097, (size_t)5 << 20};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        for (uint32_t flags = 0; flags <= WEFT_MEM_EXPORTABLE; flags++) {
            weft_mem_t mem = {0};
            assert_status(device->ops->alloc(device, sizes[i], flags, &mem), WEFT_OK);
            assert_int_equal((uintptr_t)mem.addr % 4096, 0);
            assert_int_equal(mem.bytes, sizes[i]);
            assert_true(mem.mapped >= sizes[i]);
            assert_int_equal(mem.fd >= 0, flags == WEFT_MEM_EXPORTABLE);
            for (size_t at = 0; at < sizes[i]; at += 997) {
                assert_int_equal(((const char *)mem.addr)[at], 0);
            }
            device->ops->free(device, &mem);
            assert_null(mem.addr);
            device->ops->free(device, &mem);
        }
    }
}

static void more_memory_than_there_is_fails_before_it_is_touched(void **state)
{
    weft_device_t *device = *state;
    weft_mem_t mem = {0};
    const size_t available = device->ops->memory_available(device);
    assert_true(available > 0);
    assert_status(device->ops->alloc(device, SIZE_MAX, 0, &mem), WEFT_ERR_NO_MEMORY);
    assert_status(device->ops->alloc(device, SIZE_MAX / 2, 1, &mem), WEFT_ERR_NO_MEMORY);
    assert_null(mem.addr);
}

static void exported_memory_is_shared_with_its_importer(void **state)
{
    weft_device_t *device = *state;
    weft_mem_t mem = {0};
    weft_mem_t import = {0};
    assert_status(device->ops->alloc(device, 10000, WEFT_MEM_EXPORTABLE, &mem), WEFT_OK);
    assert_status(device->ops->import(device, mem.fd, 10000, &import), WEFT_OK);
    strcpy((char *)mem.addr + 9000, "carried across");
    assert_string_equal((char *)import.addr + 9000, "carried across");
    assert_int_not_equal(ftruncate(mem.fd, 100), 0); /* nobody can cut it under the importer */
    device->ops->free(device, &import);
    device->ops->free(device, &mem);
}

static void imports_that_could_fault_are_refused(void **state)
{
    weft_device_t *device = *state;
    weft_mem_t mem = {0};
    weft_mem_t import = {0};
    assert_status(device->ops->alloc(device, 4096, WEFT_MEM_EXPORTABLE, &mem), WEFT_OK);
    assert_status(device->ops->import(device, mem.fd, 8192, &import), WEFT_ERR_MALFORMED);
    assert_status(device->ops->import(device, mem.fd, 0, &import), WEFT_ERR_MALFORMED);
    assert_status(device->ops->import(device, -1, 4096, &import), WEFT_ERR_IO);
    const int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(unsealed, 4096), 0);
    assert_status(device->ops->import(device, unsealed, 4096, &import), WEFT_ERR_MALFORMED);
    assert_null(import.addr);
    close(unsealed);
    device->ops->free(device, &mem);
}

static void a_queue_copies_and_fills_in_order(void **state)
{
    weft_device_t *device = *state;
    const weft_device_ops_t *ops = device->ops;
    weft_queue_t *queue = NULL;
    weft_mem_t mem = {0};
    char host[8] = "1234567";
    assert_status(ops->open_queue(device, &queue), WEFT_OK);
    assert_status(ops->alloc(device, 64, 0, &mem), WEFT_OK);
    ops->copy(queue, mem.addr, host, sizeof(host));
    ops->fill(queue, (char *)mem.addr + 2, 'x', 3);
    ops->copy(queue, host, mem.addr, sizeof(host));
    ops->copy(queue, host, NULL, 0);
    weft_event_t *event = ops->record(queue);
    assert_status(ops->sync(queue), WEFT_OK);
    assert_true(ops->is_done(event));
    assert_string_equal(host, "12xxx67");
    ops->free(device, &mem);
    ops->close_queue(queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_opens_a_device),
        cmocka_unit_test(an_unknown_device_gets_the_known_ones_listed),
        cmocka_unit_test(an_index_beyond_the_devices_counts_on_from_the_first),
        cmocka_unit_test(a_device_left_out_is_told_as_such),
        cmocka_unit_test(an_opened_device_leaves_no_line_behind),
        cmocka_unit_test(memory_is_zeroed_and_page_aligned),
        cmocka_unit_test(more_memory_than_there_is_fails_before_it_is_touched),
        cmocka_unit_test(exported_memory_is_shared_with_its_importer),
        cmocka_unit_test(imports_that_could_fault_are_refused),
        cmocka_unit_test(a_queue_copies_and_fills_in_order),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
