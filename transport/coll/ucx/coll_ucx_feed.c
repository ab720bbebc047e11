/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The feed. A reader has a receive waiting for each of the next `depth` messages, where they will be
 * read: so no message comes unexpected, and none is copied. It says with each how many it has taken;
 * the writer listens to that only when it would be `depth` ahead.
 */
#include "base/alloc.h"
#include "base/clock.h"
#include "transport/coll/ucx/coll_ucx_priv.h"

#define MESSAGE_ALIGN 64

/* How many messages a reader has taken: as it said last, and where the next such word will be. */
typedef struct reader {
    uint64_t heard;
    uint64_t word;
} reader_t;

typedef struct coll_ucx_feed {
    coll_feed_t base;
    coll_ucx_lane_t *lane;
    uint32_t size;
    uint32_t depth;
    uint32_t places; /* the writer's: depth; a reader's: one more, of what its caller reads */
    size_t max_bytes;
    size_t stride;
    uint8_t *messages; /* [places, stride] */
    uint64_t count;    /* messages sent, or received */
    reader_t *readers; /* the writer's: [size] */
    uint64_t expected; /* a reader's: messages that it was ready for, so far */
    uint64_t word;     /* a reader's last one, which may still be being sent */
} coll_ucx_feed_t;

static coll_ucx_feed_t *feed_of(coll_feed_t *feed)
{
    return (coll_ucx_feed_t *)feed;
}

static uint8_t *message_at(const coll_ucx_feed_t *feed, uint64_t index)
{
    return feed->messages + index % feed->places * feed->stride;
}

/* ---- writer ---------------------------------------------------------------------------------- */

/* Its requests are [depth, size] of messages, then [size] of readers' words. */
static coll_ucx_request_t *message_requests(const coll_ucx_feed_t *feed, uint64_t index)
{
    return &feed->lane->requests[index % feed->depth * feed->size];
}

static coll_ucx_request_t *word_request(const coll_ucx_feed_t *feed, uint32_t reader)
{
    return &feed->lane->requests[feed->depth * feed->size + reader];
}

static void listen_to(coll_ucx_feed_t *feed, uint32_t reader)
{
    coll_ucx_receive(word_request(feed, reader), reader, &feed->readers[reader].word,
                     sizeof(feed->readers[reader].word));
}

/* Until it is less than `depth` behind. */
static bool wait_for_reader(coll_ucx_feed_t *feed, uint32_t reader)
{
    while (feed->count - feed->readers[reader].heard >= feed->depth) {
        if (!coll_ucx_wait(feed->lane, word_request(feed, reader), 1)) {
            return false;
        }
        feed->readers[reader].heard = feed->readers[reader].word;
        listen_to(feed, reader);
    }
    return true;
}

static void *feed_begin(coll_feed_t *base)
{
    coll_ucx_feed_t *feed = feed_of(base);

    if (coll_has_failed(base->coll)) {
        return NULL;
    }
    for (uint32_t reader = 1; reader < feed->size; reader++) {
        if (!wait_for_reader(feed, reader)) {
            return NULL;
        }
    }
    /* What was in this place has been received; that it was sent may be news. */
    return coll_ucx_wait(feed->lane, message_requests(feed, feed->count), feed->size)
               ? message_at(feed, feed->count)
               : NULL;
}

static weft_status_t feed_send(coll_feed_t *base, size_t bytes)
{
    coll_ucx_feed_t *feed = feed_of(base);
    coll_ucx_request_t *requests = message_requests(feed, feed->count);

    for (uint32_t reader = 1; reader < feed->size; reader++) {
        coll_ucx_send(&requests[reader], reader, message_at(feed, feed->count), bytes);
    }
    feed->count++;
    return coll_status(base->coll, NULL);
}

/* ---- readers --------------------------------------------------------------------------------- */

/* Its requests are [places] of messages, then its own word's. */
static coll_ucx_request_t *expected_request(const coll_ucx_feed_t *feed, uint64_t index)
{
    return &feed->lane->requests[index % feed->places];
}

/* The message given out last need not be kept any longer: `depth` are expected again. */
static void expect_messages(coll_ucx_feed_t *feed)
{
    for (; feed->expected < feed->count + feed->depth; feed->expected++) {
        coll_ucx_request_t *request = expected_request(feed, feed->expected);
        request->may_be_shorter = true;
        coll_ucx_receive(request, 0, message_at(feed, feed->expected), feed->max_bytes);
    }
}

static void tell_writer(coll_ucx_feed_t *feed)
{
    coll_ucx_request_t *request = &feed->lane->requests[feed->places];

    if (coll_ucx_wait(feed->lane, request, 1)) {
        feed->word = feed->count;
        coll_ucx_send(request, 0, &feed->word, sizeof(feed->word));
    }
}

static weft_status_t feed_receive(coll_feed_t *base, int timeout_ms, const void **message_out,
                                  size_t *bytes_out)
{
    coll_ucx_feed_t *feed = feed_of(base);
    const coll_ucx_request_t *request = expected_request(feed, feed->count);
    const uint64_t limit_ns = timeout_ms < 0 ? UINT64_MAX : (uint64_t)timeout_ms * WEFT_NS_PER_MS;

    if (coll_has_failed(base->coll)) {
        return WEFT_ERR_PEER_GONE;
    }
    expect_messages(feed);
    if (coll_ucx_wait_for(feed->lane, request, 1, limit_ns) < 0) {
        return coll_has_failed(base->coll) ? WEFT_ERR_PEER_GONE : WEFT_ERR_TIMEOUT;
    }
    *message_out = message_at(feed, feed->count);
    *bytes_out = request->bytes;
    feed->count++;
    tell_writer(feed);
    return WEFT_OK;
}

/* ---- open and close -------------------------------------------------------------------------- */

static weft_status_t gather_by_group(void *user, const void *mine, size_t bytes, void *all_out,
                                     weft_diag_t *diag)
{
    coll_t *coll = user;
    uint32_t rank;

    if (!coll_has_failed(coll)) {
        coll_ucx_all_gather(coll, NULL, mine, all_out, bytes);
    }
    const weft_status_t status = coll_status(coll, &rank);
    return status < 0 ? weft_diag(diag, status, "ucx: rank %u is lost", rank) : WEFT_OK;
}

static void feed_close(coll_feed_t *base)
{
    coll_ucx_feed_t *feed = feed_of(base);

    if (feed == NULL) {
        return;
    }
    coll_ucx_lane_close(feed->lane);
    weft_free(feed->messages);
    weft_free(feed->readers);
    weft_free(feed);
}

static void expect_all(coll_ucx_feed_t *feed)
{
    if (feed->base.coll->config.rank != 0) {
        expect_messages(feed);
        return;
    }
    for (uint32_t reader = 1; reader < feed->size; reader++) {
        listen_to(feed, reader);
    }
}

static weft_status_t open_lane(coll_ucx_feed_t *feed, weft_diag_t *diag)
{
    coll_t *coll = feed->base.coll;
    const coll_exchange_t exchange = {.user = coll, .all_gather = gather_by_group};
    const uint32_t n_requests =
        coll->config.rank == 0 ? (feed->places + 1) * feed->size : feed->places + 1;

    feed->messages =
        weft_alloc_aligned(MESSAGE_ALIGN, feed->places * feed->stride, "coll.ucx_messages");
    feed->readers = weft_calloc(feed->size, sizeof(*feed->readers), "coll.ucx_readers");
    if (feed->messages == NULL || feed->readers == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    return coll_ucx_lane_open(coll_ucx_of(coll), &exchange, n_requests, true, true, diag,
                              &feed->lane);
}

static weft_status_t feed_open(coll_t *coll, size_t max_bytes, uint32_t depth, weft_diag_t *diag,
                               coll_feed_t **feed_out)
{
    coll_ucx_feed_t *feed = weft_zalloc(sizeof(*feed), "coll.ucx_feed");

    if (feed == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    feed->base = (coll_feed_t){.ops = &coll_ucx_feed_ops, .coll = coll};
    feed->size = coll->config.size;
    feed->depth = depth;
    feed->places = coll->config.rank == 0 ? depth : depth + 1;
    feed->max_bytes = max_bytes;
    feed->stride = (max_bytes + MESSAGE_ALIGN - 1) / MESSAGE_ALIGN * MESSAGE_ALIGN;
    weft_status_t status = open_lane(feed, diag);
    if (status >= 0) {
        expect_all(feed);
        coll_ucx_barrier(coll, NULL); /* before the first message: its reader expects it */
        status = coll_status(coll, NULL);
    }
    if (status < 0) {
        feed_close(&feed->base);
        return status;
    }
    *feed_out = &feed->base;
    return WEFT_OK;
}

const coll_feed_ops_t coll_ucx_feed_ops = {
    .open = feed_open,
    .close = feed_close,
    .begin = feed_begin,
    .send = feed_send,
    .receive = feed_receive,
};
