/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "launcher/job/launch_agent_priv.h"

/* ---- to the launcher ------------------------------------------------------------------------- */

static void end(agent_t *agent)
{
    weft_loop_stop(agent->loop);
}

static void on_writable(void *user, uint32_t events)
{
    agent_t *agent = user;
    (void)events;
    const ssize_t n = write(agent->out_fd, agent->out.data, agent->out.length);
    if (n > 0) {
        weft_buffer_drop_front(&agent->out, (size_t)n);
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
        end(agent);
        return;
    }
    if (agent->out.length == 0) {
        weft_loop_unwatch(agent->out_watch);
        agent->out_watch = NULL;
    }
}

void agent_wake(agent_t *agent)
{
    if (agent->out.is_failed || /* frames are lost, so nothing can be relied on */
        (agent->out_watch == NULL && weft_loop_watch(agent->loop, agent->out_fd, WEFT_LOOP_WRITE,
                                                     on_writable, agent, &agent->out_watch) < 0)) {
        end(agent);
    }
}

/* sshd tells both ends: SSH_CONNECTION="client 53211 server 22". */
static void say_ready(agent_t *agent)
{
    char client[64] = "";
    char server[64] = "";
    const char *connection = getenv("SSH_CONNECTION");
    if (connection == NULL || sscanf(connection, "%63s %*s %63s", client, server) != 2) {
        client[0] = server[0] = '\0';
    }
    launch_ready_append(&agent->out, &(launch_ready_t){.pid = (uint32_t)getpid(),
                                                       .port = agent->port.number,
                                                       .version = WEFT_VERSION,
                                                       .own = server,
                                                       .launcher = client});
    agent_wake(agent);
}

/* ---- from the launcher ----------------------------------------------------------------------- */

static weft_status_t take_start(agent_t *agent, const launch_frame_t *frame)
{
    launch_start_t start;
    const weft_status_t status = launch_start_decode(frame, &start);
    if (status == WEFT_OK) {
        agent_start_rank(agent, frame->rank, &start);
        launch_start_fini(&start);
    }
    return status;
}

/* A rank leads its session, and so a process group of its number. */
static weft_status_t take_signal(agent_t *agent, const launch_frame_t *frame)
{
    uint32_t number;
    if (launch_frame_u32(frame, &number) < 0 || number < 1 || number >= (uint32_t)NSIG) {
        return WEFT_ERR_MALFORMED;
    }
    for (uint32_t i = 0; i < agent->n_ranks; i++) {
        const agent_rank_t *rank = agent->ranks[i];
        if (rank->pid > 0 && (frame->rank == LAUNCH_ALL || frame->rank == rank->number)) {
            kill(-rank->pid, (int)number);
        }
    }
    return WEFT_OK;
}

static weft_status_t take_credit(agent_t *agent, const launch_frame_t *frame)
{
    uint32_t bytes;
    if (launch_frame_u32(frame, &bytes) < 0) {
        return WEFT_ERR_MALFORMED;
    }
    agent->credit += bytes;
    agent_resume_output(agent);
    return WEFT_OK;
}

static weft_status_t take_input(agent_t *agent, const launch_frame_t *frame)
{
    agent_rank_t *rank = agent_find(agent, frame->rank);
    if (rank == NULL) {
        return WEFT_ERR_MALFORMED;
    }
    if (frame->kind == LAUNCH_FRAME_INPUT_END) {
        agent_rank_end_input(rank);
    } else {
        agent_rank_take_input(rank, frame->payload, frame->length);
    }
    return WEFT_OK;
}

static weft_status_t take_frame(agent_t *agent, const launch_frame_t *frame)
{
    switch (frame->kind) {
    case LAUNCH_FRAME_START:
        return take_start(agent, frame);
    case LAUNCH_FRAME_SIGNAL:
        return take_signal(agent, frame);
    case LAUNCH_FRAME_INPUT:
    case LAUNCH_FRAME_INPUT_END:
        return take_input(agent, frame);
    case LAUNCH_FRAME_CREDIT:
        return take_credit(agent, frame);
    case LAUNCH_FRAME_END:
        end(agent);
        return WEFT_OK;
    default:
        return WEFT_ERR_MALFORMED;
    }
}

static weft_status_t take_frames(agent_t *agent)
{
    weft_diag_t diag = {0};
    size_t taken = 0;
    weft_status_t status = WEFT_OK;
    while (status == WEFT_OK) {
        launch_frame_t frame;
        size_t used = 0;
        status = launch_frame_decode(agent->in.data + taken, agent->in.length - taken, &diag,
                                     &frame, &used);
        if (status == WEFT_OK) {
            status = take_frame(agent, &frame);
            taken += used;
        }
    }
    weft_buffer_drop_front(&agent->in, taken);
    return status == WEFT_PENDING ? WEFT_OK : status;
}

static void on_readable(void *user, uint32_t events)
{
    agent_t *agent = user;
    char bytes[4096];
    (void)events;
    const ssize_t n = read(agent->in_fd, bytes, sizeof(bytes));
    if (n > 0) {
        weft_buffer_append(&agent->in, bytes, (size_t)n);
        if (agent->in.is_failed || take_frames(agent) < 0) {
            end(agent);
        }
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        end(agent);
    }
}

static void on_signal(void *user, uint32_t events)
{
    agent_t *agent = user;
    struct signalfd_siginfo info;
    (void)events;
    while (read(agent->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGCHLD) {
            agent_reap(agent);
        } else {
            end(agent);
        }
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Takes the pipe at fd for us alone; what prints there by mistake goes to `instead`. */
static int take_over(int fd, int instead)
{
    const int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (own < 0 || instead < 0 || dup2(instead, fd) < 0 ||
        fcntl(own, F_SETFL, fcntl(own, F_GETFL) | O_NONBLOCK) != 0) {
        return -1;
    }
    return own;
}

static weft_status_t watch_signals(agent_t *agent)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    agent->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return agent->signal_fd < 0 ? WEFT_ERR_NO_MEMORY
                                : weft_loop_watch(agent->loop, agent->signal_fd, WEFT_LOOP_READ,
                                                  on_signal, agent, &agent->signal_watch);
}

static weft_status_t open_agent(agent_t *agent)
{
    const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    agent->in_fd = take_over(STDIN_FILENO, nothing);
    agent->out_fd = take_over(STDOUT_FILENO, STDERR_FILENO);
    close(nothing);
    if (agent->in_fd < 0 || agent->out_fd < 0) {
        return WEFT_ERR_IO;
    }
    (void)launch_port_hold(false, &agent->port); /* none: the launcher has one to go by */
    weft_status_t status = weft_loop_create(&agent->loop);
    if (status == WEFT_OK) {
        status = watch_signals(agent);
    }
    if (status == WEFT_OK) {
        status = weft_loop_watch(agent->loop, agent->in_fd, WEFT_LOOP_READ, on_readable, agent,
                                 &agent->in_watch);
    }
    return status;
}

static void close_agent(agent_t *agent)
{
    for (uint32_t i = 0; i < agent->n_ranks; i++) {
        agent_rank_destroy(agent->ranks[i]);
    }
    weft_free(agent->ranks);
    weft_loop_destroy(agent->loop);
    launch_binding_destroy(agent->binding);
    launch_port_let_go(&agent->port);
    weft_buffer_free(&agent->in);
    weft_buffer_free(&agent->out);
    const int fds[] = {agent->in_fd, agent->out_fd, agent->signal_fd};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fds); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

weft_status_t launch_agent_run(weft_diag_t *diag)
{
    agent_t agent = {
        .in_fd = -1,
        .out_fd = -1,
        .signal_fd = -1,
        .port = {.fd = -1},
        .credit = LAUNCH_WINDOW,
    };
    setsid(); /* no terminal's signals; fails where ssh made a session already */
    launch_process_adopt();
    agent.open_files = launch_process_raise_open_files();
    weft_status_t status = open_agent(&agent);
    if (status == WEFT_OK) {
        say_ready(&agent);
        status = weft_loop_run(agent.loop);
    }
    launch_process_end_all();
    close_agent(&agent);
    return status < 0 ? weft_diag(diag, status, "agent: %s", weft_strerror(status)) : WEFT_OK;
}
