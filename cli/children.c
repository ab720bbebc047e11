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
#include "cli/children.h"

#define EXIT_NO_PROGRAM 127

/* ---- what they say --------------------------------------------------------------------------- */

static const char mark[] = "listening on ";

/* "… listening on http://127.0.0.1:40123 model=…", or bare when its log is quiet. */
static void look_for_address(child_t *child, const char *line)
{
    const char *found = strstr(line, mark);
    char url[128];
    if (child->is_listening || found == NULL) {
        return;
    }
    found += sizeof(mark) - 1;
    const int length = (int)strcspn(found, " \n");
    snprintf(url, sizeof(url), "%.*s", length, found);
    child->is_listening = true;
    child->children->on_listening(child->children->user, child, url);
}

/* A bare address stands for a log line where it logs none. */
static bool is_for_us(const child_t *child, const char *line)
{
    return child->children->is_private && strncmp(line, mark, sizeof(mark) - 1) == 0;
}

static void take_line(child_t *child, const char *line, size_t length)
{
    char copy[1024];
    snprintf(copy, sizeof(copy), "%.*s", (int)length, line);
    look_for_address(child, copy);
    if (!is_for_us(child, copy)) {
        fprintf(stderr, "%-10s| %s\n", child->name, copy);
    }
}

static void take_lines(child_t *child)
{
    const char *end;
    while (child->line.length > 0 &&
           (end = memchr(child->line.data, '\n', child->line.length)) != NULL) {
        const size_t length = (size_t)(end - child->line.data);
        take_line(child, child->line.data, length);
        weft_buffer_drop_front(&child->line, length + 1);
    }
}

static void close_out(child_t *child)
{
    weft_loop_unwatch(child->watch);
    child->watch = NULL;
    if (child->out_fd >= 0) {
        close(child->out_fd);
        child->out_fd = -1;
    }
}

/* It says no more: what is left is a line, too. */
static void end_out(child_t *child)
{
    if (child->line.length > 0) {
        take_line(child, child->line.data, child->line.length);
        weft_buffer_clear(&child->line);
    }
    close_out(child);
}

/* False: there is no more for now, or at all. */
static bool take_some(child_t *child)
{
    char bytes[4096];
    const ssize_t n = read(child->out_fd, bytes, sizeof(bytes));
    if (n > 0) {
        weft_buffer_append(&child->line, bytes, (size_t)n);
        take_lines(child);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        end_out(child);
    }
    return n > 0;
}

static void on_output(void *user, uint32_t events)
{
    (void)events;
    (void)take_some(user);
}

/* Those of a process that has ended; one that it started may hold its pipe and say more. */
static void take_last_words(child_t *child)
{
    while (child->out_fd >= 0 && take_some(child)) {
    }
    end_out(child);
}

/* ---- starting -------------------------------------------------------------------------------- */

/* In the child: a program that hears no Ctrl-C of ours, and ends with us. */
static void become(char *const *argv, int out_fd, int keep_fd, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (keep_fd >= 0) {
        fcntl(keep_fd, F_SETFD, 0);
    }
    if (getppid() != parent || dup2(out_fd, STDERR_FILENO) < 0 || dup2(out_fd, STDOUT_FILENO) < 0) {
        _exit(EXIT_NO_PROGRAM);
    }
    execv("/proc/self/exe", argv);
    _exit(EXIT_NO_PROGRAM);
}

static weft_status_t spawn(child_t *child, char *const *argv, int keep_fd)
{
    int pipe_fds[2];
    const pid_t parent = getpid();
    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    fflush(stderr);
    child->pid = fork();
    if (child->pid == 0) {
        become(argv, pipe_fds[1], keep_fd, parent);
    }
    close(pipe_fds[1]);
    child->out_fd = pipe_fds[0];
    if (child->pid < 0) {
        child->pid = 0;
        return WEFT_ERR_NO_MEMORY;
    }
    fcntl(child->out_fd, F_SETFL, O_NONBLOCK);
    return weft_loop_watch(child->children->loop, child->out_fd, WEFT_LOOP_READ, on_output, child,
                           &child->watch);
}

static void end(child_t *child)
{
    if (child->pid > 0) {
        kill(child->pid, SIGKILL);
        waitpid(child->pid, NULL, 0);
        child->pid = 0;
    }
}

weft_status_t children_start(children_t *children, const char *name, char *const *argv, int keep_fd,
                             weft_diag_t *diag)
{
    if (children->n == CHILDREN_MAX) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%d processes at most", CHILDREN_MAX);
    }
    child_t *child = &children->all[children->n++];
    *child = (child_t){.children = children, .out_fd = -1};
    snprintf(child->name, sizeof(child->name), "%s", name);
    return child_restart(child, argv, keep_fd, diag);
}

weft_status_t child_restart(child_t *child, char *const *argv, int keep_fd, weft_diag_t *diag)
{
    weft_buffer_clear(&child->line);
    child->is_listening = false;
    const weft_status_t status = spawn(child, argv, keep_fd);
    if (status < 0) {
        weft_diag(diag, status, "%s could not be started: %s", child->name, strerror(errno));
        end(child);
        close_out(child);
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

child_t *children_reap(children_t *children, char *how, size_t size)
{
    for (uint32_t i = 0; i < children->n; i++) {
        child_t *child = &children->all[i];
        int status;
        if (child->pid > 0 && waitpid(child->pid, &status, WNOHANG) == child->pid) {
            child->pid = 0;
            take_last_words(child);
            describe(status, how, size);
            return child;
        }
    }
    return NULL;
}

void children_signal(const children_t *children, int number)
{
    for (uint32_t i = 0; i < children->n; i++) {
        if (children->all[i].pid > 0) {
            kill(children->all[i].pid, number);
        }
    }
}

uint32_t children_alive(const children_t *children)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < children->n; i++) {
        n += children->all[i].pid > 0;
    }
    return n;
}

void children_fini(children_t *children)
{
    children_signal(children, SIGKILL);
    for (uint32_t i = 0; i < children->n; i++) {
        child_t *child = &children->all[i];
        end(child);
        close_out(child);
        weft_buffer_free(&child->line);
    }
    children->n = 0;
}
