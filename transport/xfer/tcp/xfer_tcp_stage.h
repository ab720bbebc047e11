/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_tcp_stage: host memory through which payloads of a GPU's memory go, of one connection. It has a few
 * slots, each for a whole slice: while one is sent or received the GPU fills or empties others.
 *
 * Slots have numbers from 1 on; zeroed memory is a stage that was never used.
 */
#pragma once

#include "transport/xfer/tcp/xfer_tcp_pieces.h"
#include "transport/xfer/xfer_vram.h"

#define XFER_TCP_STAGE_SLOTS 4

typedef struct xfer_tcp_slot {
    bool is_taken;
    uint64_t batch; /* of the GPU that uses it, or was the last to */
    size_t bytes;
    xfer_tcp_pieces_t pieces; /* where what is received belongs */
} xfer_tcp_slot_t;

typedef struct xfer_tcp_stage {
    xfer_vram_t *vram;
    weft_mem_t memory;
    xfer_tcp_slot_t *slots; /* [XFER_TCP_STAGE_SLOTS] */
} xfer_tcp_stage_t;

/* Makes its memory if there is none yet. */
weft_status_t xfer_tcp_stage_open(xfer_tcp_stage_t *stage, xfer_vram_t *vram);
void xfer_tcp_stage_fini(xfer_tcp_stage_t *stage); /* waits for the GPU */

unsigned xfer_tcp_stage_free(const xfer_tcp_stage_t *stage); /* slots */
/* A free one; waits for the GPU, if it still empties them all. */
unsigned xfer_tcp_stage_take(xfer_tcp_stage_t *stage);
void xfer_tcp_stage_release(xfer_tcp_stage_t *stage, unsigned slot); /* 0 is fine */

/* Begins to fill the slot from device memory. */
void xfer_tcp_stage_load(xfer_tcp_stage_t *stage, unsigned slot, const xfer_tcp_pieces_t *from);
/* Waits for that; pieces_out: the slot's bytes. */
void xfer_tcp_stage_show(xfer_tcp_stage_t *stage, unsigned slot, xfer_tcp_pieces_t *pieces_out);

/* pieces_io, of device memory, are kept; the slot's bytes take their place. */
void xfer_tcp_stage_divert(xfer_tcp_stage_t *stage, unsigned slot, xfer_tcp_pieces_t *pieces_io);
/* Begins to move them to where they belong, and lets the slot go; the batch that does. */
uint64_t xfer_tcp_stage_land(xfer_tcp_stage_t *stage, unsigned slot);
/* Whether what it received belongs there. */
bool xfer_tcp_stage_touches(const xfer_tcp_stage_t *stage, unsigned slot, uint64_t addr,
                            uint64_t bytes);
