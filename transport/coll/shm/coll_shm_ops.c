/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "transport/coll/coll_sum.h"
#include "transport/coll/shm/coll_shm_copy.h"
#include "transport/coll/shm/coll_shm_priv.h"

/* Of all that a rank reads: up to here each adds everything, above a part. */
#define ONE_SHOT_BYTES ((size_t)16 << 10)
/* Of an output that no cache would hold anyway. */
#define STREAMED_BYTES ((size_t)8 << 20)
/* Of a broadcast: the root writes one while the others read the one before. */
#define PIECE_BYTES ((size_t)128 << 10)

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* Of the step said last: where each rank's bytes are; this rank's own are still in `in`. */
static const void *const *find_sources(coll_shm_t *shm, bool is_tiny, size_t offset, const void *in)
{
    for (uint32_t rank = 0; rank < shm->base.config.size; rank++) {
        shm->sources[rank] = is_tiny ? coll_shm_line(shm, rank, shm->step)->data
                                     : coll_shm_slot(shm, rank, shm->step) + offset;
    }
    shm->sources[shm->base.config.rank] = in;
    return shm->sources;
}

/* Every rank reads everything: one wait, for what is small. */
static void reduce_at_once(coll_shm_t *shm, const void *in, void *out, size_t n, coll_dtype_t dtype)
{
    const size_t bytes = n * coll_dtype_bytes(dtype);
    const bool is_tiny = bytes <= COLL_SHM_TINY_BYTES;
    if (!coll_shm_begin(shm)) {
        return;
    }
    const uint32_t rank = shm->base.config.rank;
    memcpy(is_tiny ? coll_shm_line(shm, rank, shm->step + 1)->data
                   : coll_shm_slot(shm, rank, shm->step + 1),
           in, bytes);
    coll_shm_say(shm);
    if (coll_shm_await_all(shm)) {
        coll_sum(dtype, out, NULL, find_sources(shm, is_tiny, 0, in), shm->base.config.size, n);
    }
}

/* Elements before part `rank` of n, whole lines where there are enough. */
static size_t part_begin(const coll_shm_t *shm, size_t n, size_t dtype_bytes, uint32_t rank)
{
    const size_t unit = WEFT_CACHE_LINE / dtype_bytes;
    const size_t units = (n + unit - 1) / unit;
    return smaller(units * rank / shm->base.config.size * unit, n);
}

typedef void copy_fn(void *dst, const void *src, size_t bytes);

static void copy_plain(void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

/* All but this rank's part of the chunk. */
static void give_chunk(coll_shm_t *shm, const char *in, size_t begin, size_t end, size_t bytes)
{
    char *slot = coll_shm_slot(shm, shm->base.config.rank, shm->step + 1);
    memcpy(slot, in, begin);
    memcpy(slot + end, in + end, bytes - end);
    coll_shm_say(shm);
}

/* This rank's part is in its slot, too: out is written once, by one kind of copy. */
static bool take_parts(coll_shm_t *shm, char *out, size_t n, size_t width, copy_fn *copy)
{
    const uint32_t size = shm->base.config.size;
    for (uint32_t i = 0; i < size; i++) {
        const uint32_t peer = (shm->base.config.rank + i) % size;
        const size_t from = part_begin(shm, n, width, peer) * width;
        const size_t to = part_begin(shm, n, width, peer + 1) * width;
        if (!coll_shm_await(shm, peer)) {
            return false;
        }
        copy(out + from, coll_shm_slot(shm, peer, shm->step) + from, to - from);
    }
    shm->settled = shm->step;
    return true;
}

/* Each rank adds its part of the chunk of all and gathers the others' parts. */
static bool reduce_chunk(coll_shm_t *shm, const char *in, char *out, size_t n, coll_dtype_t dtype,
                         copy_fn *copy)
{
    const uint32_t rank = shm->base.config.rank;
    const size_t width = coll_dtype_bytes(dtype);
    const size_t begin = part_begin(shm, n, width, rank) * width;
    const size_t end = part_begin(shm, n, width, rank + 1) * width;
    if (!coll_shm_begin(shm)) {
        return false;
    }
    give_chunk(shm, in, begin, end, n * width);
    if (!coll_shm_await_all(shm)) {
        return false;
    }
    coll_sum(dtype, coll_shm_slot(shm, rank, shm->step + 1) + begin, NULL,
             find_sources(shm, false, begin, in + begin), shm->base.config.size,
             (end - begin) / width);
    coll_shm_say(shm);
    return take_parts(shm, out, n, width, copy);
}

static void reduce_in_chunks(coll_shm_t *shm, const char *in, char *out, size_t n,
                             coll_dtype_t dtype)
{
    const size_t width = coll_dtype_bytes(dtype);
    const size_t chunk = shm->slot_bytes / width;
    const bool is_streamed = n * width >= STREAMED_BYTES;
    bool is_good = true;
    for (size_t at = 0; is_good && at < n; at += chunk) {
        is_good = reduce_chunk(shm, in + at * width, out + at * width, smaller(n - at, chunk),
                               dtype, is_streamed ? coll_shm_stream : copy_plain);
    }
    if (is_streamed) {
        coll_shm_stream_end();
    }
}

void coll_shm_all_reduce(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                         coll_dtype_t dtype)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    const size_t bytes = n * coll_dtype_bytes(dtype);
    (void)queue;
    if (coll->config.size == 1) {
        memmove(out, in, bytes);
    } else if (bytes <= smaller(ONE_SHOT_BYTES / (coll->config.size - 1), shm->slot_bytes)) {
        reduce_at_once(shm, in, out, n, dtype);
    } else {
        reduce_in_chunks(shm, in, out, n, dtype);
    }
}

/* Elements at … at + n of every part. */
static bool scatter_chunk(coll_shm_t *shm, const char *in, char *out, size_t part, size_t at,
                          size_t n, coll_dtype_t dtype)
{
    const uint32_t size = shm->base.config.size;
    const uint32_t rank = shm->base.config.rank;
    const size_t width = coll_dtype_bytes(dtype);
    if (!coll_shm_begin(shm)) {
        return false;
    }
    char *slot = coll_shm_slot(shm, rank, shm->step + 1);
    for (uint32_t peer = 0; peer < size; peer++) {
        if (peer != rank) {
            memcpy(slot + peer * n * width, in + (peer * part + at) * width, n * width);
        }
    }
    coll_shm_say(shm);
    if (!coll_shm_await_all(shm)) {
        return false;
    }
    coll_sum(dtype, out + at * width, NULL,
             find_sources(shm, false, rank * n * width, in + (rank * part + at) * width), size, n);
    return true;
}

void coll_shm_reduce_scatter(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                             coll_dtype_t dtype)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    const size_t chunk = shm->slot_bytes / coll->config.size / coll_dtype_bytes(dtype);
    (void)queue;
    if (coll->config.size == 1) {
        memmove(out, in, n * coll_dtype_bytes(dtype));
        return;
    }
    for (size_t at = 0; at < n; at += chunk) {
        if (!scatter_chunk(shm, in, out, n, at, smaller(n - at, chunk), dtype)) {
            return;
        }
    }
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* What this rank gives in the next step: in its line when that is all, else in its slot. */
static char *place(coll_shm_t *shm, uint32_t rank, uint32_t step, size_t bytes)
{
    return bytes <= COLL_SHM_TINY_BYTES ? coll_shm_line(shm, rank, step)->data
                                        : coll_shm_slot(shm, rank, step);
}

static bool gather_chunk(coll_shm_t *shm, const char *in, char *out, size_t stride, size_t bytes)
{
    const uint32_t size = shm->base.config.size;
    const uint32_t rank = shm->base.config.rank;
    if (!coll_shm_begin(shm)) {
        return false;
    }
    memcpy(place(shm, rank, shm->step + 1, bytes), in, bytes);
    coll_shm_say(shm);
    memmove(out + rank * stride, in, bytes);
    for (uint32_t i = 1; i < size; i++) {
        const uint32_t peer = (rank + i) % size;
        if (!coll_shm_await(shm, peer)) {
            return false;
        }
        memcpy(out + peer * stride, place(shm, peer, shm->step, bytes), bytes);
    }
    shm->settled = shm->step;
    return true;
}

void coll_shm_all_gather(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t bytes)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    (void)queue;
    for (size_t at = 0; at < bytes; at += shm->slot_bytes) {
        if (!gather_chunk(shm, (const char *)in + at, (char *)out + at, bytes,
                          smaller(bytes - at, shm->slot_bytes))) {
            return;
        }
    }
}

static bool broadcast_chunk(coll_shm_t *shm, char *buffer, size_t bytes, uint32_t root)
{
    const bool is_root = shm->base.config.rank == root;
    if (!coll_shm_begin(shm)) {
        return false;
    }
    if (is_root) {
        memcpy(place(shm, root, shm->step + 1, bytes), buffer, bytes);
    }
    coll_shm_say(shm);
    if (!is_root) {
        if (!coll_shm_await(shm, root)) {
            return false;
        }
        memcpy(buffer, place(shm, root, shm->step, bytes), bytes);
    }
    return true;
}

void coll_shm_broadcast(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes,
                        uint32_t root)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    const size_t piece = smaller(PIECE_BYTES, shm->slot_bytes);
    (void)queue;
    for (size_t at = 0; at < bytes; at += piece) {
        if (!broadcast_chunk(shm, (char *)buffer + at, smaller(bytes - at, piece), root)) {
            return;
        }
    }
}

void coll_shm_barrier(coll_t *coll, weft_queue_t *queue)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    (void)queue;
    if (coll_shm_begin(shm)) {
        coll_shm_say(shm);
        (void)coll_shm_await_all(shm);
    }
}
