/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/engine_share.h"

#include <stdio.h>

#include "base/memory_limit.h"
#include "kernels/k_cores.h"

weft_status_t engine_machine_look(const char *device, weft_diag_t *diag,
                                  engine_machine_t *machine_out)
{
    machine_out->cores = k_cores_usable();
    machine_out->host_bytes = weft_memory_available("");
    return weft_device_find(device, diag, &machine_out->devices);
}

/* ---- GPUs ------------------------------------------------------------------------------------ */

typedef struct deal {
    const weft_device_set_t *devices;
    uint64_t ranks; /* of a copy */
    uint32_t n_copies;
} deal_t;

static int device_of(const deal_t *deal, uint32_t copy, uint32_t rank)
{
    const uint32_t index = engine_share_index(copy, (uint32_t)deal->ranks, rank);
    return deal->devices->indices[index % deal->devices->n];
}

/* More ranks than devices have them again, in the same order. */
static uint32_t count_places(const deal_t *deal)
{
    return deal->ranks < deal->devices->n ? (uint32_t)deal->ranks : deal->devices->n;
}

static bool has_device(const deal_t *deal, uint32_t copy, int device)
{
    const uint32_t n = count_places(deal);
    for (uint32_t i = 0; i < n; i++) {
        if (device_of(deal, copy, i) == device) {
            return true;
        }
    }
    return false;
}

static uint32_t count_sharers(const deal_t *deal, uint32_t copy)
{
    const uint32_t n = count_places(deal);
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t sharers = 0;
        for (uint32_t other = 0; other < deal->n_copies; other++) {
            sharers += has_device(deal, other, device_of(deal, copy, i));
        }
        most = sharers > most ? sharers : most;
    }
    return most;
}

static void write_devices(const deal_t *deal, uint32_t copy, char *text, size_t bytes)
{
    const uint64_t most = WEFT_DEVICE_SET_MAX; /* that a name may list */
    const uint32_t n = (uint32_t)(deal->ranks < most ? deal->ranks : most);
    size_t used = (size_t)snprintf(text, bytes, "%s", deal->devices->ops->name);
    for (uint32_t i = 0; i < n && used < bytes; i++) {
        used += (size_t)snprintf(text + used, bytes - used, "%c%d", i == 0 ? ':' : ',',
                                 device_of(deal, copy, i));
    }
}

static void share_devices(const deal_t *deal, double utilization, uint32_t copy,
                          engine_share_t *share)
{
    write_devices(deal, copy, share->device, sizeof(share->device));
    share->sharers = count_sharers(deal, copy);
    share->utilization = utilization / share->sharers;
}

/* ---- the host -------------------------------------------------------------------------------- */

/* Two leave each other enough as it is: one takes a third of the memory at most. */
static size_t share_memory(size_t bytes, uint64_t n)
{
    return n > 2 ? bytes / 3 * 2 / n : 0;
}

engine_share_t engine_share_of(const engine_machine_t *machine, const engine_options_t *options,
                               uint32_t n_copies, uint32_t copy)
{
    const deal_t deal = {
        .devices = &machine->devices,
        .ranks = (uint64_t)options->tensor_parallel_size * options->pipeline_parallel_size,
        .n_copies = n_copies,
    };
    const uint64_t n = n_copies * deal.ranks; /* processes that compute */
    engine_share_t share = {.threads = n < machine->cores ? machine->cores / (uint32_t)n : 1};
    if (machine->devices.ops->is_host) {
        snprintf(share.device, sizeof(share.device), "%s", machine->devices.ops->name);
        share.cache_bytes = share_memory(machine->host_bytes, n);
    } else {
        share_devices(&deal, options->gpu_memory_utilization, copy, &share);
    }
    return share;
}
