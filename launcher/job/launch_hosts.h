/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_hosts: the hosts of a job and how many ranks each one takes, from a hostfile or a list.
 *
 * A hostfile is OpenMPI's: a host a line, with `slots=4`, `max_slots=8` (also max-slots; blanks around
 * '=' are fine) or `host:4`, and comments from '#' on. A host has one slot unless told; one that is named again
 * gets more. A name is what ssh takes: user@host, an alias of ~/.ssh/config, an address, [v6].
 *
 * Threads  none of its own
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define LAUNCH_NAME_BYTES 256
#define LAUNCH_MAX_HOSTS  4096
#define LAUNCH_MAX_RANKS  65536

typedef struct launch_seats {
    char name[LAUNCH_NAME_BYTES]; /* without brackets */
    uint32_t slots;
    uint32_t max_slots; /* that oversubscription may use; 0: no bound */
} launch_seats_t;

/* Zeroed memory is an empty list. */
typedef struct launch_hosts {
    launch_seats_t *all; /* [n], each name once, in the order of first mention */
    uint32_t n;
} launch_hosts_t;

/*
 * Adds the hosts of a file's text [length]. WEFT_ERR_MALFORMED: diag is "<name>:<line>:<column>: why",
 * columns in bytes from 1, and hosts is as far as it was read.
 */
weft_status_t launch_hosts_parse(launch_hosts_t *hosts, const char *text, size_t length,
                                 const char *name, weft_diag_t *diag);

/* The same of the file at path. */
weft_status_t launch_hosts_read(launch_hosts_t *hosts, const char *path, weft_diag_t *diag);

/* Of "a:4,b:4"; diag names the column. */
weft_status_t launch_hosts_parse_list(launch_hosts_t *hosts, const char *list, weft_diag_t *diag);

weft_status_t launch_hosts_add(launch_hosts_t *hosts, const launch_seats_t *seats);
void launch_hosts_fini(launch_hosts_t *hosts);

/* Whether the name is of this machine: localhost, its own name, an address of its interfaces. */
bool launch_hosts_is_here(const char *name);
