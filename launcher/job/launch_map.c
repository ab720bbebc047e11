/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_map.h"

#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"

weft_status_t launch_map_by_parse(const char *text, weft_diag_t *diag, launch_map_by_t *by_out)
{
    static const char *const names[LAUNCH_BY_COUNT] = {"slot", "node", "numa", "core"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            *by_out = (launch_map_by_t)i;
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "--map-by %s: slot, node, numa or core", text);
}

uint32_t launch_map_slots(const launch_hosts_t *hosts)
{
    uint64_t slots = 0;
    for (uint32_t i = 0; i < hosts->n; i++) {
        slots += hosts->all[i].slots;
    }
    return slots > UINT32_MAX ? UINT32_MAX : (uint32_t)slots;
}

/* Ranks that a host may have once the hosts were gone over `rounds` times. */
static uint64_t room(const launch_seats_t *seats, uint64_t rounds)
{
    const uint64_t slots = seats->slots * rounds;
    return seats->max_slots > 0 && slots > seats->max_slots ? seats->max_slots : slots;
}

static uint32_t place(uint32_t host, uint32_t rank, uint32_t *taken, launch_spot_t *spots)
{
    spots[rank] = (launch_spot_t){.host = host, .local_rank = taken[host]++};
    return rank + 1;
}

/* From rank on, as many as this round has room for; the rank that comes next. */
static uint32_t fill_by_slot(const launch_hosts_t *hosts, uint32_t n, uint64_t rounds,
                             uint32_t rank, uint32_t *taken, launch_spot_t *spots)
{
    for (uint32_t host = 0; host < hosts->n; host++) {
        while (rank < n && taken[host] < room(&hosts->all[host], rounds)) {
            rank = place(host, rank, taken, spots);
        }
    }
    return rank;
}

static uint32_t fill_by_node(const launch_hosts_t *hosts, uint32_t n, uint64_t rounds,
                             uint32_t rank, uint32_t *taken, launch_spot_t *spots)
{
    for (uint32_t before = UINT32_MAX; rank < n && before != rank;) {
        before = rank;
        for (uint32_t host = 0; host < hosts->n && rank < n; host++) {
            if (taken[host] < room(&hosts->all[host], rounds)) {
                rank = place(host, rank, taken, spots);
            }
        }
    }
    return rank;
}

static weft_status_t place_all(const launch_hosts_t *hosts, uint32_t n, launch_map_by_t by,
                               weft_diag_t *diag, uint32_t *taken, launch_spot_t *spots)
{
    uint32_t rank = 0;
    for (uint64_t rounds = 1; rank < n; rounds++) {
        const uint32_t before = rank;
        rank = by == LAUNCH_BY_NODE ? fill_by_node(hosts, n, rounds, rank, taken, spots)
                                    : fill_by_slot(hosts, n, rounds, rank, taken, spots);
        if (rank == before) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "%u ranks, but the hosts' max_slots allow %u in all", n, rank);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        spots[i].local_size = taken[spots[i].host];
    }
    return WEFT_OK;
}

weft_status_t launch_map_ranks(const launch_hosts_t *hosts, uint32_t n, launch_map_by_t by,
                               bool may_oversubscribe, weft_diag_t *diag, launch_spot_t *spots_out)
{
    const uint32_t slots = launch_map_slots(hosts);
    if (n > slots && !may_oversubscribe) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "%u ranks, but the hosts have %u slots; --oversubscribe allows more", n,
                         slots);
    }
    uint32_t *taken = weft_calloc(hosts->n, sizeof(*taken), "launch.map");
    if (taken == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory");
    }
    const weft_status_t status = place_all(hosts, n, by, diag, taken, spots_out);
    weft_free(taken);
    return status;
}
