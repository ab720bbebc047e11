/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_monitor.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#define EVENTS                                                                                     \
    (ZMQ_EVENT_CONNECTED | ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_CLOSED | ZMQ_EVENT_CONNECT_RETRIED |     \
     ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |                               \
     ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |                         \
     ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)

weft_status_t launch_monitor_open(void *context, void *socket, void **monitor_out)
{
    static atomic_uint numbers;
    char name[64];
    snprintf(name, sizeof(name), "inproc://weft-ranks-%u", atomic_fetch_add(&numbers, 1));
    if (zmq_socket_monitor(socket, name, EVENTS) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    void *monitor = zmq_socket(context, ZMQ_PAIR);
    if (monitor == NULL || zmq_connect(monitor, name) != 0) {
        launch_monitor_close(socket, monitor);
        return WEFT_ERR_NO_MEMORY;
    }
    *monitor_out = monitor;
    return WEFT_OK;
}

void launch_monitor_close(void *socket, void *monitor)
{
    if (socket != NULL) {
        zmq_socket_monitor(socket, NULL, 0);
    }
    if (monitor != NULL) {
        zmq_close(monitor);
    }
}

bool launch_monitor_next(void *monitor, launch_event_t *event_out)
{
    uint8_t frame[16];
    uint16_t kind;
    char address[256];
    if (zmq_recv(monitor, frame, sizeof(frame), ZMQ_DONTWAIT) < 6) {
        return false;
    }
    (void)zmq_recv(monitor, address, sizeof(address), ZMQ_DONTWAIT);
    memcpy(&kind, frame, 2);
    memcpy(&event_out->value, frame + 2, 4);
    event_out->kind = kind;
    return true;
}

const char *launch_monitor_reason(const launch_event_t *event)
{
    if (event->kind == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) {
        return "it went, or was silent, before it was done";
    }
    if (event->kind == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
        return "it may not";
    }
    switch (event->value) {
    case ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return "one has a secret and the other has none";
    case ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
        return "the secrets differ";
    default:
        return "it does not speak ZeroMQ";
    }
}
