/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_group, the inside: the group's thread owns the sockets and runs the leader's side
 * (launch_leader.c) or a follower's (launch_follower.c); callers leave their wishes in the struct and
 * wake it.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "base/compiler.h"
#include "launcher/launch_group.h"
#include "launcher/launch_secret.h"

#define LAUNCH_WHY_BYTES 512

typedef enum launch_state {
    LAUNCH_MEETING,
    LAUNCH_JOINED,
    LAUNCH_LOST, /* a rank is gone, or has failed */
    LAUNCH_ENDED /* the meeting came to nothing */
} launch_state_t;

/* An all-gather that a caller waits for. */
typedef struct launch_gather {
    uint64_t sequence; /* of the last one begun */
    bool is_wanted;
    bool is_sent;
    const void *mine;
    size_t bytes;
    void *all; /* [size * bytes] */
    weft_status_t status;
    weft_diag_t diag;
} launch_gather_t;

struct launch_group {
    launch_place_t place;
    launch_fact_t *facts; /* [n_facts], copies */
    uint32_t n_facts;
    bool has_secret;
    launch_secret_t secret;
    uint64_t join_deadline_ns;
    uint64_t join_timeout_ns;
    uint64_t lost_after_ns;
    void (*on_lost)(void *user, uint32_t rank, const char *why);
    void *user;
    char host[64]; /* "node7 pid 123", for people */
    uint64_t incarnation;

    void *context;
    pthread_t thread;
    bool has_thread;
    int wake_fd;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* guarded by lock */
    launch_state_t state;
    bool is_stopping;
    uint64_t epoch;
    weft_status_t status; /* of LAUNCH_ENDED and LAUNCH_LOST */
    weft_diag_t diag;
    bool wants_fail; /* `why` is to be told to the others */
    char why[LAUNCH_WHY_BYTES];
    launch_gather_t gather;
};

/* The thread's bodies: until it is to stop. */
void launch_leader_run(launch_group_t *group);
void launch_follower_run(launch_group_t *group);

/* For both. Of the thread. */
bool launch_group_is_stopping(launch_group_t *group);
launch_state_t launch_group_state(launch_group_t *group);
void launch_group_set_joined(launch_group_t *group, uint64_t epoch);
/* The meeting fails: join returns status with the line. */
void launch_group_end(launch_group_t *group, weft_status_t status, const char *format, ...)
    WEFT_PRINTF(3, 4);
/* The first time: callers that wait return, then on_lost is called. */
void launch_group_lose(launch_group_t *group, uint32_t rank, const char *why);
/* True once after launch_group_fail: why it failed. */
bool launch_group_take_failure(launch_group_t *group, char why_out[LAUNCH_WHY_BYTES]);
/* The caller's all-gather of that sequence ends. all [size * bytes], with WEFT_OK. */
void launch_group_end_gather(launch_group_t *group, uint64_t sequence, weft_status_t status,
                             const char *reason, const void *all, size_t n);
/* Options that both sides' sockets have. */
weft_status_t launch_group_set_up_socket(launch_group_t *group, void *socket);
/* Milliseconds from now to a time, for zmq_poll; at most a second. */
int launch_group_wait_ms(uint64_t until_ns);
void launch_group_drain_wake(launch_group_t *group);

/* WEFT_OK, or why a joiner's facts are not ours: "max-model-len: rank 1 has 4096, the leader 8192". */
struct Weft__Rendezvous__Join;
weft_status_t launch_facts_compare(const launch_group_t *group,
                                   const struct Weft__Rendezvous__Join *join, weft_diag_t *diag);
