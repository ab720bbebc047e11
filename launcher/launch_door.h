/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_door: where a leader listens, and whom it lets in: with a secret whoever has the followers'
 * key, without one whoever comes from this host or a private network. Strangers are named in the log,
 * LAUNCH_STRANGERS_A_MINUTE at most.
 *
 * Threads  the group's
 */
#pragma once

#include "launcher/launch_group_priv.h"

#define LAUNCH_STRANGERS_A_MINUTE 20
#define LAUNCH_DOOR_CONNECTIONS   64 /* of which an address is remembered */

typedef struct launch_door {
    launch_group_t *group;
    void *router;
    void *monitor;
    void *zap; /* ZeroMQ asks here who may come in: https://rfc.zeromq.org/spec/27/ */
    void (*ended)(void *user, int fd);
    void *user;
    struct {
        int fd;
        char address[64];
    } accepted[LAUNCH_DOOR_CONNECTIONS];
    uint32_t n_accepted;
    const char *failure; /* of the handshake whose connection ends next */
    uint64_t minute_ns;  /* when it began */
    uint32_t n_logged;
} launch_door_t;

/* Listens. It ends the group's meeting when it cannot. ended: a connection is gone. */
weft_status_t launch_door_open(launch_group_t *group, void (*ended)(void *user, int fd), void *user,
                               launch_door_t *door, void **router_out);
void launch_door_close(launch_door_t *door);

void launch_door_answer(launch_door_t *door); /* those who ask to come in */
void launch_door_look(launch_door_t *door);   /* what happened to connections */
void launch_door_log(launch_door_t *door, const char *address, const char *what);
