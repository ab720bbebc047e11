/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/serve_local.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "launcher/launch_port.h"

#define WEFT_LOG_MODULE "ranks"
#include "base/log.h"

#define PROGRAM         "/proc/self/exe"
#define EXIT_NO_PROGRAM 127
#define PLACE_VARIABLES 5
#define VARIABLE_BYTES  64

typedef struct local_rank {
    uint32_t rank;
    char variables[PLACE_VARIABLES][VARIABLE_BYTES];
    char **environment; /* NULL behind it */
    pid_t pid;          /* 0: it does not run; guarded by lock */
} local_rank_t;

struct serve_local {
    serve_local_config_t config;
    char **argv;        /* NULL behind it */
    launch_port_t port; /* where rank 0 listens */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    bool is_thread_started;
    bool is_begun; /* all were started, or is_stopping; guarded by lock, so for the next */
    bool is_stopping;
    uint32_t n_alive;
    uint32_t restarts_left;
    weft_status_t status;
    uint32_t n_ranks; /* in ranks */
    local_rank_t *ranks;
};

/* ---- what a rank is told --------------------------------------------------------------------- */

/* Whether it is one of those that a rank is told: of two of a name the first counts. */
static bool is_told(const local_rank_t *rank, const char *entry)
{
    const size_t length = strcspn(entry, "=") + 1;
    for (size_t i = 0; i < PLACE_VARIABLES; i++) {
        if (strncmp(entry, rank->variables[i], length) == 0) {
            return true;
        }
    }
    return false;
}

static weft_status_t write_environment(const serve_local_t *local, local_rank_t *rank)
{
    const uint32_t size = local->config.size;
    size_t n_ours = 0;
    size_t n = 0;
    while (environ[n_ours] != NULL) {
        n_ours++;
    }
    rank->environment = weft_calloc(n_ours + PLACE_VARIABLES + 1, sizeof(*rank->environment),
                                    "serve_local.environment");
    if (rank->environment == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    snprintf(rank->variables[0], VARIABLE_BYTES, "WEFT_RANK=%u", rank->rank);
    snprintf(rank->variables[1], VARIABLE_BYTES, "WEFT_SIZE=%u", size);
    snprintf(rank->variables[2], VARIABLE_BYTES, "WEFT_LOCAL_RANK=%u", rank->rank);
    snprintf(rank->variables[3], VARIABLE_BYTES, "WEFT_LOCAL_SIZE=%u", size);
    snprintf(rank->variables[4], VARIABLE_BYTES, "WEFT_LEADER=127.0.0.1:%u", local->port.number);
    for (size_t i = 0; i < n_ours; i++) {
        if (!is_told(rank, environ[i])) {
            rank->environment[n++] = environ[i];
        }
    }
    for (size_t i = 0; i < PLACE_VARIABLES; i++) {
        rank->environment[n++] = rank->variables[i];
    }
    return WEFT_OK;
}

static weft_status_t write_words(serve_local_t *local)
{
    const serve_local_config_t *config = &local->config;
    local->argv =
        weft_calloc((size_t)config->n_words + 2, sizeof(*local->argv), "serve_local.argv");
    if (local->argv == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    local->argv[0] = "weft";
    for (int i = 0; i < config->n_words; i++) {
        local->argv[i + 1] = config->words[i];
    }
    return WEFT_OK;
}

/* ---- processes ------------------------------------------------------------------------------- */

/* In the child: what is called may be called after a fork from among threads. */
static void become_rank(const serve_local_t *local, const local_rank_t *rank, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(EXIT_NO_PROGRAM); /* it went before that */
    }
    setpgid(0, 0); /* a terminal's Ctrl-C is for rank 0, which tells the others */
    close_range(STDERR_FILENO + 1, ~0U, 0);
    execve(PROGRAM, local->argv, rank->environment);
    _exit(EXIT_NO_PROGRAM);
}

static weft_status_t start_rank(serve_local_t *local, local_rank_t *rank)
{
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) {
        become_rank(local, rank, parent);
    }
    if (pid < 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    rank->pid = pid;
    local->n_alive++;
    return WEFT_OK;
}

static void describe_end(int status, char *how, size_t size)
{
    if (WIFSIGNALED(status)) {
        snprintf(how, size, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    } else {
        snprintf(how, size, "exit code %d", WEXITSTATUS(status));
    }
}

static local_rank_t *find_rank(serve_local_t *local, pid_t pid)
{
    for (uint32_t i = 0; i < local->n_ranks; i++) {
        if (local->ranks[i].pid == pid) {
            return &local->ranks[i];
        }
    }
    return NULL;
}

/* False: it runs again, or is not missed. */
static bool take_end(serve_local_t *local, local_rank_t *rank, int status, const char *how)
{
    rank->pid = 0;
    local->n_alive--;
    if (local->is_stopping || status == 0) { /* 0: rank 0 has told it to */
        return false;
    }
    weft_log_error("rank %u of %u has ended: %s", rank->rank, local->config.size, how);
    if (local->restarts_left == 0) {
        return true;
    }
    local->restarts_left--;
    return start_rank(local, rank) < 0;
}

/* Until all that were started have ended. */
static void wait_for_ends(serve_local_t *local)
{
    int status;
    char how[64];
    pid_t pid;
    while ((pid = waitpid(-1, &status, 0)) > 0 || errno == EINTR) {
        pthread_mutex_lock(&local->lock);
        local_rank_t *rank = pid > 0 ? find_rank(local, pid) : NULL;
        describe_end(status, how, sizeof(how));
        const bool is_missed = rank != NULL && take_end(local, rank, status, how);
        pthread_cond_broadcast(&local->changed);
        pthread_mutex_unlock(&local->lock);
        if (is_missed) {
            local->config.on_end(local->config.user, rank->rank, how);
        }
    }
}

/* A child ends with the thread that forked it: this one lives as long as they. */
static void *run(void *arg)
{
    serve_local_t *local = arg;
    pthread_mutex_lock(&local->lock);
    for (uint32_t i = 0; i < local->n_ranks && local->status == WEFT_OK; i++) {
        local->status = start_rank(local, &local->ranks[i]);
    }
    local->is_begun = true;
    pthread_cond_broadcast(&local->changed);
    pthread_mutex_unlock(&local->lock);
    wait_for_ends(local);
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Signals are for those who wait for them. */
static weft_status_t start_thread(serve_local_t *local)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    local->is_thread_started = pthread_create(&local->thread, NULL, run, local) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!local->is_thread_started) {
        return WEFT_ERR_NO_MEMORY;
    }
    pthread_mutex_lock(&local->lock);
    while (!local->is_begun) {
        pthread_cond_wait(&local->changed, &local->lock);
    }
    const weft_status_t status = local->status;
    pthread_mutex_unlock(&local->lock);
    return status;
}

static weft_status_t start(serve_local_t *local, launch_place_t *place_out)
{
    const serve_local_config_t *config = &local->config;
    weft_status_t status = write_words(local);
    local->ranks = weft_calloc(config->size, sizeof(*local->ranks), "serve_local.ranks");
    if (status < 0 || local->ranks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    status = launch_port_hold(true, &local->port);
    for (uint32_t rank = 1; rank < config->size && status == WEFT_OK; rank++) {
        local->ranks[local->n_ranks].rank = rank;
        status = write_environment(local, &local->ranks[local->n_ranks++]);
    }
    if (status < 0) {
        return status;
    }
    *place_out = (launch_place_t){
        .source = "this process",
        .size = config->size,
        .local_size = config->size,
        .leader_host = "127.0.0.1",
        .leader_port = local->port.number,
        .restarts = config->restarts,
    };
    return start_thread(local);
}

weft_status_t serve_local_create(const serve_local_config_t *config, weft_diag_t *diag,
                                 launch_place_t *place_out, serve_local_t **local_out)
{
    serve_local_t *local = weft_zalloc(sizeof(*local), "serve_local");
    if (local == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    local->config = *config;
    local->port.fd = -1;
    local->restarts_left = config->restarts;
    pthread_mutex_init(&local->lock, NULL);
    pthread_cond_init(&local->changed, NULL);
    const weft_status_t status = start(local, place_out);
    if (status < 0) {
        serve_local_destroy(local, 0);
        return weft_diag(diag, status, "%u ranks cannot be started on this host", config->size);
    }
    if (config->size == 2) {
        weft_log_info("started rank 1 on this host");
    } else {
        weft_log_info("started ranks 1 to %u on this host", config->size - 1);
    }
    *local_out = local;
    return WEFT_OK;
}

static void kill_all(const serve_local_t *local)
{
    for (uint32_t i = 0; i < local->n_ranks; i++) {
        if (local->ranks[i].pid > 0) {
            weft_log_debug("rank %u is killed", local->ranks[i].rank);
            kill(local->ranks[i].pid, SIGKILL);
        }
    }
}

static void end_all(serve_local_t *local, uint32_t grace_s)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += grace_s;
    pthread_mutex_lock(&local->lock);
    local->is_stopping = true;
    int error = 0;
    while (local->n_alive > 0 && error == 0) {
        error = pthread_cond_timedwait(&local->changed, &local->lock, &until);
    }
    kill_all(local);
    pthread_mutex_unlock(&local->lock);
}

void serve_local_destroy(serve_local_t *local, uint32_t grace_s)
{
    if (local == NULL) {
        return;
    }
    if (local->is_thread_started) {
        end_all(local, grace_s);
        pthread_join(local->thread, NULL);
    }
    for (uint32_t i = 0; i < local->n_ranks; i++) {
        weft_free(local->ranks[i].environment);
    }
    pthread_cond_destroy(&local->changed);
    pthread_mutex_destroy(&local->lock);
    launch_port_let_go(&local->port);
    weft_free(local->ranks);
    weft_free(local->argv);
    weft_free(local);
}
