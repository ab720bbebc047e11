/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_tier_ranks: rank 0's tier, and what it stands for: every rank has one like it, with its part of
 * each block. What is done with rank 0's is ordered of the others (kv_crew.h); a get has ended when
 * it has on all ranks, and is good when it is on all.
 *
 * What rank 0 has another one may lack: it evicts by itself, and its memory or disk may fail. Such a
 * get fails, the blocks are computed, and when they go down again every rank takes what it lacks.
 *
 * Threads  the engine's
 */
#pragma once

#include "kvstore/ranks/kv_crew.h"
#include "kvstore/tiers/kv_tier.h"

#define KV_TIER_RANKS_MAX_GETS 1024 /* of all tiers, posted on the other ranks */

typedef struct kv_tier_ranks_config {
    kv_tier_t *own; /* owned from a successful open on */
    kv_tier_id_t id;
    kv_crew_t *crew; /* borrowed, so for the next */
    const kv_pool_t *pool;
} kv_tier_ranks_config_t;

weft_status_t kv_tier_ranks_open(const kv_tier_ranks_config_t *config, kv_tier_t **tier_out);

/* From now on a rank whose tier is busy waits for it, for some seconds in all. */
void kv_tier_ranks_insist(kv_tier_t *tier);

/* A KV_REPORT_READ came; false: it is not of this tier. */
bool kv_tier_ranks_hear(kv_tier_t *tier, const kv_report_t *report);
/* A rank is lost: nobody will report on what was posted. */
void kv_tier_ranks_lose(kv_tier_t *tier);
