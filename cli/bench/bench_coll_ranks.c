/* SPDX-License-Identifier: Apache-2.0 */
/* Processes that are ranks, and how they meet: rank 0 has a socket to each. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/bench/bench_coll.h"

typedef struct ranks {
    uint32_t size;
    uint32_t rank;
    int *sockets; /* [size] rank 0: to each; others: [0], to rank 0; -1: none */
    pid_t *pids;  /* [size] rank 0: of the others; 0: none */
} ranks_t;

static bool send_all(int fd, const char *data, size_t n)
{
    while (n > 0) {
        const ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent <= 0) {
            return false;
        }
        data += sent;
        n -= (size_t)sent;
    }
    return true;
}

static bool receive_all(int fd, char *data, size_t n)
{
    while (n > 0) {
        const ssize_t got = recv(fd, data, n, 0);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return false;
        }
        data += got;
        n -= (size_t)got;
    }
    return true;
}

static weft_status_t all_gather(void *user, const void *mine, size_t bytes, void *all_out,
                                weft_diag_t *diag)
{
    const ranks_t *ranks = user;
    char *all = all_out;
    bool is_good = true;
    if (ranks->rank != 0) {
        is_good = send_all(ranks->sockets[0], mine, bytes) &&
                  receive_all(ranks->sockets[0], all, bytes * ranks->size);
        return is_good ? WEFT_OK : weft_diag(diag, WEFT_ERR_PEER_GONE, "rank 0 ended");
    }
    memcpy(all, mine, bytes);
    for (uint32_t rank = 1; is_good && rank < ranks->size; rank++) {
        is_good = receive_all(ranks->sockets[rank], all + rank * bytes, bytes);
    }
    for (uint32_t rank = 1; is_good && rank < ranks->size; rank++) {
        is_good = send_all(ranks->sockets[rank], all, bytes * ranks->size);
    }
    return is_good ? WEFT_OK : weft_diag(diag, WEFT_ERR_PEER_GONE, "a rank ended");
}

/* "0,1,3": the rank's is the one at its place, beginning anew behind the last. */
static weft_status_t bind_rank(const char *cpus, uint32_t rank, weft_diag_t *diag)
{
    cpu_set_t set;
    uint32_t n = 1;
    if (cpus[0] == '\0') {
        return WEFT_OK;
    }
    for (const char *at = cpus; *at != '\0'; at++) {
        n += *at == ',';
    }
    const char *own = cpus;
    for (uint32_t i = rank % n; i > 0; i--) {
        own = strchr(own, ',') + 1;
    }
    char *end;
    const unsigned long cpu = strtoul(own, &end, 10);
    CPU_ZERO(&set);
    if (end == own || (*end != '\0' && *end != ',') || cpu >= CPU_SETSIZE) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--cpus %s: numbers with commas", cpus);
    }
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof(set), &set) == 0
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID, "--cpus %s: %s", cpus, strerror(errno));
}

weft_status_t bench_coll_run(const bench_coll_options_t *options, const bench_coll_rank_t *rank,
                             weft_diag_t *diag)
{
    bench_coll_report_t *report = NULL;
    weft_status_t status = bind_rank(options->cpus, rank->rank, diag);
    if (status >= 0 && rank->rank == 0) {
        status = bench_coll_report_create(options, &report);
    }
    status =
        status < 0 ? status : bench_coll_sweep(options, rank, bench_coll_report_row, report, diag);
    if (status >= 0 && rank->rank == 0) {
        status = bench_coll_report_finish(report);
    }
    bench_coll_report_destroy(report);
    return status;
}

static weft_status_t run_rank(const bench_coll_options_t *options, ranks_t *ranks,
                              weft_diag_t *diag)
{
    const bench_coll_rank_t self = {.rank = ranks->rank,
                                    .local_rank = ranks->rank,
                                    .exchange = {.user = ranks, .all_gather = all_gather}};
    return bench_coll_run(options, &self, diag);
}

/* In the child: only its own socket stays open, so that others see when it ends. */
static _Noreturn void be_rank(const bench_coll_options_t *options, ranks_t *ranks, uint32_t rank,
                              int socket)
{
    weft_diag_t diag = {0};
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (uint32_t other = 1; other < rank; other++) {
        close(ranks->sockets[other]);
    }
    ranks->rank = rank;
    ranks->sockets[0] = socket;
    const weft_status_t status = run_rank(options, ranks, &diag);
    if (status < 0) {
        fprintf(stderr, "weft: error: rank %u: %s\n", rank,
                diag.text[0] != '\0' ? diag.text : weft_strerror(status));
    }
    _exit(status < 0 ? 1 : 0);
}

static weft_status_t start_ranks(const bench_coll_options_t *options, ranks_t *ranks,
                                 weft_diag_t *diag)
{
    (void)fflush(NULL);
    for (uint32_t rank = 1; rank < ranks->size; rank++) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
            return weft_diag(diag, WEFT_ERR_IO, "rank %u: no socket: %s", rank, strerror(errno));
        }
        const pid_t pid = fork();
        if (pid == 0) {
            close(ends[0]);
            be_rank(options, ranks, rank, ends[1]);
        }
        close(ends[1]);
        ranks->sockets[rank] = ends[0];
        if (pid < 0) {
            return weft_diag(diag, WEFT_ERR_NO_MEMORY, "rank %u: no process: %s", rank,
                             strerror(errno));
        }
        ranks->pids[rank] = pid;
    }
    return WEFT_OK;
}

/* Whether all others ended well; they are ended when this rank did not. */
static bool end_ranks(ranks_t *ranks, bool is_good)
{
    for (uint32_t rank = 1; rank < ranks->size; rank++) {
        int status = 0;
        if (ranks->sockets[rank] > 0) {
            close(ranks->sockets[rank]);
        }
        if (ranks->pids[rank] > 0) {
            if (!is_good) {
                (void)kill(ranks->pids[rank], SIGKILL);
            }
            (void)waitpid(ranks->pids[rank], &status, 0);
            is_good = is_good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
    }
    return is_good;
}

weft_status_t bench_coll_fork(const bench_coll_options_t *options, weft_diag_t *diag)
{
    ranks_t ranks = {.size = options->ranks,
                     .sockets = weft_calloc(options->ranks, sizeof(int), "bench.coll"),
                     .pids = weft_calloc(options->ranks, sizeof(pid_t), "bench.coll")};
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (ranks.sockets != NULL && ranks.pids != NULL) {
        status = start_ranks(options, &ranks, diag);
        status = status < 0 ? status : run_rank(options, &ranks, diag);
        if (!end_ranks(&ranks, status >= 0) && status >= 0) {
            status = weft_diag(diag, WEFT_ERR_PEER_GONE, "a rank failed");
        }
    }
    weft_free(ranks.pids);
    weft_free(ranks.sockets);
    return status;
}
