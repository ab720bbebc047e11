/* SPDX-License-Identifier: Apache-2.0 */
#include "base/memory_limit.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/compiler.h"

#define UNLIMITED UINT64_MAX

/* Where one version of control groups keeps its numbers. */
typedef struct cgroup_files {
    const char *line_mark; /* in /proc/self/cgroup, between the first ':' and the path */
    const char *mount;
    const char *limit;
    const char *usage;
    const char *reclaimable; /* key in memory.stat: page cache that goes when memory is short */
} cgroup_files_t;

static const cgroup_files_t versions[] = {
    {"", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "},
    {"memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file "},
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The number behind key at the start of a line (key "": the first number); fallback if none. */
static uint64_t read_number(const char *path, const char *key, uint64_t fallback)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return fallback;
    }
    char line[256];
    uint64_t value = fallback;
    while (fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0) {
            if (sscanf(line + strlen(key), "%" SCNu64, &value) != 1) {
                value = fallback; /* "max" */
            }
            break;
        }
    }
    fclose(file);
    return value;
}

static uint64_t group_available(const cgroup_files_t *files, const char *folder)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof(path), "%s/%s", folder, files->limit);
    const uint64_t limit = read_number(path, "", UNLIMITED);
    if (limit == UNLIMITED) {
        return UNLIMITED;
    }
    snprintf(path, sizeof(path), "%s/%s", folder, files->usage);
    const uint64_t usage = read_number(path, "", 0);
    snprintf(path, sizeof(path), "%s/memory.stat", folder);
    const uint64_t held = usage - min_u64(usage, read_number(path, files->reclaimable, 0));
    return limit - min_u64(limit, held);
}

/* The group's own limit and those of all groups above it, up to the mount. */
static uint64_t tree_available(const cgroup_files_t *files, const char *root, const char *group)
{
    char folder[PATH_MAX];
    const int base = snprintf(folder, sizeof(folder), "%s%s", root, files->mount);
    const int length = snprintf(folder, sizeof(folder), "%s%s%s", root, files->mount, group);
    uint64_t available = UNLIMITED;
    if (length >= (int)sizeof(folder)) {
        return available;
    }
    for (;;) {
        available = min_u64(available, group_available(files, folder));
        char *slash = strrchr(folder, '/');
        if (slash == NULL || slash < folder + base) {
            return available;
        }
        *slash = '\0';
    }
}

/* Lines are "id:controllers:path"; version 2's is "0::path". */
static uint64_t cgroups_available(const char *root)
{
    char line[PATH_MAX];
    snprintf(line, sizeof(line), "%s/proc/self/cgroup", root);
    FILE *file = fopen(line, "re");
    uint64_t available = UNLIMITED;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (path == NULL) {
            continue;
        }
        *path++ = '\0';
        for (size_t i = 0; i < WEFT_ARRAY_LEN(versions); i++) {
            if (strcmp(controllers + 1, versions[i].line_mark) == 0) {
                available = min_u64(available, tree_available(&versions[i], root, path));
            }
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return available;
}

static uint64_t machine_available(const char *root)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    const uint64_t kib = read_number(path, "MemAvailable:", UNLIMITED);
    return kib == UNLIMITED ? UNLIMITED : kib * 1024;
}

static uint64_t address_space_available(const char *root)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return UNLIMITED;
    }
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/proc/self/statm", root);
    const uint64_t used = read_number(path, "", 0) * (uint64_t)sysconf(_SC_PAGESIZE);
    return limit.rlim_cur - min_u64(limit.rlim_cur, used);
}

size_t weft_memory_available(const char *root)
{
    const uint64_t host = min_u64(machine_available(root), address_space_available(root));
    return (size_t)min_u64(host, cgroups_available(root));
}
