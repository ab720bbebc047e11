/* SPDX-License-Identifier: Apache-2.0 */
#include "base/http_relay.h"

#include <stdio.h>
#include <string.h>

#define MAX_BEHIND_BYTES ((size_t)16 << 20) /* that a slow reader lets pile up */

static bool is_event_stream(const char *content_type)
{
    static const char type[] = "text/event-stream";
    return content_type != NULL && strncmp(content_type, type, sizeof(type) - 1) == 0;
}

static bool keep(weft_http_relay_t *relay, const weft_http_piece_t *piece)
{
    relay->http_status = piece->http_status;
    snprintf(relay->content_type, sizeof(relay->content_type), "%s",
             piece->content_type != NULL ? piece->content_type : "application/octet-stream");
    weft_buffer_append(&relay->answer, piece->data, piece->length);
    return !relay->answer.is_failed && relay->answer.length <= WEFT_HTTP_RELAY_MAX_BYTES;
}

bool weft_http_relay_take(weft_http_relay_t *relay, weft_http_exchange_t *exchange,
                          const weft_http_header_t *headers, size_t n,
                          const weft_http_piece_t *piece)
{
    if (!relay->is_streaming && !is_event_stream(piece->content_type)) {
        return keep(relay, piece);
    }
    if (!relay->is_streaming) {
        relay->is_streaming = true;
        relay->http_status = piece->http_status;
        weft_http_stream_begin(exchange, piece->http_status, piece->content_type, headers, n);
    }
    return weft_http_stream_write(exchange, piece->data, piece->length) >= 0 &&
           weft_http_stream_pending(exchange) <= MAX_BEHIND_BYTES;
}

void weft_http_relay_break_off(weft_http_exchange_t *exchange)
{
    static const char lost[] =
        "data: {\"error\":{\"message\":\"The worker that served this request is gone.\","
        "\"type\":\"ServiceUnavailableError\",\"param\":null,\"code\":503}}\n\ndata: [DONE]\n\n";
    (void)weft_http_stream_write(exchange, lost, sizeof(lost) - 1);
}

void weft_http_relay_fini(weft_http_relay_t *relay)
{
    weft_buffer_free(&relay->answer);
}
