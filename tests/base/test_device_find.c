/* SPDX-License-Identifier: Apache-2.0 */
/* Which devices a name stands for, on a machine with GPUs that this program makes up. */
#include "base/device.h"

#include <string.h>

#include "tests/support/check.h"

/* The weak row of the table. GPUs of bit i of broken do not work; nothing is opened unless asked. */
static int gpus;
static unsigned broken;
static unsigned opened;

static int fake_count(void)
{
    return gpus;
}

static weft_status_t fake_check(int index, weft_diag_t *diag)
{
    if (index >= gpus) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "there are %d", gpus);
    }
    return (broken >> index & 1) == 0
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_UNSUPPORTED, "cuda:%d is too old", index);
}

extern const weft_device_ops_t weft_device_cuda;

static weft_status_t fake_open(int index, weft_diag_t *diag, weft_device_t **device_out)
{
    static weft_device_t device;
    (void)diag;
    opened++;
    device = (weft_device_t){.ops = &weft_device_cuda, .index = index};
    *device_out = &device;
    return WEFT_OK;
}

static void fake_close(weft_device_t *device)
{
    (void)device;
}

const weft_device_ops_t weft_device_cuda = {
    .name = "cuda",
    .count = fake_count,
    .check = fake_check,
    .open = fake_open,
    .close = fake_close,
};

static int reset(void **state)
{
    (void)state;
    gpus = 0;
    broken = 0;
    opened = 0;
    return 0;
}

static weft_device_set_t find(const char *name)
{
    weft_device_set_t set = {0};
    weft_diag_t diag = {0};
    assert_status(weft_device_find(name, &diag, &set), WEFT_OK);
    assert_string_equal(diag.text, "");
    assert_int_equal(opened, 0);
    return set;
}

static int index_opened(const char *name, int index)
{
    weft_device_t *device = NULL;
    assert_status(weft_device_open(name, index, NULL, &device), WEFT_OK);
    const int found = device->index;
    weft_device_close(device);
    return found;
}

static void auto_stands_for_all_gpus_that_work(void **state)
{
    (void)state;
    gpus = 4;
    broken = 1 << 1;
    const weft_device_set_t set = find("auto");
    assert_string_equal(set.ops->name, "cuda");
    assert_int_equal(set.n, 3);
    assert_memory_equal(set.indices, ((int[]){0, 2, 3}), 3 * sizeof(int));
    assert_int_equal(find("cuda").n, 3);
}

static void auto_without_a_gpu_that_works_is_the_cpu(void **state)
{
    (void)state;
    assert_string_equal(find("auto").ops->name, "cpu");
    gpus = 1;
    broken = 1;
    assert_string_equal(find("auto").ops->name, "cpu");
    assert_int_equal(find("cpu").n, 1);
}

static void indices_stand_for_themselves(void **state)
{
    (void)state;
    gpus = 4;
    const weft_device_set_t set = find("cuda:2,0,2");
    assert_int_equal(set.n, 3);
    assert_memory_equal(set.indices, ((int[]){2, 0, 2}), 3 * sizeof(int));
    assert_int_equal(find("auto:3").indices[0], 3);
}

static void what_is_not_there_is_told(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        const char *said;
    } cases[] = {
        {"cuda:4", "there are 4"}, {"cuda:0,4", "there are 4"}, {"cuda:1", "too old"},
        {"cuda:", "unknown"},      {"cuda:0,", "unknown"},      {"cuda:0;2", "unknown"},
        {"cuda:0,,2", "unknown"},  {"cuda:-1", "unknown"},      {"cuda:99999999999999", "unknown"},
        {"tpu:0", "unknown"},
    };
    gpus = 4;
    broken = 1 << 1;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(cases); i++) {
        weft_diag_t diag = {0};
        weft_device_set_t set = {0};
        assert_true(weft_device_find(cases[i].name, &diag, &set) < 0);
        assert_null(set.ops);
        if (strstr(diag.text, cases[i].said) == NULL) {
            fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].name, diag.text, cases[i].said);
        }
    }
    broken = 15;
    weft_diag_t diag = {0};
    weft_device_set_t set = {0};
    assert_status(weft_device_find("cuda", &diag, &set), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "cuda:0"));
    gpus = 0;
    assert_status(weft_device_find("cuda", &diag, &set), WEFT_ERR_NOT_FOUND);
}

static void more_indices_than_a_set_holds_are_refused(void **state)
{
    (void)state;
    char name[8 + 2 * (WEFT_DEVICE_SET_MAX + 1)] = "cuda:0";
    weft_device_set_t set = {0};
    gpus = 1;
    for (int i = 1; i < WEFT_DEVICE_SET_MAX; i++) {
        strcat(name, ",0");
    }
    assert_int_equal(find(name).n, WEFT_DEVICE_SET_MAX);
    strcat(name, ",0");
    assert_status(weft_device_find(name, NULL, &set), WEFT_ERR_NOT_FOUND);
}

static void ranks_take_them_in_turns(void **state)
{
    (void)state;
    gpus = 4;
    assert_int_equal(index_opened("auto", 2), 2);
    assert_int_equal(index_opened("cuda", 5), 1);
    assert_int_equal(index_opened("cuda:3", 1), 3);
    assert_int_equal(index_opened("cuda:3,1", 1), 1);
    assert_int_equal(index_opened("cuda:3,1", 2), 3);
    broken = 1 << 0;
    assert_int_equal(index_opened("auto", 0), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(auto_stands_for_all_gpus_that_work, reset),
        cmocka_unit_test_setup(auto_without_a_gpu_that_works_is_the_cpu, reset),
        cmocka_unit_test_setup(indices_stand_for_themselves, reset),
        cmocka_unit_test_setup(what_is_not_there_is_told, reset),
        cmocka_unit_test_setup(more_indices_than_a_set_holds_are_refused, reset),
        cmocka_unit_test_setup(ranks_take_them_in_turns, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
