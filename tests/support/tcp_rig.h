/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_rig: two ports of the tcp backend in one thread, driven by hand: `near` asks, `far` answers. In
 * between, if wanted, a relay that cuts, damages or holds up what goes through it.
 */
#pragma once

#include "base/buffer.h"
#include "transport/xfer/xfer_backend.h"
#include "transport/xfer/xfer_tcp_wire.h"

#define TCP_RIG_MAX_PARAMS 8
#define TCP_RIG_MAX_NOTES  8192

typedef struct tcp_rig_side {
    xfer_port_t *port;
    const char *params[TCP_RIG_MAX_PARAMS][2]; /* until a NULL */
    uint8_t *memory;
    size_t bytes;
    void *region;
    weft_buffer_t region_blob;
    weft_buffer_t address;
    unsigned n_notes;
    uint32_t notes[TCP_RIG_MAX_NOTES]; /* their first 4 bytes */
    void (*on_note)(void *user);       /* may be NULL */
    void *note_user;
    unsigned n_lost;
    unsigned n_damages;
} tcp_rig_side_t;

/* What the relay does to one direction of its connections. */
typedef struct tcp_rig_way {
    uint64_t passed;      /* bytes, of all connections */
    uint64_t cut_at;      /* then the connection is reset; 0: never */
    uint64_t damage_at;   /* this byte is changed; 0: none */
    uint64_t damage_step; /* and then again after so many; 0: once */
    uint64_t hold_at;     /* nothing goes on after so many bytes; 0: never */
} tcp_rig_way_t;

typedef struct tcp_rig_relay {
    int listener;
    uint16_t number;
    uint16_t target;
    int fds[2];       /* of the one connection: near's, far's; -1 */
    uint8_t *held[2]; /* what one side sent and the other has not taken */
    size_t n_held[2];
    tcp_rig_way_t ways[2]; /* 0: from near to far */
    unsigned n_connections;
    bool is_deaf; /* takes no connection */
} tcp_rig_relay_t;

typedef struct tcp_rig {
    tcp_rig_side_t near;
    tcp_rig_side_t far;
    xfer_link_t *link; /* near's to far */
    void *import;
    void (*enter)(bool is_far); /* before far is opened, and after; NULL: both are at one place */
    bool has_relay;
    tcp_rig_relay_t relay;
} tcp_rig_t;

/* An operation, and how it ended. */
typedef struct tcp_rig_op {
    xfer_op_t op;
    unsigned n_ends;
    weft_status_t status;
    void (*on_end)(struct tcp_rig_op *op);
    void *user;
    void *local_handles[1];
    void *peer_handles[1];
} tcp_rig_op_t;

xfer_port_config_t tcp_rig_config(tcp_rig_side_t *side, const char *name);
void tcp_rig_param(tcp_rig_side_t *side, const char *key, const char *value);
/* Both sides have bytes of memory, filled with what tcp_rig_fill gives for seeds 1 and 2. */
void tcp_rig_open(tcp_rig_t *rig, size_t bytes, bool has_relay);
void tcp_rig_close(tcp_rig_t *rig); /* far may be closed already */
void tcp_rig_close_side(tcp_rig_side_t *side);
void tcp_rig_fill(uint8_t *memory, size_t bytes, uint64_t seed);
void tcp_rig_step(tcp_rig_t *rig);
void tcp_rig_steps(tcp_rig_t *rig, int n);
/* Until far has got n notifications; no more come. */
void tcp_rig_wait_for_notes(tcp_rig_t *rig, unsigned n);
void tcp_rig_wait_for_end(tcp_rig_t *rig, const tcp_rig_op_t *op);
/* Of all memory, the same places on both sides. */
xfer_extent_t tcp_rig_all(const tcp_rig_t *rig);
void tcp_rig_until(tcp_rig_t *rig, bool (*is_done)(const void *user),
                   const void *user); /* or the test fails */
/* extents [n] are borrowed. */
void tcp_rig_op_init(tcp_rig_t *rig, tcp_rig_op_t *op, xfer_direction_t direction,
                     const xfer_extent_t *extents, size_t n);
weft_status_t tcp_rig_run(tcp_rig_t *rig, tcp_rig_op_t *op);
/* Reads something and looks at it. */
void tcp_rig_check(tcp_rig_t *rig);
/* Moves random pieces; the memory is what plain copies would have made of it. */
void tcp_rig_move_and_check(tcp_rig_t *rig, uint64_t seed, xfer_direction_t direction,
                            uint32_t max_bytes);
/* Random pieces of both memories, none of which overlaps on the side that is written to. */
size_t tcp_rig_extents(tcp_rig_t *rig, uint64_t seed, size_t max, uint32_t max_bytes,
                       xfer_extent_t *extents_out);
