/* SPDX-License-Identifier: Apache-2.0 */
/* reserved_port: a port for who is yet to listen, or to listen again. (ports.py does the same.) */
#pragma once

#include "launcher/launch_port.h"
#include "tests/support/check.h"

/* On 127.0.0.1, until the process ends. */
static inline uint16_t reserve_port(void)
{
    launch_port_t port;
    assert_status(launch_port_hold(true, &port), WEFT_OK);
    return port.number;
}
