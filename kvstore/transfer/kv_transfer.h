/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_transfer: KV blocks that one worker computed and another decodes from, as vLLM's NixlConnector
 * (pull) does it. One object for an engine (for each of its ranks); the scheduler drives it.
 *
 * Prefill    a request with do_remote_decode is computed as any other. When it ends by length or stop,
 *            kv_transfer_hold keeps its blocks under a lease for whoever reads them, and says what the
 *            answer carries. With a transfer_id a lease is opened when it is first scheduled, and told
 *            of blocks as they fill, so that they can be read before the last one is there
 * Decode     kv_transfer_expect when the request is queued: the peer is met and its lease kept alive
 *            meanwhile. kv_pull_start once there are blocks for what is not cached here; tokens are
 *            there as kv_pull_tokens says. kv_pull_end in any case
 * Failure    a pull that fails says why; the prompt is then computed here. A block is never used after
 *            its owner gave it to somebody else: readers look at the lease's epoch before and after
 * Blocks     the transfer holds references of its own to blocks under a held lease and to blocks that
 *            are written by a pull. So kv_pull_end and the release of the request's own references may
 *            come at any time: a block is free only once nobody writes to it
 *
 * Ranks      of one engine have a transfer each, with its part of every block. Rank 0's decides: what is
 *            called is ordered of the others (setup.crew), which carry it out with kv_transfer_obey. A
 *            pull has ended when it has on all ranks, and failed when it has on one; blocks that were
 *            held for readers are free when no rank holds them. Peers ask rank 0's side channel for
 *            every rank
 *
 * Threads    the engine's alone, except where it says otherwise. Nothing here waits. Meeting peers has
 *            a thread of its own, moving bytes the fabric's
 */
#pragma once

#include "kvstore/kv_pool.h"
#include "kvstore/ranks/kv_crew.h"
#include "kvstore/transfer/kv_landing.h"
#include "kvstore/transfer/kv_transfer_config.h"
#include "kvstore/transfer/kv_transfer_params.h"

typedef struct kv_transfer kv_transfer_t;
typedef struct kv_lease kv_lease_t; /* blocks that peers may read; the transfer's */
typedef struct kv_pull kv_pull_t;   /* a reading of a prompt's blocks; the transfer's */
typedef struct kv_side_channel kv_side_channel_t;

/* A pull that ended well, and read something. */
typedef struct kv_pull_report {
    double seconds;      /* from the first posting to the last byte */
    double post_seconds; /* spent in posting */
    uint64_t bytes;
    uint64_t descriptors; /* pieces */
} kv_pull_report_t;

typedef struct kv_transfer_setup {
    const kv_transfer_config_t *config; /* copied, so for each text */
    kv_pool_t *pool;                    /* borrowed; its layout, memory and blocks */
    const uint8_t *fingerprint;         /* [32] of the model's weights and configuration */
    const char *model;                  /* as it was asked for, so in vLLM's compatibility hash */
    const char *dtype;                  /* of the cache: "f32" "f16" "bf16" */
    const char *model_dtype;            /* of the computation, as vLLM calls it: "torch.bfloat16" */
    uint32_t total_heads;               /* KV heads of all tensor-parallel ranks, not repeated */
    uint32_t total_layers;              /* of all pipeline stages */
    uint32_t tp_rank;
    uint32_t tp_size; /* 0 is 1, so for each */
    uint32_t pp_rank;
    uint32_t pp_size;
    kv_side_channel_t *side_channel; /* of another rank, outlives this; NULL: its own is made */
    kv_crew_t *crew; /* of the engine's ranks, with which this one leads or follows; NULL: alone */
    void (*wake)(void *user); /* any thread: poll has something, or a lease is over */
    void (*on_pulled)(void *user, const kv_pull_report_t *report); /* by poll; may be NULL */
    kv_landing_convert_fn convert; /* where the pool is a device's; NULL: of unlike peers nothing */
    void *user;
} kv_transfer_setup_t;

/* WEFT_ERR_UNSUPPORTED: no backend of the fabric takes the pool's memory. */
weft_status_t kv_transfer_create(const kv_transfer_setup_t *setup, weft_diag_t *diag,
                                 kv_transfer_t **transfer_out);
/* What runs is cancelled and waited for; every reference is given back. NULL is fine. */
void kv_transfer_destroy(kv_transfer_t *transfer);

/* Constant while it lives. */
const kv_transfer_config_t *kv_transfer_config(const kv_transfer_t *transfer);
const char *kv_transfer_engine_id(const kv_transfer_t *transfer);
uint16_t kv_transfer_port(const kv_transfer_t *transfer); /* of the side channel */
uint32_t kv_transfer_tp_size(const kv_transfer_t *transfer);
uint32_t kv_transfer_pp_size(const kv_transfer_t *transfer);
kv_side_channel_t *kv_transfer_side_channel(kv_transfer_t *transfer);

/* ---- ranks ----------------------------------------------------------------------------------- */

/* Others: rank 0's, which may be another one after a loss. */
weft_status_t kv_transfer_set_engine_id(kv_transfer_t *transfer, const char *engine_id);
/* What peers that ask for this rank are to get: rank 0 serves it. */
weft_status_t kv_transfer_export(kv_transfer_t *transfer, weft_buffer_t *out);
/* Rank 0: another rank's export, or the one of who took its place. */
weft_status_t kv_transfer_serve_rank(kv_transfer_t *transfer, uint32_t pp_rank, uint32_t tp_rank,
                                     const void *export, size_t bytes);

/* Others: an order of KV_ORDER_LEASE_OPEN and up. WEFT_ERR_MALFORMED: that cannot be. */
weft_status_t kv_transfer_obey(kv_transfer_t *transfer, const kv_order_head_t *order,
                               const char *items);
/* Rank 0: a report of KV_REPORT_PULL and up. */
void kv_transfer_hear(kv_transfer_t *transfer, const kv_report_t *report);
/*
 * A rank is lost, and its part of every block with it: pulls have failed, nothing is held. Others: every
 * pull and lease is gone when it returns, which waits for what is still written.
 */
void kv_transfer_lose_ranks(kv_transfer_t *transfer);

/* ---- poll ------------------------------------------------------------------------------------ */

/*
 * Between steps, and when woken: takes what peers said, what was read, what is over. True: a pull
 * changed its state or has more tokens, or blocks became free.
 */
bool kv_transfer_poll(kv_transfer_t *transfer);

/* ---- prefill --------------------------------------------------------------------------------- */

/*
 * A request with this transfer_id was scheduled for the first time; readers who asked for it before
 * are remembered. NULL: no memory, that transfer_id is in use, or blocks are copied for vLLM: the
 * request goes on without.
 */
kv_lease_t *kv_transfer_open(kv_transfer_t *transfer, const char *transfer_id);

/*
 * blocks [n] are those of the request from its start, of which n_tokens tokens are filled by steps
 * that have been executed. The blocks stay the request's; readers use them until it says otherwise.
 */
void kv_lease_progress(kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                       uint32_t n_tokens);
/* Before the request's blocks are given up because it is preempted; progress starts anew. */
void kv_lease_retract(kv_lease_t *lease);
/* Before its blocks are given up otherwise: aborted, failed. Readers learn of it. NULL is fine. */
void kv_lease_drop(kv_lease_t *lease);

/*
 * The request ended by length or stop with these blocks [n], n_tokens of them filled. lease: of
 * kv_transfer_open, or NULL; it is the transfer's from now on. Takes references of its own, for
 * kv_lease_duration and as long as heartbeats come. request_id: unlike any other's of this engine,
 * without commas. params_out: as the answer carries them; kv_transfer_params_fini it. n 0 is fine.
 * An error leaves nothing held, and the lease is dropped. WEFT_ERR_NO_BLOCKS, WEFT_ERR_QUEUE_FULL: too
 * much is held; the answer is without params.
 */
weft_status_t kv_transfer_hold(kv_transfer_t *transfer, kv_lease_t *lease, const char *request_id,
                               const kv_block_id_t *blocks, uint32_t n, uint32_t n_tokens,
                               kv_transfer_params_t *params_out);

/* ---- decode ---------------------------------------------------------------------------------- */

/*
 * A request of n_prompt tokens came with params (kv_transfer_params_check said OK; borrowed for the
 * call). The peer is met, asked, and sent heartbeats from now on.
 * WEFT_ERR_UNSUPPORTED: no consumer, or more tensor or pipeline stages than there are;
 * WEFT_ERR_PEER_GONE: it failed lately and is not tried again yet, diag says what happened.
 */
weft_status_t kv_transfer_expect(kv_transfer_t *transfer, const kv_transfer_params_t *params,
                                 uint32_t n_prompt, weft_diag_t *diag, kv_pull_t **pull_out);

/* The request never ran here: the peer need not keep its blocks. Sent when it can be. */
void kv_transfer_decline(kv_transfer_t *transfer, const kv_transfer_params_t *params);

/*
 * The first `first` blocks of the prompt are here already; the next ones go to blocks [n], which the
 * caller holds. Once only. What the peer has in blocks beyond these is not read.
 */
weft_status_t kv_pull_start(kv_pull_t *pull, uint32_t first, const kv_block_id_t *blocks,
                            uint32_t n);
bool kv_pull_is_started(const kv_pull_t *pull);

/*
 * WEFT_PENDING; WEFT_OK: everything asked for is there, the peer was told; else it failed for good:
 * WEFT_ERR_INVALID (the peer does not fit, kv_pull_reason names the difference), WEFT_ERR_STALE,
 * WEFT_ERR_PEER_GONE, WEFT_ERR_TIMEOUT, WEFT_ERR_CANCELLED (the prefill was aborted), ... Once it has
 * failed nothing writes to the blocks any more: the prompt may be computed in them.
 */
weft_status_t kv_pull_state(const kv_pull_t *pull);
const char *kv_pull_reason(const kv_pull_t *pull); /* one line, "" while it has not failed */

/*
 * Tokens of the prompt, from its start, that are in the caller's blocks: those of `first` blocks at
 * first. Only grows, and stays true when the pull fails. Before start: 0.
 */
uint32_t kv_pull_tokens(const kv_pull_t *pull);
/* That it comes to in the end, as far as is known: what the peer computed, at most n_prompt. */
uint32_t kv_pull_tokens_in_the_end(const kv_pull_t *pull);

/* Done or given up; the peer is told that its blocks may go. pull is dead. NULL is fine. */
void kv_pull_end(kv_pull_t *pull);
bool kv_transfer_is_pulling(const kv_transfer_t *transfer); /* some pull has not ended */
/* Blocks of ended pulls that are still written to: free soon, wake says when. */
uint32_t kv_transfer_landing_blocks(const kv_transfer_t *transfer);

/* ---- what happened --------------------------------------------------------------------------- */

#define KV_TRANSFER_MAX_PEER_STATS 32
#define KV_TRANSFER_OTHER_PEERS                                                                    \
    "other" /* those that were never met, and those that came too late */

/* Of an address: counts only grow, whatever engine answers there, and keep their place in the list. */
typedef struct kv_transfer_peer_stats {
    char engine_id[64]; /* cut; the last one */
    char address[96];   /* host:port, cut, or KV_TRANSFER_OTHER_PEERS */
    bool is_connected;
    uint64_t pulls; /* ended well */
    uint64_t bytes;
    uint64_t failures; /* requests that were to have blocks from it, and have not */
    double seconds;    /* reading, summed over pulls */
} kv_transfer_peer_stats_t;

typedef struct kv_transfer_stats {
    /* decode */
    uint64_t pulls;        /* that ended well */
    uint64_t pulls_failed; /* each is a fallback, unless the policy is to fail */
    uint64_t pulls_open;   /* now */
    uint64_t bytes_read;
    uint64_t blocks_read;
    double read_seconds;       /* from the first posting of a pull to its last byte, summed */
    double queue_seconds;      /* from expect to the first posting, summed */
    uint64_t overlapped_bytes; /* read before the prefill had ended */
    uint64_t stale_reads;
    uint64_t handshakes;
    uint64_t handshakes_failed;
    uint64_t heartbeats_sent;
    uint64_t notifications_failed; /* of both */
    /* prefill */
    uint64_t leases;          /* that were held */
    uint64_t leases_open;     /* now, both kinds */
    uint64_t blocks_held;     /* now, by held leases */
    uint64_t leases_released; /* by all readers */
    uint64_t leases_expired;
    uint64_t late_notifications; /* of readers whose lease had expired */
    uint64_t watches_done;       /* readers ahead of a prefill that gave up, or needed no answer */
    uint64_t heartbeats_received;
    uint64_t bad_notifications; /* nothing that anybody could have meant */
    uint64_t bad_requests;      /* the same on the side channel */
    uint64_t requests;          /* answered on the side channel */
    uint32_t n_peers;           /* grows; requests name peers, but only those that are met get in */
    kv_transfer_peer_stats_t peers[KV_TRANSFER_MAX_PEER_STATS];
} kv_transfer_stats_t;

/* What others are to find counted from now on; a poll does the same. */
void kv_transfer_publish(kv_transfer_t *transfer);

/* As of the last poll or publishing. Any thread. */
void kv_transfer_stats(kv_transfer_t *transfer, kv_transfer_stats_t *stats_out);

/* For tests: adds one to users[block] for each reference that the transfer holds. */
void kv_transfer_count_held(const kv_transfer_t *transfer, uint32_t *users);
