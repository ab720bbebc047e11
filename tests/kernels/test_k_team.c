/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <ftw.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
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

/* Every member is at its first item before any goes on to a second. */
typedef struct firsts {
    atomic_uint arrived;
    uint32_t members;
    uint32_t item[8]; /* of each member, plain memory: its own */
    cpu_set_t cpus[8];
} firsts_t;

static void note_first(const void *arg, uint32_t item, uint32_t member)
{
    firsts_t *firsts = *(firsts_t *const *)arg;
    if (atomic_load(&firsts->arrived) >= firsts->members) {
        return;
    }
    firsts->item[member] = item;
    sched_getaffinity(0, sizeof(firsts->cpus[member]), &firsts->cpus[member]);
    atomic_fetch_add(&firsts->arrived, 1);
    while (atomic_load(&firsts->arrived) < firsts->members) {
        sched_yield();
    }
}

static void run_firsts(uint32_t threads, uint32_t items, firsts_t *firsts)
{
    k_team_t *team = NULL;
    firsts->members = threads;
    assert_status(k_team_create(threads, &team), WEFT_OK);
    /* Twice: one that is just starting, or still looks for items to help with, may find another's. */
    for (int i = 0; i < 2; i++) {
        atomic_store(&firsts->arrived, 0);
        k_team_run(team, items, note_first, &firsts);
        await_sleep();
    }
    k_team_destroy(team);
}

static void members_begin_with_ranges_of_their_own_in_order(void **state)
{
    (void)state;
    static const uint32_t items[] = {8, 9, 64, 100, 1001};
    firsts_t firsts = {0};
    for (uint32_t threads = 2; threads <= 8; threads += 3) {
        for (size_t i = 0; i < WEFT_ARRAY_LEN(items); i++) {
            run_firsts(threads, items[i], &firsts);
            for (uint32_t m = 0; m < threads; m++) {
                assert_int_equal(firsts.item[m], items[i] * m / threads);
            }
        }
    }
}

static void a_team_of_all_cores_is_pinned_in_their_order(void **state)
{
    (void)state;
    int cpus[K_CORES_MAX];
    firsts_t firsts = {0};
    const uint32_t n = k_cores_list(cpus);
    assert_int_equal(n, k_cores_physical());
    if (n < 2 || n > 8) {
        print_message("%u cores: 2 to 8 are looked at\n", n);
        skip();
    }
    run_firsts(n, n, &firsts);
    for (uint32_t m = 1; m < n; m++) {
        assert_int_equal(CPU_COUNT(&firsts.cpus[m]), 1);
        assert_true(CPU_ISSET(cpus[m], &firsts.cpus[m]));
    }
}

/* ---- machines that are drawn ----------------------------------------------------------------- */

static void write_line(const char *folder, const char *name, const char *line)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    for (char *slash = strchr(path + strlen(folder) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, 0700); /* it may be there */
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(line, file);
    fclose(file);
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info;
    (void)kind;
    (void)walk;
    return remove(path);
}

/* The cores of a machine with two hardware threads each, of these nodes, and of a mask of processors. */
static void check_list(uint32_t n_cpus, const char *nodes, const char *const cpulists[],
                       const char *mask, const char *expected)
{
    char folder[] = "/tmp/weft-cores-XXXXXX";
    char name[64];
    char line[64];
    bool is_allowed[K_CORES_MAX] = {false};
    int cpus[K_CORES_MAX];
    assert_non_null(mkdtemp(folder));
    for (uint32_t i = 0; i < n_cpus; i++) {
        snprintf(name, sizeof(name), "cpu/cpu%u/topology/thread_siblings_list", i);
        snprintf(line, sizeof(line), "%u,%u\n", i % (n_cpus / 2), i % (n_cpus / 2) + n_cpus / 2);
        write_line(folder, name, line);
        is_allowed[i] = mask == NULL || mask[i] == 'x';
    }
    if (nodes != NULL) {
        write_line(folder, "node/online", nodes);
    }
    for (uint32_t i = 0; cpulists[i] != NULL; i++) {
        snprintf(name, sizeof(name), "node/node%u/cpulist", i);
        write_line(folder, name, cpulists[i]);
    }
    const uint32_t n = k_cores_list_of(folder, is_allowed, cpus);
    char got[256] = "";
    for (uint32_t i = 0; i < n; i++) {
        snprintf(got + strlen(got), sizeof(got) - strlen(got), i == 0 ? "%d" : " %d", cpus[i]);
    }
    assert_string_equal(got, expected);
    assert_int_equal(nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static void cores_of_a_node_follow_one_another(void **state)
{
    (void)state;
    const char *const none[] = {NULL};
    const char *const halves[] = {"0-3,8-11\n", "4-7,12-15\n", NULL};
    const char *const turns[] = {"0,2,4,6,8,10,12,14\n", "1,3,5,7,9,11,13,15\n", NULL};
    const char *const memory[] = {"\n", "0-15\n", NULL}; /* a node without processors */
    check_list(16, NULL, none, NULL, "0 1 2 3 4 5 6 7");
    check_list(16, "0-1\n", halves, NULL, "0 1 2 3 4 5 6 7");
    check_list(16, "0-1\n", turns, NULL, "0 2 4 6 1 3 5 7");
    check_list(16, "0,1\n", turns, NULL, "0 2 4 6 1 3 5 7");
    check_list(16, "0-1\n", memory, NULL, "0 1 2 3 4 5 6 7");
    /* Of core 1 the second thread alone may be used; of core 3 none. */
    check_list(16, "0-1\n", turns, "x.x..x...x......", "0 2 5 9");
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
        cmocka_unit_test(members_begin_with_ranges_of_their_own_in_order),
        cmocka_unit_test(a_team_of_all_cores_is_pinned_in_their_order),
        cmocka_unit_test(cores_of_a_node_follow_one_another),
        cmocka_unit_test(a_failed_allocation_leaves_no_thread),
        cmocka_unit_test(a_quota_counts_as_cores_rounded_up),
        cmocka_unit_test(usable_cores_follow_the_affinity_mask),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
