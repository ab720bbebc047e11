/* SPDX-License-Identifier: Apache-2.0 */
/* api_id: random names of requests and calls. */
#pragma once

#define API_ID_LENGTH 32

/* Writes 32 lower-case hex digits and a NUL. */
void api_id_random(char *out);
