/* SPDX-License-Identifier: Apache-2.0 */
/* The leader's side of a group: who has come (launch_leader.c), and its door (launch_door.h). */
#pragma once

#include "launcher/launch_door.h"
#include "launcher/launch_message.h"

/* A connection, as the ROUTER names it. */
typedef struct launch_route {
    uint8_t bytes[16];
    size_t n;
} launch_route_t;

/* Where a message came from. */
typedef struct launch_from {
    launch_route_t route;
    int fd;
    char address[64];
} launch_from_t;

typedef struct launch_member {
    bool is_here;
    bool has_left; /* said goodbye */
    launch_route_t route;
    int fd;
    uint64_t incarnation;
    uint64_t heard_ns;
    char host[64];
    bool has_challenger; /* another process that says it is this rank */
    launch_route_t challenger;
    char challenger_host[64];
    uint8_t *part; /* [part_bytes] of the all-gather part_sequence; NULL: none */
    size_t part_bytes;
    uint64_t part_sequence;
} launch_member_t;

typedef struct launch_leader {
    launch_group_t *group;
    void *router; /* the door's */
    launch_door_t door;
    launch_member_t *members; /* [size]; the first is this rank and not used */
    uint32_t n_here;          /* with this rank */
    bool is_formed;
    uint64_t epoch;
    uint64_t next_beat_ns;
    char last_refusal[WEFT_DIAG_BYTES];
} launch_leader_t;
