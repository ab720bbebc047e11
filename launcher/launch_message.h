/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_message: the bytes of proto/rendezvous.proto, read with distrust.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"
#include "generated/rendezvous.pb-c.h"

typedef Weft__Rendezvous__Message launch_message_t;

#define LAUNCH_PROTOCOL         1
#define LAUNCH_MESSAGE_MAX      (64u << 20) /* bytes; larger ones end the connection */
#define LAUNCH_MAX_FACTS        64
#define LAUNCH_MAX_FACT_BYTES   4096
#define LAUNCH_MAX_REASON_BYTES 2048

/* A message of the kind CASE (JOIN, BEAT, …) with its body. */
#define LAUNCH_MESSAGE(kind_case, member, where)                                                   \
    {PROTOBUF_C_MESSAGE_INIT(&weft__rendezvous__message__descriptor),                              \
     .body_case = WEFT__RENDEZVOUS__MESSAGE__BODY_##kind_case, .member = (where)}

/*
 * WEFT_ERR_MALFORMED: no message, or one with more than the limits above. message_out is freed by
 * launch_message_free.
 */
weft_status_t launch_message_decode(const void *bytes, size_t n, launch_message_t **message_out);
void launch_message_free(launch_message_t *message); /* NULL is fine */

/*
 * Sends without waiting: what the peer's queue has no room for is dropped, as it is for one that is
 * gone. route [route_bytes]: on a ROUTER; else none.
 */
weft_status_t launch_message_send(void *socket, const void *route, size_t route_bytes,
                                  const launch_message_t *message);
