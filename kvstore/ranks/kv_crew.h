/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_crew: what the ranks of one engine tell each other of KV blocks. Each has its part of every block;
 * rank 0 decides, the others do with their parts what it does with its own.
 *
 *   orders    of rank 0, in order. They are collected here and sent by the engine, over the feed that
 *             carries the plans of steps and ahead of the next plan: a rank has carried them out
 *             before it computes that step
 *   reports   of the others, of what has ended there. Notifications of the fabric, which cost a step
 *             nothing; they come in any order, so none says what only holds until the next one
 *   meeting   once when the engine starts, and again after a loss. Orders before it, and reports of
 *             the time before it, are for nobody
 *
 * Threads  the engine's (of rank 0), the caller's (of the others); wake is called from any
 */
#pragma once

#include "base/buffer.h"
#include "base/diag.h"
#include "kvstore/hash/kv_hash.h"
#include "kvstore/kv_pool.h"

typedef struct kv_crew kv_crew_t;

/* ---- orders ---------------------------------------------------------------------------------- */

/* What follows an order's head is explained where it is carried out: kv_member.c, kv_transfer_obey.c. */
typedef enum kv_order_kind {
    KV_ORDER_TIER_PUT = 1,
    KV_ORDER_TIER_GET,
    KV_ORDER_TIER_TOUCH,
    KV_ORDER_TIER_CLEAR,
    KV_ORDER_LEASE_OPEN,
    KV_ORDER_LEASE_FILL,
    KV_ORDER_LEASE_RETRACT,
    KV_ORDER_LEASE_DROP,
    KV_ORDER_LEASE_HOLD,
    KV_ORDER_PULL_EXPECT,
    KV_ORDER_PULL_START,
    KV_ORDER_PULL_CANCEL,
    KV_ORDER_PULL_END,
    KV_ORDER_COUNT
} kv_order_kind_t;

/* The head of every order, little-endian; `bytes` of items follow, padded to 8. */
typedef struct kv_order_head {
    uint32_t kind;
    uint32_t bytes; /* behind the head, without the padding */
    uint64_t id;    /* of a reading, lease or pull: rank 0's number for it; 0: none */
    uint32_t tier;
    uint32_t block; /* of the device, or KV_BLOCK_NONE */
    uint32_t first; /* blocks that the order's list leaves out; of a put 1: wait for the tier */
    uint32_t tokens;
    kv_hash_t hash; /* of tiers' orders */
} kv_order_head_t;

#define KV_ORDER_MAX_BYTES ((uint32_t)64 << 20) /* of one order: more is garbage */

static inline size_t kv_order_length(const kv_order_head_t *head)
{
    return sizeof(*head) + (((size_t)head->bytes + 7) & ~(size_t)7);
}

/* ---- reports --------------------------------------------------------------------------------- */

typedef enum kv_report_kind {
    KV_REPORT_READ = 1, /* a reading from a tier has ended with status, after ns */
    KV_REPORT_PULL,     /* so many tokens are there; status WEFT_PENDING, or how it ended */
    KV_REPORT_QUIET,    /* of a pull that was ended early: nothing is written for it any more */
    KV_REPORT_GONE,     /* a held lease is over on this rank */
} kv_report_kind_t;

typedef struct kv_report {
    uint32_t kind;
    uint32_t rank;
    uint64_t epoch; /* of the meeting; kv_crew's, like rank */
    uint64_t id;
    uint64_t ns;
    int32_t status;
    uint32_t tokens;
    char reason[128]; /* of a status below 0, cut */
} kv_report_t;

/* ---- the crew -------------------------------------------------------------------------------- */

typedef struct kv_crew_config {
    uint32_t rank;
    uint32_t size;
    void (*wake)(void *user); /* a report has come */
    void *user;
} kv_crew_config_t;

/* WEFT_ERR_UNSUPPORTED: no backend of the fabric. */
weft_status_t kv_crew_create(const kv_crew_config_t *config, weft_diag_t *diag,
                             kv_crew_t **crew_out);
void kv_crew_destroy(kv_crew_t *crew); /* NULL is fine */

uint32_t kv_crew_others(const kv_crew_t *crew);
bool kv_crew_leads(const kv_crew_t *crew);

/* Rank 0: what the others need to know to report to it, the same whenever they meet. */
weft_status_t kv_crew_export(kv_crew_t *crew, weft_buffer_t *out);

/*
 * They have met; epoch, not 0: a number that rank 0 has drawn for it; blob: of rank 0's export, unused
 * there. WEFT_ERR_UNSUPPORTED: no backend of the fabric in common.
 */
weft_status_t kv_crew_meet(kv_crew_t *crew, uint64_t epoch, const void *blob, size_t bytes,
                           weft_diag_t *diag);
/* A rank is lost: until the next meeting orders and reports are for nobody. */
void kv_crew_part(kv_crew_t *crew);
bool kv_crew_has_met(const kv_crew_t *crew);

/* Rank 0: one order more; items [head->bytes]. Lost when they have not met. */
void kv_crew_order(kv_crew_t *crew, const kv_order_head_t *head, const void *items);
/*
 * Rank 0: the orders that have not been sent, as bytes whose borders mean nothing; and that the first
 * of them have been now. NULL: none. WEFT_ERR_NO_MEMORY: some are missing, the ranks cannot go on.
 */
weft_status_t kv_crew_orders(const kv_crew_t *crew, const char **bytes_out, size_t *n_out);
void kv_crew_sent(kv_crew_t *crew, size_t n);

/* Others: a report for rank 0, sent now or by kv_crew_flush when it can be. */
void kv_crew_report(kv_crew_t *crew, const kv_report_t *report);
/*
 * Others, before a step: what was reported is in memory for this thread as well. The step was planned
 * when rank 0 had the report, so that it is anyway; but that order goes through another process, and
 * no tool that looks at this one knows of it.
 */
void kv_crew_see_reports(const kv_crew_t *crew);
/* WEFT_ERR_NO_MEMORY: one is missing, the ranks cannot go on. */
weft_status_t kv_crew_flush(kv_crew_t *crew);
bool kv_crew_has_unsent(const kv_crew_t *crew);
/* Rank 0: the next report; false: none. */
bool kv_crew_next_report(kv_crew_t *crew, kv_report_t *report_out);
