/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_share: what each of several engines that are to serve on one machine gets of it: devices,
 * memory, threads. Decided before any of them starts, by who starts them; no device is opened.
 *
 * Threads  any
 */
#pragma once

#include "base/device.h"
#include "runtime/engine/engine.h"

#define ENGINE_SHARE_DEVICE_BYTES 512

/* What there is to be shared out. */
typedef struct engine_machine {
    weft_device_set_t devices; /* that --device stands for */
    uint32_t cores;            /* that this process may use */
    size_t host_bytes;         /* that are free */
} engine_machine_t;

/* device: an option's value; "auto" becomes what an engine would take. */
weft_status_t engine_machine_look(const char *device, weft_diag_t *diag,
                                  engine_machine_t *machine_out);

typedef struct engine_share {
    char device[ENGINE_SHARE_DEVICE_BYTES]; /* --device: of GPUs one for each of the copy's ranks */
    uint32_t threads;                       /* --threads of a rank */
    size_t cache_bytes; /* --kv-cache-memory-bytes of a rank; 0: as one alone would take */
    uint32_t sharers;   /* GPUs: copies on that one of its own which the most have; CPUs: 0 */
    double utilization; /* --gpu-memory-utilization of all of them, divided evenly; CPUs: 0 */
} engine_share_t;

/*
 * Of the copy-th of n_copies, each of as many ranks as options cut it into. Ranks of all copies take
 * the GPUs in turns, so that a copy has a run of them, and count on from the first where there are
 * fewer.
 */
engine_share_t engine_share_of(const engine_machine_t *machine, const engine_options_t *options,
                               uint32_t n_copies, uint32_t copy);

/*
 * Which of the devices that --device stands for a copy's rank-th of n_ranks has, modulo their number:
 * copy c has those from c * n_ranks on. So copies with numbers in a row have devices of their own as
 * far as there are enough, also where each is started apart and knows its number alone, and one that
 * sees only its own devices has all of them.
 */
static inline uint32_t engine_share_index(uint32_t copy, uint32_t n_ranks, uint32_t rank)
{
    return copy * n_ranks + rank;
}
