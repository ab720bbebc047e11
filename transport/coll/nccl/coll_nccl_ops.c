/* SPDX-License-Identifier: Apache-2.0 */
/* Every operation: count up, ask NCCL, add where we add, count up. */
#include "base/device_cuda.h"
#include "kernels/cuda/ranks/cuda_ranks.h"
#include "transport/coll/coll_sum.h"
#include "transport/coll/nccl/coll_nccl_priv.h"

#define VECTOR_BYTES ((size_t)16)
#define WHOLE_BYTES  ((size_t)1 << 20) /* of all ranks, up to which everyone adds everything */

/* An operation on its way; lives in its function. */
typedef struct call {
    coll_nccl_t *group;
    const nccl_functions_t *nccl;
    void *stream;
    uint32_t size;
    uint32_t rank;
    bool is_good;
    bool is_in_group; /* between ncclGroupStart and ncclGroupEnd */
} call_t;

/* ---- around an operation ---------------------------------------------------------------------- */

static void note(call_t *call, int error, const char *what)
{
    if (!weft_device_cuda_note(call->group->base.config.device, error, what)) {
        (void)coll_fail(&call->group->base, WEFT_ERR_DEVICE, call->rank);
        call->is_good = false;
    }
}

static void check(call_t *call, int result, const char *what)
{
    call->is_good = call->is_good && coll_nccl_settle(call->group, result, what);
}

/* Takes the lock, which end_call gives back. */
static call_t begin_call(coll_t *coll, weft_queue_t *queue)
{
    coll_nccl_t *group = (coll_nccl_t *)coll;
    call_t call = {.group = group,
                   .nccl = group->nccl,
                   .stream = weft_device_cuda_stream(queue),
                   .size = coll->config.size,
                   .rank = coll->config.rank};
    coll_nccl_counts_t *told = group->told.addr;
    (void)weft_device_cuda_use(coll->config.device);
    pthread_mutex_lock(&group->lock);
    call.is_good = group->comm != NULL;
    if (call.is_good) {
        note(&call, cuda_ranks_count(&coll_nccl_counts(group)->begun, &told->begun, call.stream),
             "count");
    }
    return call;
}

static void end_call(call_t *call)
{
    coll_nccl_counts_t *told = call->group->told.addr;
    if (call->is_good) {
        note(call,
             cuda_ranks_count(&coll_nccl_counts(call->group)->ended, &told->ended, call->stream),
             "count");
    }
    pthread_mutex_unlock(&call->group->lock);
}

/* ---- sums in rank order ------------------------------------------------------------------------ */

/* Rank's share of `count` elements, all of which but the last ones are whole vectors. */
typedef struct share {
    size_t at;
    size_t n;
} share_t;

static size_t share_length(size_t count, uint32_t size, size_t width)
{
    const size_t unit = VECTOR_BYTES / width;
    return ((count + size - 1) / size + unit - 1) / unit * unit;
}

static share_t share_of(size_t count, size_t length, uint32_t rank)
{
    const size_t at = rank * length < count ? rank * length : count;
    return (share_t){.at = at, .n = length < count - at ? length : count - at};
}

static void begin_group(call_t *call)
{
    if (call->is_good) {
        const int result = call->nccl->ncclGroupStart();
        call->is_in_group = result == NCCL_SUCCESS;
        check(call, result, "ncclGroupStart");
    }
}

/* A group that was begun has to end, whatever happened in it. */
static void end_group(call_t *call)
{
    if (call->is_in_group) {
        const int result = call->nccl->ncclGroupEnd();
        call->is_in_group = false;
        check(call, result, "ncclGroupEnd");
    }
}

/* Within a group nothing is in progress yet. */
static void put(call_t *call, uint32_t to, const void *data, size_t bytes)
{
    if (call->is_good && bytes > 0) {
        const int result =
            call->nccl->ncclSend(data, bytes, NCCL_BYTE, (int)to, call->group->comm, call->stream);
        check(call, result == NCCL_IN_PROGRESS ? NCCL_SUCCESS : result, "ncclSend");
    }
}

static void get(call_t *call, uint32_t from, void *out, size_t bytes)
{
    if (call->is_good && bytes > 0) {
        const int result =
            call->nccl->ncclRecv(out, bytes, NCCL_BYTE, (int)from, call->group->comm, call->stream);
        check(call, result == NCCL_IN_PROGRESS ? NCCL_SUCCESS : result, "ncclRecv");
    }
}

/* What lies in the scratch memory, stride bytes apart, to out [n]. */
static void add_up(call_t *call, size_t stride, void *out, size_t n, coll_dtype_t dtype)
{
    if (call->is_good && n > 0) {
        note(call,
             cuda_ranks_sum(call->group->scratch.addr, call->size, stride, out, n,
                            (cuda_ranks_dtype_t)dtype, call->stream),
             "sum");
    }
}

static void gather(call_t *call, const void *in, void *out, size_t bytes)
{
    if (call->is_good) {
        const int result =
            call->nccl->ncclAllGather(in, out, bytes, NCCL_BYTE, call->group->comm, call->stream);
        check(call, result, "ncclAllGather");
    }
}

/* Each rank's share of the piece goes to it, is added there and comes back to all. */
static void reduce_piece(call_t *call, const char *in, char *out, size_t count, coll_dtype_t dtype)
{
    const size_t width = coll_dtype_bytes(dtype);
    const size_t length = share_length(count, call->size, width);
    const share_t own = share_of(count, length, call->rank);
    char *scratch = call->group->scratch.addr;
    begin_group(call);
    for (uint32_t rank = 0; rank < call->size; rank++) {
        const share_t share = share_of(count, length, rank);
        put(call, rank, in + share.at * width, share.n * width);
        get(call, rank, scratch + rank * length * width, own.n * width);
    }
    end_group(call);
    add_up(call, length * width, out + own.at * width, own.n, dtype);
    begin_group(call);
    for (uint32_t rank = 0; rank < call->size; rank++) {
        const share_t share = share_of(count, length, rank);
        if (rank != call->rank) {
            put(call, rank, out + own.at * width, own.n * width);
            get(call, rank, out + share.at * width, share.n * width);
        }
    }
    end_group(call);
}

static void reduce_in_order(call_t *call, const char *in, char *out, size_t n, coll_dtype_t dtype)
{
    const size_t width = coll_dtype_bytes(dtype);
    if (n * width * call->size <= WHOLE_BYTES) {
        gather(call, in, call->group->scratch.addr, n * width);
        add_up(call, n * width, out, n, dtype);
        return;
    }
    /* So many that every rank's share fits, whole vectors of it. */
    const size_t share = COLL_NCCL_SCRATCH_BYTES / call->size / VECTOR_BYTES * VECTOR_BYTES / width;
    const size_t piece = share * call->size;
    for (size_t done = 0; call->is_good && done < n; done += piece) {
        reduce_piece(call, in + done * width, out + done * width,
                     n - done < piece ? n - done : piece, dtype);
    }
}

static void scatter_in_order(call_t *call, const char *in, char *out, size_t n, coll_dtype_t dtype)
{
    const size_t width = coll_dtype_bytes(dtype);
    const size_t piece = COLL_NCCL_SCRATCH_BYTES / call->size / VECTOR_BYTES * VECTOR_BYTES / width;
    char *scratch = call->group->scratch.addr;
    for (size_t done = 0; call->is_good && done < n; done += piece) {
        const size_t count = n - done < piece ? n - done : piece;
        begin_group(call);
        for (uint32_t rank = 0; rank < call->size; rank++) {
            put(call, rank, in + (rank * n + done) * width, count * width);
            get(call, rank, scratch + rank * piece * width, count * width);
        }
        end_group(call);
        add_up(call, piece * width, out + done * width, count, dtype);
    }
}

/* ---- operations ------------------------------------------------------------------------------- */

static int type_of(coll_dtype_t dtype)
{
    return dtype == COLL_F32 ? NCCL_F32 : dtype == COLL_F16 ? NCCL_F16 : NCCL_BF16;
}

void coll_nccl_all_reduce(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                          coll_dtype_t dtype)
{
    call_t call = begin_call(coll, queue);
    if (coll->config.is_deterministic) {
        reduce_in_order(&call, in, out, n, dtype);
    } else if (call.is_good) {
        const int result = call.nccl->ncclAllReduce(in, out, n, type_of(dtype), NCCL_SUM,
                                                    call.group->comm, call.stream);
        check(&call, result, "ncclAllReduce");
    }
    end_call(&call);
}

void coll_nccl_reduce_scatter(coll_t *coll, weft_queue_t *queue, const void *in, void *out,
                              size_t n, coll_dtype_t dtype)
{
    call_t call = begin_call(coll, queue);
    if (coll->config.is_deterministic) {
        scatter_in_order(&call, in, out, n, dtype);
    } else if (call.is_good) {
        const int result = call.nccl->ncclReduceScatter(in, out, n, type_of(dtype), NCCL_SUM,
                                                        call.group->comm, call.stream);
        check(&call, result, "ncclReduceScatter");
    }
    end_call(&call);
}

void coll_nccl_all_gather(coll_t *coll, weft_queue_t *queue, const void *in, void *out,
                          size_t bytes)
{
    call_t call = begin_call(coll, queue);
    gather(&call, in, out, bytes);
    end_call(&call);
}

void coll_nccl_broadcast(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes,
                         uint32_t root)
{
    call_t call = begin_call(coll, queue);
    if (call.is_good) {
        const int result = call.nccl->ncclBroadcast(buffer, buffer, bytes, NCCL_BYTE, (int)root,
                                                    call.group->comm, call.stream);
        check(&call, result, "ncclBroadcast");
    }
    end_call(&call);
}

void coll_nccl_barrier(coll_t *coll, weft_queue_t *queue)
{
    call_t call = begin_call(coll, queue);
    uint32_t *words = coll_nccl_barrier_words(call.group);
    gather(&call, words + call.rank, words, sizeof(*words));
    end_call(&call);
}

void coll_nccl_send(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data, size_t bytes)
{
    call_t call = begin_call(coll, queue);
    begin_group(&call);
    put(&call, to, data, bytes);
    end_group(&call);
    end_call(&call);
}

void coll_nccl_receive(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out, size_t bytes)
{
    call_t call = begin_call(coll, queue);
    begin_group(&call);
    get(&call, from, out, bytes);
    end_group(&call);
    end_call(&call);
}
