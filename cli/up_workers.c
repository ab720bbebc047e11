/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/up.h"

#define EXIT_NO_PROGRAM 127

/* ---- what workers say ------------------------------------------------------------------------ */

static const char mark[] = "listening on ";

/* "… listening on http://127.0.0.1:40123 model=…", or bare when its log is quiet. */
static void look_for_address(up_worker_t *worker, const char *line)
{
    const char *found = strstr(line, mark);
    char url[128];
    if (worker->is_listening || found == NULL) {
        return;
    }
    found += sizeof(mark) - 1;
    const int length = (int)strcspn(found, " \n");
    snprintf(url, sizeof(url), "%.*s", length, found);
    worker->is_listening = true;
    worker->workers->on_listening(worker->workers->user, worker, url);
}

/* Its address is nobody's business but ours where it logs none. */
static bool is_for_us(const char *line)
{
    return strncmp(line, mark, sizeof(mark) - 1) == 0;
}

static void take_line(up_worker_t *worker, const char *line, size_t length)
{
    char copy[1024];
    snprintf(copy, sizeof(copy), "%.*s", (int)length, line);
    look_for_address(worker, copy);
    if (!is_for_us(copy)) {
        fprintf(stderr, "%-10s| %s\n", worker->name, copy);
    }
}

static void take_lines(up_worker_t *worker)
{
    const char *end;
    while (worker->line.length > 0 &&
           (end = memchr(worker->line.data, '\n', worker->line.length)) != NULL) {
        const size_t length = (size_t)(end - worker->line.data);
        take_line(worker, worker->line.data, length);
        weft_buffer_drop_front(&worker->line, length + 1);
    }
}

static void close_out(up_worker_t *worker)
{
    weft_loop_unwatch(worker->watch);
    worker->watch = NULL;
    if (worker->out_fd >= 0) {
        close(worker->out_fd);
        worker->out_fd = -1;
    }
}

static void on_output(void *user, uint32_t events)
{
    up_worker_t *worker = user;
    char bytes[4096];
    (void)events;
    const ssize_t n = read(worker->out_fd, bytes, sizeof(bytes));
    if (n > 0) {
        weft_buffer_append(&worker->line, bytes, (size_t)n);
        take_lines(worker);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        close_out(worker);
    }
}

/* ---- starting -------------------------------------------------------------------------------- */

/* In the child: a program that hears no Ctrl-C of ours, and ends with us. */
static void become(char *const *argv, int out_fd, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent || dup2(out_fd, STDERR_FILENO) < 0 || dup2(out_fd, STDOUT_FILENO) < 0) {
        _exit(EXIT_NO_PROGRAM);
    }
    execv("/proc/self/exe", argv);
    _exit(EXIT_NO_PROGRAM);
}

static weft_status_t spawn(up_worker_t *worker, char *const *argv)
{
    int pipe_fds[2];
    const pid_t parent = getpid();
    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    fflush(stderr);
    worker->pid = fork();
    if (worker->pid == 0) {
        become(argv, pipe_fds[1], parent);
    }
    close(pipe_fds[1]);
    worker->out_fd = pipe_fds[0];
    if (worker->pid < 0) {
        worker->pid = 0;
        return WEFT_ERR_NO_MEMORY;
    }
    fcntl(worker->out_fd, F_SETFL, O_NONBLOCK);
    return weft_loop_watch(worker->workers->loop, worker->out_fd, WEFT_LOOP_READ, on_output, worker,
                           &worker->watch);
}

static void end(up_worker_t *worker)
{
    if (worker->pid > 0) {
        kill(worker->pid, SIGKILL);
        waitpid(worker->pid, NULL, 0);
        worker->pid = 0;
    }
}

weft_status_t up_workers_start(up_workers_t *workers, front_role_t role, uint32_t number,
                               char *const *argv, weft_diag_t *diag)
{
    static const char *const roles[] = {"prefill", "decode"};
    if (workers->n == UP_MAX_WORKERS) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%d workers at most", UP_MAX_WORKERS);
    }
    up_worker_t *worker = &workers->all[workers->n++];
    *worker = (up_worker_t){.workers = workers, .role = role, .out_fd = -1};
    snprintf(worker->name, sizeof(worker->name), "%s-%u", roles[role], number);
    return up_worker_restart(worker, argv, diag);
}

weft_status_t up_worker_restart(up_worker_t *worker, char *const *argv, weft_diag_t *diag)
{
    weft_buffer_clear(&worker->line);
    worker->is_listening = false;
    const weft_status_t status = spawn(worker, argv);
    if (status < 0) {
        weft_diag(diag, status, "%s could not be started: %s", worker->name, strerror(errno));
        end(worker);
        close_out(worker);
    }
    return status;
}

/* ---- ending ---------------------------------------------------------------------------------- */

static void describe(int how, char *text, size_t size)
{
    if (WIFSIGNALED(how)) {
        snprintf(text, size, "killed by signal %d (%s)", WTERMSIG(how), strsignal(WTERMSIG(how)));
    } else {
        snprintf(text, size, "exit code %d", WEXITSTATUS(how));
    }
}

up_worker_t *up_workers_reap(up_workers_t *workers, char *how, size_t size)
{
    for (uint32_t i = 0; i < workers->n; i++) {
        up_worker_t *worker = &workers->all[i];
        int status;
        if (worker->pid > 0 && waitpid(worker->pid, &status, WNOHANG) == worker->pid) {
            worker->pid = 0;
            if (worker->out_fd >= 0) {
                on_output(worker, WEFT_LOOP_READ); /* its last words */
            }
            close_out(worker);
            describe(status, how, size);
            return worker;
        }
    }
    return NULL;
}

void up_workers_signal(const up_workers_t *workers, int number)
{
    for (uint32_t i = 0; i < workers->n; i++) {
        if (workers->all[i].pid > 0) {
            kill(workers->all[i].pid, number);
        }
    }
}

uint32_t up_workers_alive(const up_workers_t *workers, front_role_t role)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < workers->n; i++) {
        n += workers->all[i].role == role && workers->all[i].pid > 0;
    }
    return n;
}

void up_workers_fini(up_workers_t *workers)
{
    up_workers_signal(workers, SIGKILL);
    for (uint32_t i = 0; i < workers->n; i++) {
        up_worker_t *worker = &workers->all[i];
        end(worker);
        close_out(worker);
        weft_buffer_free(&worker->line);
    }
    workers->n = 0;
}
