/* SPDX-License-Identifier: Apache-2.0 */
/*
 * step_plan_wire: what the leader of a group of ranks sends the others, one message a step.
 *
 *   message   header, then the used parts of the plan: binds, rows, biases, blocks, tokens, masks
 *   masks     [n_masks][mask_words], of the rows with STEP_ROW_MASKED, in their order
 *   orders    a header, then bytes of orders for KV blocks (kvstore/ranks/kv_crew.h), whose borders are
 *             anywhere: to be carried out before the next plan
 *   adapter   a header, then what is to become of a LoRA adapter (engine/adapter_order.h): before the
 *             next plan as well
 *   stop      a header alone: the leader ends, and so should whoever reads it
 *
 * Numbers are little-endian and parts aligned to 8 bytes, tokens and blocks to 4: on the hosts that
 * weft is built for each part is one copy. Encoding writes where the feed says and decoding reads
 * into a plan made before: neither allocates.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "runtime/sched/step_plan.h"

#define STEP_WIRE_MAGIC UINT32_C(0x50534657) /* "WFSP" */

#define STEP_WIRE_ORDER_BYTES 65536 /* in a message, at most */

typedef enum step_wire_kind {
    STEP_WIRE_PLAN = 1,
    STEP_WIRE_STOP = 2,
    STEP_WIRE_ORDERS = 3,
    STEP_WIRE_ADAPTER = 4
} step_wire_kind_t;

typedef struct step_wire_header {
    uint32_t magic;
    uint16_t version; /* STEP_PLAN_VERSION */
    uint16_t kind;
    uint64_t step;
    uint32_t n_binds; /* 0, and so to the end, in a stop and before orders */
    uint32_t n_rows;
    uint32_t n_biases;
    uint32_t n_blocks;
    uint32_t n_tokens;
    uint32_t n_masks;
    uint32_t mask_words; /* of one mask */
    uint32_t reserved;   /* 0 */
} step_wire_header_t;

/* What both ends know: the engine's limits, tokens that there are, blocks that each rank has. */
typedef struct step_wire_bounds {
    step_limits_t limits;
    uint32_t vocab;
    uint32_t n_blocks;
} step_wire_bounds_t;

static inline uint32_t step_wire_mask_words(uint32_t vocab)
{
    return vocab / 32 + (vocab % 32 != 0);
}

/* Bytes of the largest message with a plan within the bounds. */
size_t step_wire_max_bytes(const step_wire_bounds_t *bounds);

/*
 * masks: [max_slots][mask words of vocab], by slot. out: aligned to 8 bytes, step_wire_max_bytes
 * long. Returns the message's bytes.
 */
size_t step_wire_encode(const step_plan_t *plan, const uint32_t *masks, uint32_t vocab, void *out);
size_t step_wire_encode_stop(void *out);
/* kind: ORDERS or ADAPTER. orders [.._ORDER_BYTES] */
size_t step_wire_encode_orders(step_wire_kind_t kind, const void *orders, size_t bytes, void *out);

/* False: the message is of another kind, or of none (step_wire_decode tells). */
bool step_wire_has_orders(step_wire_kind_t kind, const void *message, size_t bytes,
                          const void **orders_out, size_t *bytes_out);

/*
 * A message from outside: the plan within the bounds (step_plan_check holds, and every token and
 * block exists) and masks at their slots' places, or is_stop_out and an empty plan. message may lie
 * anywhere. WEFT_ERR_MALFORMED: diag says what is wrong; plan and masks are of no use then.
 */
weft_status_t step_wire_decode(const void *message, size_t bytes, const step_wire_bounds_t *bounds,
                               weft_diag_t *diag, step_plan_t *plan, uint32_t *masks,
                               bool *is_stop_out);
