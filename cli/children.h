/* SPDX-License-Identifier: Apache-2.0 */
/*
 * children: this program started again as processes of its own, one or several: heard, signalled,
 * and named when they end.
 *
 * Threads  the loop's
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buffer.h"
#include "base/diag.h"
#include "base/loop.h"

#define CHILDREN_MAX 64

typedef struct child {
    struct children *children;
    char name[32];
    pid_t pid;  /* 0: it has ended, or never began */
    int out_fd; /* what it says, or -1 */
    weft_loop_watch_t *watch;
    weft_buffer_t line; /* the part of one that has come */
    bool is_listening;
} child_t;

typedef struct children {
    weft_loop_t *loop; /* borrowed */
    bool is_private;   /* where they listen is nobody's business but ours */
    child_t all[CHILDREN_MAX];
    uint32_t n;
    /* It listens at url. */
    void (*on_listening)(void *user, child_t *child, const char *url);
    void *user;
} children_t;

/*
 * Starts this program with argv (NULL behind it; argv[1] is the subcommand), apart from the
 * terminal's signals, and ended with us. What it writes is copied to stderr with its name in front;
 * it says there where it listens, at whatever level it logs. It inherits keep_fd (-1: none).
 */
weft_status_t children_start(children_t *children, const char *name, char *const *argv, int keep_fd,
                             weft_diag_t *diag);
/* The same again, under its name, after it has ended. */
weft_status_t child_restart(child_t *child, char *const *argv, int keep_fd, weft_diag_t *diag);
/* After SIGCHLD: the next one that has ended, and a line that says how. NULL: no more. */
child_t *children_reap(children_t *children, char *how, size_t size);
void children_signal(const children_t *children, int number);
uint32_t children_alive(const children_t *children);
void children_fini(children_t *children); /* kills those that are left */
