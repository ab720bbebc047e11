/* SPDX-License-Identifier: Apache-2.0 */
/*
 * up: the parts of `weft up`: worker processes that are started, listened to and named when they die
 * (up_workers.c), and the command that puts a front before them (cmd_up.c).
 */
#pragma once

#include <sys/types.h>

#include "base/buffer.h"
#include "base/diag.h"
#include "base/loop.h"
#include "base/option.h"
#include "services/front/front.h"

#define UP_MAX_WORKERS 32

typedef struct up_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/up.def"
#undef OPTION
} up_options_t;

typedef struct up_worker {
    struct up_workers *workers;
    front_role_t role;
    char name[32];         /* "prefill-0" */
    pid_t pid;             /* 0: it has ended, or never began */
    uint64_t listening_ns; /* since when it listens */
    uint64_t restart_ns;   /* when it is to be started again; 0: not */
    uint32_t restarts;     /* in a row */
    int out_fd;            /* what it says, or -1 */
    weft_loop_watch_t *watch;
    weft_buffer_t line; /* the part of one that has come */
    bool is_listening;
} up_worker_t;

typedef struct up_workers {
    weft_loop_t *loop; /* borrowed */
    up_worker_t all[UP_MAX_WORKERS];
    uint32_t n;
    /* It listens at url. */
    void (*on_listening)(void *user, up_worker_t *worker, const char *url);
    void *user;
} up_workers_t;

/*
 * Starts this program again with argv (NULL behind it; argv[0] is the subcommand), apart from the
 * terminal's signals, and ended with us. What it writes is copied to stderr with its name in front;
 * it says there where it listens, at whatever level it logs.
 */
weft_status_t up_workers_start(up_workers_t *workers, front_role_t role, uint32_t number,
                               char *const *argv, weft_diag_t *diag);
/* The same again, under its name, after it has ended. */
weft_status_t up_worker_restart(up_worker_t *worker, char *const *argv, weft_diag_t *diag);
/* After SIGCHLD: the next one that has ended, and a line that says how. NULL: no more. */
up_worker_t *up_workers_reap(up_workers_t *workers, char *how, size_t size);
void up_workers_signal(const up_workers_t *workers, int number);
uint32_t up_workers_alive(const up_workers_t *workers, front_role_t role);
void up_workers_fini(up_workers_t *workers); /* kills those that are left */
