/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_side_channel: asking others. A DEALER plays the REQ: it can be given up. A name is asked at its
 * IPv4 address, where workers listen if it has one, ours and vLLM's; then at its IPv6 address.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/transfer/kv_side_channel_priv.h"

weft_status_t kv_side_endpoint(const char *host, uint16_t port,
                               char endpoint_out[KV_SIDE_CHANNEL_MAX_ENDPOINT])
{
    const bool is_v6 = strchr(host, ':') != NULL && host[0] != '[';
    if (host[0] == '\0' || strlen(host) > 255 || port == 0) {
        return WEFT_ERR_INVALID;
    }
    for (const char *at = host; *at != '\0'; at++) {
        if (!isalnum((unsigned char)*at) && strchr(".-_:[]%", *at) == NULL) {
            return WEFT_ERR_INVALID;
        }
    }
    snprintf(endpoint_out, KV_SIDE_CHANNEL_MAX_ENDPOINT, is_v6 ? "tcp://[%s]:%u" : "tcp://%s:%u",
             host, port);
    return WEFT_OK;
}

static void finish(kv_side_channel_t *channel, kv_side_ask_t *ask, weft_status_t status,
                   const char *reason)
{
    kv_side_answer_t *answer = weft_zalloc(sizeof(*answer), "kv_side_channel.answer");
    ask->state = KV_ASK_ENDED;
    if (answer != NULL) {
        answer->tag = ask->tag;
        answer->status = status;
        snprintf(answer->reason, sizeof(answer->reason), "%s", reason);
        kv_side_channel_deliver(channel, ask, answer);
    }
}

/* ---- begin ----------------------------------------------------------------------------------- */

/* An address was found and is tried; it does not answer; the next try, also without an address. */
#define MONITORED (ZMQ_EVENT_CONNECT_DELAYED | ZMQ_EVENT_CLOSED | ZMQ_EVENT_CONNECT_RETRIED)

/* Hears that nobody listens at the endpoint, long before the time is over. */
static void open_monitor(kv_side_channel_t *channel, kv_side_ask_t *ask)
{
    const int zero = 0;
    char name[64];
    snprintf(name, sizeof(name), "inproc://ask-%llu", (unsigned long long)channel->n_monitors++);
    if (zmq_socket_monitor(ask->socket, name, MONITORED) != 0) {
        return;
    }
    ask->monitor = zmq_socket(channel->context, ZMQ_PAIR);
    if (ask->monitor != NULL) {
        zmq_setsockopt(ask->monitor, ZMQ_LINGER, &zero, sizeof(zero));
        zmq_connect(ask->monitor, name);
    }
}

static bool send_request(kv_side_ask_t *ask)
{
    weft_buffer_t request = {0};
    kv_meta_request_encode(ask->rank, &request);
    const bool is_sent = !request.is_failed && zmq_send(ask->socket, "", 0, ZMQ_SNDMORE) >= 0 &&
                         zmq_send(ask->socket, request.data, request.length, ZMQ_DONTWAIT) >= 0;
    weft_buffer_free(&request);
    return is_sent;
}

static void send_anew(kv_side_channel_t *channel, kv_side_ask_t *ask)
{
    const int zero = 0;
    const int is_v6 = ask->is_v6;
    const int64_t max_bytes = (int64_t)KV_HANDSHAKE_MAX_BYTES;
    ask->sent_ns = weft_clock_ns();
    ask->socket = zmq_socket(channel->context, ZMQ_DEALER);
    if (ask->socket == NULL) {
        finish(channel, ask, WEFT_ERR_NO_MEMORY, "no socket");
        return;
    }
    zmq_setsockopt(ask->socket, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(ask->socket, ZMQ_IPV6, &is_v6, sizeof(is_v6));
    zmq_setsockopt(ask->socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof(max_bytes));
    open_monitor(channel, ask);
    if (zmq_connect(ask->socket, ask->endpoint) != 0 || !send_request(ask)) {
        finish(channel, ask, WEFT_ERR_PEER_GONE, zmq_strerror(errno));
    }
}

void kv_side_ask_begin(kv_side_channel_t *channel, kv_side_ask_t *ask)
{
    ask->state = KV_ASK_SENT;
    ask->is_v6 = strchr(ask->endpoint, '[') != NULL;
    send_anew(channel, ask);
}

static void close_sockets(kv_side_ask_t *ask)
{
    if (ask->socket != NULL) {
        zmq_socket_monitor(ask->socket, NULL, 0);
        zmq_close(ask->socket);
        ask->socket = NULL;
    }
    if (ask->monitor != NULL) {
        zmq_close(ask->monitor);
        ask->monitor = NULL;
    }
}

static void take_refusal(kv_side_channel_t *channel, kv_side_ask_t *ask)
{
    if (ask->is_v6) {
        finish(channel, ask, WEFT_ERR_PEER_GONE,
               ask->has_address ? "nobody listens there" : "its name has no address");
    } else {
        close_sockets(ask);
        ask->is_v6 = true;
        send_anew(channel, ask);
    }
}

/* ---- answers --------------------------------------------------------------------------------- */

static void keep_clock(kv_side_answer_t *answer, const kv_side_ask_t *ask, uint64_t now_ns,
                       const void *data, size_t bytes)
{
    double there;
    if (kv_clock_decode(data, bytes, &there) >= 0) {
        const double sent = (double)ask->sent_ns / (double)WEFT_NS_PER_SECOND;
        const double now = (double)now_ns / (double)WEFT_NS_PER_SECOND;
        answer->has_clock = true;
        answer->round_trip = now - sent;
        answer->clock_offset = there - (sent + now) / 2;
    }
}

static bool keep_payload(kv_side_answer_t *answer, const void *data, size_t bytes)
{
    answer->payload = weft_alloc(bytes + 1, "kv_side_channel.payload");
    if (answer->payload == NULL) {
        return false;
    }
    memcpy(answer->payload, data, bytes);
    answer->bytes = bytes;
    return true;
}

/* An empty frame, the payload, and since 0.26 a clock. False: there is nothing to receive. */
static bool receive(kv_side_ask_t *ask, uint64_t now_ns, kv_side_answer_t *answer)
{
    int more = 1;
    bool is_whole = true;
    uint32_t n = 0;
    for (; more != 0; n++) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, ask->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            return false;
        }
        if (n == 0) {
            is_whole &= zmq_msg_size(&frame) == 0;
        } else if (n == 1) {
            is_whole &= keep_payload(answer, zmq_msg_data(&frame), zmq_msg_size(&frame));
        } else if (n == 2) {
            keep_clock(answer, ask, now_ns, zmq_msg_data(&frame), zmq_msg_size(&frame));
        }
        more = zmq_msg_more(&frame);
        zmq_msg_close(&frame);
    }
    answer->status = is_whole && n >= 2 ? WEFT_OK : WEFT_ERR_MALFORMED;
    snprintf(answer->reason, sizeof(answer->reason), "%s",
             answer->status < 0 ? "the answer is not a handshake" : "");
    return true;
}

/* ZeroMQ's event: its number in the first two bytes of the first frame; 0: there is none. */
static uint16_t next_event(void *monitor)
{
    uint16_t event = 0;
    int more = 1;
    for (int n = 0; more != 0; n++) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, monitor, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            return event;
        }
        if (n == 0 && zmq_msg_size(&frame) >= sizeof(event)) {
            memcpy(&event, zmq_msg_data(&frame), sizeof(event));
        }
        more = zmq_msg_more(&frame);
        zmq_msg_close(&frame);
    }
    return event;
}

static bool is_refused(kv_side_ask_t *ask)
{
    uint16_t event;
    while (ask->monitor != NULL && (event = next_event(ask->monitor)) != 0) {
        if (event != ZMQ_EVENT_CONNECT_DELAYED) {
            return true;
        }
        ask->has_address = true;
    }
    return false;
}

void kv_side_ask_look(kv_side_channel_t *channel, kv_side_ask_t *ask, uint64_t now_ns)
{
    kv_side_answer_t *answer = weft_zalloc(sizeof(*answer), "kv_side_channel.answer");
    if (answer != NULL && receive(ask, now_ns, answer)) {
        answer->tag = ask->tag;
        ask->state = KV_ASK_ENDED;
        kv_side_channel_deliver(channel, ask, answer);
        return;
    }
    kv_side_answer_free(answer);
    if (is_refused(ask)) {
        take_refusal(channel, ask);
    } else if (now_ns >= ask->sent_ns + KV_SIDE_CHANNEL_TIMEOUT_NS) {
        finish(channel, ask, WEFT_ERR_TIMEOUT, "no answer within 5 s");
    }
}

void kv_side_ask_destroy(kv_side_ask_t *ask)
{
    close_sockets(ask);
    weft_free(ask);
}
