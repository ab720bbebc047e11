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
    uint32_t cores = k_cores_in_mask();
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
