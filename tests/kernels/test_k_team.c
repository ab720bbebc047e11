/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "kernels/k_cores.h"
#include "kernels/k_team.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

enum { MAX_ITEMS = 3000 };

typedef struct job {
    uint32_t stamp;
    uint32_t members;
    uint32_t *counts; /* plain memory: an item is one member's alone */
} job_t;

static void count_item(const void *arg, uint32_t item, uint32_t member)
{
    const job_t *job = arg;
    if (member >= job->members) {
        abort();
    }
    job->counts[item] += job->stamp;
}

static bool is_asleep(const char *task)
{
    char path[300];
    char line[300];
    snprintf(path, sizeof(path), "/proc/self/task/%s/stat", task);
    FILE *file = fopen(path, "r");
    const bool is_read = file != NULL && fgets(line, sizeof(line), file) != NULL;
    if (file != NULL) {
        fclose(file);
    }
    const char *name_end = is_read ? strrchr(line, ')') : NULL;
    return name_end == NULL || name_end[2] == 'S'; /* one that has just ended sleeps well */
}

/* Until every thread but this one sleeps; fails after a minute. */
static void await_sleep(void)
{
    const uint64_t deadline = weft_clock_ns() + 60 * WEFT_NS_PER_SECOND;
    bool are_all_asleep = false;
    while (!are_all_asleep) {
        assert_true(weft_clock_ns() < deadline);
        are_all_asleep = true;
        DIR *tasks = opendir("/proc/self/task");
        assert_non_null(tasks);
        for (const struct dirent *entry = readdir(tasks); entry != NULL; entry = readdir(tasks)) {
            if (entry->d_name[0] != '.' && atoi(entry->d_name) != getpid()) {
                are_all_asleep &= is_asleep(entry->d_name);
            }
        }
        closedir(tasks);
    }
}

static void run_jobs(uint32_t threads, uint32_t jobs, test_random_t *random)
{
    static uint32_t counts[MAX_ITEMS];
    k_team_t *team = NULL;
    assert_status(k_team_create(threads, &team), WEFT_OK);
    assert_int_equal(k_team_size(team), threads);
    for (uint32_t i = 0; i < jobs; i++) {
        const uint32_t items = test_random_below(random, i % 50 == 0 ? MAX_ITEMS : 9);
        const job_t job = {i + 1, threads, counts};
        for (uint32_t item = 0; item < items; item++) {
            counts[item] = 0;
        }
        k_team_run(team, items, count_item, &job);
        for (uint32_t item = 0; item < items; item++) {
            assert_int_equal(counts[item], job.stamp);
        }
        if (i % 100 == 99) {
            await_sleep();
        }
    }
    k_team_destroy(team);
}

static void a_job_runs_each_item_once_and_ends_after_the_last(void **state)
{
    (void)state;
    test_random_t random = {test_seed(41)};
    for (uint32_t threads = 1; threads <= 6; threads++) {
        run_jobs(threads, 2000, &random);
    }
}

static void an_idle_team_falls_asleep(void **state)
{
    (void)state;
    uint32_t counts[64] = {0};
    const job_t job = {1, 4, counts};
    k_team_t *team = NULL;
    assert_status(k_team_create(4, &team), WEFT_OK);
    k_team_run(team, 64, count_item, &job);
    await_sleep();
    k_team_destroy(team);
}

static void a_team_leaves_the_callers_affinity_and_signals_alone(void **state)
{
    (void)state;
    cpu_set_t before;
    cpu_set_t after;
    k_team_t *team = NULL;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    assert_status(k_team_create(k_cores_in_mask(), &team), WEFT_OK);
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    k_team_destroy(team);
}

static void a_failed_allocation_leaves_no_thread(void **state)
{
    (void)state;
    const size_t held = weft_alloc_live_bytes();
    k_team_t *team = NULL;
    weft_alloc_fail_nth(1);
    assert_status(k_team_create(3, &team), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(0);
    assert_null(team);
    assert_int_equal(weft_alloc_live_bytes(), held);
}

static void a_quota_counts_as_cores_rounded_up(void **state)
{
    (void)state;
    assert_int_equal(k_cores_parse_quota("max 100000\n"), 0);
    assert_int_equal(k_cores_parse_quota("-1 100000"), 0);
    assert_int_equal(k_cores_parse_quota("200000 100000\n"), 2);
    assert_int_equal(k_cores_parse_quota("150000 100000"), 2);
    assert_int_equal(k_cores_parse_quota("1000 100000"), 1);
    assert_int_equal(k_cores_parse_quota("100000 0"), 0);
    assert_int_equal(k_cores_parse_quota(""), 0);
    assert_in_range(k_cores_usable(), 1, k_cores_in_mask());
}

static void usable_cores_follow_the_affinity_mask(void **state)
{
    (void)state;
    cpu_set_t before;
    cpu_set_t one;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++) {
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
        }
    }
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(k_cores_in_mask(), 1);
    assert_int_equal(k_cores_usable(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_runs_each_item_once_and_ends_after_the_last),
        cmocka_unit_test(an_idle_team_falls_asleep),
        cmocka_unit_test(a_team_leaves_the_callers_affinity_and_signals_alone),
        cmocka_unit_test(a_failed_allocation_leaves_no_thread),
        cmocka_unit_test(a_quota_counts_as_cores_rounded_up),
        cmocka_unit_test(usable_cores_follow_the_affinity_mask),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
