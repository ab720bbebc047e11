/* SPDX-License-Identifier: Apache-2.0 */
/* kv_transfer_priv: the state of transfers, for its own files. */
#pragma once

#include <pthread.h>

#include "base/clock.h"
#include "kvstore/transfer/kv_compat.h"
#include "kvstore/transfer/kv_export.h"
#include "kvstore/transfer/kv_handshake.h"
#include "kvstore/transfer/kv_lease_table.h"
#include "kvstore/transfer/kv_notice.h"
#include "kvstore/transfer/kv_side_channel.h"
#include "kvstore/transfer/kv_slices.h"
#include "kvstore/transfer/kv_staging.h"
#include "kvstore/transfer/kv_transfer.h"
#include "transport/xfer/xfer.h"

#define KV_TRANSFER_LEASE_SLOTS  4096
#define KV_TRANSFER_MAX_WATCHERS 1024
#define KV_TRANSFER_MAX_GONE     1024
#define KV_TRANSFER_MAX_READERS  256
#define KV_TRANSFER_MAX_PEERS    256                  /* with those in use, as many as those are */
#define KV_PULL_MAX_READS        4                    /* of a rank at a time */
#define KV_PULL_READ_BYTES       (UINT64_C(32) << 20) /* of one read, about */
#define KV_PULL_MAX_RETRIES      8                    /* after blocks were taken back */
#define KV_PEER_TIMEOUT_NS       (2 * KV_SIDE_CHANNEL_TIMEOUT_NS)
#define KV_PEER_MAX_BACKOFF_NS   (60 * WEFT_NS_PER_SECOND)
#define KV_REASON_BYTES          384

/* ---- peers ----------------------------------------------------------------------------------- */

/* A rank of a peer that ours deals with. */
typedef struct kv_peer_rank {
    kv_meta_request_t rank;
    bool is_source;
    uint32_t readers;
    bool has_answered;
    kv_handshake_t handshake;
    xfer_peer_t *xfer;    /* NULL until it has answered */
    kv_head_form_t form;  /* of a source, so for all below */
    kv_staging_t staging; /* no slots: blocks are read in place */
    kv_slices_t slices;   /* between its blocks and ours, or slots */
    xfer_list_t *local_list;
    xfer_list_t *peer_list;
} kv_peer_rank_t;

typedef enum kv_peer_state { KV_PEER_ASKING, KV_PEER_READY, KV_PEER_FAILED } kv_peer_state_t;

typedef struct kv_peer {
    kv_transfer_t *transfer;
    struct kv_peer *next;
    char *host;
    uint16_t port;
    uint32_t tp_size;
    uint32_t pp_size;
    uint64_t tag; /* of its asks, plus the rank's number; another one each time */
    kv_peer_state_t state;
    bool is_replaced; /* another engine is at its address, or it failed: for its pulls alone */
    bool is_weft;
    uint32_t n_ranks;
    kv_peer_rank_t *ranks;
    char engine_id[KV_TRANSFER_MAX_ID_BYTES + 1]; /* "" until known */
    uint32_t n_pulls;
    uint32_t failures; /* in a row */
    uint64_t asked_ns;
    uint64_t retry_ns;
    uint64_t used_ns;
    uint64_t heartbeat_ns; /* of the next */
    uint64_t alive_ns;     /* when the last heartbeat left; 0: none did */
    weft_status_t error;
    char reason[KV_REASON_BYTES];
    char address[96];                /* host:port, cut */
    kv_transfer_peer_stats_t *stats; /* in the transfer's counts; NULL until it was met */
} kv_peer_t;

/* ---- watchers: readers that want to be told --------------------------------------------------- */

typedef struct kv_watcher {
    struct kv_watcher *next; /* of its lease, or of those that have none yet */
    char *id;
    bool is_by_request; /* id is a request id */
    bool is_done;       /* said so before there was a lease */
    char *agent;        /* the fabric's name of it */
    uint32_t sent_blocks;
    uint32_t readers; /* as it said with is_done */
    bool has_unsent;
    uint64_t since_ns;
} kv_watcher_t;

/* Agents that told us how to answer them; forgotten when they have been silent for long. */
typedef struct kv_reader {
    struct kv_reader *next;
    char *agent;
    uint64_t heard_ns;
} kv_reader_t;

/* ---- pulls ----------------------------------------------------------------------------------- */

typedef struct kv_pull_read {
    xfer_request_t *request; /* NULL: none */
    uint32_t first;          /* unit */
    uint32_t n;              /* units */
    uint32_t *slots;         /* owned [n], NULL: in place */
    uint64_t bytes;
    uint64_t epoch;
    uint64_t posted_ns;
    bool is_overlapped;
    bool is_landing;  /* being converted by the device */
    uint64_t landing; /* in this batch */
} kv_pull_read_t;

/* What is known and done of one rank of the peer. */
typedef struct kv_pull_rank {
    bool has_lease;
    kv_lease_ref_t lease;
    uint32_t *blocks; /* [capacity], KV_BLOCK_NONE: not known */
    uint32_t capacity;
    uint32_t n_known;   /* leading ones */
    uint32_t n_skipped; /* leading ones that the answer's list leaves out */
    uint32_t tokens;    /* filled there */
    bool is_final;      /* nothing will be added */
    uint32_t posted;    /* units from the prompt's start */
    uint32_t done;
    uint32_t n_retries;
    bool is_cut;       /* reads were cancelled, to be posted anew once all have ended */
    uint64_t heard_ns; /* that it runs, or ran */
    kv_pull_read_t reads[KV_PULL_MAX_READS]; /* a circle */
    uint32_t first_read;
    uint32_t n_reads;
} kv_pull_rank_t;

/* What rank 0 knows of a pull on another rank. */
typedef struct kv_pull_other {
    uint32_t tokens;
    weft_status_t status;
    bool is_quiet; /* nothing is written there */
} kv_pull_other_t;

struct kv_pull {
    kv_transfer_t *transfer;
    kv_pull_t *next;
    uint64_t id;             /* with other ranks: rank 0's number, the same on all */
    kv_pull_other_t *others; /* owned [kv_crew_others]; NULL: none, or this is not rank 0 */
    bool is_cancel_ordered;
    uint32_t told_tokens; /* to rank 0, so for the next */
    bool is_end_told;
    bool owes_quiet; /* rank 0 waits to hear that nothing is written any more */
    kv_peer_t *peer;
    char *request_id;  /* NULL: not known yet */
    char *transfer_id; /* NULL: none */
    kv_transfer_params_t params;
    uint32_t n_prompt;
    bool has_met; /* ranks are set up */
    bool is_started;
    bool is_placed;  /* ranks know where to begin */
    bool is_settled; /* it failed, and nothing is written any more */
    bool is_ended;
    bool is_landing; /* ended, and still written to */
    bool is_told;    /* the peer knows that we are done */
    weft_status_t status;
    char reason[KV_REASON_BYTES];
    uint32_t first;
    uint32_t n_blocks;
    kv_block_id_t *blocks; /* owned [n_blocks], each referred to */
    uint32_t end_tokens;   /* of the prompt, that will be here */
    kv_pull_rank_t *ranks; /* owned [peer->n_ranks] */
    uint64_t expected_ns;
    uint64_t posted_ns; /* 0: nothing was */
    uint64_t watch_ns;  /* of the next watch notice */
    uint64_t post_ns;   /* spent in posting */
    uint64_t bytes;
    uint64_t descriptors;
};

/* Blocks that a lease holds on other ranks, though it may be over on this one: rank 0's. */
typedef struct kv_held {
    struct kv_held *next;
    uint64_t id;
    bool is_own_gone;
    bool *are_gone;        /* owned [kv_crew_others] */
    kv_block_id_t *blocks; /* owned [n], each referred to */
    uint32_t n;
} kv_held_t;

/* Another rank, as rank 0 answers for it. */
typedef struct kv_served {
    struct kv_served *next;
    kv_meta_request_t rank;
    kv_side_client_t *client;
} kv_served_t;

struct kv_transfer {
    kv_transfer_setup_t setup;
    kv_transfer_config_t config;
    char *model; /* owned copies of the setup's texts */
    char *dtype;
    char *model_dtype;
    uint8_t fingerprint[KV_HANDSHAKE_FINGERPRINT];
    uint64_t lease_ns;
    weft_device_t *host; /* where the leases' words are */
    weft_mem_t words;
    xfer_agent_t *agent;
    xfer_region_t *pool_region;
    xfer_region_t *words_region;
    kv_shape_t shape;
    uint64_t *layer_addrs; /* of shape */
    kv_head_form_t form;
    kv_export_t *export; /* NULL: peers read the pool itself */
    xfer_region_t *export_region;
    kv_landing_t *landing; /* of a device's pool; NULL: the host's, or no peer is unlike us */
    bool is_starved;       /* a pull waits for slots, or for the device */
    kv_weft_meta_t identity;
    char hash[KV_COMPAT_HASH_BYTES];      /* ours, of weft */
    char vllm_hash[KV_COMPAT_HASH_BYTES]; /* "": not configured */
    weft_buffer_t blob;                   /* of the agent, without regions: for watches */
    kv_side_channel_t *own_channel;
    kv_side_channel_t *channel;
    kv_side_client_t *client;
    uint64_t wake_ns; /* as the client was told */
    kv_lease_table_t *leases;
    kv_watcher_t *early; /* watchers without a lease, the newest first */
    uint32_t n_watchers;
    kv_reader_t *readers;
    uint32_t n_readers;
    uint64_t gone[KV_TRANSFER_MAX_GONE]; /* hashes of transfer ids that were, a circle; 0: none */
    uint32_t next_gone;
    bool has_unsent; /* a watcher's queue was full */
    kv_peer_t *peers;
    uint64_t next_tag;
    kv_pull_t *pulls;
    uint64_t next_id; /* of leases and pulls, with other ranks */
    kv_held_t *held;
    kv_served_t *served;
    uint32_t landing_blocks;
    bool has_changed; /* since poll last said so */
    kv_transfer_stats_t counts;
    pthread_mutex_t stats_lock;
    kv_transfer_stats_t stats; /* guarded by stats_lock */
};

/* kv_transfer.c: the client is to wake us when something is due. */
void kv_transfer_plan_wake(kv_transfer_t *transfer);
/* Counts what does not go. */
weft_status_t kv_transfer_notify(kv_transfer_t *transfer, xfer_peer_t *peer,
                                 const weft_buffer_t *notice);

/* kv_transfer_identity.c: what we say of ourselves, and what others say of themselves. */
weft_status_t kv_transfer_identify(kv_transfer_t *transfer, weft_diag_t *diag);
/* The form that a vLLM worker of our configuration has; false: our own will do. */
bool kv_transfer_vllm_form(const kv_transfer_t *transfer, kv_head_form_t *form_out);
weft_status_t kv_transfer_payload(kv_transfer_t *transfer, weft_buffer_t *out);
weft_status_t kv_transfer_check_peer(const kv_transfer_t *transfer, const kv_peer_t *peer,
                                     const kv_peer_rank_t *rank, const kv_handshake_t *handshake,
                                     weft_diag_t *diag);
/* And form of its heads. shape_out->layer_addrs are in the handshake's arena. */
weft_status_t kv_transfer_peer_shape(const kv_transfer_t *transfer, const kv_peer_t *peer,
                                     kv_peer_rank_t *rank, weft_diag_t *diag,
                                     kv_shape_t *shape_out);

/* kv_transfer_peers.c */
weft_status_t kv_peer_get(kv_transfer_t *transfer, const kv_transfer_params_t *params,
                          weft_diag_t *diag, kv_peer_t **peer_out);
/* A request that was to have blocks from it has not. */
void kv_peer_count_failure(const kv_peer_t *peer);
void kv_peer_fail(kv_peer_t *peer, weft_status_t status, const char *reason);
void kv_peers_poll(kv_transfer_t *transfer, uint64_t now_ns);
uint64_t kv_peers_next_ns(const kv_transfer_t *transfer);
void kv_peers_destroy(kv_transfer_t *transfer);
/* A peer other than `by` (or NULL) reads from this agent. */
bool kv_peers_use(const kv_transfer_t *transfer, const kv_peer_t *by, const xfer_peer_t *agent);

/* kv_transfer_prefill.c */
/* Who asked for id before there was this lease; a held one may be over when it returns. */
void kv_prefill_adopt(kv_transfer_t *transfer, kv_lease_t *lease, const char *id);
void kv_prefill_tell(kv_lease_t *lease); /* those who watch it, what it has */
void kv_prefill_forget_early(kv_transfer_t *transfer);
weft_status_t kv_prefill_init(kv_transfer_t *transfer);
void kv_prefill_fini(kv_transfer_t *transfer);
void kv_prefill_read(kv_transfer_t *transfer, const kv_notice_t *notice);
void kv_prefill_heartbeat(kv_transfer_t *transfer, const kv_notice_t *notice, uint64_t now_ns);
void kv_prefill_watch(kv_transfer_t *transfer, const char *agent, const kv_watch_t *watch,
                      uint64_t now_ns);
void kv_prefill_poll(kv_transfer_t *transfer, uint64_t now_ns);
uint64_t kv_prefill_next_ns(const kv_transfer_t *transfer);

/* kv_transfer_readers.c */
/* Whether agent can be answered: it is known, or the blob is what it says of itself. */
bool kv_readers_know(kv_transfer_t *transfer, const char *agent, kv_msgpack_span_t blob,
                     uint64_t now_ns);
void kv_readers_expire(kv_transfer_t *transfer, uint64_t now_ns);
void kv_readers_destroy(kv_transfer_t *transfer);
/* Transfers that were: the last KV_TRANSFER_MAX_GONE ids. */
void kv_gone_add(kv_transfer_t *transfer, const char *id);
bool kv_gone_has(const kv_transfer_t *transfer, kv_msgpack_span_t id);
void kv_gone_remove(kv_transfer_t *transfer, const char *id);

/*
 * kv_transfer_ranks.c: rank 0 and the others. Nothing happens, and every answer is that of a rank alone,
 * where there are none. Of leases: before or after what this rank does with its own, as said.
 */
bool kv_ranks_lead(const kv_transfer_t *transfer);
bool kv_ranks_follow(const kv_transfer_t *transfer);
void kv_ranks_open(kv_lease_t *lease); /* after */
void kv_ranks_fill(const kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                   uint32_t n_tokens);                                    /* before */
void kv_ranks_order_lease(const kv_lease_t *lease, kv_order_kind_t kind); /* before */
/* Before this rank's hold. A record that it goes with, or NULL. WEFT_ERR_NO_MEMORY. */
weft_status_t kv_ranks_hold(kv_transfer_t *transfer, const kv_lease_t *lease,
                            const kv_block_id_t *blocks, uint32_t n, kv_held_t **held_out);
/* After it: lease NULL: it is over already on this rank. */
void kv_ranks_held(kv_transfer_t *transfer, kv_held_t *held, kv_lease_t *lease,
                   const char *request_id, uint32_t n_tokens);
void kv_ranks_drop_held(kv_transfer_t *transfer, kv_held_t *held);    /* it came to nothing */
void kv_ranks_gone(kv_transfer_t *transfer, const kv_lease_t *lease); /* of this rank, by on_gone */
uint32_t kv_ranks_held_elsewhere(const kv_transfer_t *transfer); /* leases, not here any more */
void kv_ranks_count_held(const kv_transfer_t *transfer, uint32_t *users);
weft_status_t kv_ranks_expect(kv_pull_t *pull);
void kv_ranks_start(kv_pull_t *pull);
void kv_ranks_cancel(kv_pull_t *pull); /* once */
void kv_ranks_end(kv_pull_t *pull);
weft_status_t kv_ranks_state(const kv_pull_t *pull, weft_status_t own);
uint32_t kv_ranks_tokens(const kv_pull_t *pull, uint32_t own);
bool kv_ranks_are_quiet(const kv_pull_t *pull);
void kv_ranks_fini(kv_transfer_t *transfer);

/* kv_transfer_obey.c: another rank than 0, which reports how its pulls and leases fare. */
void kv_obey_report(kv_transfer_t *transfer);
void kv_obey_gone(const kv_transfer_t *transfer, uint64_t id);
void kv_obey_quiet(const kv_transfer_t *transfer, uint64_t id);

/* kv_pull_news.c */
void kv_pull_meet(kv_pull_t *pull, uint64_t now_ns); /* the peer is ready; ranks are set up */
bool kv_pull_is_uncertain(const kv_pull_t *pull);    /* there is something to ask the peer */
void kv_pull_ask_again(kv_pull_t *pull, uint64_t now_ns);
void kv_pulls_progress(kv_transfer_t *transfer, const char *agent, const kv_progress_t *progress,
                       uint64_t now_ns);

/* kv_pull.c */
void kv_pulls_poll(kv_transfer_t *transfer, uint64_t now_ns);
uint64_t kv_pulls_next_ns(const kv_transfer_t *transfer);
void kv_pulls_destroy(kv_transfer_t *transfer);
void kv_pull_fail(kv_pull_t *pull, weft_status_t status, const char *reason);

/* kv_pull_read.c: of one rank. */
void kv_pull_rank_post(kv_pull_t *pull, uint32_t index, uint64_t now_ns);
/* What ended is taken; a failure fails the pull. */
void kv_pull_rank_poll(kv_pull_t *pull, uint32_t index, uint64_t now_ns);
void kv_pull_rank_cancel(kv_pull_rank_t *rank);
void kv_pull_rank_forget(kv_pull_rank_t *rank); /* what the peer said of its blocks */
/* What was cancelled has ended. */
bool kv_pull_rank_is_quiet(const kv_pull_t *pull, kv_pull_rank_t *rank);
void kv_pull_rank_destroy(kv_pull_t *pull, uint32_t index); /* waits */
