/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_binding.h"

#include <hwloc.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"

struct launch_binding {
    hwloc_topology_t topology;
    hwloc_bitmap_t usable; /* of what the process's mask and its cgroup leave */
};

weft_status_t launch_bind_to_parse(const char *text, weft_diag_t *diag,
                                   launch_bind_to_t *bind_to_out)
{
    static const char *const names[LAUNCH_BIND_COUNT] = {"none", "core", "numa"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            *bind_to_out = (launch_bind_to_t)i;
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "--bind-to %s: core, numa or none", text);
}

static weft_status_t look(launch_binding_t *binding, const char *synthetic)
{
    if (hwloc_topology_init(&binding->topology) != 0) {
        binding->topology = NULL;
        return WEFT_ERR_NO_MEMORY;
    }
    if (synthetic != NULL && hwloc_topology_set_synthetic(binding->topology, synthetic) != 0) {
        return WEFT_ERR_INVALID;
    }
    if (hwloc_topology_load(binding->topology) != 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    binding->usable = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(binding->topology));
    if (binding->usable == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    hwloc_bitmap_t mask = synthetic == NULL ? hwloc_bitmap_alloc() : NULL;
    if (mask != NULL && hwloc_get_cpubind(binding->topology, mask, HWLOC_CPUBIND_PROCESS) == 0) {
        hwloc_bitmap_and(binding->usable, binding->usable, mask);
    }
    hwloc_bitmap_free(mask);
    return WEFT_OK;
}

weft_status_t launch_binding_create(const char *synthetic, weft_diag_t *diag,
                                    launch_binding_t **binding_out)
{
    launch_binding_t *binding = weft_zalloc(sizeof(*binding), "launch.binding");
    const weft_status_t status = binding == NULL ? WEFT_ERR_NO_MEMORY : look(binding, synthetic);
    if (status < 0) {
        launch_binding_destroy(binding);
        return weft_diag(diag, status, "the machine's cores cannot be told: %s",
                         weft_strerror(status));
    }
    *binding_out = binding;
    return WEFT_OK;
}

void launch_binding_destroy(launch_binding_t *binding)
{
    if (binding == NULL) {
        return;
    }
    hwloc_bitmap_free(binding->usable);
    if (binding->topology != NULL) {
        hwloc_topology_destroy(binding->topology);
    }
    weft_free(binding);
}

/* ---- objects that can be used ---------------------------------------------------------------- */

static bool is_usable(const launch_binding_t *binding, hwloc_obj_t object,
                      hwloc_const_bitmap_t within)
{
    return object->cpuset != NULL && hwloc_bitmap_intersects(object->cpuset, binding->usable) &&
           (within == NULL || hwloc_bitmap_intersects(object->cpuset, within));
}

static uint32_t count(const launch_binding_t *binding, hwloc_obj_type_t type,
                      hwloc_const_bitmap_t within)
{
    uint32_t n = 0;
    for (hwloc_obj_t object = NULL;
         (object = hwloc_get_next_obj_by_type(binding->topology, type, object)) != NULL;) {
        n += is_usable(binding, object, within);
    }
    return n;
}

/* The nth usable one, counted around; NULL: there is none. */
static hwloc_obj_t nth(const launch_binding_t *binding, hwloc_obj_type_t type,
                       hwloc_const_bitmap_t within, uint32_t n)
{
    const uint32_t total = count(binding, type, within);
    uint32_t left = total == 0 ? 0 : n % total;
    for (hwloc_obj_t object = NULL;
         (object = hwloc_get_next_obj_by_type(binding->topology, type, object)) != NULL;) {
        if (is_usable(binding, object, within) && left-- == 0) {
            return object;
        }
    }
    return NULL;
}

/* A machine may tell of no cores, or of no NUMA nodes: then processors, and all of it. */
static hwloc_obj_type_t core_type(const launch_binding_t *binding)
{
    return count(binding, HWLOC_OBJ_CORE, NULL) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
}

static hwloc_const_bitmap_t choose_core(const launch_binding_t *binding, launch_map_by_t map_by,
                                        uint32_t local_rank)
{
    const uint32_t nodes = count(binding, HWLOC_OBJ_NUMANODE, NULL);
    hwloc_const_bitmap_t within = NULL;
    if (map_by == LAUNCH_BY_NUMA && nodes > 0) {
        within = nth(binding, HWLOC_OBJ_NUMANODE, NULL, local_rank)->cpuset;
        local_rank /= nodes;
    }
    hwloc_obj_t core = nth(binding, core_type(binding), within, local_rank);
    return core == NULL ? NULL : core->cpuset;
}

static hwloc_const_bitmap_t choose_numa(const launch_binding_t *binding, launch_map_by_t map_by,
                                        uint32_t local_rank)
{
    hwloc_const_bitmap_t within =
        map_by == LAUNCH_BY_NUMA ? NULL : choose_core(binding, map_by, local_rank);
    hwloc_obj_t node =
        nth(binding, HWLOC_OBJ_NUMANODE, within, map_by == LAUNCH_BY_NUMA ? local_rank : 0);
    return node == NULL ? NULL : node->cpuset;
}

weft_status_t launch_binding_choose(const launch_binding_t *binding, launch_bind_to_t bind_to,
                                    launch_map_by_t map_by, uint32_t local_rank,
                                    launch_cpus_t *cpus_out)
{
    hwloc_const_bitmap_t chosen = bind_to == LAUNCH_BIND_CORE
                                      ? choose_core(binding, map_by, local_rank)
                                      : choose_numa(binding, map_by, local_rank);
    hwloc_bitmap_t cpus = hwloc_bitmap_alloc();
    if (cpus == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    hwloc_bitmap_and(cpus, chosen != NULL ? chosen : binding->usable, binding->usable);
    for (unsigned i = 0; i < WEFT_ARRAY_LEN(cpus_out->bits); i++) {
        cpus_out->bits[i] = hwloc_bitmap_to_ith_ulong(cpus, i);
    }
    hwloc_bitmap_free(cpus);
    return WEFT_OK;
}

uint32_t launch_binding_cores(const launch_binding_t *binding)
{
    const uint32_t cores = count(binding, core_type(binding), NULL);
    return cores > 0 ? cores : 1;
}
