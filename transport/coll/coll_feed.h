/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_feed: messages from rank 0 of a group to all others, in order: a ring in shared memory on one
 * host, tagged messages between hosts.
 *
 * The writer runs ahead of its readers by `depth` messages at most. A reader may wait for the next
 * message as long as it takes: awake for some microseconds, then asleep. The group's failure or
 * coll_abort ends every wait.
 *
 * Threads  one on each rank, the group's or another
 */
#pragma once

#include "transport/coll/coll.h"

typedef struct coll_feed coll_feed_t;

/* Collective. The group outlives the feed. */
weft_status_t coll_feed_create(coll_t *coll, size_t max_bytes, uint32_t depth, weft_diag_t *diag,
                               coll_feed_t **feed_out);
void coll_feed_destroy(coll_feed_t *feed); /* NULL is fine */

/*
 * Rank 0: where the next message is written, [max_bytes], 64-byte aligned. Waits, up to the group's
 * timeout, for the slowest reader to be less than `depth` behind. NULL: the group has failed.
 */
void *coll_feed_begin(coll_feed_t *feed);

/* Rank 0: sends the first bytes of what was begun. */
weft_status_t coll_feed_send(coll_feed_t *feed, size_t bytes);

/*
 * Others: the next message, valid until the next call. timeout_ms -1: for ever.
 * WEFT_ERR_TIMEOUT: none came. WEFT_ERR_PEER_GONE: the group has failed.
 */
weft_status_t coll_feed_receive(coll_feed_t *feed, int timeout_ms, const void **message_out,
                                size_t *bytes_out);
