/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_stripe: requests over several ways to their peer (rails): a large one over all of them at
 * once, with one end, others each over one that has little to do.
 *
 * A large request is cut into chunks; another one is one chunk. Each rail has a few of them; when one
 * is done the rail gets the next, so that each moves what it can (and what is slow delays the end by a
 * chunk at most). A rail that is lost gives its chunks back, and so does one that holds up the end:
 * where nothing ended for too long its chunks are cancelled and go by another. The notification
 * leaves when all chunks have moved.
 *
 * Rails are ways whose backend says so (XFER_CAP_RAIL): rows of tcp, each with an address of its
 * own. When it helps is measured: rails together are used as long as they are faster than the
 * fastest alone, by a tenth at least; now and then that is looked at again.
 *
 * Lock     held for all but create and destroy. Nothing is allocated by a posting
 */
#pragma once

#include "base/clock.h"
#include "transport/xfer/xfer_request_priv.h"

#define XFER_STRIPE_BYTES_MIN ((uint64_t)8 << 20)   /* smaller requests are one chunk */
#define XFER_RAIL_BYTES_MIN   ((uint64_t)64 * 1024) /* and smaller ones go by the best way alone */
#define XFER_RAIL_LATE_NS     (WEFT_NS_PER_SECOND / 4) /* an agent's rail_late_ns, from its start on */

/*
 * Gives a request that could be striped what it takes (request->stripe). WEFT_OK also for one that
 * could not: too small, or there are no two rails.
 */
weft_status_t xfer_stripe_create(xfer_request_t *request);
void xfer_stripe_destroy(xfer_stripe_t *stripe); /* NULL is fine */

/* Starts a request whose turn it is. False: one way is better, or all there is. */
bool xfer_stripe_start(xfer_request_t *request);
void xfer_stripe_cancel(xfer_request_t *request); /* one that was started */

/* Hands out chunks, and ends requests. False: there was nothing to do. */
bool xfer_stripe_poll(xfer_agent_t *agent);
/* How long at most the agent may sleep; most_ms (-1: for ever) where no request is striped. */
int xfer_stripe_sleep_ms(const xfer_agent_t *agent, int most_ms);
