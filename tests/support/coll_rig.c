/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/coll_rig.h"
#include "tests/support/test_fork.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/device.h"

typedef struct rig {
    uint32_t size;
    int sockets[COLL_RIG_MAX_RANKS][2]; /* [rank]: rank 0's end, its own; none for rank 0 */
    pid_t *pids;                        /* shared, with what ranks share behind it */
    char *shared;
} rig_t;

#define PIDS_BYTES ((size_t)4096)

static const char *device_name = "cpu";

void coll_rig_use_device(const char *name)
{
    device_name = name;
}

/* ---- the exchange: rank 0 gathers and gives all to everyone ------------------------------------- */

static bool send_all(int fd, const void *data, size_t n)
{
    for (size_t done = 0; done < n;) {
        const ssize_t sent = send(fd, (const char *)data + done, n - done, MSG_NOSIGNAL);
        if (sent <= 0) {
            return false;
        }
        done += (size_t)sent;
    }
    return true;
}

static bool receive_all(int fd, void *data, size_t n)
{
    for (size_t done = 0; done < n;) {
        const ssize_t got = recv(fd, (char *)data + done, n - done, 0);
        if (got <= 0) {
            return false;
        }
        done += (size_t)got;
    }
    return true;
}

static weft_status_t all_gather(void *user, const void *mine, size_t bytes, void *all_out,
                                weft_diag_t *diag)
{
    const coll_rig_rank_t *self = user;
    char *all = all_out;
    bool is_good = true;
    if (self->rank != 0) {
        is_good = send_all(self->sockets[0], mine, bytes) &&
                  receive_all(self->sockets[0], all, bytes * self->size);
    } else {
        memcpy(all, mine, bytes);
        for (uint32_t rank = 1; is_good && rank < self->size; rank++) {
            is_good = receive_all(self->sockets[rank], all + rank * bytes, bytes);
        }
        for (uint32_t rank = 1; is_good && rank < self->size; rank++) {
            is_good = send_all(self->sockets[rank], all, bytes * self->size);
        }
    }
    return is_good ? WEFT_OK : weft_diag(diag, WEFT_ERR_PEER_GONE, "a rank left the exchange");
}

/* ---- processes --------------------------------------------------------------------------------- */

static void open_sockets(rig_t *rig)
{
    const struct timeval limit = {.tv_sec = 60};
    for (uint32_t rank = 1; rank < rig->size; rank++) {
        int *ends = rig->sockets[rank];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(setsockopt(ends[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)),
                             0);
        }
    }
}

/* A rank keeps its own ends only, so that the others see when it is gone. */
static void take_sockets(const rig_t *rig, uint32_t own_rank, int *sockets_out)
{
    for (uint32_t rank = 1; rank < rig->size; rank++) {
        const bool is_hub = own_rank == 0;
        close(rig->sockets[rank][is_hub ? 1 : 0]);
        if (is_hub) {
            sockets_out[rank] = rig->sockets[rank][0];
        } else if (rank == own_rank) {
            sockets_out[0] = rig->sockets[rank][1];
        } else {
            close(rig->sockets[rank][1]);
        }
    }
}

static _Noreturn void run_rank(const rig_t *rig, uint32_t rank, coll_rig_fn *fn, void *user)
{
    coll_rig_rank_t self = {.rank = rank,
                            .size = rig->size,
                            .pids = rig->pids,
                            .shared = rig->shared,
                            .user = user,
                            .exchange = {.user = &self, .all_gather = all_gather}};
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    take_sockets(rig, rank, self.sockets);
    assert_status(weft_device_open(device_name, 0, NULL, &self.device), WEFT_OK);
    assert_status(self.device->ops->open_queue(self.device, &self.queue), WEFT_OK);
    fn(&self);
    self.device->ops->close_queue(self.queue);
    weft_device_close(self.device);
    exit(0);
}

static void start_ranks(rig_t *rig, coll_rig_fn *fn, void *user)
{
    (void)fflush(NULL);
    for (uint32_t rank = 0; rank < rig->size; rank++) {
        const pid_t pid = test_fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            run_rank(rig, rank, fn, user);
        }
        rig->pids[rank] = pid;
    }
    for (uint32_t rank = 1; rank < rig->size; rank++) {
        close(rig->sockets[rank][0]);
        close(rig->sockets[rank][1]);
    }
}

/* The first that ends otherwise than it should takes the others along. */
static bool await_ranks(const rig_t *rig, uint32_t killed_mask)
{
    bool is_good = true;
    for (uint32_t n = 0; n < rig->size; n++) {
        int status;
        const pid_t pid = wait(&status);
        uint32_t rank = 0;
        while (rank < rig->size && rig->pids[rank] != pid) {
            rank++;
        }
        assert_true(rank < rig->size);
        const bool is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        const bool is_ended = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (is_good && !((killed_mask >> rank & 1) != 0 ? is_killed : is_ended)) {
            print_error("rank %u of %u: wait status 0x%x\n", rank, rig->size, (unsigned)status);
            is_good = false;
            for (uint32_t other = 0; other < rig->size; other++) {
                if (other != rank) {
                    (void)kill(rig->pids[other], SIGKILL);
                }
            }
        }
    }
    return is_good;
}

static void open_rig(rig_t *rig, uint32_t size)
{
    *rig = (rig_t){.size = size};
    assert_true(size >= 1 && size <= COLL_RIG_MAX_RANKS);
    rig->pids = mmap(NULL, PIDS_BYTES + COLL_RIG_SHARED_BYTES, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(rig->pids != MAP_FAILED);
    rig->shared = (char *)rig->pids + PIDS_BYTES;
    open_sockets(rig);
}

static bool run_rig(rig_t *rig, uint32_t killed_mask, coll_rig_fn *fn, void *user)
{
    start_ranks(rig, fn, user);
    return await_ranks(rig, killed_mask);
}

static void close_rig(rig_t *rig)
{
    munmap(rig->pids, PIDS_BYTES + COLL_RIG_SHARED_BYTES);
}

void coll_rig_run_with_deaths(uint32_t size, uint32_t killed_mask, coll_rig_fn *fn, void *user)
{
    rig_t rig;
    open_rig(&rig, size);
    const bool is_good = run_rig(&rig, killed_mask, fn, user);
    close_rig(&rig);
    assert_true(is_good);
}

void coll_rig_run(uint32_t size, coll_rig_fn *fn, void *user)
{
    coll_rig_run_with_deaths(size, 0, fn, user);
}

/* ---- backends ---------------------------------------------------------------------------------- */

static void try_backend(coll_rig_rank_t *self)
{
    const coll_config_t config = coll_rig_config(self, self->user);
    coll_t *coll = NULL;
    weft_diag_t diag = {.text = ""};
    const weft_status_t status = coll_create(&config, &diag, &coll);
    if (self->rank == 0) {
        *(int *)self->shared = status;
        (void)snprintf((char *)self->shared + sizeof(int), sizeof(diag.text), "%s", diag.text);
    }
    if (status >= 0) {
        coll_barrier(coll, self->queue);
    }
    coll_destroy(coll);
}

static bool can_be_had(const char *backend)
{
    rig_t rig;
    open_rig(&rig, 2);
    const bool has_run = run_rig(&rig, 0, try_backend, (void *)(uintptr_t)backend);
    const bool can = has_run && *(int *)(void *)rig.shared >= 0;
    if (has_run && !can) {
        print_message("skipped: %s\n", rig.shared + sizeof(int));
    }
    close_rig(&rig);
    assert_true(has_run);
    return can;
}

bool coll_rig_has_backend(const char *device, const char *backend)
{
    const char *before = device_name;
    device_name = device;
    const bool has = can_be_had(backend);
    device_name = before;
    return has;
}

static const char *const names[] = {
#define BACKEND(name, weak) #name,
#include "transport/coll/coll_backends.def"
#undef BACKEND
};

/* Asked of each once: it takes processes, on a GPU a second. */
static bool is_wanted(size_t i)
{
    static enum { UNKNOWN, THERE, MISSING } known[WEFT_ARRAY_LEN(names)];
    const char *only = getenv("WEFT_TEST_BACKEND");
    if (only != NULL && strcmp(only, names[i]) != 0) {
        return false;
    }
    if (known[i] == UNKNOWN) {
        known[i] = can_be_had(names[i]) ? THERE : MISSING;
    }
    return known[i] == THERE;
}

void coll_rig_each_backend(void (*claim)(const char *backend))
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (is_wanted(i)) {
            print_message("backend=%s\n", names[i]);
            claim(names[i]);
        }
    }
}

void coll_rig_run_each(uint32_t size, uint32_t killed_mask, coll_rig_fn *fn)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (is_wanted(i)) {
            print_message("backend=%s\n", names[i]);
            coll_rig_run_with_deaths(size, killed_mask, fn, (void *)(uintptr_t)names[i]);
        }
    }
}

/* ---- groups ------------------------------------------------------------------------------------ */

coll_config_t coll_rig_config(const coll_rig_rank_t *self, const char *backend)
{
    return (coll_config_t){.backend = backend,
                           .rank = self->rank,
                           .size = self->size,
                           .device = self->device,
                           .timeout_ns = COLL_RIG_TIMEOUT_NS,
                           .is_deterministic = true,
                           .exchange = self->exchange};
}

coll_t *coll_rig_create(const coll_rig_rank_t *self, const char *backend)
{
    const coll_config_t config = coll_rig_config(self, backend);
    coll_t *coll = NULL;
    weft_diag_t diag = {.text = ""};
    const weft_status_t status = coll_create(&config, &diag, &coll);
    if (status < 0) {
        print_error("rank %u: %s\n", self->rank, diag.text);
    }
    assert_status(status, WEFT_OK);
    return coll;
}

void coll_rig_await(const _Atomic uint32_t *word, uint32_t n)
{
    const uint64_t deadline = weft_clock_ns() + COLL_RIG_TIMEOUT_NS;
    while (atomic_load(word) < n) {
        assert_true(weft_clock_ns() < deadline);
        sched_yield();
    }
}
