/* SPDX-License-Identifier: Apache-2.0 */
/*
 * generation_run: carries a planned generation through the engine to its answer, on the loop.
 */
#pragma once

#include "services/api/api_call.h"

/* Has the prompt computed elsewhere if that was asked for, and submits. */
void generation_run_start(api_call_t *call);

/* Submits the prompts; answers at once when the engine refuses. */
void generation_run_submit(api_call_t *call);

/* The engine has news of one of our requests. */
void generation_run_news(engine_request_t *request);

/* Lets the engine drop what still runs; the call writes nothing more. */
void generation_run_release(api_call_t *call);

/* Ends a running call with an error: in the stream, or as the answer. */
void generation_run_fail(api_call_t *call, const api_error_t *error);

/* Ends a running call as the client's abort would: finish_reason "abort". */
void generation_run_abort(api_call_t *call);
