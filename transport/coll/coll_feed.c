/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/coll_feed.h"

#include <assert.h>

#include "transport/coll/coll_backend.h"

weft_status_t coll_feed_create(coll_t *coll, size_t max_bytes, uint32_t depth, weft_diag_t *diag,
                               coll_feed_t **feed_out)
{
    if (max_bytes == 0 || depth == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "a feed has messages and room for at least one");
    }
    if (coll_has_failed(coll)) {
        return weft_diag(diag, coll_status(coll, NULL), "the group of the feed has failed");
    }
    return coll->backend->feed->open(coll, max_bytes, depth, diag, feed_out);
}

void coll_feed_destroy(coll_feed_t *feed)
{
    if (feed != NULL) {
        feed->ops->close(feed);
    }
}

void *coll_feed_begin(coll_feed_t *feed)
{
    assert(feed->coll->config.rank == 0);
    return coll_has_failed(feed->coll) ? NULL : feed->ops->begin(feed);
}

weft_status_t coll_feed_send(coll_feed_t *feed, size_t bytes)
{
    assert(feed->coll->config.rank == 0);
    return coll_has_failed(feed->coll) ? coll_status(feed->coll, NULL)
                                       : feed->ops->send(feed, bytes);
}

weft_status_t coll_feed_receive(coll_feed_t *feed, int timeout_ms, const void **message_out,
                                size_t *bytes_out)
{
    assert(feed->coll->config.rank != 0);
    return feed->ops->receive(feed, timeout_ms, message_out, bytes_out);
}
