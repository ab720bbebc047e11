/* SPDX-License-Identifier: Apache-2.0 */
/*
 * data_parallel_machines: machines whose ranks are one data-parallel service: they meet at the one
 * with rank 0, tell where their ranks answer, and hear when one of them goes.
 *
 * Threads  the caller's one, but for on_lost
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "services/api/api_options.h"

#define DATA_PARALLEL_PEER_BYTES 320

typedef struct data_parallel_machines data_parallel_machines_t;

/* "RANK=URL", as --data-parallel-peers takes it; "": not known */
typedef struct data_parallel_peer {
    char text[DATA_PARALLEL_PEER_BYTES];
} data_parallel_peer_t;

/* Of a rank that listens there. */
void data_parallel_peer_write(const api_options_t *options, uint32_t rank, const char *host,
                              uint16_t port, data_parallel_peer_t *peer_out);

/* Whether to listen on host is to listen on every address: none that another could ask for. */
bool data_parallel_is_any_host(const char *host);

typedef struct data_parallel_machines_config {
    const api_options_t *options;
    uint32_t first; /* of this machine's ranks */
    uint32_t n;
    const uint16_t *ports; /* [n], where they listen */
    const char *secret_file;
    uint32_t join_timeout_s;
    uint32_t lost_after_s;                        /* without a sign of life */
    void (*on_lost)(void *user, const char *why); /* once, on a thread of its own */
    void *user;
} data_parallel_machines_config_t;

/*
 * Returns when all machines are there; peers_out [data_parallel_size] in the order of ranks, this
 * machine's, too. WEFT_ERR_UNSUPPORTED: machines have different numbers of ranks. Others as of
 * launch_group_join.
 */
weft_status_t data_parallel_machines_join(const data_parallel_machines_config_t *config,
                                          weft_diag_t *diag, data_parallel_peer_t *peers_out,
                                          data_parallel_machines_t **machines_out);

/* This machine is going, and the service with it: the others hear why. */
void data_parallel_machines_fail(data_parallel_machines_t *machines, const char *why);
void data_parallel_machines_leave(data_parallel_machines_t *machines); /* NULL is fine */
