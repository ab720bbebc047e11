/* SPDX-License-Identifier: Apache-2.0 */
/*
 * http_client: asks HTTP servers from a loop, many at once, over libcurl's multi interface.
 * Connections are kept and used again. Redirects are answers like others.
 *
 * Threads  everything on the loop's thread
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/loop.h"
#include "base/status.h"

typedef struct weft_http_client weft_http_client_t;
typedef struct weft_http_call weft_http_call_t; /* one request on its way */

/* Bytes of an answer's body as they come. */
typedef struct weft_http_piece {
    uint32_t http_status;
    const char *content_type; /* NULL: the answer names none */
    const void *data;
    size_t length;
} weft_http_piece_t;

/* False: give up; the call ends with WEFT_ERR_CANCELLED. Must not call the client. */
typedef bool (*weft_http_piece_fn)(void *user, const weft_http_piece_t *piece);

typedef struct weft_http_request {
    const char *method;         /* "GET", "POST", … */
    const char *url;            /* http:// or https:// */
    const char *const *headers; /* [n_headers] "Name: value" */
    size_t n_headers;
    const void *body; /* [length]; NULL: none */
    size_t length;
    uint32_t timeout_ms; /* of the whole call; 0: none */
    size_t max_answer_bytes;
    const char *ca_file; /* PEM of who is trusted; NULL: the system's */
    bool is_pinned;      /* ca_file has the server's own certificate: its name does not matter */
    weft_http_piece_fn on_piece; /* takes the body instead of the answer; NULL: it is kept whole */
} weft_http_request_t;

typedef struct weft_http_answer {
    /*
     * WEFT_OK: the server answered, with http_status. WEFT_ERR_TIMEOUT, _PEER_GONE (no connection,
     * or it broke), _TOO_LARGE, _DENIED (its certificate), _INVALID (URL), _CANCELLED (destroy).
     */
    weft_status_t status;
    uint32_t http_status;
    const char *body; /* [length], then NUL; never NULL */
    size_t length;
    const char *error; /* for people; "" when there was none */
} weft_http_answer_t;

/* answer and what it points to live until fn returns. fn may send and cancel, not destroy. */
typedef void (*weft_http_answer_fn)(void *user, const weft_http_answer_t *answer);

weft_status_t weft_http_client_create(weft_loop_t *loop, weft_http_client_t **client_out);
/* Answers what is on its way with WEFT_ERR_CANCELLED first. NULL is fine. */
void weft_http_client_destroy(weft_http_client_t *client);

/*
 * request is copied. fn is called once, from the loop, never from within send.
 * call_out may be NULL; it is valid until fn returns, and not to be cancelled there.
 */
weft_status_t weft_http_client_send(weft_http_client_t *client, const weft_http_request_t *request,
                                    weft_http_answer_fn fn, void *user,
                                    weft_http_call_t **call_out);

/* Gives up; fn is not called any more. */
void weft_http_client_cancel(weft_http_call_t *call);

/* A header of the answer, for on_piece and fn, as long as they run; NULL: it has none of this name. */
const char *weft_http_call_header(const weft_http_call_t *call, const char *name);
