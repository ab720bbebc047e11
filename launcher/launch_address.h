/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_address: where a leader listens, as people and environments write it: host, host:port,
 * v6 or [v6]:port.
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define LAUNCH_HOST_BYTES 256

typedef struct launch_address {
    char host[LAUNCH_HOST_BYTES]; /* a name or an address, without brackets */
    uint16_t port;                /* 0: none was named */
} launch_address_t;

/*
 * WEFT_ERR_INVALID, with the text and what is wrong with it: no host, a port that is not 1..65535,
 * characters that no name or address has.
 */
weft_status_t launch_address_parse(const char *text, weft_diag_t *diag,
                                   launch_address_t *address_out);
