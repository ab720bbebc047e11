/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_transfer: kv_transfer_params of requests and answers, and the prefill leg that a decode worker
 * sends itself when they name a prefill_url.
 *
 * That leg is sent beside the request: the decode worker asks the prefill worker once for its side
 * channel (GET /kv_transfer), then submits the request with a transfer_id that both know, and its
 * blocks come while the prompt is computed. A prefill worker that has no such route is waited for.
 *
 * Threads  read: a worker; the rest: the loop
 */
#pragma once

#include <jansson.h>

#include "services/api/api_call.h"

/* What json, the body of a request to generate, says of blocks. Errors join call->error. */
void api_transfer_read(api_call_t *call, json_t *json);

/* Sends the prefill leg; generation_run_submit follows at once or later. False: there is none. */
bool api_transfer_prefill(api_call_t *call);

/*
 * What prompt `index` of the request says of blocks: those that an answer names are of the first one;
 * with a transfer_id the next ones are known to both workers as "<id>/<index>". NULL: nothing. In the
 * call's arena.
 */
const kv_transfer_params_t *api_transfer_of_prompt(api_call_t *call, uint32_t index);

/* The call ends: what it owes the prefill worker is done, the leg under way is called off. */
void api_transfer_end(api_call_t *call);
void api_transfer_free(api_call_t *call); /* what read made; part of end */

/* The member "kv_transfer_params" of an answer that is not streamed. */
void api_transfer_write(const generation_t *generation, weft_json_t *json);

void answer_kv_transfer(api_call_t *call); /* GET /kv_transfer */
