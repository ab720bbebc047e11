/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_address: where a leader listens, as people and environments write it: host, host:port,
 * v6 or [v6]:port.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
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

/*
 * Whether a numeric address is of this host or of a private network: 127/8, 10/8, 172.16/12, 192.168/16,
 * 100.64/10, 169.254/16; ::1, fc00::/7, fe80::/10; also IPv4 written as IPv6.
 */
bool launch_address_is_private(const char *address);
bool launch_address_is_loopback(const char *address);

/* The address of ours by which the system would send to host; nothing is sent to find out. */
bool launch_address_towards(const char *host, char *out, size_t size);
