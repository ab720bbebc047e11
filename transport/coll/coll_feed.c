/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/coll_feed.h"

#include <assert.h>

#include "transport/coll/coll_backend.h"

/* Collective. A group in the hosts' memory beside that of a device. */
static weft_status_t open_host(coll_t *coll, weft_diag_t *diag)
{
    coll_t *host = NULL;
    coll_config_t config = coll->config;
    if (config.exchange.all_gather == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "a part of a group on device %s has no feeds: make them of the whole",
                         config.device->ops->name);
    }
    weft_status_t status = weft_device_open("cpu", 0, diag, &coll->host_device);
    if (status >= 0) {
        config.backend = "auto";
        config.device = coll->host_device;
        status = coll_create(&config, diag, &host);
    }
    if (status >= 0) {
        atomic_store_explicit(&coll->host, host, memory_order_release);
    }
    return status;
}

weft_status_t coll_feed_create(coll_t *coll, size_t max_bytes, uint32_t depth, weft_diag_t *diag,
                               coll_feed_t **feed_out)
{
    if (max_bytes == 0 || depth == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "a feed has messages and room for at least one");
    }
    if (coll_has_failed(coll)) {
        return weft_diag(diag, coll_status(coll, NULL), "the group of the feed has failed");
    }
    coll_t *by = coll;
    if (coll->backend->feed == NULL) {
        by = atomic_load(&coll->host);
        const weft_status_t status = by != NULL ? WEFT_OK : open_host(coll, diag);
        if (status < 0) {
            return status;
        }
        by = atomic_load(&coll->host);
    }
    return by->backend->feed->open(by, max_bytes, depth, diag, feed_out);
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
