/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_job_priv: one job's state, for its parts: launch_job.c (life), launch_job_host.c (agents),
 * launch_job_loss.c (when one is gone), launch_job_rank.c (ranks and what becomes of them),
 * launch_job_signal.c, launch_job_input.c.
 */
#pragma once

#include "base/clock.h"
#include "base/loop.h"
#include "launcher/job/launch_job.h"
#include "launcher/job/launch_netns.h"
#include "launcher/job/launch_output.h"
#include "launcher/job/launch_remote.h"

#define JOB_TERM_NS   (2 * WEFT_NS_PER_SECOND)  /* between SIGTERM and SIGKILL */
#define JOB_KILL_NS   (1 * WEFT_NS_PER_SECOND)  /* between SIGKILL and going without an answer */
#define JOB_LEAVE_NS  (1 * WEFT_NS_PER_SECOND)  /* that agents have to go */
#define JOB_STEADY_NS (10 * WEFT_NS_PER_SECOND) /* what ran so long was well */

typedef struct job job_t;

typedef enum job_state {
    JOB_CONNECTING, /* not every agent is ready */
    JOB_RUNNING,
    JOB_KILLING, /* ranks are told to end; what becomes of them is no news */
    JOB_LEAVING, /* no rank is left; agents are told to go */
} job_state_t;

typedef struct job_host {
    job_t *job;
    const char *name;
    bool is_here; /* on this machine, in its network */
    bool is_ready;
    bool is_lost;      /* it has no agent, or one that is not ready again */
    bool is_returning; /* it is lost, and tried again */
    uint32_t losses;   /* of an agent that was ready */
    uint32_t tries;    /* in a row, since it was last well */
    uint64_t ready_ns;
    weft_loop_timer_t *again;   /* the next try */
    weft_loop_timer_t *give_up; /* the end of trying */
    launch_remote_t *remote;
    uint32_t owed;                /* bytes of output taken that no credit was given for */
    uint16_t port;                /* kept there for rank 0; 0: none */
    char own[LAUNCH_NAME_BYTES];  /* its address; "" not known */
    char seen[LAUNCH_NAME_BYTES]; /* ours, as it sees it */
} job_host_t;

typedef struct job_rank {
    job_t *job;
    uint32_t number;
    launch_spot_t spot;
    bool is_alive;
    uint32_t open_streams;
    uint32_t restarts;   /* that were used up */
    uint32_t quick_ends; /* failures in a row, each soon after its start */
    uint64_t started_ns;
    bool is_due;   /* to be started again */
    bool is_timed; /* restart runs */
    weft_loop_timer_t *restart;
    weft_loop_timer_t *stopped;
} job_rank_t;

typedef struct job_input {
    weft_loop_watch_t *watch;
    bool is_plain; /* a file, which cannot be watched: reads are posted */
    bool is_posted;
    bool has_ended;
    uint32_t sent; /* and not taken yet */
} job_input_t;

struct job {
    const launch_job_config_t *config;
    weft_loop_t *loop;
    launch_output_t *output;
    launch_netns_t *netns;
    launch_hosts_t fake_hosts;
    const launch_hosts_t *seats;
    job_host_t *hosts; /* [seats->n] */
    job_rank_t *ranks; /* [n_ranks] */
    uint32_t n_ranks;
    struct rlimit open_files; /* as they were */
    job_state_t state;
    char leader[LAUNCH_NAME_BYTES + 16];
    uint32_t epoch;
    bool is_restarting_all;
    bool has_failed; /* exit_code is of the first failure */
    int exit_code;
    int asked_signal; /* that ends programs, and was passed on; 0: none */
    int last_signal;
    uint64_t last_signal_ns;
    bool is_suspended;
    job_input_t input;
    int signal_fd;
    weft_loop_watch_t *signal_watch;
    weft_loop_timer_t *timeout;
    weft_loop_timer_t *connect_timer;
    weft_loop_timer_t *kill_timer;
    bool is_killed; /* SIGKILL was sent */
};

/* ---- launch_job.c */

/* The first failure decides the exit code; ends the job. */
void job_fail(job_t *job, int exit_code);
/* SIGTERM to all that runs, and then SIGKILL. */
void job_end(job_t *job);
void job_kill(job_t *job);
/* Agents go; the job ends with the last one. */
void job_leave(job_t *job);
void job_leave_when_done(job_t *job);
/* Credit for output that was passed on. */
void job_give_credit(job_t *job);
weft_status_t job_add_timer(job_t *job, weft_loop_fn fn, void *user, weft_loop_timer_t **timer_out);

/* ---- launch_job_host.c */

weft_status_t job_start_hosts(job_t *job, weft_diag_t *diag);
/* Starts its agent; it is ready later, or lost. */
weft_status_t job_connect_host(job_host_t *host, weft_diag_t *diag);
void job_signal_host(job_host_t *host, uint32_t rank, int number);
void job_signal_all(job_t *job, int number);
void job_on_connect_timeout(void *user);

/* ---- launch_job_loss.c */

/* Its agent is gone, or cannot be started. why: for people */
void job_lose_host(job_host_t *host, const char *why);
/* It was lost, and its agent is ready again. */
void job_take_host_back(job_host_t *host);
void job_cancel_returns(job_t *job);

/* ---- launch_job_rank.c */

weft_status_t job_make_ranks(job_t *job, weft_diag_t *diag);
void job_start_ranks(job_t *job);
void job_take_rank_frame(job_host_t *host, const launch_frame_t *frame);
/* Its host is gone. With comes_back it is started again there, if it was to run. */
void job_lose_rank(job_rank_t *rank, bool comes_back);
bool job_rank_is_wanted(const job_rank_t *rank); /* it runs, or is to be started */
/* Before the next try of something that ended so many times in a row soon after its start. */
uint64_t job_backoff_ns(uint32_t quick_ends);
bool job_has_busy_ranks(const job_t *job);
/* After a rank or one of its streams has ended. */
void job_settle_ranks(job_t *job);
/* The end was asked for: who was to be started again is not. */
void job_cancel_restarts(job_t *job);

/* ---- launch_job_signal.c */

weft_status_t job_watch_signals(job_t *job);

/* ---- launch_job_input.c */

/* Reads on, if there is something to read and room for it. */
void job_input_resume(job_t *job);
void job_input_taken(job_t *job, uint32_t n);
void job_input_stop(job_t *job);
