/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_region_priv.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"

/* ---- one region ------------------------------------------------------------------------------ */

static void region_destroy(xfer_region_t *region)
{
    for (size_t w = 0; w < region->n_ways; w++) {
        weft_buffer_free(&region->at[w].key);
    }
    if (region->memory.fd >= 0) {
        close(region->memory.fd);
    }
    weft_free(region);
}

static weft_status_t region_create(const xfer_memory_t *memory, size_t n_ways,
                                   xfer_region_t **region_out)
{
    xfer_region_t *region =
        weft_zalloc(sizeof(*region) + n_ways * sizeof(region->at[0]), "xfer.region");
    if (region == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    region->range = (xfer_range_t){.space = (int32_t)memory->space,
                                   .device = memory->device,
                                   .addr = memory->addr,
                                   .bytes = memory->bytes};
    region->n_ways = n_ways;
    region->memory = *memory;
    if (memory->fd >= 0) {
        region->memory.fd = fcntl(memory->fd, F_DUPFD_CLOEXEC, 0);
        if (region->memory.fd < 0) {
            region_destroy(region);
            return errno == EBADF ? WEFT_ERR_INVALID : WEFT_ERR_NO_MEMORY;
        }
    }
    *region_out = region;
    return WEFT_OK;
}

/* ---- on the ways ----------------------------------------------------------------------------- */

static void unmap_ways(xfer_agent_t *agent, xfer_region_t *region)
{
    for (size_t w = agent->n_ways; w-- > 0;) {
        if ((region->range.ways & UINT32_C(1) << w) != 0) {
            agent->ways[w].backend->unmap(agent->ways[w].port, region->at[w].handle);
        }
    }
    region->range.ways = 0;
}

static weft_status_t map_way(xfer_way_t *way, const xfer_region_t *region, xfer_mapping_t *mapping)
{
    if ((way->backend->caps & xfer_space_cap(region->range.space)) == 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    weft_status_t status =
        way->backend->map(way->port, &region->memory, &mapping->key, &mapping->handle);
    if (status == WEFT_OK && mapping->key.is_failed) {
        way->backend->unmap(way->port, mapping->handle);
        return WEFT_ERR_NO_MEMORY;
    }
    return status;
}

/* All ways that take it; what goes wrong otherwise undoes the others. */
static weft_status_t map_ways(xfer_agent_t *agent, xfer_region_t *region)
{
    for (size_t w = 0; w < agent->n_ways; w++) {
        weft_status_t status = map_way(&agent->ways[w], region, &region->at[w]);
        if (status == WEFT_OK) {
            region->range.ways |= UINT32_C(1) << w;
        } else if (status != WEFT_ERR_UNSUPPORTED) {
            unmap_ways(agent, region);
            return status;
        }
    }
    return region->range.ways != 0 ? WEFT_OK : WEFT_ERR_UNSUPPORTED;
}

/* ---- the agent's set ------------------------------------------------------------------------- */

static weft_status_t check_memory(const xfer_memory_t *memory, weft_diag_t *diag)
{
    if (xfer_space_cap((int32_t)memory->space) == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "no kind of memory has the number %d",
                         (int)memory->space);
    }
    if (memory->bytes == 0 || memory->addr > UINT64_MAX - memory->bytes) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%llu bytes at 0x%llx are no region",
                         (unsigned long long)memory->bytes, (unsigned long long)memory->addr);
    }
    return WEFT_OK;
}

static weft_status_t overlap_found(const xfer_range_t *other, const xfer_memory_t *memory,
                                   weft_diag_t *diag)
{
    return weft_diag(diag, WEFT_ERR_EXISTS,
                     "%llu bytes at 0x%llx overlap the region of %llu bytes at 0x%llx",
                     (unsigned long long)memory->bytes, (unsigned long long)memory->addr,
                     (unsigned long long)other->bytes, (unsigned long long)other->addr);
}

/* Both locks are held: `lock` keeps the set as it is while `tables` is not. */
static weft_status_t add_region(xfer_agent_t *agent, xfer_region_t *region, weft_diag_t *diag)
{
    const xfer_range_t *other = xfer_ranges_overlap(&agent->regions, &region->range);
    if (other != NULL) {
        return overlap_found(other, &region->memory, diag);
    }
    weft_status_t status = map_ways(agent, region);
    if (status == WEFT_ERR_UNSUPPORTED) {
        return weft_diag(diag, status, "no backend takes %llu bytes of this memory at 0x%llx",
                         (unsigned long long)region->memory.bytes,
                         (unsigned long long)region->memory.addr);
    }
    if (status < 0) {
        return status;
    }
    pthread_mutex_lock(&agent->tables);
    status = xfer_ranges_reserve(&agent->regions, 1);
    if (status == WEFT_OK) {
        xfer_ranges_add(&agent->regions, &region->range);
    }
    pthread_mutex_unlock(&agent->tables);
    if (status < 0) {
        unmap_ways(agent, region);
    }
    return status;
}

weft_status_t xfer_register(xfer_agent_t *agent, const xfer_memory_t *memory, weft_diag_t *diag,
                            xfer_region_t **region_out)
{
    xfer_region_t *region = NULL;
    weft_status_t status = check_memory(memory, diag);
    if (status == WEFT_OK) {
        status = region_create(memory, agent->n_ways, &region);
    }
    if (status < 0) {
        return status;
    }
    xfer_agent_enter(agent);
    status = add_region(agent, region, diag);
    xfer_agent_leave(agent);
    if (status < 0) {
        region_destroy(region);
        return status;
    }
    *region_out = region;
    return WEFT_OK;
}

weft_status_t xfer_deregister(xfer_agent_t *agent, xfer_region_t *region)
{
    xfer_agent_enter(agent);
    pthread_mutex_lock(&agent->tables);
    const bool is_used = region->users > 0;
    if (!is_used) {
        xfer_ranges_remove(&agent->regions, &region->range);
    }
    pthread_mutex_unlock(&agent->tables);
    if (!is_used) {
        unmap_ways(agent, region);
    }
    xfer_agent_leave(agent);
    if (is_used) {
        return WEFT_ERR_IN_USE;
    }
    region_destroy(region);
    return WEFT_OK;
}

void xfer_region_destroy_all(xfer_agent_t *agent)
{
    while (agent->regions.n > 0) {
        xfer_region_t *region = (xfer_region_t *)agent->regions.items[agent->regions.n - 1];
        assert(region->users == 0);
        agent->regions.n--;
        unmap_ways(agent, region);
        region_destroy(region);
    }
    xfer_ranges_fini(&agent->regions);
}
