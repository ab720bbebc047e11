/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_member: what a rank other than 0 has of the KV store: its tiers, and its side of transfers. It
 * carries out rank 0's orders on its part of the blocks, and reports what has ended.
 *
 *   device   a pool for its memory alone: rank 0 says what is in which block
 *   tiers    as rank 0's, with the names it gives. What is ordered from a tier that has it not is
 *            reported as a failure: the blocks are computed
 *   transfer as rank 0's, of these heads and layers (kv_transfer.h); its leases and pulls are known
 *            by rank 0's numbers
 *
 * Threads  obey, part, meet: the follower's. One of its own takes what tiers and peers have done; so a
 *          pull goes on while a step is computed
 */
#pragma once

#include "kvstore/ranks/kv_crew.h"
#include "kvstore/tiers/kv_tier.h"
#include "kvstore/transfer/kv_transfer.h"

typedef struct kv_member kv_member_t;

typedef struct kv_member_config {
    weft_device_t *device; /* borrowed, so for each */
    kv_pool_t *pool;
    kv_crew_t *crew;
    size_t host_bytes; /* 0: no such tier, so for the next */
    size_t disk_bytes;
    const char *disk_path;
    const uint8_t *fingerprint; /* [32]: see kv_tier_config_t; read by create */
    /* Before other than a step writes to blocks: returns when the device has done what it was given.
     * NULL: it always has. */
    void (*settle)(void *user);
    void *user;
} kv_member_config_t;

/* Tiers that cannot be had are logged and left out. */
weft_status_t kv_member_create(const kv_member_config_t *config, weft_diag_t *diag,
                               kv_member_t **member_out);
/* Before the crew and the pool. NULL is fine. */
void kv_member_destroy(kv_member_t *member);

/* There is something to take: of the crew, the tiers and the transfer. Any thread; user: the member. */
void kv_member_wake(void *member);
/* Owned from then on, made with kv_member_wake; before start. */
void kv_member_set_transfer(kv_member_t *member, kv_transfer_t *transfer);
/* As kv_transfer_export, of this engine; nothing without a transfer. */
weft_status_t kv_member_export(kv_member_t *member, const char *engine_id, weft_buffer_t *out);
/* Bits 1 << kv_tier_id_t of those that there are. */
uint32_t kv_member_tiers(const kv_member_t *member);

/* The thread; what follows only behind it. */
weft_status_t kv_member_start(kv_member_t *member);

/*
 * Bytes of orders as they came. WEFT_ERR_MALFORMED: not those of a rank 0 of this version.
 * WEFT_ERR_NO_MEMORY: an order or a report is lost. This rank cannot go on, with either.
 */
weft_status_t kv_member_obey(kv_member_t *member, const void *bytes, size_t n, weft_diag_t *diag);

/* A rank is lost: everything is given up and forgotten. Waits for what still writes to blocks. */
void kv_member_part(kv_member_t *member);
/* As kv_crew_meet. */
weft_status_t kv_member_meet(kv_member_t *member, uint64_t epoch, const void *blob, size_t bytes,
                             weft_diag_t *diag);
