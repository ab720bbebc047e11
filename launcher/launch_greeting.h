/* SPDX-License-Identifier: Apache-2.0 */
/* launch_greeting: how whoever listens at an address wants to be spoken to. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define LAUNCH_MECHANISM_BYTES 21 /* a greeting's 20, and NUL */

/*
 * The security mechanism that a ZeroMQ socket at the numeric address announces ("NULL", "CURVE"), read
 * from its greeting (ZMTP 3.1, RFC 37). Waits for at most a second. False: nobody listens, or it is
 * no such socket.
 *
 * A handshake between two mechanisms does not tell: each side hangs up once it has read the other's
 * greeting, often before its own is sent.
 */
bool launch_greeting_mechanism(const char *address, uint16_t port,
                               char mechanism_out[LAUNCH_MECHANISM_BYTES]);
