/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ranks_rig: an engine over several ranks, each a process. This one leads; the followers are forked
 * by open, before there is a thread. They meet over a Unix socket, which also tells of the dead: what
 * launcher's group does for weft serve. Everything asserts.
 */
#pragma once

#include <pthread.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

#include "tests/support/engine_rig.h"

#define RANKS_RIG_MAX 4

typedef struct ranks_rig_config {
    const char *model; /* as engine_rig_open takes it */
    uint32_t size;
    bool is_replicated; /* every rank has the whole model */
    uint32_t stages;    /* that the model lies in; 0: one */
    uint32_t restarts;
    uint32_t losses_again; /* times that the leader's forming again ends with a rank lost */
    uint32_t timeout_ms;   /* of a collective; 0: a minute */
    uint32_t cause;        /* the rank that the leader's group knows to be lost first; 0: no word */
    engine_options_t options;
    engine_options_t follower_options; /* device NULL: those of the leader */
    engine_options_t spare_options;    /* device NULL: those of the rank it takes the place of */
} ranks_rig_config_t;

/* What a rank meets the others by. */
typedef struct ranks_seat {
    const ranks_rig_config_t *config;
    uint32_t rank;
    int listener; /* all of them wait or knock here */
    struct sockaddr_un address;
    socklen_t address_bytes;
    int meet[RANKS_RIG_MAX]; /* of the leader, to each rank; of a follower, [0]. -1: none */
    int live[RANKS_RIG_MAX]; /* the same; nothing is sent: it ends with its process */
    int wake;                /* an eventfd that ends the watcher */
    int cancel;              /* one that ends a form */
    int fail;                /* one that tells the others that this rank is lost */
    uint32_t n_forms;        /* so far */
    bool is_watching;
    pthread_t watcher;
    coll_t *world;
    weft_device_t *host; /* of world, where the engine's device is another; else NULL */
    coll_t *device;      /* all ranks on that; else NULL */
    coll_t *tensor; /* the stage's part of all, where there are several of several; else NULL */
} ranks_seat_t;

/* Holds the engine after a step, so that a rank is killed while a request runs. */
typedef struct ranks_gate {
    sem_t arrived;
    sem_t go;
    uint32_t steps_before;
} ranks_gate_t;

typedef struct ranks_rig {
    ranks_rig_config_t config;
    ranks_seat_t seat;
    engine_ranks_t ranks;
    engine_rig_t rig;
    pid_t pids[RANKS_RIG_MAX];   /* of the followers that run; [0] unused */
    pid_t spares[RANKS_RIG_MAX]; /* each waits for its turn to take the rank's place; 0: none */
    int spare_gates[RANKS_RIG_MAX];
    ranks_gate_t gate;
} ranks_rig_t;

/* Small ones: tensor ranks of a model, and ranks that each have the whole of ENGINE_RIG_MODEL. */
ranks_rig_config_t ranks_rig_tensor(const char *model, uint32_t size);
ranks_rig_config_t ranks_rig_replicas(uint32_t size);

/*
 * The two halves of try, for several rigs in one test: all fork before one leads, since processes are
 * forked before there are threads.
 */
void ranks_rig_fork(ranks_rig_t *rig, const ranks_rig_config_t *config);
weft_status_t ranks_rig_lead(ranks_rig_t *rig, weft_diag_t *diag);

/* The status engine_create ended with is given back; all but WEFT_OK: only end is to be called. */
weft_status_t ranks_rig_try(ranks_rig_t *rig, const ranks_rig_config_t *config, weft_diag_t *diag);
void ranks_rig_open(ranks_rig_t *rig, const ranks_rig_config_t *config);

/* Kills the rank for good, or lets its spare (there is one each, with restarts) take its place. */
void ranks_rig_kill(ranks_rig_t *rig, uint32_t rank);
void ranks_rig_replace(ranks_rig_t *rig, uint32_t rank);
/* Sends a request and kills rank 1 after so many steps, in the midst of its answer. Once a rig. */
engine_request_t *ranks_rig_kill_amid(ranks_rig_t *rig, const engine_submit_t *submit,
                                      uint32_t steps);

/* Destroys the engine; every follower that was not killed must have ended well. */
void ranks_rig_close(ranks_rig_t *rig);
/* After a try that failed: waits for the followers, whatever they ended with. */
void ranks_rig_end(ranks_rig_t *rig);
