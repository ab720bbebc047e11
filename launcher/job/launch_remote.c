/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_remote.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "launcher/job/launch_lines.h"

#define READ_BYTES ((size_t)64 << 10)
/* One that closes its pipe and stays, or the other way round, is helped. */
#define HALF_GONE_NS (1 * WEFT_NS_PER_SECOND)

struct launch_remote {
    weft_loop_t *loop;
    launch_remote_config_t config; /* argv is not valid any more */
    pid_t pid;                     /* 0: it has ended */
    int in_fd;                     /* we write; -1: closed */
    int out_fd;                    /* we read */
    int err_fd;
    weft_loop_watch_t *in_watch;
    weft_loop_watch_t *out_watch;
    weft_loop_watch_t *err_watch;
    weft_loop_timer_t *half_gone;
    weft_buffer_t in;
    weft_buffer_t out;
    launch_lines_t lines;
    char last_line[256]; /* it said on its standard error */
    weft_diag_t fault;   /* what it said was no sense */
    launch_news_t end;   /* how its process ended */
    bool is_ending;
    bool is_lost; /* and on_lost was called */
};

static void close_end(int *fd, weft_loop_watch_t **watch)
{
    weft_loop_unwatch(*watch);
    *watch = NULL;
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

/* ---- its end --------------------------------------------------------------------------------- */

static void describe_end(const launch_remote_t *remote, weft_diag_t *why)
{
    const char *said = remote->last_line;
    if (remote->is_ending) {
        return;
    }
    if (remote->fault.text[0] != '\0') {
        *why = remote->fault;
    } else if (remote->end.signal != 0) {
        weft_diag(why, WEFT_OK, "its agent was killed by signal %u (%s)", remote->end.signal,
                  strsignal((int)remote->end.signal));
    } else {
        weft_diag(why, WEFT_OK, "its agent ended with exit code %u%s%s", remote->end.code,
                  said[0] != '\0' ? ": " : "", said);
    }
}

/* When its process, its frames and its complaints have ended, all is known. */
static void settle(launch_remote_t *remote)
{
    weft_diag_t why = {0};
    if (remote->is_lost || remote->pid != 0 || remote->out_fd >= 0 || remote->err_fd >= 0) {
        if (remote->pid == 0 || remote->out_fd < 0) {
            weft_loop_timer_set(remote->half_gone, HALF_GONE_NS);
        }
        return;
    }
    weft_loop_timer_clear(remote->half_gone);
    close_end(&remote->in_fd, &remote->in_watch);
    remote->is_lost = true;
    describe_end(remote, &why);
    remote->config.on_lost(remote->config.user, why.text);
}

static void on_half_gone(void *user)
{
    launch_remote_t *remote = user;
    launch_remote_kill(remote);
    if (remote->pid == 0) { /* somebody else holds its pipes */
        close_end(&remote->out_fd, &remote->out_watch);
        close_end(&remote->err_fd, &remote->err_watch);
    }
    settle(remote);
}

void launch_remote_take_news(launch_remote_t *remote, const launch_news_t *news)
{
    if (news->kind == LAUNCH_NEWS_EXITED) {
        remote->end = *news;
        remote->pid = 0;
        settle(remote);
    }
}

/* ---- what it says ---------------------------------------------------------------------------- */

static void take_frames(launch_remote_t *remote)
{
    size_t taken = 0;
    weft_status_t status = WEFT_OK;
    while (status == WEFT_OK) {
        launch_frame_t frame;
        size_t used = 0;
        status = launch_frame_decode(remote->in.data + taken, remote->in.length - taken,
                                     &remote->fault, &frame, &used);
        if (status == WEFT_OK) {
            remote->config.on_frame(remote->config.user, &frame);
            taken += used;
        }
    }
    weft_buffer_drop_front(&remote->in, taken);
    if (status != WEFT_PENDING || remote->in.is_failed) {
        close_end(&remote->out_fd, &remote->out_watch);
        launch_remote_kill(remote);
    }
}

static void on_frames(void *user, uint32_t events)
{
    static char bytes[READ_BYTES]; /* of the one loop */
    launch_remote_t *remote = user;
    (void)events;
    const ssize_t n = read(remote->out_fd, bytes, sizeof(bytes));
    if (n > 0) {
        weft_buffer_append(&remote->in, bytes, (size_t)n);
        take_frames(remote);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        close_end(&remote->out_fd, &remote->out_watch);
    }
    if (remote->out_fd < 0) {
        settle(remote);
    }
}

static void take_line(void *user, const launch_piece_t *piece)
{
    launch_remote_t *remote = user;
    const size_t length = piece->length - (piece->ends_line ? 1 : 0);
    snprintf(remote->last_line, sizeof(remote->last_line), "%.*s",
             (int)(length < sizeof(remote->last_line) ? length : sizeof(remote->last_line)),
             piece->bytes);
    remote->last_line[strcspn(remote->last_line, "\r")] = '\0';
    remote->config.on_line(remote->config.user, remote->last_line);
}

static void on_complaint(void *user, uint32_t events)
{
    launch_remote_t *remote = user;
    char bytes[4096];
    (void)events;
    const ssize_t n = read(remote->err_fd, bytes, sizeof(bytes));
    if (n > 0) {
        (void)launch_lines_take(&remote->lines, bytes, (size_t)n, take_line, remote);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        launch_lines_end(&remote->lines, take_line, remote);
        close_end(&remote->err_fd, &remote->err_watch);
        settle(remote);
    }
}

/* ---- what it is told ------------------------------------------------------------------------- */

static void on_writable(void *user, uint32_t events)
{
    launch_remote_t *remote = user;
    (void)events;
    const ssize_t n = write(remote->in_fd, remote->out.data, remote->out.length);
    if (n > 0) {
        weft_buffer_drop_front(&remote->out, (size_t)n);
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
        close_end(&remote->in_fd, &remote->in_watch); /* its end is told by its pipes */
        return;
    }
    if (remote->out.length > 0) {
        return;
    }
    weft_loop_unwatch(remote->in_watch);
    remote->in_watch = NULL;
    if (remote->is_ending) {
        close_end(&remote->in_fd, &remote->in_watch);
    }
}

weft_buffer_t *launch_remote_out(launch_remote_t *remote)
{
    return &remote->out;
}

void launch_remote_wake(launch_remote_t *remote)
{
    if (remote->in_fd < 0) {
        weft_buffer_clear(&remote->out);
    } else if (remote->out.is_failed ||
               (remote->in_watch == NULL &&
                weft_loop_watch(remote->loop, remote->in_fd, WEFT_LOOP_WRITE, on_writable, remote,
                                &remote->in_watch) < 0)) {
        launch_remote_kill(remote);
    }
}

void launch_remote_flush(launch_remote_t *remote)
{
    if (remote->in_watch != NULL) {
        on_writable(remote, WEFT_LOOP_WRITE);
    }
}

void launch_remote_end(launch_remote_t *remote)
{
    if (!remote->is_ending) {
        remote->is_ending = true;
        launch_frame_append(&remote->out, LAUNCH_FRAME_END, LAUNCH_ALL, "", 0);
        launch_remote_wake(remote);
    }
}

void launch_remote_kill(launch_remote_t *remote)
{
    if (remote->pid > 0) {
        kill(-remote->pid, SIGKILL);
    }
}

pid_t launch_remote_pid(const launch_remote_t *remote)
{
    return remote->pid;
}

/* ---- life ------------------------------------------------------------------------------------ */

typedef struct pipes {
    int in[2];
    int out[2];
    int err[2];
} pipes_t;

static void close_fds(pipes_t *pipes)
{
    int *const fds[] = {&pipes->in[0],  &pipes->in[1],  &pipes->out[0],
                        &pipes->out[1], &pipes->err[0], &pipes->err[1]};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fds); i++) {
        if (*fds[i] >= 0) {
            close(*fds[i]);
        }
    }
}

static weft_status_t run(launch_remote_t *remote, const launch_remote_config_t *config,
                         weft_diag_t *diag)
{
    pipes_t pipes = {{-1, -1}, {-1, -1}, {-1, -1}};
    weft_status_t status = WEFT_OK;
    if (pipe2(pipes.in, O_CLOEXEC) != 0 || pipe2(pipes.out, O_CLOEXEC) != 0 ||
        pipe2(pipes.err, O_CLOEXEC) != 0) {
        status = weft_diag(diag, WEFT_ERR_NO_MEMORY, "%s: %s", config->name, strerror(errno));
    }
    if (status == WEFT_OK) {
        const launch_program_t program = {
            .argv = config->argv,
            .file = config->file,
            .fds = {pipes.in[0], pipes.out[1], pipes.err[1]},
            .netns_fd = config->netns_fd,
            .death_signal = config->death_signal,
            .open_files = &config->open_files,
        };
        status = launch_process_start(&program, diag, &remote->pid);
    }
    if (status == WEFT_OK) {
        remote->in_fd = pipes.in[1];
        remote->out_fd = pipes.out[0];
        remote->err_fd = pipes.err[0];
        pipes.in[1] = pipes.out[0] = pipes.err[0] = -1;
        fcntl(remote->in_fd, F_SETFL, O_NONBLOCK);
        fcntl(remote->out_fd, F_SETFL, O_NONBLOCK);
        fcntl(remote->err_fd, F_SETFL, O_NONBLOCK);
    }
    close_fds(&pipes);
    return status;
}

static weft_status_t watch(launch_remote_t *remote, weft_diag_t *diag)
{
    weft_status_t status =
        weft_loop_timer_create(remote->loop, on_half_gone, remote, &remote->half_gone);
    if (status == WEFT_OK) {
        status = weft_loop_watch(remote->loop, remote->out_fd, WEFT_LOOP_READ, on_frames, remote,
                                 &remote->out_watch);
    }
    if (status == WEFT_OK) {
        status = weft_loop_watch(remote->loop, remote->err_fd, WEFT_LOOP_READ, on_complaint, remote,
                                 &remote->err_watch);
    }
    return status == WEFT_OK ? status : weft_diag(diag, status, "%s", weft_strerror(status));
}

weft_status_t launch_remote_create(weft_loop_t *loop, const launch_remote_config_t *config,
                                   weft_diag_t *diag, launch_remote_t **remote_out)
{
    launch_remote_t *remote = weft_zalloc(sizeof(*remote), "launch.remote");
    if (remote == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory");
    }
    remote->loop = loop;
    remote->config = *config;
    remote->in_fd = remote->out_fd = remote->err_fd = -1;
    weft_status_t status = run(remote, config, diag);
    if (status == WEFT_OK) {
        status = watch(remote, diag);
    }
    if (status < 0) {
        launch_remote_destroy(remote);
        return status;
    }
    *remote_out = remote;
    return WEFT_OK;
}

void launch_remote_destroy(launch_remote_t *remote)
{
    if (remote == NULL) {
        return;
    }
    launch_remote_kill(remote);
    close_end(&remote->in_fd, &remote->in_watch);
    close_end(&remote->out_fd, &remote->out_watch);
    close_end(&remote->err_fd, &remote->err_watch);
    weft_loop_timer_destroy(remote->half_gone);
    launch_lines_fini(&remote->lines);
    weft_buffer_free(&remote->in);
    weft_buffer_free(&remote->out);
    weft_free(remote);
}
