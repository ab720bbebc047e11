/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A test double of libnccl.so.2 for ranks that run on the emulation of a GPU, each a process. What an
 * operation moves goes through a file that all map, by a host function in the stream; sums are added
 * from the last rank to the first, so that they show. Nothing here is fast or on a device.
 *
 * FAKE_NCCL in the environment: "old": the version before the oldest that works; "refuse": no communicator
 * can be made; "remote": the communicator fails when it has begun an operation.
 */
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "transport/coll/nccl/coll_nccl_library.h"

#define MAX_RANKS     8
#define CHUNK_BYTES   ((size_t)256 << 10)
#define MAX_TRANSFERS 64
#define VERSION       23007

enum { INVALID_USAGE = 5 };

/* From one rank to another, a chunk at a time. */
typedef struct mailbox {
    _Atomic uint64_t sent; /* chunks */
    _Atomic uint64_t taken;
    char chunk[CHUNK_BYTES];
} mailbox_t;

typedef struct shared {
    _Atomic int n_here;
    mailbox_t boxes[MAX_RANKS][MAX_RANKS]; /* [from][to] */
} shared_t;

struct nccl_comm {
    shared_t *shared;
    int size;
    int rank;
    atomic_bool is_aborted;
    atomic_bool has_begun;
    struct operation *operations; /* of this communicator, freed with it: graphs run them again */
};

typedef struct transfer {
    bool is_send;
    int peer;
    char *data;
    size_t bytes;
    size_t done;
} transfer_t;

/* What follows the transfers. */
typedef struct sum {
    float *out; /* NULL: nothing */
    char *parts;
    size_t n;
} sum_t;

typedef struct operation {
    nccl_comm_t *comm;
    cudaStream_t stream;
    transfer_t transfers[MAX_TRANSFERS];
    int n;
    sum_t sum;
    struct operation *next;
} operation_t;

static operation_t *group; /* being put together */
static int depth;

static bool is_asked(const char *what)
{
    const char *asked = getenv("FAKE_NCCL");
    return asked != NULL && strcmp(asked, what) == 0;
}

/* ---- running ----------------------------------------------------------------------------------- */

static bool move_chunk(nccl_comm_t *comm, transfer_t *transfer)
{
    mailbox_t *box = transfer->is_send ? &comm->shared->boxes[comm->rank][transfer->peer]
                                       : &comm->shared->boxes[transfer->peer][comm->rank];
    const bool is_full = atomic_load(&box->sent) != atomic_load(&box->taken);
    const size_t left = transfer->bytes - transfer->done;
    const size_t n = left < CHUNK_BYTES ? left : CHUNK_BYTES;
    if (is_full == transfer->is_send) {
        return false;
    }
    if (transfer->is_send) {
        memcpy(box->chunk, transfer->data + transfer->done, n);
        atomic_fetch_add(&box->sent, 1);
    } else {
        memcpy(transfer->data + transfer->done, box->chunk, n);
        atomic_fetch_add(&box->taken, 1);
    }
    transfer->done += n;
    return true;
}

/* To and from one peer in the order of the calls: only the first that is not done moves. */
static bool is_next(const operation_t *operation, int i)
{
    const transfer_t *one = &operation->transfers[i];
    for (int before = 0; before < i; before++) {
        const transfer_t *other = &operation->transfers[before];
        if (other->peer == one->peer && other->is_send == one->is_send &&
            other->done < other->bytes) {
            return false;
        }
    }
    return one->done < one->bytes;
}

static void add_backwards(const sum_t *sum, int size)
{
    for (size_t i = 0; i < sum->n; i++) {
        float total = 0;
        for (int rank = size - 1; rank >= 0; rank--) {
            total += ((const float *)(void *)sum->parts)[(size_t)rank * sum->n + i];
        }
        sum->out[i] = total;
    }
}

static void run(void *user)
{
    operation_t *operation = user;
    nccl_comm_t *comm = operation->comm;
    bool is_done = false;
    atomic_store(&comm->has_begun, true);
    for (int i = 0; i < operation->n; i++) {
        operation->transfers[i].done = 0;
    }
    while (!is_done && !atomic_load(&comm->is_aborted)) {
        is_done = true;
        for (int i = 0; i < operation->n; i++) {
            if (is_next(operation, i)) {
                (void)move_chunk(comm, &operation->transfers[i]);
                is_done = false;
            }
        }
        sched_yield();
    }
    if (operation->sum.out != NULL && is_done) {
        add_backwards(&operation->sum, comm->size);
    }
}

static int enqueue(operation_t *operation)
{
    return cudaLaunchHostFunc(operation->stream, run, operation) == cudaSuccess ? NCCL_IN_PROGRESS
                                                                                : 1;
}

/* ---- putting together ---------------------------------------------------------------------------- */

static operation_t *open_operation(nccl_comm_t *comm, void *stream)
{
    if (group != NULL) {
        return group;
    }
    operation_t *operation = calloc(1, sizeof(*operation));
    operation->comm = comm;
    operation->stream = stream;
    operation->next = comm->operations;
    comm->operations = operation;
    if (depth > 0) {
        group = operation;
    }
    return operation;
}

static int close_operation(operation_t *operation)
{
    return depth > 0 ? NCCL_SUCCESS : enqueue(operation);
}

static void add(operation_t *operation, bool is_send, int peer, void *data, size_t bytes)
{
    if (operation->n == MAX_TRANSFERS) {
        fprintf(stderr, "fake_nccl: more than %d transfers in a group\n", MAX_TRANSFERS);
        abort();
    }
    operation->transfers[operation->n++] =
        (transfer_t){.is_send = is_send, .peer = peer, .data = data, .bytes = bytes};
}

static size_t width_of(int type)
{
    return type == NCCL_BYTE ? 1 : type == NCCL_F32 ? 4 : 2;
}

/* From everyone, this rank's own among them: part p of parts is rank p's. */
static void gather(operation_t *operation, const char *in, size_t stride, char *parts, size_t bytes)
{
    for (int peer = 0; peer < operation->comm->size; peer++) {
        add(operation, true, peer, (char *)(uintptr_t)in + (size_t)peer * stride, bytes);
        add(operation, false, peer, parts + (size_t)peer * bytes, bytes);
    }
}

/* ---- the library --------------------------------------------------------------------------------- */

#define EXPORT                         __attribute__((visibility("default")))
#define NCCL_FUNCTION(name, arguments) EXPORT int name arguments;
#include "transport/coll/nccl/coll_nccl_functions.def"
#undef NCCL_FUNCTION
EXPORT const char *ncclGetErrorString(int result);
EXPORT const char *ncclGetLastError(nccl_comm_t *comm);

int ncclGetVersion(int *version)
{
    *version = is_asked("old") ? 21210 : VERSION;
    return NCCL_SUCCESS;
}

const char *ncclGetErrorString(int result)
{
    return result == INVALID_USAGE ? "invalid usage" : "an error of the test double";
}

const char *ncclGetLastError(nccl_comm_t *comm)
{
    (void)comm;
    return "the test double was told to fail";
}

int ncclGetUniqueId(nccl_id_t *id)
{
    static atomic_int n_made;
    memset(id, 0, sizeof(*id));
    (void)snprintf(id->bytes, sizeof(id->bytes), "/fake_nccl.%d.%d", (int)getpid(),
                   atomic_fetch_add(&n_made, 1));
    const int fd = shm_open(id->bytes, O_RDWR | O_CREAT | O_EXCL, 0600);
    const bool is_made = fd >= 0 && ftruncate(fd, (off_t)sizeof(shared_t)) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return is_made ? NCCL_SUCCESS : 2;
}

int ncclCommInitRankConfig(nccl_comm_t **comm_out, int size, nccl_id_t id, int rank,
                           nccl_config_t *config)
{
    if (is_asked("refuse") || size > MAX_RANKS || config->magic != NCCL_CONFIG_MAGIC ||
        config->is_blocking != 0) {
        *comm_out = NULL;
        (void)shm_unlink(id.bytes);
        return INVALID_USAGE;
    }
    const int fd = shm_open(id.bytes, O_RDWR, 0600);
    void *at = fd < 0 ? MAP_FAILED
                      : mmap(NULL, sizeof(shared_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) {
        close(fd);
    }
    if (at == MAP_FAILED) {
        return 2;
    }
    nccl_comm_t *comm = calloc(1, sizeof(*comm));
    comm->shared = at;
    comm->size = size;
    comm->rank = rank;
    if (atomic_fetch_add(&comm->shared->n_here, 1) == size - 1) {
        (void)shm_unlink(id.bytes);
    }
    *comm_out = comm;
    return NCCL_IN_PROGRESS;
}

int ncclCommGetAsyncError(nccl_comm_t *comm, int *error)
{
    *error = atomic_load(&comm->shared->n_here) < comm->size ? NCCL_IN_PROGRESS : NCCL_SUCCESS;
    if (is_asked("remote") && atomic_load(&comm->has_begun)) {
        *error = NCCL_REMOTE_ERROR;
    }
    return NCCL_SUCCESS;
}

int ncclCommFinalize(nccl_comm_t *comm)
{
    return cudaDeviceSynchronize() == cudaSuccess && comm != NULL ? NCCL_SUCCESS : 1;
}

int ncclCommDestroy(nccl_comm_t *comm)
{
    while (comm->operations != NULL) {
        operation_t *operation = comm->operations;
        comm->operations = operation->next;
        free(operation->sum.parts);
        free(operation);
    }
    munmap(comm->shared, sizeof(shared_t));
    free(comm);
    return NCCL_SUCCESS;
}

/* What waits returns; its memory stays, since it may still be on its way out. */
int ncclCommAbort(nccl_comm_t *comm)
{
    atomic_store(&comm->is_aborted, true);
    return NCCL_SUCCESS;
}

int ncclGroupStart(void)
{
    depth++;
    return NCCL_SUCCESS;
}

int ncclGroupEnd(void)
{
    operation_t *operation = group;
    depth--;
    if (depth > 0 || operation == NULL) {
        return NCCL_SUCCESS;
    }
    group = NULL;
    return enqueue(operation);
}

int ncclSend(const void *data, size_t n, int type, int to, nccl_comm_t *comm, void *stream)
{
    operation_t *operation = open_operation(comm, stream);
    add(operation, true, to, (void *)(uintptr_t)data, n * width_of(type));
    return close_operation(operation);
}

int ncclRecv(void *out, size_t n, int type, int from, nccl_comm_t *comm, void *stream)
{
    operation_t *operation = open_operation(comm, stream);
    add(operation, false, from, out, n * width_of(type));
    return close_operation(operation);
}

int ncclAllGather(const void *in, void *out, size_t n, int type, nccl_comm_t *comm, void *stream)
{
    operation_t *operation = open_operation(comm, stream);
    gather(operation, in, 0, out, n * width_of(type));
    return close_operation(operation);
}

int ncclBroadcast(const void *in, void *out, size_t n, int type, int root, nccl_comm_t *comm,
                  void *stream)
{
    operation_t *operation = open_operation(comm, stream);
    const size_t bytes = n * width_of(type);
    for (int peer = 0; comm->rank == root && peer < comm->size; peer++) {
        if (peer != root) {
            add(operation, true, peer, (void *)(uintptr_t)in, bytes);
        }
    }
    if (comm->rank != root) {
        add(operation, false, root, out, bytes);
    }
    return close_operation(operation);
}

/* f32 alone: what the test of other orders uses. */
static int reduce(const void *in, size_t stride, void *out, size_t n, int type, nccl_comm_t *comm,
                  void *stream)
{
    operation_t *operation = open_operation(comm, stream);
    if (type != NCCL_F32) {
        return INVALID_USAGE;
    }
    operation->sum =
        (sum_t){.out = out, .parts = malloc((size_t)comm->size * n * sizeof(float)), .n = n};
    gather(operation, in, stride, operation->sum.parts, n * sizeof(float));
    return close_operation(operation);
}

int ncclAllReduce(const void *in, void *out, size_t n, int type, int op, nccl_comm_t *comm,
                  void *stream)
{
    return op == NCCL_SUM ? reduce(in, 0, out, n, type, comm, stream) : INVALID_USAGE;
}

int ncclReduceScatter(const void *in, void *out, size_t n, int type, int op, nccl_comm_t *comm,
                      void *stream)
{
    return op == NCCL_SUM ? reduce(in, n * sizeof(float), out, n, type, comm, stream)
                          : INVALID_USAGE;
}
