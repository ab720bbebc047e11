/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fabric_rig: agents with a piece of registered memory each, in this process or in a child of it.
 * A fault ends the test; so does what takes longer than FABRIC_DEADLINE_S.
 */
#pragma once

#include <sys/types.h>

#include "base/device.h"
#include "tests/support/check.h"
#include "transport/xfer/xfer_agent_priv.h"

#define FABRIC_DEADLINE_S 60

typedef struct fabric_config {
    const xfer_backend_t *const *table; /* NULL: the real one */
    const char *backends;
    const char *params;
    bool has_thread;
    bool is_private;   /* the memory is not given as a memfd */
    size_t bytes;      /* of memory */
    size_t vram_bytes; /* of a GPU's, besides; 0: none */
} fabric_config_t;

/* An agent, and its memory. */
typedef struct fabric_end {
    xfer_agent_t *agent;
    xfer_region_t *region; /* NULL: was deregistered */
    uint8_t *memory;       /* [bytes] */
    size_t bytes;
    int fd;
    bool has_thread;
    weft_device_t *gpu; /* NULL: no memory of a GPU */
    weft_queue_t *queue;
    weft_mem_t vram;
    xfer_region_t *vram_region;
} fabric_end_t;

/* WEFT_ERR_UNSUPPORTED: such an agent cannot be had here. */
weft_status_t fabric_end_try_open(const fabric_config_t *config, const char *name,
                                  fabric_end_t *end_out);
void fabric_end_open(const fabric_config_t *config, const char *name, fabric_end_t *end_out);
void fabric_end_close(fabric_end_t *end);

uint64_t fabric_addr(const fabric_end_t *end, uint64_t offset); /* of a byte of its memory */
void fabric_fill(fabric_end_t *end, uint64_t seed);             /* all of it, by seed and place */
void fabric_vram_fill(fabric_end_t *end, uint64_t seed);        /* so the GPU's */
bool fabric_vram_is_filled(fabric_end_t *end, uint64_t n, uint64_t seed, uint64_t offset,
                           uint64_t pattern_offset);
bool fabric_is_filled(const uint8_t *bytes, uint64_t n, uint64_t seed, uint64_t offset);

/* `to` as a peer of `who`. */
xfer_peer_t *fabric_introduce(fabric_end_t *who, fabric_end_t *to);
xfer_peer_t *fabric_import(fabric_end_t *who, const weft_buffer_t *blob);
void fabric_export(fabric_end_t *end, weft_buffer_t *out);

/* A list of DRAM runs; of end's own memory for peer NULL. */
xfer_list_t *fabric_list(fabric_end_t *end, xfer_peer_t *peer, const xfer_run_t *runs, size_t n);
xfer_request_t *fabric_request(fabric_end_t *end, const xfer_request_config_t *config);
/* Reads or writes n bytes: of end's memory at `local`, of the peer's at `peer_addr`. */
xfer_request_t *fabric_copy(fabric_end_t *end, xfer_peer_t *peer, xfer_direction_t direction,
                            uint64_t local, uint64_t peer_addr, uint64_t n);

/* One round of progress for ends [n] that have no thread; NULLs are fine. */
void fabric_progress(fabric_end_t *const *ends, size_t n);
/* Until it has ended. */
weft_status_t fabric_wait(xfer_request_t *request, fabric_end_t *const *ends, size_t n);
weft_status_t fabric_run(xfer_request_t *request, fabric_end_t *const *ends, size_t n);
xfer_notification_t *fabric_wait_notification(fabric_end_t *end, fabric_end_t *const *ends,
                                              size_t n);
/* Fails the test once FABRIC_DEADLINE_S have passed since start_ns. */
void fabric_check_deadline(uint64_t start_ns, const char *what);

/*
 * A child process with one end. It is forked before this process has an agent. In it nothing
 * happens but what these calls ask for, and progress.
 */
typedef struct fabric_child {
    pid_t pid;
    int socket;
    uint64_t addr;      /* of its memory, filled by seed 1 */
    uint64_t vram_addr; /* of the GPU's, filled so too; 0: none */
    weft_buffer_t blob;
} fabric_child_t;

/* false: the child cannot have such an agent, and is over. */
bool fabric_child_start(const fabric_config_t *config, const char *name, fabric_child_t *child_out);
void fabric_child_fill(fabric_child_t *child, uint64_t seed);
bool fabric_child_is_filled(fabric_child_t *child, uint64_t seed, uint64_t offset, uint64_t n);
bool fabric_child_vram_is_filled(fabric_child_t *child, uint64_t seed, uint64_t offset, uint64_t n);
void fabric_child_poke(fabric_child_t *child, uint64_t offset, uint64_t word);
void fabric_child_deregister(fabric_child_t *child);
void fabric_child_deregister_vram(fabric_child_t *child);
/*
 * `rounds` times, k counting from 1: sets the word at its memory's beginning to FABRIC_CHURNING,
 * fills what lies behind FABRIC_CHURN_FROM by seed k, sets the word to k. It is only begun here, and
 * waited for by fabric_child_churned.
 */
#define FABRIC_CHURNING   UINT64_MAX
#define FABRIC_CHURN_FROM ((uint64_t)64)
void fabric_child_churn(fabric_child_t *child, uint64_t rounds);
void fabric_child_churned(fabric_child_t *child);
/* Lets it learn of an end here, and send that a notification. */
void fabric_child_notify(fabric_child_t *child, fabric_end_t *to, const char *text);
/* What it was notified of, by one of the ends, which make progress meanwhile. */
void fabric_child_next_notification(fabric_child_t *child, fabric_end_t *const *ends, size_t n,
                                    char *text_out, size_t size);
void fabric_child_stop(fabric_child_t *child); /* in order; its exit code is looked at */
void fabric_child_kill(fabric_child_t *child); /* SIGKILL */
