/* SPDX-License-Identifier: Apache-2.0 */
/* kv_publisher: its sockets: events out, replay requests in and their answers. */
#define WEFT_LOG_MODULE "kv-events"
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/events/kv_event_message.h"
#include "kvstore/events/kv_publisher_priv.h"

#define MAX_REQUEST_BYTES 256 /* of a frame; a larger one costs its sender the connection */

static const uint64_t end_sequence = UINT64_MAX;

/* ---- opening --------------------------------------------------------------------------------- */

static weft_status_t zmq_status(int error)
{
    switch (error) {
    case EADDRINUSE:
        return WEFT_ERR_IN_USE;
    case EACCES:
    case EPERM:
        return WEFT_ERR_DENIED;
    case EMFILE:
    case ENOMEM:
        return WEFT_ERR_NO_MEMORY;
    default:
        return WEFT_ERR_INVALID;
    }
}

static weft_status_t cannot(weft_diag_t *diag, const char *what, const char *endpoint)
{
    const int error = errno;
    return weft_diag(diag, zmq_status(error), "--kv-events-config: cannot %s %s: %s", what,
                     endpoint, zmq_strerror(error));
}

static void *make_socket(void *context, int type, const char *endpoint, int send_hwm)
{
    const int zero = 0;
    const int one = 1;
    void *socket = zmq_socket(context, type);
    if (socket != NULL) {
        zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof(zero));
        zmq_setsockopt(socket, ZMQ_SNDHWM, &send_hwm, sizeof(send_hwm));
        if (strchr(endpoint, '[') != NULL) {
            zmq_setsockopt(socket, ZMQ_IPV6, &one, sizeof(one));
        }
    }
    return socket;
}

/* The address others reach this machine by: of the interface a packet to far away would leave
 * from; none is sent. */
static void find_node_ip(char *text, size_t size)
{
    const struct sockaddr_in far = {
        .sin_family = AF_INET, .sin_port = htons(80), .sin_addr.s_addr = htonl(0x08080808)};
    struct sockaddr_in own = {0};
    socklen_t length = sizeof(own);
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(text, size, "127.0.0.1");
    if (fd >= 0 && connect(fd, (const void *)&far, sizeof(far)) == 0 &&
        getsockname(fd, (void *)&own, &length) == 0) {
        inet_ntop(AF_INET, &own.sin_addr, text, (socklen_t)size);
    }
    if (fd >= 0) {
        close(fd);
    }
}

static weft_status_t learn_endpoint(void *socket, char **endpoint)
{
    char real[512];
    size_t length = sizeof(real);
    if (zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, real, &length) != 0) {
        return WEFT_ERR_INTERNAL;
    }
    char *copy = weft_strdup(real, "kv_events_config.text");
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_free(*endpoint);
    *endpoint = copy;
    return WEFT_OK;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text);
    return length >= strlen(end) && strcmp(text + length - strlen(end), end) == 0;
}

/* Of port 0 the real endpoint takes its place, at the node's address for '*', as in vLLM. */
static weft_status_t bind_socket(void *socket, char **endpoint, weft_diag_t *diag)
{
    char chosen[64];
    char ip[INET_ADDRSTRLEN];
    const char *where = *endpoint;
    if (strcmp(where, "tcp://*:0") == 0) {
        find_node_ip(ip, sizeof(ip));
        snprintf(chosen, sizeof(chosen), "tcp://%s:0", ip);
        where = chosen;
    }
    if (zmq_bind(socket, where) != 0) {
        return cannot(diag, "bind", where);
    }
    return ends_with(where, ":0") ? learn_endpoint(socket, endpoint) : WEFT_OK;
}

static weft_status_t open_events(kv_publisher_t *publisher, weft_diag_t *diag)
{
    kv_events_config_t *config = &publisher->config;
    const int hwm = (int)config->hwm;
    publisher->events_socket = make_socket(publisher->context, ZMQ_PUB, config->endpoint, hwm);
    if (publisher->events_socket == NULL) {
        return cannot(diag, "open a socket for", config->endpoint);
    }
    zmq_setsockopt(publisher->events_socket, ZMQ_RCVHWM, &hwm, sizeof(hwm));
    if (kv_events_is_bound(config->endpoint)) {
        return bind_socket(publisher->events_socket, &config->endpoint, diag);
    }
    return zmq_connect(publisher->events_socket, config->endpoint) == 0
               ? WEFT_OK
               : cannot(diag, "connect to", config->endpoint);
}

/* A replay fits its asker's pipe, and another one behind it. */
static weft_status_t open_replay(kv_publisher_t *publisher, weft_diag_t *diag)
{
    kv_events_config_t *config = &publisher->config;
    const int64_t max_bytes = MAX_REQUEST_BYTES;
    const int hwm = 2 * ((int)config->buffer_steps + 1);
    const kv_replay_log_config_t log = {.capacity = config->buffer_steps,
                                        .block_tokens = publisher->block_tokens,
                                        .encoding = publisher->encoding,
                                        .rank = {true, publisher->rank}};
    if (config->replay_endpoint == NULL) {
        return WEFT_OK;
    }
    const weft_status_t status = kv_replay_log_create(&log, &publisher->log);
    if (status < 0) {
        return status;
    }
    publisher->replay_socket =
        make_socket(publisher->context, ZMQ_ROUTER, config->replay_endpoint, hwm);
    if (publisher->replay_socket == NULL) {
        return cannot(diag, "open a socket for", config->replay_endpoint);
    }
    zmq_setsockopt(publisher->replay_socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof(max_bytes));
    return bind_socket(publisher->replay_socket, &config->replay_endpoint, diag);
}

weft_status_t kv_publisher_open(kv_publisher_t *publisher, weft_diag_t *diag)
{
    publisher->context = zmq_ctx_new();
    if (publisher->context == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "KV events: no context: %s",
                         zmq_strerror(errno));
    }
    weft_status_t status = open_events(publisher, diag);
    if (status >= 0) {
        status = open_replay(publisher, diag);
    }
    if (status >= 0) {
        const kv_events_config_t *config = &publisher->config;
        weft_log_info("publishing endpoint=%s replay=%s topic=\"%s\" encoding=%s", config->endpoint,
                      config->replay_endpoint == NULL ? "none" : config->replay_endpoint,
                      config->topic, publisher->encoding->name);
    }
    return status;
}

void kv_publisher_close(kv_publisher_t *publisher)
{
    if (publisher->events_socket != NULL) {
        zmq_close(publisher->events_socket);
    }
    if (publisher->replay_socket != NULL) {
        zmq_close(publisher->replay_socket);
    }
    kv_replay_log_destroy(publisher->log);
    publisher->log = NULL;
    if (publisher->context != NULL) {
        zmq_ctx_term(publisher->context);
    }
}

/* ---- sending --------------------------------------------------------------------------------- */

/* Topic, sequence and payload, the last of a message. payload NULL: empty. */
static bool send_frames(void *socket, const char *topic, uint64_t sequence, zmq_msg_t *payload)
{
    uint8_t number[8];
    zmq_msg_t last;
    kv_event_sequence_encode(sequence, number);
    zmq_msg_init(&last);
    if (payload != NULL) {
        zmq_msg_copy(&last, payload); /* shares the bytes */
    }
    const bool is_sent =
        zmq_send(socket, topic, strlen(topic), ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0 &&
        zmq_send(socket, number, sizeof(number), ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0 &&
        zmq_msg_send(&last, socket, ZMQ_DONTWAIT) >= 0;
    if (!is_sent) {
        zmq_msg_close(&last);
    }
    return is_sent;
}

void kv_publisher_send(kv_publisher_t *publisher, uint64_t sequence, zmq_msg_t *payload)
{
    send_frames(publisher->events_socket, publisher->config.topic, sequence, payload);
}

/* ---- replay ---------------------------------------------------------------------------------- */

typedef struct request {
    uint8_t identity[256];
    size_t identity_length;
    uint64_t start;
} request_t;

/* identity, an empty frame, 8 bytes; anything else is taken from the socket and forgotten. */
static bool read_request(void *socket, request_t *request, bool *is_valid_out)
{
    uint8_t frame[MAX_REQUEST_BYTES];
    int more = 1;
    uint32_t n = 0;
    bool is_valid = true;
    for (; more != 0; n++) {
        size_t size = sizeof(more);
        const int length = zmq_recv(socket, frame, sizeof(frame), ZMQ_DONTWAIT);
        if (length < 0) {
            return false;
        }
        zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size);
        if (n == 0 && (size_t)length <= sizeof(request->identity)) {
            memcpy(request->identity, frame, (size_t)length);
            request->identity_length = (size_t)length;
        } else if (n == 2 && length == 8) {
            request->start = kv_event_sequence_decode(frame);
        } else {
            is_valid &= n == 1 && length == 0;
        }
    }
    *is_valid_out = is_valid && n == 3;
    return true;
}

/*
 * What an asker's pipe has no room for is dropped without a word, as is all for one that is gone: the
 * ROUTER is not told to insist. false: the socket itself failed, or there was no memory.
 */
static bool reply(kv_publisher_t *publisher, const request_t *request, const char *topic,
                  uint64_t sequence, zmq_msg_t *payload)
{
    void *socket = publisher->replay_socket;
    return zmq_send(socket, request->identity, request->identity_length,
                    ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0 &&
           zmq_send(socket, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0 &&
           send_frames(socket, topic, sequence, payload);
}

static bool reply_summary(kv_publisher_t *publisher, const request_t *request, uint64_t sequence)
{
    zmq_msg_t payload;
    const weft_status_t status = kv_replay_log_summary(publisher->log, &payload);
    if (status < 0) {
        weft_log_error("no replay of what is no longer kept: %s", weft_strerror(status));
        return false;
    }
    const bool is_sent = reply(publisher, request, publisher->config.topic, sequence, &payload);
    zmq_msg_close(&payload);
    return is_sent;
}

static void replay(kv_publisher_t *publisher, const request_t *request)
{
    kv_replay_log_t *log = publisher->log;
    const uint64_t begin = kv_replay_log_begin(log);
    const char *topic = publisher->config.topic;
    bool is_sent = true;
    uint64_t sequence = request->start;
    if (sequence < begin) {
        is_sent = reply_summary(publisher, request, begin - 1);
        sequence = begin;
    }
    for (; is_sent && sequence < kv_replay_log_end(log); sequence++) {
        zmq_msg_t *payload = kv_replay_log_at(log, sequence);
        is_sent = payload == NULL || reply(publisher, request, topic, sequence, payload);
    }
    if (is_sent) {
        reply(publisher, request, "", end_sequence, NULL);
    }
}

bool kv_publisher_answer(kv_publisher_t *publisher)
{
    request_t request = {0};
    bool is_valid = false;
    if (!read_request(publisher->replay_socket, &request, &is_valid)) {
        return false;
    }
    if (is_valid) {
        atomic_fetch_add_explicit(&publisher->counts.replays, 1, memory_order_relaxed);
        replay(publisher, &request);
    }
    return true;
}
