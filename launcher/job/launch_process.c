/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_process.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define EXIT_NOT_STARTED 127
#define END_NS           (2 * WEFT_NS_PER_SECOND)
#define END_POLL_NS      (2 * WEFT_NS_PER_MS)
#define MAX_INHERITED    256

/* ---- in the child ---------------------------------------------------------------------------- */

static bool take_fds(const launch_program_t *program)
{
    int fds[3];
    for (int i = 0; i < 3; i++) { /* above 2, so that no dup2 below closes one still needed */
        const int fd =
            program->fds[i] >= 0 ? program->fds[i] : open("/dev/null", O_RDWR | O_CLOEXEC);
        fds[i] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (fds[i] < 0) {
            return false;
        }
    }
    for (int i = 0; i < 3; i++) {
        if (dup2(fds[i], i) < 0) {
            return false;
        }
    }
    return true;
}

static bool take_place(const launch_program_t *program)
{
    if (program->netns_fd >= 0 && setns(program->netns_fd, CLONE_NEWNET) != 0) {
        return false;
    }
    if (program->cpus != NULL) { /* refused by a cgroup: it runs where it may */
        (void)sched_setaffinity(0, sizeof(program->cpus->bits),
                                (const cpu_set_t *)program->cpus->bits);
    }
    if (program->open_files != NULL) {
        (void)setrlimit(RLIMIT_NOFILE, program->open_files);
    }
    if (program->folder != NULL && chdir(program->folder) != 0) {
        return errno == ENOENT || errno == EACCES || errno == ENOTDIR;
    }
    return true;
}

static void reset_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Never returns; why it did not become the program goes to report_fd. */
static void become(const launch_program_t *program, pid_t parent, int report_fd)
{
    setsid();
    prctl(PR_SET_PDEATHSIG, program->death_signal);
    reset_signals();
    if (getppid() == parent && take_place(program) && take_fds(program)) {
        const char *file = program->file != NULL ? program->file : program->argv[0];
        execvpe(file, program->argv, program->environment != NULL ? program->environment : environ);
    }
    const int error = errno;
    const ssize_t ignored = write(report_fd, &error, sizeof(error));
    (void)ignored;
    _exit(EXIT_NOT_STARTED);
}

/* ---- in the parent --------------------------------------------------------------------------- */

/* What kept a child from becoming its program; 0: nothing did. */
static int read_report(int fd)
{
    int error = 0;
    ssize_t n;
    do {
        n = read(fd, &error, sizeof(error));
    } while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(error) ? error : 0;
}

static weft_status_t status_of(int error)
{
    return error == ENOENT || error == ENOTDIR                     ? WEFT_ERR_NOT_FOUND
           : error == EACCES || error == ENOEXEC || error == EPERM ? WEFT_ERR_DENIED
                                                                   : WEFT_ERR_IO;
}

weft_status_t launch_process_start(const launch_program_t *program, weft_diag_t *diag,
                                   pid_t *pid_out)
{
    int report[2];
    const pid_t parent = getpid();
    if (pipe2(report, O_CLOEXEC) != 0) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "%s: %s", program->argv[0], strerror(errno));
    }
    const pid_t pid = fork();
    if (pid == 0) {
        become(program, parent, report[1]);
    }
    const int fork_error = errno;
    close(report[1]);
    const int error = pid < 0 ? fork_error : read_report(report[0]);
    close(report[0]);
    if (pid > 0 && error != 0) {
        waitpid(pid, NULL, 0);
    }
    if (error != 0) {
        return weft_diag(diag, status_of(error), "%s: %s", program->argv[0], strerror(error));
    }
    *pid_out = pid;
    return WEFT_OK;
}

static launch_news_t news_of(const siginfo_t *info)
{
    launch_news_t news = {.pid = info->si_pid};
    switch (info->si_code) {
    case CLD_EXITED:
        news.kind = LAUNCH_NEWS_EXITED;
        news.code = (uint32_t)info->si_status & 0xff;
        break;
    case CLD_KILLED:
    case CLD_DUMPED:
        news.kind = LAUNCH_NEWS_EXITED;
        news.signal = (uint32_t)info->si_status;
        break;
    case CLD_STOPPED:
        news.kind = LAUNCH_NEWS_STOPPED;
        break;
    default:
        news.kind = LAUNCH_NEWS_CONTINUED;
        break;
    }
    return news;
}

launch_news_t launch_process_next(launch_leads_fn leads, void *user)
{
    const int what = WEXITED | WSTOPPED | WCONTINUED | WNOHANG;
    siginfo_t info = {0};
    if (waitid(P_ALL, 0, &info, what | WNOWAIT) != 0 || info.si_pid == 0) {
        return (launch_news_t){.kind = LAUNCH_NEWS_NONE};
    }
    const launch_news_t news = news_of(&info);
    if (news.kind == LAUNCH_NEWS_EXITED && leads != NULL && leads(user, news.pid)) {
        kill(-news.pid, SIGKILL);
    }
    /* The same news once more; a stop may meanwhile have become an end, which is then the next. */
    const int same = news.kind == LAUNCH_NEWS_EXITED    ? WEXITED
                     : news.kind == LAUNCH_NEWS_STOPPED ? WSTOPPED
                                                        : WCONTINUED;
    (void)waitid(P_PID, (id_t)news.pid, &info, same | WNOHANG);
    return news;
}

/* ---- ending all ------------------------------------------------------------------------------ */

/* The parent of a process that /proc lists, or 0. */
static pid_t parent_of(pid_t pid)
{
    char path[64];
    char text[512];
    int parent = 0;
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return 0;
    }
    const size_t n = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *behind_name = strrchr(text, ')'); /* a name may hold anything */
    if (behind_name == NULL || sscanf(behind_name + 1, " %*c %d", &parent) != 1) {
        return 0;
    }
    return parent;
}

/* Calls fn for each child of ours, also those that have ended and were not waited for. */
static void for_each_child(void (*fn)(pid_t pid, void *user), void *user)
{
    DIR *folder = opendir("/proc");
    const struct dirent *entry;
    while (folder != NULL && (entry = readdir(folder)) != NULL) {
        const pid_t pid = isdigit((unsigned char)entry->d_name[0]) ? atoi(entry->d_name) : 0;
        if (pid > 0 && parent_of(pid) == getpid()) {
            fn(pid, user);
        }
    }
    if (folder != NULL) {
        closedir(folder);
    }
}

/* Children of the program that became this one, as `exec` in a shell makes them. */
static pid_t inherited[MAX_INHERITED];
static uint32_t n_inherited;

static void inherit_child(pid_t pid, void *user)
{
    (void)user;
    if (n_inherited < MAX_INHERITED) {
        inherited[n_inherited++] = pid;
    }
}

void launch_process_adopt(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    n_inherited = 0;
    for_each_child(inherit_child, NULL);
}

typedef struct killing {
    launch_spares_fn spares;
    void *user;
    uint32_t n; /* that were there to be killed */
} killing_t;

static void kill_child(pid_t pid, void *user)
{
    killing_t *killing = user;
    bool is_spared = killing->spares != NULL && killing->spares(killing->user, pid);
    for (uint32_t i = 0; i < n_inherited && !is_spared; i++) {
        is_spared = inherited[i] == pid;
    }
    if (!is_spared) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, WNOHANG);
        killing->n++;
    }
}

bool launch_process_end_others(launch_spares_fn spares, void *user)
{
    const uint64_t deadline = weft_clock_ns() + END_NS;
    for (;;) {
        killing_t killing = {.spares = spares, .user = user};
        for_each_child(kill_child, &killing); /* theirs come to us: the next round's */
        if (killing.n == 0 || weft_clock_ns() >= deadline) {
            return killing.n == 0;
        }
        nanosleep(&(struct timespec){.tv_nsec = END_POLL_NS}, NULL);
    }
}

bool launch_process_end_all(void)
{
    return launch_process_end_others(NULL, NULL);
}

struct rlimit launch_process_raise_open_files(void)
{
    struct rlimit before = {RLIM_INFINITY, RLIM_INFINITY};
    getrlimit(RLIMIT_NOFILE, &before);
    const struct rlimit raised = {before.rlim_max, before.rlim_max};
    setrlimit(RLIMIT_NOFILE, &raised);
    return before;
}
