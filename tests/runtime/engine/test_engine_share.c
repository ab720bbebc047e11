/* SPDX-License-Identifier: Apache-2.0 */
/* Who gets what of machines that this program makes up: nothing here opens a device. */
#include "runtime/engine/engine_share.h"

#include <string.h>

#include "tests/support/check.h"

#define GIB ((size_t)1 << 30)

static const weft_device_ops_t gpu = {.name = "cuda"};
static const weft_device_ops_t host = {.name = "cpu", .is_host = true};

static engine_machine_t machine_of(uint32_t gpus)
{
    engine_machine_t machine = {
        .devices = {.ops = gpus > 0 ? &gpu : &host, .n = gpus > 0 ? gpus : 1},
        .cores = 16,
        .host_bytes = 12 * GIB,
    };
    for (uint32_t i = 0; i < gpus; i++) {
        machine.devices.indices[i] = (int)i;
    }
    return machine;
}

static engine_options_t cut_into(uint32_t tensor, uint32_t stages)
{
    return (engine_options_t){.tensor_parallel_size = tensor,
                              .pipeline_parallel_size = stages,
                              .gpu_memory_utilization = 0.9};
}

typedef struct expected {
    const char *device;
    uint32_t sharers;
    double utilization;
} expected_t;

static void check_gpus(const engine_machine_t *machine, const engine_options_t *options,
                       const expected_t *expected, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const engine_share_t share = engine_share_of(machine, options, n, i);
        assert_string_equal(share.device, expected[i].device);
        assert_int_equal(share.sharers, expected[i].sharers);
        assert_true(share.utilization == expected[i].utilization);
        assert_int_equal(share.cache_bytes, 0); /* the host's memory is not the cache's */
    }
}

static void copies_take_a_gpu_each(void **state)
{
    (void)state;
    const engine_machine_t machine = machine_of(4);
    const engine_options_t options = cut_into(1, 1);
    check_gpus(&machine, &options,
               (expected_t[]){{"cuda:0", 1, 0.9}, {"cuda:1", 1, 0.9}, {"cuda:2", 1, 0.9}}, 3);
}

static void copies_of_several_ranks_take_a_run_each(void **state)
{
    (void)state;
    const engine_machine_t machine = machine_of(4);
    const expected_t expected[] = {{"cuda:0,1", 1, 0.9}, {"cuda:2,3", 1, 0.9}};
    const engine_options_t tensor = cut_into(2, 1);
    const engine_options_t stages = cut_into(1, 2);
    check_gpus(&machine, &tensor, expected, 2);
    check_gpus(&machine, &stages, expected, 2);
}

static void copies_that_share_a_gpu_divide_its_memory(void **state)
{
    (void)state;
    const engine_machine_t one = machine_of(1);
    const engine_machine_t two = machine_of(2);
    const engine_options_t options = cut_into(1, 1);
    check_gpus(&one, &options, (expected_t[]){{"cuda:0", 2, 0.45}, {"cuda:0", 2, 0.45}}, 2);
    check_gpus(&two, &options,
               (expected_t[]){{"cuda:0", 2, 0.45}, {"cuda:1", 1, 0.9}, {"cuda:0", 2, 0.45}}, 3);
}

/* The ranks of one copy on one GPU divide it themselves: they meet. */
static void ranks_of_a_copy_count_once(void **state)
{
    (void)state;
    const engine_machine_t one = machine_of(1);
    const engine_machine_t three = machine_of(3);
    const engine_options_t options = cut_into(2, 1);
    check_gpus(&one, &options, (expected_t[]){{"cuda:0,0", 1, 0.9}}, 1);
    check_gpus(&three, &options, (expected_t[]){{"cuda:0,1", 2, 0.45}, {"cuda:2,0", 2, 0.45}}, 2);
}

static void a_gpu_that_is_named_is_everybodys(void **state)
{
    (void)state;
    engine_machine_t machine = machine_of(1);
    const engine_options_t options = cut_into(1, 1);
    machine.devices.indices[0] = 5;
    check_gpus(&machine, &options, (expected_t[]){{"cuda:5", 2, 0.45}, {"cuda:5", 2, 0.45}}, 2);
}

/* What they may take of a GPU together is never more than was given for it. */
static void shares_of_a_gpu_are_never_more_than_the_whole(void **state)
{
    (void)state;
    for (uint32_t gpus = 1; gpus <= 8; gpus++) {
        for (uint32_t ranks = 1; ranks <= 9; ranks++) {
            for (uint32_t n = 1; n <= 9; n++) {
                const engine_machine_t machine = machine_of(gpus);
                const engine_options_t options = cut_into(ranks, 1);
                double taken[8] = {0};
                for (uint32_t copy = 0; copy < n; copy++) {
                    const engine_share_t share = engine_share_of(&machine, &options, n, copy);
                    uint32_t listed = 0;
                    for (const char *at = strchr(share.device, ':'); at != NULL;
                         at = strchr(at + 1, ',')) {
                        const int index = at[1] - '0';
                        assert_int_equal(index, (copy * ranks + listed) % gpus);
                        taken[index] += listed++ < gpus ? share.utilization : 0;
                    }
                    assert_int_equal(listed, ranks);
                }
                for (uint32_t i = 0; i < gpus; i++) {
                    assert_true(taken[i] < 0.9 + 1e-9);
                }
            }
        }
    }
}

static int device_listed(const char *device, uint32_t rank)
{
    const char *at = strchr(device, ':');
    while (rank-- > 0) {
        at = strchr(at + 1, ',');
    }
    return at[1] - '0';
}

/* Told nothing, and told what those started together are told: a set of as many GPUs as it has ranks. */
static void copies_started_apart_take_the_same_gpus(void **state)
{
    (void)state;
    for (uint32_t gpus = 1; gpus <= 8; gpus++) {
        const engine_machine_t machine = machine_of(gpus);
        for (uint32_t ranks = 1; ranks <= 4; ranks++) {
            const engine_options_t options = cut_into(ranks, 1);
            for (uint32_t copy = 0; copy < 9; copy++) {
                const engine_share_t share = engine_share_of(&machine, &options, 9, copy);
                for (uint32_t rank = 0; rank < ranks; rank++) {
                    const uint32_t index = engine_share_index(copy, ranks, rank);
                    const int expected = device_listed(share.device, rank);
                    assert_int_equal(machine.devices.indices[index % gpus], expected);
                    assert_int_equal(device_listed(share.device, index % ranks), expected);
                }
            }
        }
    }
}

static void on_a_cpu_memory_and_cores_are_divided(void **state)
{
    (void)state;
    const engine_machine_t machine = machine_of(0);
    const engine_options_t whole = cut_into(1, 1);
    const engine_options_t halves = cut_into(2, 1);
    engine_share_t share = engine_share_of(&machine, &whole, 2, 1);
    assert_string_equal(share.device, "cpu");
    assert_int_equal(share.threads, 8);
    assert_int_equal(share.cache_bytes, 0); /* two leave each other enough */
    assert_int_equal(share.sharers, 0);
    share = engine_share_of(&machine, &halves, 2, 1);
    assert_string_equal(share.device, "cpu");
    assert_int_equal(share.threads, 4);
    assert_int_equal(share.cache_bytes, 2 * GIB);
    share = engine_share_of(&machine, &whole, 20, 19);
    assert_int_equal(share.threads, 1);
}

static void a_machine_is_what_an_engine_would_find(void **state)
{
    (void)state;
    engine_machine_t machine;
    weft_diag_t diag = {0};
    assert_status(engine_machine_look("auto", &diag, &machine), WEFT_OK);
    assert_string_equal(machine.devices.ops->name, "cpu"); /* this program has no other */
    assert_true(machine.cores > 0 && machine.host_bytes > 0);
    assert_status(engine_machine_look("cuda", &diag, &machine), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "built without"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_take_a_gpu_each),
        cmocka_unit_test(copies_of_several_ranks_take_a_run_each),
        cmocka_unit_test(copies_that_share_a_gpu_divide_its_memory),
        cmocka_unit_test(ranks_of_a_copy_count_once),
        cmocka_unit_test(a_gpu_that_is_named_is_everybodys),
        cmocka_unit_test(shares_of_a_gpu_are_never_more_than_the_whole),
        cmocka_unit_test(copies_started_apart_take_the_same_gpus),
        cmocka_unit_test(on_a_cpu_memory_and_cores_are_divided),
        cmocka_unit_test(a_machine_is_what_an_engine_would_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
