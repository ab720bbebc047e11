/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_message.h"

#include <string.h>
#include <zmq.h>

#include "base/alloc.h"

static void *take(void *user, size_t size)
{
    (void)user;
    return weft_alloc(size > 0 ? size : 1, "launch.message");
}

static void give(void *user, void *memory)
{
    (void)user;
    weft_free(memory);
}

static ProtobufCAllocator allocator = {.alloc = take, .free = give};

static bool is_short(const char *text, size_t most)
{
    return strlen(text) <= most;
}

static bool is_sound_join(const Weft__Rendezvous__Join *join)
{
    if (join->n_facts > LAUNCH_MAX_FACTS || !is_short(join->host, LAUNCH_MAX_REASON_BYTES)) {
        return false;
    }
    for (size_t i = 0; i < join->n_facts; i++) {
        if (!is_short(join->facts[i]->key, LAUNCH_MAX_FACT_BYTES) ||
            !is_short(join->facts[i]->value, LAUNCH_MAX_FACT_BYTES)) {
            return false;
        }
    }
    return true;
}

static bool is_sound(const launch_message_t *message)
{
    switch (message->body_case) {
    case WEFT__RENDEZVOUS__MESSAGE__BODY_JOIN:
        return is_sound_join(message->join);
    case WEFT__RENDEZVOUS__MESSAGE__BODY_REFUSE:
        return message->refuse->status < 0 &&
               is_short(message->refuse->reason, LAUNCH_MAX_REASON_BYTES);
    case WEFT__RENDEZVOUS__MESSAGE__BODY_WELCOME:
        return message->welcome->epoch != 0;
    case WEFT__RENDEZVOUS__MESSAGE__BODY_GATHERED:
        return message->gathered->status <= 0 &&
               is_short(message->gathered->reason, LAUNCH_MAX_REASON_BYTES);
    case WEFT__RENDEZVOUS__MESSAGE__BODY_LOST:
        return is_short(message->lost->why, LAUNCH_MAX_REASON_BYTES);
    case WEFT__RENDEZVOUS__MESSAGE__BODY_ACCEPT:
    case WEFT__RENDEZVOUS__MESSAGE__BODY_BEAT:
    case WEFT__RENDEZVOUS__MESSAGE__BODY_GATHER:
    case WEFT__RENDEZVOUS__MESSAGE__BODY_GOODBYE:
        return true;
    default:
        return false;
    }
}

weft_status_t launch_message_decode(const void *bytes, size_t n, launch_message_t **message_out)
{
    launch_message_t *message = weft__rendezvous__message__unpack(&allocator, n, bytes);
    if (message == NULL || !is_sound(message)) {
        launch_message_free(message);
        return WEFT_ERR_MALFORMED;
    }
    *message_out = message;
    return WEFT_OK;
}

void launch_message_free(launch_message_t *message)
{
    if (message != NULL) {
        weft__rendezvous__message__free_unpacked(message, &allocator);
    }
}

weft_status_t launch_message_send(void *socket, const void *route, size_t route_bytes,
                                  const launch_message_t *message)
{
    zmq_msg_t part;
    const size_t n = weft__rendezvous__message__get_packed_size(message);
    if (zmq_msg_init_size(&part, n) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft__rendezvous__message__pack(message, zmq_msg_data(&part));
    if (route_bytes > 0 && zmq_send(socket, route, route_bytes, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) {
        zmq_msg_close(&part);
        return WEFT_ERR_PEER_GONE;
    }
    if (zmq_msg_send(&part, socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&part);
        return WEFT_ERR_PEER_GONE;
    }
    return WEFT_OK;
}
