/* SPDX-License-Identifier: Apache-2.0 */
/* kv_side_channel: the socket that others ask. */
#define WEFT_LOG_MODULE "kv-transfer"
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "kvstore/transfer/kv_side_channel_priv.h"

#define MAX_FRAME_BYTES 256

/* ---- bind ------------------------------------------------------------------------------------ */

/* A name becomes an address: a socket is bound to one of those only. */
static weft_status_t resolve(const char *host, uint16_t port, weft_diag_t *diag,
                             char out[KV_SIDE_CHANNEL_MAX_ENDPOINT])
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    char address[INET6_ADDRSTRLEN] = "";
    if (strcmp(host, "*") == 0) {
        snprintf(out, KV_SIDE_CHANNEL_MAX_ENDPOINT, "tcp://*:%u", port);
        return WEFT_OK;
    }
    const int error = getaddrinfo(host, NULL, &hints, &found);
    if (error != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "side channel: %s: %s", host, gai_strerror(error));
    }
    const struct addrinfo *chosen = found; /* IPv4 when there is any: peers are told the name */
    for (const struct addrinfo *one = found; one != NULL; one = one->ai_next) {
        if (one->ai_family == AF_INET) {
            chosen = one;
            break;
        }
    }
    getnameinfo(chosen->ai_addr, chosen->ai_addrlen, address, sizeof(address), NULL, 0,
                NI_NUMERICHOST);
    snprintf(out, KV_SIDE_CHANNEL_MAX_ENDPOINT,
             chosen->ai_family == AF_INET6 ? "tcp://[%s]:%u" : "tcp://%s:%u", address, port);
    freeaddrinfo(found);
    return WEFT_OK;
}

static weft_status_t learn_port(kv_side_channel_t *channel)
{
    char real[KV_SIDE_CHANNEL_MAX_ENDPOINT];
    unsigned port = 0;
    size_t length = sizeof(real);
    if (zmq_getsockopt(channel->router, ZMQ_LAST_ENDPOINT, real, &length) != 0) {
        return WEFT_ERR_INTERNAL;
    }
    const char *colon = strrchr(real, ':');
    if (colon == NULL || sscanf(colon + 1, "%u", &port) != 1 || port > UINT16_MAX) {
        return WEFT_ERR_INTERNAL;
    }
    channel->port = (uint16_t)port;
    return WEFT_OK;
}

weft_status_t kv_side_server_open(kv_side_channel_t *channel, const char *host, uint16_t port,
                                  weft_diag_t *diag)
{
    const int zero = 0;
    const int one = 1;
    const int64_t max_bytes = MAX_FRAME_BYTES;
    char endpoint[KV_SIDE_CHANNEL_MAX_ENDPOINT];
    const weft_status_t status = resolve(host, port, diag, endpoint);
    if (status < 0) {
        return status;
    }
    channel->router = zmq_socket(channel->context, ZMQ_ROUTER);
    if (channel->router == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "side channel: no socket: %s",
                         zmq_strerror(errno));
    }
    zmq_setsockopt(channel->router, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(channel->router, ZMQ_IPV6, &one, sizeof(one));
    zmq_setsockopt(channel->router, ZMQ_MAXMSGSIZE, &max_bytes, sizeof(max_bytes));
    if (zmq_bind(channel->router, endpoint) != 0) {
        return weft_diag(diag, errno == EADDRINUSE ? WEFT_ERR_IN_USE : WEFT_ERR_IO,
                         "side channel: cannot bind %s: %s", endpoint, zmq_strerror(errno));
    }
    return learn_port(channel);
}

/* ---- answer ---------------------------------------------------------------------------------- */

typedef struct request {
    uint8_t identity[MAX_FRAME_BYTES];
    size_t identity_length;
    bool has_delimiter; /* a REQ's */
    kv_meta_request_t rank;
} request_t;

/* identity, an empty frame, the message; false: nothing to receive. */
static bool read_request(void *socket, request_t *request, bool *is_valid_out)
{
    uint8_t frame[MAX_FRAME_BYTES];
    int more = 1;
    uint32_t n = 0;
    bool is_valid = true;
    bool is_read = false;
    for (; more != 0; n++) {
        size_t size = sizeof(more);
        const int length = zmq_recv(socket, frame, sizeof(frame), ZMQ_DONTWAIT);
        if (length < 0) {
            return false;
        }
        zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size);
        const size_t got = (size_t)length < sizeof(frame) ? (size_t)length : sizeof(frame);
        if (n == 0) {
            memcpy(request->identity, frame, got);
            request->identity_length = got;
        } else if (n == 1 && length == 0) {
            request->has_delimiter = true;
        } else if (!is_read && (size_t)length <= sizeof(frame)) {
            is_read = true;
            is_valid = kv_meta_request_decode(frame, got, &request->rank) >= 0;
        } else {
            is_valid = false;
        }
    }
    *is_valid_out = is_valid && is_read;
    return true;
}

/* Under lock: a copy, so that the socket is written to without it. */
static bool copy_payload(kv_side_channel_t *channel, kv_meta_request_t rank, zmq_msg_t *payload)
{
    bool is_found = false;
    pthread_mutex_lock(&channel->lock);
    for (const kv_side_client_t *client = channel->clients; client != NULL && !is_found;
         client = client->next) {
        if (client->is_serving && client->rank.tp_rank == rank.tp_rank &&
            client->rank.pp_rank == rank.pp_rank) {
            is_found = zmq_msg_init_size(payload, client->bytes) == 0;
            if (is_found) {
                memcpy(zmq_msg_data(payload), client->payload, client->bytes);
            }
        }
    }
    pthread_mutex_unlock(&channel->lock);
    return is_found;
}

static void reply(kv_side_channel_t *channel, const request_t *request, zmq_msg_t *payload)
{
    const int more = ZMQ_SNDMORE | ZMQ_DONTWAIT;
    uint8_t clock[KV_HANDSHAKE_CLOCK_BYTES];
    kv_clock_encode((double)weft_clock_ns() / (double)WEFT_NS_PER_SECOND, clock);
    const bool is_begun =
        zmq_send(channel->router, request->identity, request->identity_length, more) >= 0 &&
        (!request->has_delimiter || zmq_send(channel->router, "", 0, more) >= 0) &&
        zmq_msg_send(payload, channel->router, more) >= 0;
    zmq_msg_close(payload); /* fine also after it was sent */
    if (is_begun) {         /* counted before the last frame lets anyone see it */
        atomic_fetch_add_explicit(&channel->answered, 1, memory_order_relaxed);
        zmq_send(channel->router, clock, sizeof(clock), ZMQ_DONTWAIT);
    }
}

bool kv_side_server_answer(kv_side_channel_t *channel)
{
    request_t request = {0};
    zmq_msg_t payload;
    bool is_valid = false;
    if (!read_request(channel->router, &request, &is_valid)) {
        return false;
    }
    if (is_valid && copy_payload(channel, request.rank, &payload)) {
        reply(channel, &request, &payload);
        return true;
    }
    atomic_fetch_add_explicit(&channel->refused, 1, memory_order_relaxed);
    weft_log_debug("side channel: no answer to %s",
                   is_valid ? "a rank that is not here" : "what is not a request");
    return true;
}
