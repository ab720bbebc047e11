/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_cores.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define SYSTEM "/sys/devices/system"

enum { PATH_BYTES = 4096 };

uint32_t k_cores_in_mask(void)
{
    static const size_t bytes = CPU_ALLOC_SIZE(K_CORES_MAX);
    cpu_set_t mask[K_CORES_MAX / CPU_SETSIZE];
    CPU_ZERO_S(bytes, mask);
    if (sched_getaffinity(0, bytes, mask) != 0) {
        return 1;
    }
    const int count = CPU_COUNT_S(bytes, mask);
    return count > 0 ? (uint32_t)count : 1;
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

/* ---- in order -------------------------------------------------------------------------------- */

/* The next of "0-3,8": what follows it, or NULL. */
static const char *next_range(const char *list, unsigned *first_out, unsigned *last_out)
{
    int length = 0;
    if (sscanf(list, "%u-%u%n", first_out, last_out, &length) == 2 && length > 0) {
        return list + length + (list[length] == ',');
    }
    if (sscanf(list, "%u%n", first_out, &length) != 1) {
        return NULL;
    }
    *last_out = *first_out;
    return list + length + (list[length] == ',');
}

/* The first processor of the core that a processor belongs to. */
static int first_sibling(const char *folder, int cpu)
{
    char path[PATH_BYTES];
    char line[128];
    int first = cpu;
    snprintf(path, sizeof(path), "%s/cpu/cpu%d/topology/thread_siblings_list", folder, cpu);
    if (!read_line(path, line, sizeof(line)) || sscanf(line, "%d", &first) != 1) {
        return cpu;
    }
    return first; /* of "0-1", "0,64" */
}

/* The first allowed processor of each core, as they are numbered. */
static uint32_t find_cores(const char *folder, const bool *is_allowed, int *cpus_out)
{
    bool is_seen[K_CORES_MAX] = {false};
    uint32_t n = 0;
    for (int cpu = 0; cpu < K_CORES_MAX; cpu++) {
        const int core = is_allowed[cpu] ? first_sibling(folder, cpu) : -1;
        if (core >= 0 && core < K_CORES_MAX && !is_seen[core]) {
            is_seen[core] = true;
            cpus_out[n++] = cpu;
        }
    }
    return n;
}

static void mark_node(const char *folder, unsigned node, uint16_t *node_of)
{
    char path[PATH_BYTES];
    char line[PATH_BYTES];
    unsigned first;
    unsigned last;
    snprintf(path, sizeof(path), "%s/node/node%u/cpulist", folder, node);
    if (!read_line(path, line, sizeof(line))) {
        return;
    }
    for (const char *at = line; (at = next_range(at, &first, &last)) != NULL;) {
        for (unsigned cpu = first; cpu <= last && cpu < K_CORES_MAX; cpu++) {
            node_of[cpu] = (uint16_t)node;
        }
    }
}

/* Nodes that are not told of are one. */
static void find_nodes(const char *folder, uint16_t *node_of)
{
    char path[PATH_BYTES];
    char line[PATH_BYTES];
    unsigned first;
    unsigned last;
    snprintf(path, sizeof(path), "%s/node/online", folder);
    if (!read_line(path, line, sizeof(line))) {
        return;
    }
    for (const char *at = line; (at = next_range(at, &first, &last)) != NULL;) {
        for (unsigned node = first; node <= last && node < UINT16_MAX; node++) {
            mark_node(folder, node, node_of);
        }
    }
}

uint32_t k_cores_list_of(const char *folder, const bool *is_allowed, int *cpus_out)
{
    uint16_t node_of[K_CORES_MAX] = {0};
    const uint32_t n = find_cores(folder, is_allowed, cpus_out);
    find_nodes(folder, node_of);
    /* By insertion: stable, and nothing moves where nodes are numbered as processors are. */
    for (uint32_t i = 1; i < n; i++) {
        const int cpu = cpus_out[i];
        uint32_t to = i;
        for (; to > 0 && node_of[cpus_out[to - 1]] > node_of[cpu]; to--) {
            cpus_out[to] = cpus_out[to - 1];
        }
        cpus_out[to] = cpu;
    }
    return n;
}

static bool read_mask(bool *is_allowed)
{
    static const size_t bytes = CPU_ALLOC_SIZE(K_CORES_MAX);
    cpu_set_t mask[K_CORES_MAX / CPU_SETSIZE];
    CPU_ZERO_S(bytes, mask);
    if (sched_getaffinity(0, bytes, mask) != 0) {
        return false;
    }
    for (int cpu = 0; cpu < K_CORES_MAX; cpu++) {
        is_allowed[cpu] = CPU_ISSET_S(cpu, bytes, mask);
    }
    return true;
}

uint32_t k_cores_list(int *cpus_out)
{
    bool is_allowed[K_CORES_MAX];
    return read_mask(is_allowed) ? k_cores_list_of(SYSTEM, is_allowed, cpus_out) : 0;
}

uint32_t k_cores_physical(void)
{
    bool is_allowed[K_CORES_MAX];
    int cpus[K_CORES_MAX];
    const uint32_t count = read_mask(is_allowed) ? find_cores(SYSTEM, is_allowed, cpus) : 0;
    return count > 0 ? count : 1;
}

/* ---- the quota ------------------------------------------------------------------------------- */

uint32_t k_cores_parse_quota(const char *text)
{
    long long quota;
    long long period;
    if (sscanf(text, "%lld %lld", &quota, &period) != 2 || quota <= 0 || period <= 0) {
        return 0; /* "max", or -1 */
    }
    return (uint32_t)((quota + period - 1) / period);
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
