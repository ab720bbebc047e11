/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_relay: a call that another data-parallel rank answers.
 *
 * Threads  the loop
 */
#pragma once

#include "services/api/api_call.h"

/*
 * Whether the call is another rank's, or refused, and nothing is left to do here. A call that concerns
 * all ranks is told to the others.
 */
bool api_relay_take(api_call_t *call);

/* The call ends: hangs up on the other rank, which ends the request there. */
void api_relay_end(api_call_t *call);
