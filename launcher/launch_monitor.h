/* SPDX-License-Identifier: Apache-2.0 */
/* launch_monitor: what happens to the connections of a ZeroMQ socket. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct launch_event {
    int kind; /* ZMQ_EVENT_* */
    int32_t value;
} launch_event_t;

/*
 * A socket of the context that tells what happens on `socket`: accepted, connected, handshakes, ends.
 * Closed by launch_monitor_close before the socket is.
 */
weft_status_t launch_monitor_open(void *context, void *socket, void **monitor_out);
void launch_monitor_close(void *socket, void *monitor);             /* NULL is fine */
bool launch_monitor_next(void *monitor, launch_event_t *event_out); /* does not wait */

/* Why a handshake failed, from the event's value; for people. */
const char *launch_monitor_reason(const launch_event_t *event);
