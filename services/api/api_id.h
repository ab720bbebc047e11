/* SPDX-License-Identifier: Apache-2.0 */
/* api_id: names of requests and calls, random ones and those that clients give. */
#pragma once

#include <stdbool.h>

#define API_ID_LENGTH    32
#define API_ID_MAX_BYTES 256 /* of a client's */

/* Writes 32 lower-case hex digits and a NUL. */
void api_id_random(char *out);

/*
 * Whether a client's id, "" too, may stand in a header and a line of the log: API_ID_MAX_BYTES at
 * most, no control characters.
 */
bool api_id_is_usable(const char *id);
