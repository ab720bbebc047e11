/* SPDX-License-Identifier: Apache-2.0 */
#include "base/http_client.h"

#include <curl/curl.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/clock.h"

struct weft_http_call {
    weft_http_call_t *previous;
    weft_http_call_t *next;
    weft_http_client_t *client;
    CURL *easy;
    struct curl_slist *headers;
    weft_buffer_t answer_headers; /* "Name: value", each with a NUL behind it */
    weft_buffer_t body;           /* of the answer */
    size_t max_bytes;
    bool is_too_large;
    bool is_given_up; /* by on_piece */
    weft_http_piece_fn on_piece;
    bool is_unwatched; /* no memory for its socket's watch: it would wait for ever */
    char error[CURL_ERROR_SIZE];
    weft_http_answer_fn fn;
    void *user;
};

struct weft_http_client {
    weft_loop_t *loop;
    weft_loop_timer_t *timer; /* libcurl's next deadline */
    CURLM *multi;
    weft_http_call_t *calls;
    bool has_unwatched;
};

/* A socket of libcurl's that the loop watches. */
typedef struct watched {
    weft_http_client_t *client;
    curl_socket_t socket;
    weft_loop_watch_t *watch;
} watched_t;

static void call_free(weft_http_call_t *call)
{
    if (call->previous != NULL) {
        call->previous->next = call->next;
    } else {
        call->client->calls = call->next;
    }
    if (call->next != NULL) {
        call->next->previous = call->previous;
    }
    if (call->easy != NULL) {
        curl_multi_remove_handle(call->client->multi, call->easy);
        curl_easy_cleanup(call->easy);
    }
    curl_slist_free_all(call->headers);
    weft_buffer_free(&call->answer_headers);
    weft_buffer_free(&call->body);
    weft_free(call);
}

static weft_status_t status_of(const weft_http_call_t *call, CURLcode code)
{
    if (call->is_too_large) {
        return WEFT_ERR_TOO_LARGE;
    }
    if (call->is_given_up) {
        return WEFT_ERR_CANCELLED;
    }
    switch (code) {
    case CURLE_OK:
        return WEFT_OK;
    case CURLE_OPERATION_TIMEDOUT:
        return WEFT_ERR_TIMEOUT;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
        return WEFT_ERR_INVALID;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
        return WEFT_ERR_DENIED;
    case CURLE_OUT_OF_MEMORY:
        return WEFT_ERR_NO_MEMORY;
    default:
        return call->body.is_failed || call->answer_headers.is_failed ? WEFT_ERR_NO_MEMORY
                                                                      : WEFT_ERR_PEER_GONE;
    }
}

/* Tells the user, then frees the call. */
static void finish(weft_http_call_t *call, weft_status_t status, const char *error)
{
    long http_status = 0;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &http_status);
    weft_buffer_append(&call->body, "", 1);
    const bool has_body = status >= 0 && !call->body.is_failed;
    const weft_http_answer_t answer = {
        .status = status >= 0 && !has_body ? WEFT_ERR_NO_MEMORY : status,
        .http_status = (uint32_t)http_status,
        .body = has_body ? call->body.data : "",
        .length = has_body ? call->body.length - 1 : 0,
        .error = status >= 0 ? "" : error,
    };
    call->fn(call->user, &answer);
    call_free(call);
}

static void finish_those_done(weft_http_client_t *client)
{
    int left = 0;
    for (CURLMsg *m; (m = curl_multi_info_read(client->multi, &left)) != NULL;) {
        if (m->msg == CURLMSG_DONE) {
            weft_http_call_t *call = NULL;
            const CURLcode code = m->data.result; /* m dies with its handle */
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &call);
            finish(call, status_of(call, code),
                   call->is_too_large       ? "the answer is too large"
                   : call->error[0] != '\0' ? call->error
                                            : curl_easy_strerror(code));
        }
    }
}

static weft_http_call_t *first_unwatched(const weft_http_client_t *client)
{
    weft_http_call_t *call = client->calls;
    while (call != NULL && !call->is_unwatched) {
        call = call->next;
    }
    return call;
}

static void finish_those_unwatched(weft_http_client_t *client)
{
    client->has_unwatched = false;
    /* From the start each time: a user may cancel others. */
    for (weft_http_call_t *call; (call = first_unwatched(client)) != NULL;) {
        finish(call, WEFT_ERR_NO_MEMORY, weft_strerror(WEFT_ERR_NO_MEMORY));
    }
}

static void act(weft_http_client_t *client, curl_socket_t socket, int events)
{
    int running = 0;
    curl_multi_socket_action(client->multi, socket, events, &running);
    finish_those_done(client);
    if (client->has_unwatched) {
        finish_those_unwatched(client);
    }
}

static void on_deadline(void *user)
{
    act(user, CURL_SOCKET_TIMEOUT, 0);
}

static void on_socket_event(void *user, uint32_t events)
{
    const watched_t *watched = user; /* libcurl may have it freed below */
    const int mask = ((events & (WEFT_LOOP_READ | WEFT_LOOP_HANGUP)) != 0 ? CURL_CSELECT_IN : 0) |
                     ((events & WEFT_LOOP_WRITE) != 0 ? CURL_CSELECT_OUT : 0);
    act(watched->client, watched->socket, mask);
}

static watched_t *watch_socket(weft_http_client_t *client, curl_socket_t socket, uint32_t events)
{
    watched_t *watched = weft_zalloc(sizeof(*watched), "http.client");
    if (watched == NULL) {
        return NULL;
    }
    *watched = (watched_t){.client = client, .socket = socket};
    if (weft_loop_watch(client->loop, socket, events, on_socket_event, watched, &watched->watch) <
        0) {
        weft_free(watched);
        return NULL;
    }
    return watched;
}

/* libcurl's: what to wait for on socket from now on. */
static int on_interest(CURL *easy, curl_socket_t socket, int what, void *user, void *socket_user)
{
    weft_http_client_t *client = user;
    watched_t *watched = socket_user;
    const uint32_t events = ((what & CURL_POLL_IN) != 0 ? WEFT_LOOP_READ : 0) |
                            ((what & CURL_POLL_OUT) != 0 ? WEFT_LOOP_WRITE : 0);
    if (what == CURL_POLL_REMOVE) {
        if (watched != NULL) {
            weft_loop_unwatch(watched->watch);
            weft_free(watched);
        }
        return 0;
    }
    if (watched != NULL) {
        weft_loop_watch_events(watched->watch, events);
        return 0;
    }
    watched = watch_socket(client, socket, events);
    if (watched == NULL) { /* to say so here would make libcurl give up every call */
        weft_http_call_t *call = NULL;
        curl_easy_getinfo(easy, CURLINFO_PRIVATE, &call);
        call->is_unwatched = client->has_unwatched = true;
        return 0;
    }
    curl_multi_assign(client->multi, socket, watched);
    return 0;
}

/* libcurl's: when it wants to be called at the latest; -1: never. */
static int on_timeout(CURLM *multi, long ms, void *user)
{
    weft_http_client_t *client = user;
    (void)multi;
    if (ms < 0) {
        weft_loop_timer_clear(client->timer);
    } else {
        weft_loop_timer_set(client->timer, (uint64_t)ms * WEFT_NS_PER_MS);
    }
    return 0;
}

weft_status_t weft_http_client_create(weft_loop_t *loop, weft_http_client_t **client_out)
{
    weft_http_client_t *client = weft_zalloc(sizeof(*client), "http.client");
    if (client == NULL || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        weft_free(client);
        return WEFT_ERR_NO_MEMORY;
    }
    client->loop = loop;
    client->multi = curl_multi_init();
    const weft_status_t status =
        client->multi == NULL ? WEFT_ERR_NO_MEMORY
                              : weft_loop_timer_create(loop, on_deadline, client, &client->timer);
    if (status < 0) {
        weft_http_client_destroy(client);
        return status;
    }
    curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_interest);
    curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
    curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_timeout);
    curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
    *client_out = client;
    return WEFT_OK;
}

void weft_http_client_destroy(weft_http_client_t *client)
{
    if (client == NULL) {
        return;
    }
    while (client->calls != NULL) {
        finish(client->calls, WEFT_ERR_CANCELLED, "the client is going away");
    }
    curl_multi_cleanup(client->multi); /* closes the connections that were kept */
    weft_loop_timer_destroy(client->timer);
    curl_global_cleanup();
    weft_free(client);
}

/* libcurl's, for each line: the status line of an answer, its headers, the empty line behind them. */
static size_t on_header(char *line, size_t size, size_t n, void *user)
{
    weft_http_call_t *call = user;
    size_t length = size * n;
    if (length >= 5 && memcmp(line, "HTTP/", 5) == 0) { /* those before were of a 100 */
        weft_buffer_clear(&call->answer_headers);
        return length;
    }
    while (length > 0 && strchr("\r\n", line[length - 1]) != NULL) {
        length--;
    }
    weft_buffer_append(&call->answer_headers, line, length);
    weft_buffer_append(&call->answer_headers, "", 1);
    return call->answer_headers.is_failed ? 0 : size * n;
}

static size_t pass_on(weft_http_call_t *call, const char *bytes, size_t length)
{
    long http_status = 0;
    char *content_type = NULL;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &http_status);
    curl_easy_getinfo(call->easy, CURLINFO_CONTENT_TYPE, &content_type);
    const weft_http_piece_t piece = {.http_status = (uint32_t)http_status,
                                     .content_type = content_type,
                                     .data = bytes,
                                     .length = length};
    call->is_given_up = !call->on_piece(call->user, &piece);
    return call->is_given_up ? 0 : length;
}

static size_t on_body(char *bytes, size_t size, size_t n, void *user)
{
    weft_http_call_t *call = user;
    const size_t length = size * n;
    if (call->on_piece != NULL) {
        return pass_on(call, bytes, length);
    }
    if (length > call->max_bytes - call->body.length) {
        call->is_too_large = true;
        return 0;
    }
    weft_buffer_append(&call->body, bytes, length);
    return call->body.is_failed ? 0 : length;
}

static bool add_headers(weft_http_call_t *call, const weft_http_request_t *request)
{
    /* Without "Expect" libcurl does not wait for a server's leave to send a large body. */
    call->headers = curl_slist_append(NULL, "Expect:");
    for (size_t i = 0; i < request->n_headers && call->headers != NULL; i++) {
        struct curl_slist *longer = curl_slist_append(call->headers, request->headers[i]);
        if (longer == NULL) {
            return false;
        }
        call->headers = longer;
    }
    return call->headers != NULL;
}

static CURLcode set_up(weft_http_call_t *call, const weft_http_request_t *request)
{
    CURL *easy = call->easy;
    CURLcode code = curl_easy_setopt(easy, CURLOPT_URL, request->url);
#if LIBCURL_VERSION_NUM >= 0x075500
    code = code != CURLE_OK ? code : curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
    if (request->body != NULL && code == CURLE_OK) {
        curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->length);
        code = curl_easy_setopt(easy, CURLOPT_COPYPOSTFIELDS, request->body);
    }
    if (code == CURLE_OK) {
        code = curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method);
    }
    if (request->ca_file != NULL && code == CURLE_OK) {
        code = curl_easy_setopt(easy, CURLOPT_CAINFO, request->ca_file);
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, request->is_pinned ? 0L : 2L);
    }
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, call->headers);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)request->timeout_ms);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, call->error);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, call);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, call);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, call);
    return code;
}

weft_status_t weft_http_client_send(weft_http_client_t *client, const weft_http_request_t *request,
                                    weft_http_answer_fn fn, void *user, weft_http_call_t **call_out)
{
    weft_http_call_t *call = weft_zalloc(sizeof(*call), "http.call");
    if (call == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    call->client = client;
    call->max_bytes = request->max_answer_bytes;
    call->on_piece = request->on_piece;
    call->fn = fn;
    call->user = user;
    call->next = client->calls;
    if (call->next != NULL) {
        call->next->previous = call;
    }
    client->calls = call;
    call->easy = curl_easy_init();
    if (call->easy == NULL || !add_headers(call, request) || set_up(call, request) != CURLE_OK ||
        curl_multi_add_handle(client->multi, call->easy) != CURLM_OK) {
        call_free(call);
        return WEFT_ERR_NO_MEMORY;
    }
    if (call_out != NULL) {
        *call_out = call;
    }
    return WEFT_OK;
}

void weft_http_client_cancel(weft_http_call_t *call)
{
    call_free(call);
}

const char *weft_http_call_header(const weft_http_call_t *call, const char *name)
{
    const weft_buffer_t *headers = &call->answer_headers;
    const size_t length = strlen(name);
    for (size_t at = 0; at < headers->length; at += strlen(headers->data + at) + 1) {
        const char *line = headers->data + at;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':') {
            return line + length + 1 + strspn(line + length + 1, " \t");
        }
    }
    return NULL;
}
