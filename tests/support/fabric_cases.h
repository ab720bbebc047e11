/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fabric_cases: claims that are to hold for every backend: for each row of xfer_backends.def that can be had
 * here and the one of the tests, by the caps that it claims; with and without a thread, for memory that is
 * given as a memfd and not. WEFT_TEST_BACKEND=tcp runs one row.
 */
#pragma once

#include "tests/support/fabric_rig.h"

#define FABRIC_CASE_BYTES ((size_t)4 << 20) /* of memory that an end has */

/* What ofi is for is on few machines: it has to be told to do without. */
#define FABRIC_OFI_PARAMS "ofi.provider=tcp,ofi.host=127.0.0.1"

typedef struct fabric_case {
    const xfer_backend_t *backend;
    fabric_config_t config;
} fabric_case_t;

typedef void fabric_claim_fn(const fabric_case_t *test);

/* For backends that have all of caps; _all is with the one of the tests, which knows no other process. */
void fabric_claim_for_rows(uint32_t caps, fabric_claim_fn *claim);
void fabric_claim_for_all(uint32_t caps, fabric_claim_fn *claim);

/* Two agents in this process, their memory filled by seeds 1 and 2. */
typedef struct fabric_pair {
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[2];
    xfer_peer_t *peer; /* b, as a knows it */
} fabric_pair_t;

void fabric_pair_open(const fabric_case_t *test, fabric_pair_t *pair);
void fabric_pair_close(fabric_pair_t *pair);
/* n bytes between a's memory at `at` and b's at `peer_at`. */
xfer_request_t *fabric_pair_copy(fabric_pair_t *pair, xfer_direction_t direction, uint64_t at,
                                 uint64_t peer_at, uint64_t n);
weft_status_t fabric_pair_run(fabric_pair_t *pair, xfer_request_t *request);
