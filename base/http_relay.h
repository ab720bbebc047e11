/* SPDX-License-Identifier: Apache-2.0 */
/*
 * http_relay: another server's answer on its way to a client of ours. Events go on as they come;
 * anything else is kept until it is whole, so that another server may still be asked instead.
 *
 * Threads  the loop's
 */
#pragma once

#include "base/buffer.h"
#include "base/http_client.h"
#include "base/http_server.h"

#define WEFT_HTTP_RELAY_MAX_BYTES ((size_t)256 << 20) /* of an answer that is kept */

/* Zeroed memory is one to which nothing came. */
typedef struct weft_http_relay {
    bool is_streaming; /* it has begun to go to the client */
    uint32_t http_status;
    char content_type[128];
    weft_buffer_t answer; /* one that is not streamed */
} weft_http_relay_t;

/* The next piece; headers [n] go with a stream. False: give up, the client reads too slowly. */
bool weft_http_relay_take(weft_http_relay_t *relay, weft_http_exchange_t *exchange,
                          const weft_http_header_t *headers, size_t n,
                          const weft_http_piece_t *piece);

/* The client has part of a stream and the rest will not come: an event that says so. */
void weft_http_relay_break_off(weft_http_exchange_t *exchange);

void weft_http_relay_fini(weft_http_relay_t *relay);
