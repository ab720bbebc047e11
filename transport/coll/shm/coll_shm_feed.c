/* SPDX-License-Identifier: Apache-2.0 */
/* The feed: a ring that rank 0 writes and every other rank reads, each at its own place. */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/coll/shm/coll_shm_priv.h"

#define PAGE_BYTES   ((size_t)4096)
#define HOT_LOOKS    1000                  /* before the first look at the clock */
#define AWAKE_NS     (50 * UINT64_C(1000)) /* of yielding before sleeping */
#define FIRST_NAP_NS WEFT_NS_PER_MS
#define MAX_NAP_NS   (16 * WEFT_NS_PER_MS) /* after which the peer is looked at again */

typedef struct counter {
    _Alignas(WEFT_CACHE_LINE) atomic_uint n;
} counter_t;

typedef struct message {
    _Alignas(WEFT_CACHE_LINE) size_t bytes;
    _Alignas(WEFT_CACHE_LINE) char data[];
} message_t;

/* In the segment, before the ring. */
typedef struct ring_head {
    counter_t sent;     /* released by send, acquired by receive */
    counter_t n_asleep; /* of writer and readers together */
    counter_t taken[];  /* [size] messages that a reader has received; rank 0's is unused */
} ring_head_t;

typedef struct shm_feed {
    coll_feed_t base;
    ring_head_t *head;
    char *ring;
    uint32_t n_messages; /* in the ring, a power of two above depth: a reader holds one, too */
    size_t message_bytes;
    size_t max_bytes;
    size_t mapped_bytes;
    uint32_t depth;
    uint32_t n; /* sent or received */
} shm_feed_t;

extern const coll_feed_ops_t coll_shm_feed_ops;

static coll_shm_t *shm_of(const shm_feed_t *feed)
{
    return (coll_shm_t *)feed->base.coll;
}

static message_t *message_at(const shm_feed_t *feed, uint32_t n)
{
    return (message_t *)(void *)(feed->ring + n % feed->n_messages * feed->message_bytes);
}

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

static uint32_t power_above(uint32_t n)
{
    uint32_t power = 2;
    while (power <= n) {
        power *= 2;
    }
    return power;
}

/* ---- waiting --------------------------------------------------------------------------------- */

static bool has_come(atomic_uint *word, uint32_t target)
{
    return (int32_t)(atomic_load(word) - target) >= 0;
}

static void publish(shm_feed_t *feed, atomic_uint *word, uint32_t n)
{
    atomic_store(word, n); /* in one order with n_asleep, against nap */
    if (atomic_load(&feed->head->n_asleep.n) != 0) {
        (void)syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    }
}

static void nap(shm_feed_t *feed, atomic_uint *word, uint32_t target, uint64_t ns)
{
    const struct timespec limit = {.tv_nsec = (long)ns};
    atomic_fetch_add(&feed->head->n_asleep.n, 1);
    const uint32_t seen = atomic_load(word);
    if ((int32_t)(seen - target) < 0) {
        (void)syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
    }
    atomic_fetch_sub(&feed->head->n_asleep.n, 1);
}

/* WEFT_ERR_PEER_GONE: the group has failed, rank's death included. */
static weft_status_t check(shm_feed_t *feed, atomic_uint *word, uint32_t target, uint32_t rank)
{
    coll_shm_t *shm = shm_of(feed);
    if (!coll_shm_has_failed(shm) && !coll_shm_is_alive(shm, rank) && !has_come(word, target)) {
        coll_shm_fail(shm, WEFT_ERR_PEER_GONE, rank);
    }
    return coll_has_failed(feed->base.coll) ? WEFT_ERR_PEER_GONE : WEFT_OK;
}

/* Until *word has come to target; WEFT_ERR_TIMEOUT at limit_ns from now. */
static weft_status_t await(shm_feed_t *feed, atomic_uint *word, uint32_t target, uint32_t rank,
                           uint64_t limit_ns)
{
    for (uint32_t i = 0; i < HOT_LOOKS && !has_come(word, target); i++) {
        weft_cpu_relax();
    }
    const uint64_t since = weft_clock_ns();
    uint64_t nap_ns = FIRST_NAP_NS;
    while (!has_come(word, target)) {
        const uint64_t waited = weft_clock_ns() - since;
        if (coll_has_failed(feed->base.coll)) {
            return WEFT_ERR_PEER_GONE;
        }
        if (waited >= limit_ns) {
            return WEFT_ERR_TIMEOUT;
        }
        if (waited < AWAKE_NS) {
            sched_yield();
            continue;
        }
        nap(feed, word, target, nap_ns < limit_ns - waited ? nap_ns : limit_ns - waited);
        nap_ns = nap_ns < MAX_NAP_NS ? 2 * nap_ns : MAX_NAP_NS;
        const weft_status_t status = check(feed, word, target, rank);
        if (status < 0) {
            return status;
        }
    }
    return WEFT_OK;
}

/* ---- operations ------------------------------------------------------------------------------ */

static void feed_close(coll_feed_t *base)
{
    shm_feed_t *feed = (shm_feed_t *)base;
    if (feed->head != NULL) {
        munmap(feed->head, feed->mapped_bytes);
    }
    weft_free(feed);
}

/* What fails on one rank fails on all. */
static weft_status_t agree(coll_t *coll, weft_status_t mine, weft_diag_t *diag)
{
    int32_t status = mine;
    int32_t *all = weft_calloc(coll->config.size, sizeof(*all), "coll.shm.feed");
    if (all == NULL) {
        coll_shm_fail((coll_shm_t *)coll, WEFT_ERR_NO_MEMORY, coll->config.rank);
        return WEFT_ERR_NO_MEMORY;
    }
    coll_shm_all_gather(coll, NULL, &status, all, sizeof(status));
    const weft_status_t failure = coll_status(coll, NULL);
    for (uint32_t rank = 0; failure >= 0 && status >= 0 && rank < coll->config.size; rank++) {
        if (all[rank] < 0) {
            status = weft_diag(diag, (weft_status_t)all[rank], "shm: rank %u has no feed: %s", rank,
                               weft_strerror((weft_status_t)all[rank]));
        }
    }
    weft_free(all);
    return failure < 0 ? failure : (weft_status_t)status;
}

/* The same on all ranks. */
static weft_status_t check_size(const coll_shm_t *shm, size_t max_bytes, uint32_t depth,
                                weft_diag_t *diag)
{
    if (depth > COLL_SHM_MAX_DEPTH || max_bytes > COLL_SHM_MAX_MESSAGE ||
        (power_above(depth) + 1) * (sizeof(message_t) + max_bytes + PAGE_BYTES) >
            coll_shm_feeds_left(shm)) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "shm: a feed of %u messages of %zu bytes", depth,
                         max_bytes);
    }
    return WEFT_OK;
}

static weft_status_t make_feed(coll_shm_t *shm, size_t max_bytes, uint32_t depth, weft_diag_t *diag,
                               shm_feed_t **feed_out)
{
    const size_t head_bytes = sizeof(ring_head_t) + shm->base.config.size * sizeof(counter_t);
    const size_t message_bytes = sizeof(message_t) + round_up(max_bytes, WEFT_CACHE_LINE);
    const uint32_t n_messages = power_above(depth);
    const size_t bytes = round_up(head_bytes + n_messages * message_bytes, PAGE_BYTES);
    const size_t offset = shm->feed_offset;
    shm->feed_offset += bytes; /* also when it cannot be mapped: as on the other ranks */
    shm_feed_t *feed = weft_zalloc(sizeof(*feed), "coll.shm.feed");
    if (feed == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *feed = (shm_feed_t){.base = {.ops = &coll_shm_feed_ops, .coll = &shm->base},
                         .head = coll_shm_map(shm, offset, bytes),
                         .n_messages = n_messages,
                         .message_bytes = message_bytes,
                         .max_bytes = max_bytes,
                         .mapped_bytes = bytes,
                         .depth = depth};
    if (feed->head == NULL) {
        weft_free(feed);
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "shm: %zu bytes cannot be mapped: %s", bytes,
                         strerror(errno));
    }
    feed->ring = (char *)feed->head + head_bytes;
    *feed_out = feed;
    return WEFT_OK;
}

static weft_status_t feed_open(coll_t *coll, size_t max_bytes, uint32_t depth, weft_diag_t *diag,
                               coll_feed_t **feed_out)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    shm_feed_t *feed = NULL;
    weft_status_t status = check_size(shm, max_bytes, depth, diag);
    if (status < 0) {
        return status;
    }
    status = agree(coll, make_feed(shm, max_bytes, depth, diag, &feed), diag);
    if (status < 0) {
        if (feed != NULL) {
            feed_close(&feed->base);
        }
        return status;
    }
    *feed_out = &feed->base;
    return WEFT_OK;
}

static void *feed_begin(coll_feed_t *base)
{
    shm_feed_t *feed = (shm_feed_t *)base;
    for (uint32_t rank = 1; rank < base->coll->config.size; rank++) {
        const weft_status_t status =
            await(feed, &feed->head->taken[rank].n, feed->n + 1 - feed->depth, rank,
                  base->coll->config.timeout_ns);
        if (status == WEFT_ERR_TIMEOUT) {
            coll_shm_fail(shm_of(feed), WEFT_ERR_TIMEOUT, rank);
        }
        if (status < 0) {
            return NULL;
        }
    }
    return message_at(feed, feed->n)->data;
}

static weft_status_t feed_send(coll_feed_t *base, size_t bytes)
{
    shm_feed_t *feed = (shm_feed_t *)base;
    if (bytes > feed->max_bytes) {
        return WEFT_ERR_TOO_LARGE;
    }
    message_at(feed, feed->n)->bytes = bytes;
    publish(feed, &feed->head->sent.n, ++feed->n);
    return WEFT_OK;
}

static weft_status_t feed_receive(coll_feed_t *base, int timeout_ms, const void **message_out,
                                  size_t *bytes_out)
{
    shm_feed_t *feed = (shm_feed_t *)base;
    const uint64_t limit_ns = timeout_ms < 0 ? UINT64_MAX : (uint64_t)timeout_ms * WEFT_NS_PER_MS;
    if (coll_has_failed(base->coll)) {
        return WEFT_ERR_PEER_GONE;
    }
    const weft_status_t status = await(feed, &feed->head->sent.n, feed->n + 1, 0, limit_ns);
    if (status < 0) {
        return status;
    }
    const message_t *message = message_at(feed, feed->n);
    publish(feed, &feed->head->taken[base->coll->config.rank].n, ++feed->n);
    *message_out = message->data;
    *bytes_out = message->bytes;
    return WEFT_OK;
}

const coll_feed_ops_t coll_shm_feed_ops = {
    .open = feed_open,
    .close = feed_close,
    .begin = feed_begin,
    .send = feed_send,
    .receive = feed_receive,
};
