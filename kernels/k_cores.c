/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_cores.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = 4096, CPUS = 4096 };

uint32_t k_cores_in_mask(void)
{
    static const size_t bytes = CPU_ALLOC_SIZE(CPUS);
    cpu_set_t mask[CPUS / CPU_SETSIZE];
    CPU_ZERO_S(bytes, mask);
    if (sched_getaffinity(0, bytes, mask) != 0) {
        return 1;
    }
    const int count = CPU_COUNT_S(bytes, mask);
    return count > 0 ? (uint32_t)count : 1;
}

/* The first processor of the core that a processor belongs to. */
static int first_sibling(int cpu)
{
    char path[96];
    int first = cpu;
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
             cpu);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return cpu;
    }
    if (fscanf(file, "%d", &first) != 1) { /* "0-1", "0,64" */
        first = cpu;
    }
    fclose(file);
    return first;
}

/* How many cores the mask has up to and with the one counted `nth`, and that one's processor. */
static uint32_t walk_cores(uint32_t nth, int *cpu_out)
{
    static const size_t bytes = CPU_ALLOC_SIZE(CPUS);
    cpu_set_t mask[CPUS / CPU_SETSIZE];
    cpu_set_t seen[CPUS / CPU_SETSIZE];
    uint32_t count = 0;
    CPU_ZERO_S(bytes, mask);
    CPU_ZERO_S(bytes, seen);
    if (sched_getaffinity(0, bytes, mask) != 0) {
        return 0;
    }
    for (int cpu = 0; cpu < CPUS; cpu++) {
        if (!CPU_ISSET_S(cpu, bytes, mask)) {
            continue;
        }
        const int core = first_sibling(cpu);
        if (core < 0 || core >= CPUS || CPU_ISSET_S(core, bytes, seen)) {
            continue;
        }
        CPU_SET_S(core, bytes, seen);
        if (count++ == nth) {
            *cpu_out = cpu;
            break;
        }
    }
    return count;
}

uint32_t k_cores_physical(void)
{
    int cpu;
    const uint32_t count = walk_cores(UINT32_MAX, &cpu);
    return count > 0 ? count : 1;
}

int k_cores_nth_physical(uint32_t nth)
{
    int cpu = -1;
    walk_cores(nth, &cpu);
    return cpu;
}

uint32_t k_cores_parse_quota(const char *text)
{
    long long quota;
    long long period;
    if (sscanf(text, "%lld %lld", &quota, &period) != 2 || quota <= 0 || period <= 0) {
        return 0; /* "max", or -1 */
    }
    return (uint32_t)((quota + period - 1) / period);
}

static bool read_line(const char *path, char *line, size_t bytes)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return false;
    }
    const bool is_read = fgets(line, (int)bytes, file) != NULL;
    fclose(file);
    return is_read;
}

static uint32_t smaller_quota(uint32_t cores, uint32_t quota)
{
    return quota > 0 && quota < cores ? quota : cores;
}

/* Quota files of the group at path and of every group above it. */
static uint32_t apply_quotas(uint32_t cores, const char *mount, char *group, bool is_v2)
{
    char path[PATH_BYTES];
    char line[128];
    char both[sizeof(line) * 2 + 2];

    for (;;) {
        if (is_v2) {
            snprintf(path, sizeof(path), "%s%s/cpu.max", mount, group);
            if (read_line(path, line, sizeof(line))) {
                cores = smaller_quota(cores, k_cores_parse_quota(line));
            }
        } else {
            char period[sizeof(line)];
            snprintf(path, sizeof(path), "%s%s/cpu.cfs_quota_us", mount, group);
            bool is_read = read_line(path, line, sizeof(line));
            snprintf(path, sizeof(path), "%s%s/cpu.cfs_period_us", mount, group);
            is_read = is_read && read_line(path, period, sizeof(period));
            if (is_read) {
                snprintf(both, sizeof(both), "%s %s", line, period);
                cores = smaller_quota(cores, k_cores_parse_quota(both));
            }
        }
        char *slash = strrchr(group, '/');
        if (slash == NULL) {
            return cores;
        }
        *slash = '\0';
    }
}

uint32_t k_cores_usable(void)
{
    uint32_t cores = k_cores_physical();
    FILE *file = fopen("/proc/self/cgroup", "r");
    if (file == NULL) {
        return cores;
    }
    /* A line: "0::/path" (v2) or "4:cpu,cpuacct:/path" (v1). */
    char line[PATH_BYTES / 2];
    while (fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) {
            continue;
        }
        *group++ = '\0';
        controllers++;
        if (controllers[0] == '\0') {
            cores = apply_quotas(cores, "/sys/fs/cgroup", group, true);
        } else if (strcmp(controllers, "cpu") == 0 || strncmp(controllers, "cpu,", 4) == 0) {
            cores = apply_quotas(cores, "/sys/fs/cgroup/cpu", group, false);
        }
    }
    fclose(file);
    return cores;
}
