/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UCX sends only while somebody calls it. What a peer's kernel did not take at once (it has not
 * called receive yet) would lie here while the sender computes, or waits for something that the peer
 * can do only with the message: so a thread sends it. It sleeps as long as nothing is left behind.
 */
#include <poll.h>

#include "transport/coll/ucx/coll_ucx_priv.h"

#define POLL_MS 20 /* a send may also end without an event */

/* Returns when a look may be worth it. */
static void wait_for_event(coll_ucx_lane_t *lane)
{
    struct pollfd event = {.fd = lane->event_fd, .events = POLLIN};

    if (lane->coll->ucx->ucp_worker_arm(lane->worker) == UCS_OK) {
        pthread_mutex_unlock(&lane->lock);
        (void)poll(&event, 1, POLL_MS);
        pthread_mutex_lock(&lane->lock);
    }
}

static void *pump(void *arg)
{
    coll_ucx_lane_t *lane = arg;

    pthread_mutex_lock(&lane->lock);
    while (!lane->is_ending) {
        if (lane->sending == 0) {
            pthread_cond_wait(&lane->wakes, &lane->lock);
        } else if (lane->coll->ucx->ucp_worker_progress(lane->worker) == 0) {
            wait_for_event(lane);
        }
    }
    pthread_mutex_unlock(&lane->lock);
    return NULL;
}

weft_status_t coll_ucx_pump_start(coll_ucx_lane_t *lane)
{
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->wakes, NULL);
    if (pthread_create(&lane->pump, NULL, pump, lane) != 0) {
        pthread_cond_destroy(&lane->wakes);
        pthread_mutex_destroy(&lane->lock);
        return WEFT_ERR_NO_MEMORY;
    }
    lane->has_pump = true;
    return WEFT_OK;
}

void coll_ucx_pump_stop(coll_ucx_lane_t *lane)
{
    if (!lane->has_pump) {
        return;
    }
    pthread_mutex_lock(&lane->lock);
    lane->is_ending = true;
    pthread_cond_signal(&lane->wakes);
    pthread_mutex_unlock(&lane->lock);
    pthread_join(lane->pump, NULL);
    pthread_cond_destroy(&lane->wakes);
    pthread_mutex_destroy(&lane->lock);
    lane->has_pump = false;
}

void coll_ucx_lock(coll_ucx_lane_t *lane)
{
    if (lane->has_pump) {
        pthread_mutex_lock(&lane->lock);
    }
}

void coll_ucx_unlock(coll_ucx_lane_t *lane)
{
    if (lane->has_pump) {
        if (lane->sending > 0) {
            pthread_cond_signal(&lane->wakes);
        }
        pthread_mutex_unlock(&lane->lock);
    }
}
