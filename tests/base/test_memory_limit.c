/* SPDX-License-Identifier: Apache-2.0 */
#include "base/memory_limit.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "tests/support/check.h"

static char root[64];

/* Writes text to root/path and makes the folders on the way. */
static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof(full), "%s/%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/weft-limit-XXXXXX");
    return mkdtemp(root) == NULL ? -1 : 0;
}

static int remove_root(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

static void without_groups_the_machine_is_the_limit(void **state)
{
    (void)state;
    assert_int_equal(weft_memory_available(root), SIZE_MAX);
    put("proc/meminfo", "MemTotal:  4000 kB\nMemFree:  1000 kB\nMemAvailable:    2000 kB\n");
    assert_int_equal(weft_memory_available(root), 2000 * 1024);
}

static void a_version_2_group_limits_less_what_it_holds(void **state)
{
    (void)state;
    put("proc/meminfo", "MemAvailable:    2000000 kB\n");
    put("proc/self/cgroup", "0::/pod/main\n");
    put("sys/fs/cgroup/pod/main/memory.max", "max\n");
    assert_int_equal(weft_memory_available(root), UINT64_C(2000000) * 1024);
    put("sys/fs/cgroup/pod/main/memory.max", "1000000\n");
    put("sys/fs/cgroup/pod/main/memory.current", "300000\n");
    put("sys/fs/cgroup/pod/main/memory.stat", "anon 5\ninactive_file 100000\n");
    assert_int_equal(weft_memory_available(root), 800000);
    put("sys/fs/cgroup/pod/main/memory.current", "9300000\n");
    assert_int_equal(weft_memory_available(root), 0);
}

static void a_group_above_limits_too(void **state)
{
    (void)state;
    put("proc/meminfo", "MemAvailable:    2000000 kB\n");
    put("proc/self/cgroup", "0::/pod/main\n");
    put("sys/fs/cgroup/pod/memory.max", "500\n");
    put("sys/fs/cgroup/pod/memory.current", "100\n");
    assert_int_equal(weft_memory_available(root), 400);
}

static void a_version_1_group_limits_also_where_its_path_is_hidden(void **state)
{
    (void)state;
    put("proc/meminfo", "MemAvailable:    2000000 kB\n");
    put("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/1234\n0::/\nrubbish\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "3000\n");
    put("sys/fs/cgroup/memory/memory.stat", "inactive_file 9\ntotal_inactive_file 1000\n");
    assert_int_equal(weft_memory_available(root), 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(without_groups_the_machine_is_the_limit, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(a_version_2_group_limits_less_what_it_holds, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(a_group_above_limits_too, make_root, remove_root),
        cmocka_unit_test_setup_teardown(a_version_1_group_limits_also_where_its_path_is_hidden,
                                        make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
