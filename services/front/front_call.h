/* SPDX-License-Identifier: Apache-2.0 */
/*
 * front_call: one request on its way through a front: its legs, and the answer that comes back.
 *
 * Threads  the front's loop
 */
#pragma once

#include "base/http_server.h"

typedef struct front front_t;
typedef struct front_call front_call_t;

/* Takes the exchange over. */
void front_call_start(front_t *front, weft_http_exchange_t *exchange);
/* Ends it without an answer: its client is gone, or the front is going. */
void front_call_drop(front_call_t *call);
