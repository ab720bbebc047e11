/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_store: the KV blocks of one engine: those on the device, named by their content, and the tiers
 * below, where content goes when the device needs the space and comes back from when it is wanted.
 *
 * Way down   a named block that is given to a new user goes to the first tier below that takes it;
 *            what a tier gives up goes to the next. The disk takes a block only if it has been
 *            seen twice, or goes on from what was (kv_store_begin), unless admits_all
 * Way up     kv_store_fetch reads what follows a chain's blocks on the device into free blocks of
 *            it, in the background; once there they are found like any others. A block is read only
 *            where that costs less time than computing it, by what both cost lately
 * Peers      blocks in host memory may be offered to other workers, and theirs be the last tier: what
 *            they have is asked for (kv_store_ask) before it can be fetched
 * Events     every block that becomes findable in a tier, or ceases to be, is told to the
 *            publisher: parents before children, one batch a step
 *
 * Ranks      with other ranks this is rank 0's: it alone names and decides; they have pools of as many
 *            blocks, and tiers that do as this one's (ranks/kv_member.h)
 *
 * Threads    engine thread only; stats: any, as of the last poll
 */
#pragma once

#include "kvstore/events/kv_publisher.h"
#include "kvstore/ranks/kv_crew.h"
#include "kvstore/remote/kv_remote.h"
#include "kvstore/tiers/kv_tier.h"

typedef struct kv_store kv_store_t;
typedef struct kv_fetch kv_fetch_t; /* a reading of blocks from tiers; the store's */

typedef struct kv_store_config {
    weft_device_t *device; /* borrowed, so for each */
    kv_layout_t layout;
    uint32_t n_blocks;
    bool is_caching;            /* false: no block ever gets a name; no tiers, no events */
    bool is_private;            /* of the pool */
    uint32_t max_pinned_blocks; /* the quota of kv_store_pin */
    size_t host_bytes;          /* 0: no such tier */
    size_t disk_bytes;          /* 0: no such tier */
    const char *disk_path;
    const kv_remote_config_t *remote;  /* peers; read by create. NULL: none */
    bool admits_all;                   /* the disk takes whatever is given up */
    const uint8_t *fingerprint;        /* [32]: see kv_tier_config_t; read by create */
    const kv_tier_ops_t *const *tiers; /* [KV_TIER_COUNT]; NULL: those of this folder */
    kv_publisher_t *publisher;         /* or NULL */
    kv_crew_t *crew;                   /* of the ranks that have parts of the blocks, or NULL */
    void (*wake)(void *user);          /* any thread: poll has something */
    /* A block came from a tier, after so long a work of it. Called by poll; may be NULL. */
    void (*on_read)(void *user, kv_tier_id_t tier, uint64_t ns);
    void *user;
} kv_store_config_t;

/* The full blocks of a sequence, from its start. */
typedef struct kv_chain {
    const kv_hash_t *hashes; /* [n] */
    const int32_t *tokens;   /* [n * block_tokens] */
    kv_extra_t *extra;       /* or NULL */
    uint32_t n;
} kv_chain_t;

/* Tiers that cannot be had are logged and left out. */
weft_status_t kv_store_create(const kv_store_config_t *config, weft_diag_t *diag,
                              kv_store_t **store_out);
/*
 * What is on the device and in the host's memory is saved to the disk, for some seconds at most; no
 * block may be held. NULL is fine.
 */
void kv_store_destroy(kv_store_t *store);

bool kv_store_has_tiers(const kv_store_t *store); /* below the device */

/*
 * With other ranks: what would be saved when the store is destroyed is, while they still follow; flush
 * sends them their orders, now and then and at the end. Nothing is to be named or read afterwards.
 */
void kv_store_save(kv_store_t *store, void (*flush)(void *user), void *user);

/* Bits 1 << kv_tier_id_t of the tiers that every rank has: the others are of no use, and go. */
uint32_t kv_store_tiers(const kv_store_t *store);
void kv_store_keep_tiers(kv_store_t *store, uint32_t tiers);

/* With other ranks: a KV_REPORT_READ; a rank is lost, what was being read comes to nothing. */
void kv_store_hear(kv_store_t *store, const kv_report_t *report);
void kv_store_lose_ranks(kv_store_t *store);

/* For alloc, acquire, release and the memory. Its blocks are pinned through the store. */
kv_pool_t *kv_store_pool(const kv_store_t *store);

/* How many leading blocks of the chain are on the device; which, in blocks_out [n]. */
uint32_t kv_store_match(const kv_store_t *store, const kv_chain_t *chain,
                        kv_block_id_t *blocks_out);
bool kv_store_has(const kv_store_t *store, const kv_hash_t *hash); /* on the device */

/*
 * A sequence was scheduled for the first time: chain is what it begins with, of which the first
 * `found` blocks need not be computed; from_tiers[t] of them were read from tier t for it. Counts
 * hits, and says whether it goes on from something seen just once before, as the next turn of a
 * conversation does: what it adds will then be wanted again. (Behind a beginning that many share,
 * a system prompt, that cannot be told.)
 */
bool kv_store_begin(kv_store_t *store, const kv_chain_t *chain, uint32_t found,
                    const uint32_t from_tiers[KV_TIER_COUNT]);

/*
 * Block i of the chain is complete in block, which the caller holds: others may find it now.
 * goes_on: as kv_store_begin said of the sequence.
 */
void kv_store_name(kv_store_t *store, const kv_chain_t *chain, uint32_t i, kv_block_id_t block,
                   bool goes_on);

/* The same of a block that a peer computed, before its sequence was scheduled: not counted as use. */
void kv_store_name_pulled(kv_store_t *store, const kv_chain_t *chain, uint32_t i,
                          kv_block_id_t block);

/*
 * Keeps those of these blocks that have a name on the device until they are unpinned: the first
 * ones, as far as the quota goes. What is refused is counted.
 */
void kv_store_pin(kv_store_t *store, const kv_block_id_t *blocks, uint32_t n);
uint32_t kv_store_unpin_all(kv_store_t *store); /* how many there were */

/*
 * Asks peers for what no tier here has of the chain, from index first on. WEFT_PENDING: call again
 * after poll, in some time it is answered; WEFT_OK: kv_store_fetch knows.
 */
weft_status_t kv_store_ask(kv_store_t *store, const kv_chain_t *chain, uint32_t first);
uint16_t kv_store_offer_port(const kv_store_t *store); /* where peers ask us; 0: nowhere */

/*
 * Starts reading the chain's blocks from index first on, most_blocks of them at most (which are
 * taken from the pool's free ones). NULL: no tier has the next one, or reading is not worth it.
 * Borrows nothing after the call.
 */
kv_fetch_t *kv_store_fetch(kv_store_t *store, const kv_chain_t *chain, uint32_t first,
                           uint32_t most_blocks);
bool kv_store_can_fetch(const kv_store_t *store); /* tiers are there, and not too many read */
/* Blocks of ended fetches whose readings have not landed: they are free then. */
uint32_t kv_store_landing_blocks(const kv_store_t *store);
/* Whether block with this hash is being read for somebody. */
bool kv_store_is_fetching(const kv_store_t *store, const kv_hash_t *hash);
bool kv_fetch_is_done(const kv_fetch_t *fetch);
/* Blocks that came from each tier. */
void kv_fetch_count(const kv_fetch_t *fetch, uint32_t blocks_out[KV_TIER_COUNT]);
/* Lets go of the blocks: those read stay findable until their space is needed. fetch is dead. */
void kv_store_fetch_end(kv_store_t *store, kv_fetch_t *fetch);

/* Between steps: what tiers have done. */
void kv_store_poll(kv_store_t *store);
/* After a step: its events are one batch. */
void kv_store_flush(kv_store_t *store);

/* What computing costs, for the choice between it and reading. */
void kv_store_note_compute(kv_store_t *store, uint32_t tokens, uint64_t ns);

/*
 * Forgets every name on the device, and with_tiers in the tiers; nothing stays pinned, and what is
 * being read comes to nothing.
 */
void kv_store_clear(kv_store_t *store, bool with_tiers);

typedef struct kv_store_tier_stats {
    bool is_present;
    kv_tier_stats_t tier; /* of the device: blocks, capacity, evictions */
    uint64_t hit_blocks;  /* found there when their sequence was first scheduled */
    uint64_t miss_blocks; /* looked for and not found, nor in a tier above */
} kv_store_tier_stats_t;

typedef struct kv_store_offer_stats {
    uint64_t blocks;       /* offered now */
    uint64_t welcomed;     /* hellos of peers, since start, so below */
    uint64_t refused;      /* of workers that are too different */
    uint64_t lookups;      /* that were answered */
    uint64_t found_blocks; /* by them */
    uint64_t garbage;
} kv_store_offer_stats_t;

typedef struct kv_store_stats {
    kv_store_tier_stats_t tiers[KV_TIER_COUNT];
    uint64_t pinned_blocks;
    uint64_t pins_refused;
    uint64_t fetches;
    uint64_t fetches_declined; /* computing was cheaper */
    kv_store_offer_stats_t offer;
} kv_store_stats_t;

kv_store_stats_t kv_store_stats(const kv_store_t *store);

/* For tests: adds one to users[block] for each block that a fetch holds. */
void kv_store_count_fetching(const kv_store_t *store, uint32_t *users);
