/* SPDX-License-Identifier: Apache-2.0 */
/*
 * adapter_order: what rank 0 tells the others of LoRA adapters: one message each (step_plan_wire.h), or
 * several behind one another when ranks meet.
 *
 *   load   read the folder, on a thread of its own, and tell all how it went (engine_group_tell)
 *   put    the one that was read is in the table: sequences of the next plan may have it
 *   drop   no sequence has the place's any more; without a place: what was read is not wanted
 *
 * Numbers are little-endian. Encoding writes where it is told to and decoding reads in place.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define ADAPTER_ORDER_MAX_BYTES 16384
#define ADAPTER_ORDER_NO_PLACE  UINT32_MAX

typedef enum adapter_order_verb {
    ADAPTER_ORDER_LOAD = 1,
    ADAPTER_ORDER_PUT,
    ADAPTER_ORDER_DROP,
} adapter_order_verb_t;

typedef struct adapter_order {
    adapter_order_verb_t verb;
    uint32_t place;   /* of put and drop */
    uint64_t serial;  /* of load: no two adapters have the same */
    const char *name; /* of load, else ""; decoded: in the message */
    const char *path;
} adapter_order_t;

/* out [ADAPTER_ORDER_MAX_BYTES]. 0: its texts are too long. */
size_t adapter_order_encode(const adapter_order_t *order, void *out);

/* The first of the orders in bytes; used_out: what it takes of them. */
weft_status_t adapter_order_decode(const void *bytes, size_t n, weft_diag_t *diag,
                                   adapter_order_t *order_out, size_t *used_out);
