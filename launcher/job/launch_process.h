/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_process: starting programs so that they can be ended with all that they started, and ending them.
 *
 * Whoever calls launch_process_adopt becomes the parent of what its children leave behind, so that
 * launch_process_end_all finds every descendant, whatever session it is in.
 *
 * Threads  processes of one thread only: a child's death signal follows the thread that made it
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "base/diag.h"
#include "base/status.h"

#define LAUNCH_MAX_CPUS 4096

/* Processors, one bit each. */
typedef struct launch_cpus {
    unsigned long bits[LAUNCH_MAX_CPUS / (8 * sizeof(unsigned long))];
} launch_cpus_t;

typedef struct launch_program {
    char *const *argv;               /* argv[0] is looked for in PATH */
    char *const *environment;        /* NULL: ours */
    const char *file;                /* instead of argv[0]; or NULL */
    const char *folder;              /* to run in, if it exists; or NULL */
    int fds[3];                      /* its standard input, output and error; -1: /dev/null */
    int netns_fd;                    /* a network namespace to run in, or -1 */
    int death_signal;                /* that it gets when this process ends; 0: none */
    const launch_cpus_t *cpus;       /* to run on, or NULL */
    const struct rlimit *open_files; /* its RLIMIT_NOFILE, or NULL */
} launch_program_t;

/*
 * Starts it in a session of its own, with no signal blocked.
 * WEFT_ERR_NOT_FOUND: no such program; WEFT_ERR_DENIED: it may not be run; diag says it.
 */
weft_status_t launch_process_start(const launch_program_t *program, weft_diag_t *diag,
                                   pid_t *pid_out);

/*
 * From now on what a descendant leaves behind is this process's child. Children that it has already, of
 * before its exec, are not its business: they are never killed here. Called once, at the start.
 */
void launch_process_adopt(void);

/* How a child fares, of a waitpid status or a SIGCHLD that was peeked at. */
typedef enum launch_news_kind {
    LAUNCH_NEWS_NONE,
    LAUNCH_NEWS_EXITED,
    LAUNCH_NEWS_STOPPED,
    LAUNCH_NEWS_CONTINUED,
} launch_news_kind_t;

typedef struct launch_news {
    launch_news_kind_t kind;
    pid_t pid;
    uint32_t code;   /* EXITED and signal is 0 */
    uint32_t signal; /* EXITED by it */
} launch_news_t;

/*
 * The next news of any child. Before one that has ended and leads a group (may be NULL: none does) is
 * forgotten, whatever is left of its process group is killed, while nobody else can have that group's number.
 */
typedef bool (*launch_leads_fn)(void *user, pid_t pid);
launch_news_t launch_process_next(launch_leads_fn leads, void *user);

/*
 * Kills every child but those that are spared (NULL: none is), whatever they have left behind with them, and
 * waits for it, for two seconds at most. Whether none is left.
 */
typedef bool (*launch_spares_fn)(void *user, pid_t pid);
bool launch_process_end_others(launch_spares_fn spares, void *user);

/* Every descendant. */
bool launch_process_end_all(void);

/* As many open files as may be; what the limit was, for the programs to be started. */
struct rlimit launch_process_raise_open_files(void);
