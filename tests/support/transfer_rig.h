/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transfer_rig: workers of a small model in one process, each with a pool and a kv_transfer, and blocks
 * whose bytes follow from prompt, layer, head and token, so that whatever arrives can be checked.
 * Everything asserts. WEFT_TEST_BACKEND=tcp has those that name none use that backend of the fabric.
 */
#pragma once

#include "kernels/kernels.h"
#include "kvstore/transfer/kv_convert.h"
#include "kvstore/transfer/kv_transfer.h"
#include "tests/support/check.h"

enum {
    TRANSFER_RIG_LAYERS = 3,
    TRANSFER_RIG_HEADS = 4,
    TRANSFER_RIG_HEAD_DIM = 8,
    TRANSFER_RIG_BLOCKS = 64,
    TRANSFER_RIG_MAX_WORKERS = 8,
    TRANSFER_RIG_DEADLINE_S = 60
};

typedef struct transfer_worker_config {
    const char *extra;     /* of kv_connector_extra_config, without braces; NULL: nothing */
    const char *role;      /* NULL: kv_both */
    uint32_t block_tokens; /* 0: 16 */
    uint32_t n_blocks;     /* 0: TRANSFER_RIG_BLOCKS */
    kv_order_t order;
    uint32_t tp_size; /* 0: 1 */
    uint32_t tp_rank;
    const char *engine_id;           /* NULL: drawn */
    kv_side_channel_t *side_channel; /* NULL: its own */
    uint16_t port;                   /* of the side channel; 0: any */
    uint8_t model;                   /* another number: other weights */
    const char *dtype;               /* NULL: f32 */
    float tolerance;                 /* of transfer_worker_has; 0: elements are exact */
    const char *device;              /* NULL: cpu */
} transfer_worker_config_t;

typedef struct transfer_worker {
    weft_device_t *device;
    k_stream_t *stream; /* where the device is not the host, so below */
    char *mirror;       /* the pool's bytes, as the host last saw them */
    kv_pool_t *pool;
    kv_transfer_t *transfer;
    uint32_t first_head;
    kv_head_form_t form;
    float tolerance;
    kv_pull_report_t last_report;
    uint32_t n_reports;
} transfer_worker_t;

/* In *worker, which must stay where it is. */
void transfer_worker_open(transfer_worker_t *worker, const transfer_worker_config_t *config);
void transfer_worker_close(transfer_worker_t *worker); /* every block must be free; twice is fine */

/* Polls all workers, sleeping in between, until done(user); false: not in time. */
bool transfer_rig_until(bool (*done)(void *user), void *user);
void transfer_rig_poll(void);       /* all workers, once */
void transfer_rig_wake(void *user); /* whoever waits in until looks again; user: anything */

/* The tokens first … first + n - 1 of the prompt, in blocks of it from its start on. */
/* One token of a head of a layer, K then V; whole numbers that every element holds exactly. */
void transfer_rig_token(uint64_t prompt, uint32_t layer, uint32_t head, uint32_t token,
                        float elements_out[2 * TRANSFER_RIG_HEAD_DIM]);
void transfer_worker_write(transfer_worker_t *worker, const kv_block_id_t *blocks, uint32_t first,
                           uint32_t n, uint64_t prompt);
bool transfer_worker_has(const transfer_worker_t *worker, const kv_block_id_t *blocks,
                         uint32_t first, uint32_t n, uint64_t prompt);

kv_transfer_stats_t transfer_worker_stats(transfer_worker_t *worker);
