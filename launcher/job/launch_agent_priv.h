/* SPDX-License-Identifier: Apache-2.0 */
/* launch_agent_priv: the agent's talk (launch_agent.c) and its ranks (launch_agent_rank.c). */
#pragma once

#include "base/loop.h"
#include "launcher/job/launch_agent.h"
#include "launcher/job/launch_binding.h"
#include "launcher/job/launch_frame.h"
#include "launcher/job/launch_output.h"
#include "launcher/launch_port.h"

typedef struct agent agent_t;
typedef struct agent_rank agent_rank_t;

typedef struct agent_stream {
    agent_rank_t *rank;
    launch_stream_t stream;
    int fd;                   /* or -1 */
    weft_loop_watch_t *watch; /* NULL while there is no credit */
} agent_stream_t;

struct agent_rank {
    agent_t *agent;
    uint32_t number;
    pid_t pid; /* 0: it has ended, or never began */
    agent_stream_t streams[LAUNCH_STREAMS];
    int input_fd;                   /* or -1 */
    weft_loop_watch_t *input_watch; /* while there is something to write */
    weft_buffer_t input;
    bool has_input_ended;      /* nothing comes behind what is in input */
    weft_loop_timer_t *linger; /* from its end on */
};

struct agent {
    weft_loop_t *loop;
    int in_fd;
    int out_fd;
    int signal_fd;
    launch_port_t port; /* for rank 0, should it run here */
    weft_loop_watch_t *in_watch;
    weft_loop_watch_t *out_watch; /* while there is something to write */
    weft_loop_watch_t *signal_watch;
    weft_buffer_t in;
    weft_buffer_t out;
    uint64_t credit;      /* bytes of output that the launcher has room for */
    agent_rank_t **ranks; /* [n_ranks] */
    uint32_t n_ranks;
    launch_binding_t *binding; /* once a rank is to be bound */
    struct rlimit open_files;  /* of ranks */
    bool has_noted_folder;
};

/* To be called after frames were appended to agent->out. */
void agent_wake(agent_t *agent);

/* NULL: there is none of that number. */
agent_rank_t *agent_find(const agent_t *agent, uint32_t number);

/* Tells the launcher also when it fails. */
void agent_start_rank(agent_t *agent, uint32_t number, const launch_start_t *start);
void agent_rank_take_input(agent_rank_t *rank, const char *bytes, size_t n);
void agent_rank_end_input(agent_rank_t *rank);

/* After credit came. */
void agent_resume_output(agent_t *agent);

/* After SIGCHLD. */
void agent_reap(agent_t *agent);
void agent_rank_destroy(agent_rank_t *rank);
