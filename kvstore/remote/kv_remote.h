/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_remote: what a store shares with others, and takes from them.
 *
 * A store that listens offers its blocks in host memory (the host tier's, and the device's where that
 * is a CPU) to peers by their hashes; a store with peers has them as its last tier, from which blocks
 * are read over the fabric. The two are independent; docs/kv-store.md has what is promised.
 */
#pragma once

#include "kvstore/remote/kv_remote_message.h"

typedef struct kv_remote_config {
    const char *listen;   /* "host:port"; NULL, "": nothing is offered */
    uint32_t port_offset; /* added to a port that is not 0 */
    const char *peers;    /* "host:port,host:port"; NULL, "": none */
    const char *backends; /* of the fabric, with commas; NULL, "": all */
    const char *params;   /* of those, as xfer_agent_config_t's; NULL, "": none */
    uint64_t wait_ns;     /* that a request waits for answers, and for the next block */
    kv_remote_facts_t facts;
} kv_remote_config_t;

/* Whether its addresses can be those of anybody. WEFT_ERR_INVALID: diag names option and address. */
weft_status_t kv_remote_config_check(const kv_remote_config_t *config, weft_diag_t *diag);
