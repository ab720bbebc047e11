/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_group: the ranks of an engine as one of them sees them, from the first meeting to the last
 * message. Leader and followers call the same functions in the same order:
 *
 *   form   links are made; who shares this host's memory and this process's cores is told
 *   agree  sizes that must be equal are made so, or the difference is named
 *   share  what each rank says of itself is every rank's
 *   open   all ranks are loaded; the feed of plans is there
 *   part   what form and open made is gone
 *
 * A rank that fails on its way calls the next of agree, share and open all the same, with its status, so
 * that the others end with its reason and not with a timeout.
 *
 * Threads  one at a time; state and cancel: any; tell: another one
 */
#pragma once

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "kvstore/transfer/kv_transfer_params.h"
#include "runtime/engine/engine_ranks.h"
#include "runtime/sched/step_plan_wire.h"
#include "transport/coll/coll_feed.h"

/* What a step needs on every rank alike; a rank's KV cache may hold more than it is used for. */
typedef struct engine_terms {
    uint32_t n_blocks; /* the smallest counts, so for the next; or that of a rank that is settled */
    uint32_t max_context;
    uint32_t is_settled; /* 1: it is loaded, and keeps these two */
    uint32_t max_slots;  /* these are equal, or the ranks cannot run together */
    uint32_t max_tokens;
    uint32_t block_tokens;
    uint32_t kv_dtype;
    uint32_t vocab;
    char
        engine_id[KV_TRANSFER_MAX_ID_BYTES + 1]; /* rank 0's is everybody's; "": blocks stay here */
} engine_terms_t;

typedef struct engine_group {
    engine_ranks_t ranks;
    engine_links_t links; /* world NULL: not formed */
    coll_feed_t *feed;    /* NULL: not open */
    uint32_t size;
    uint32_t rank;
    uint32_t on_device; /* ranks that have yet to take memory of this device, or of this host */
    uint32_t on_cores;  /* ranks here that may use just the same cores */
    step_wire_bounds_t bounds;
} engine_group_t;

/* is_loaded: this rank has its memory already. */
weft_status_t engine_group_form(engine_group_t *group, weft_device_t *device, bool is_loaded,
                                weft_diag_t *diag);

/* status: of what came before on this rank, diag its reason. terms become those that hold for all. */
weft_status_t engine_group_agree(engine_group_t *group, weft_status_t status, weft_diag_t *diag,
                                 engine_terms_t *terms);

/*
 * The same. Any bytes; those of all ranks are in all_out, of rank r from offsets_out[r] to
 * offsets_out[r + 1]: the caller's to free, both [size + 1].
 */
weft_status_t engine_group_share(engine_group_t *group, weft_status_t status, weft_diag_t *diag,
                                 const weft_buffer_t *mine, weft_buffer_t *all_out,
                                 size_t **offsets_out);

/* The same; takes as long as the slowest rank. bounds: of the messages. */
weft_status_t engine_group_open(engine_group_t *group, weft_status_t status,
                                const step_wire_bounds_t *bounds, weft_diag_t *diag);

/*
 * Of something that all were told to do, at any time: every rank's status and reason, and the first failure
 * is everybody's. Waits for the slowest rank, on a thread that may; one at a time, and not while the group
 * forms. WEFT_ERR_PEER_GONE: a rank was lost meanwhile.
 */
weft_status_t engine_group_tell(engine_group_t *group, weft_status_t status, weft_diag_t *diag);

void engine_group_part(engine_group_t *group); /* one that is not formed is fine */

static inline bool engine_group_is_formed(const engine_group_t *group)
{
    return group->links.world != NULL;
}

/* WEFT_OK, or why a collective or the group failed; rank_out: whose fault, or COLL_NO_RANK. */
weft_status_t engine_group_state(const engine_group_t *group, uint32_t *rank_out);

/* The same, once it has failed: the first cause, where it can be told. May wait a moment. */
weft_status_t engine_group_cause(const engine_group_t *group, uint32_t *rank_out);

/* Leader: the plan, to all others; masks as step_wire_encode takes them. */
weft_status_t engine_group_send(engine_group_t *group, const step_plan_t *plan,
                                const uint32_t *masks);

/* Leader: bytes of orders, STEP_WIRE_ORDER_BYTES at most, to all others; kind as step_wire takes it. */
weft_status_t engine_group_send_orders(engine_group_t *group, step_wire_kind_t kind,
                                       const void *orders, size_t bytes);

/* Collective: the leader says that it ends; returns when all others have heard it, or one is lost. */
void engine_group_stop(engine_group_t *group, k_stream_t *stream);

/*
 * Others: waits for the next plan, -1: for ever; is_stop_out: there will be none. WEFT_ERR_TIMEOUT: it
 * has not come. obey gets the orders that come before it; its failure is this one's.
 */
typedef weft_status_t (*engine_obey_fn)(void *user, step_wire_kind_t kind, const void *orders,
                                        size_t bytes, weft_diag_t *diag);
weft_status_t engine_group_receive(engine_group_t *group, int timeout_ms, weft_diag_t *diag,
                                   step_plan_t *plan, uint32_t *masks, bool *is_stop_out,
                                   engine_obey_fn obey, void *user);
