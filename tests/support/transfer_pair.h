/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transfer_pair: two workers over the real fabric, a prompt on both sides, and a prefill that runs
 * while somebody watches. Everything asserts.
 */
#pragma once

#include <string.h>

#include "tests/support/transfer_rig.h"
#include "tests/support/zmq_tsan.h"

enum { TOKENS = 16, PROMPT = 5 * TOKENS - 3, PROMPT_BLOCKS = 5 };

static transfer_worker_t prefill;
static transfer_worker_t decode;
static weft_diag_t diag;

static inline int setup(void **state)
{
    const transfer_worker_config_t config = {0};
    (void)state;
    diag = (weft_diag_t){0};
    transfer_worker_open(&prefill, &config);
    transfer_worker_open(&decode, &config);
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    transfer_worker_close(&decode);
    transfer_worker_close(&prefill);
    return 0;
}

/* ---- a prompt on both sides ------------------------------------------------------------------ */

static inline uint32_t blocks_of(const transfer_worker_t *worker, uint32_t tokens)
{
    const uint32_t each = kv_pool_layout(worker->pool)->block_tokens;
    return (tokens + each - 1) / each;
}

static inline uint32_t alloc(transfer_worker_t *worker, uint32_t tokens, kv_block_id_t *blocks)
{
    const uint32_t n = blocks_of(worker, tokens);
    assert_status(kv_pool_alloc(worker->pool, n, blocks), WEFT_OK);
    return n;
}

/* Computes the prompt and ends: the transfer alone holds its blocks. */
static inline kv_transfer_params_t prefill_whole(transfer_worker_t *worker, const char *id,
                                                 uint32_t tokens, uint64_t prompt)
{
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    kv_transfer_params_t params;
    const uint32_t n = alloc(worker, tokens, blocks);
    transfer_worker_write(worker, blocks, 0, tokens, prompt);
    assert_status(kv_transfer_hold(worker->transfer, NULL, id, blocks, n, tokens, &params),
                  WEFT_OK);
    kv_pool_release(worker->pool, blocks, n);
    return params;
}

static inline kv_pull_t *expect(transfer_worker_t *worker, const kv_transfer_params_t *params,
                                uint32_t tokens)
{
    kv_pull_t *pull = NULL;
    diag = (weft_diag_t){0};
    assert_status(kv_transfer_params_check(params, &diag), WEFT_OK);
    if (kv_transfer_expect(worker->transfer, params, tokens, &diag, &pull) != WEFT_OK) {
        fail_msg("%s", diag.text);
    }
    return pull;
}

static inline bool is_over(void *user)
{
    return kv_pull_state(user) != WEFT_PENDING;
}

static inline void assert_pulled(kv_pull_t *pull)
{
    assert_true(transfer_rig_until(is_over, pull));
    if (kv_pull_state(pull) != WEFT_OK) {
        fail_msg("%s: %s", weft_strerror(kv_pull_state(pull)), kv_pull_reason(pull));
    }
}

static inline void assert_fails(kv_pull_t *pull, weft_status_t status, const char *said)
{
    assert_true(transfer_rig_until(is_over, pull));
    assert_status(kv_pull_state(pull), status);
    if (strstr(kv_pull_reason(pull), said) == NULL) {
        fail_msg("\"%s\" does not say %s", kv_pull_reason(pull), said);
    }
}

static inline bool is_free(void *user)
{
    const transfer_worker_t *worker = user;
    return kv_pool_held_blocks(worker->pool) == 0;
}

static inline void assert_all_free(transfer_worker_t *worker)
{
    assert_true(transfer_rig_until(is_free, worker));
}

static inline bool has_landed(void *user)
{
    const transfer_worker_t *worker = user;
    return kv_transfer_landing_blocks(worker->transfer) == 0 &&
           kv_pool_held_blocks(worker->pool) == 0;
}

/* A prefill that runs while somebody watches. */
typedef struct running {
    transfer_worker_t *worker;
    kv_lease_t *lease;
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    uint32_t n;
    uint32_t tokens;
} running_t;

static inline void begin_prefill_on(transfer_worker_t *worker, running_t *running,
                                    const char *transfer_id, uint32_t tokens)
{
    *running = (running_t){.worker = worker};
    running->n = alloc(worker, tokens, running->blocks);
    running->lease = kv_transfer_open(worker->transfer, transfer_id);
    assert_non_null(running->lease);
}

static inline void begin_prefill(running_t *running, const char *transfer_id, uint32_t tokens)
{
    begin_prefill_on(&prefill, running, transfer_id, tokens);
}

static inline void compute(running_t *running, uint32_t tokens, uint64_t prompt)
{
    transfer_worker_write(running->worker, running->blocks, running->tokens, tokens, prompt);
    running->tokens += tokens;
    kv_lease_progress(running->lease, running->blocks, running->n, running->tokens);
}

static inline void finish_prefill(running_t *running, const char *id)
{
    kv_transfer_params_t params;
    assert_status(kv_transfer_hold(running->worker->transfer, running->lease, id, running->blocks,
                                   running->n, running->tokens, &params),
                  WEFT_OK);
    kv_pool_release(running->worker->pool, running->blocks, running->n);
    kv_transfer_params_fini(&params);
}

/* Its blocks are given up, and taken again in another order, written by somebody else meanwhile. */
static inline void preempt_prefill(running_t *running)
{
    kv_lease_retract(running->lease);
    transfer_worker_write(running->worker, running->blocks, 0,
                          running->n * running->worker->form.block_tokens, UINT32_MAX);
    for (uint32_t i = 0; i < running->n / 2; i++) {
        const kv_block_id_t block = running->blocks[i];
        running->blocks[i] = running->blocks[running->n - 1 - i];
        running->blocks[running->n - 1 - i] = block;
    }
    running->tokens = 0;
}

static inline kv_pull_t *expect_ahead_of(const transfer_worker_t *there, transfer_worker_t *worker,
                                         const char *transfer_id, uint32_t tokens)
{
    kv_transfer_params_t params = {.do_remote_prefill = true,
                                   .has_port = true,
                                   .remote_port = kv_transfer_port(there->transfer),
                                   .remote_host = (char *)"127.0.0.1",
                                   .transfer_id = (char *)transfer_id,
                                   .tp_size = 1,
                                   .pp_size = 1,
                                   .dcp_size = 1};
    return expect(worker, &params, tokens);
}

static inline kv_pull_t *expect_ahead(transfer_worker_t *worker, const char *transfer_id,
                                      uint32_t tokens)
{
    return expect_ahead_of(&prefill, worker, transfer_id, tokens);
}

typedef struct wanted {
    kv_pull_t *pull;
    uint32_t tokens;
} wanted_t;

static inline bool has_tokens(void *user)
{
    const wanted_t *wanted = user;
    return kv_pull_tokens(wanted->pull) >= wanted->tokens || kv_pull_state(wanted->pull) < 0;
}

static inline void assert_gets(kv_pull_t *pull, uint32_t tokens)
{
    wanted_t wanted = {pull, tokens};
    assert_true(transfer_rig_until(has_tokens, &wanted));
    assert_string_equal(kv_pull_reason(pull), "");
    assert_true(kv_pull_tokens(pull) >= tokens);
}

static inline bool is_watched(void *user)
{
    (void)user;
    return transfer_worker_stats(&decode).handshakes == 1;
}

/* More of kv_connector_extra_config: what a worker must be like for a vLLM one. */
#define AS_VLLM                                                                                    \
    "\"vllm_version\": \"0.32.0\", \"vllm_dtype\": \"torch.bfloat16\", "                           \
    "\"attn_backend_name\": \"CPU_ATTN\""

/* A test between prefill and decode. */
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
