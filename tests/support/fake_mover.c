/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/fake_mover.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/fake_executor.h"

#define GARBAGE UINT64_C(0xa5a5a5a5a5a5a5a5)

struct kv_pull {
    fake_mover_t *mover;
    const int32_t *tokens;
    uint32_t n_prompt;
    uint32_t fails_at;
    bool is_used;
    bool is_stalled;
    bool is_ended; /* by its user; it lands in what is not yet written */
    uint32_t landing;
    weft_status_t state;
    uint32_t first;
    uint32_t n;
    uint32_t n_done; /* blocks */
    kv_block_id_t blocks[FAKE_MOVER_MAX_BLOCKS];
};

struct kv_lease {
    fake_mover_t *mover;
    const int32_t *tokens;
    bool is_used;
    bool is_held;
    uint32_t n;
    uint32_t n_tokens;
    kv_block_id_t blocks[FAKE_MOVER_MAX_BLOCKS];
};

struct fake_mover {
    kv_pool_t *pool;
    uint32_t block_tokens;
    test_random_t random;
    sched_mover_t ops;
    struct kv_pull pulls[FAKE_MOVER_MAX];
    struct kv_lease leases[FAKE_MOVER_MAX];
    fake_mover_stats_t stats;
};

static uint64_t *block_kv(const fake_mover_t *mover, kv_block_id_t block)
{
    return kv_pool_block(mover->pool, block);
}

/* ---- pulls ---- */

static uint32_t tokens_of(const kv_pull_t *pull)
{
    const uint32_t tokens = (pull->first + pull->n_done) * pull->mover->block_tokens;
    return tokens < pull->n_prompt ? tokens : pull->n_prompt;
}

static weft_status_t pull_start(kv_pull_t *pull, uint32_t first, const kv_block_id_t *blocks,
                                uint32_t n)
{
    assert_true(pull->is_used && !pull->is_ended && pull->n == 0 && n > 0);
    assert_true(n <= FAKE_MOVER_MAX_BLOCKS);
    pull->first = first;
    pull->n = n;
    memcpy(pull->blocks, blocks, n * sizeof(blocks[0]));
    kv_pool_acquire(pull->mover->pool, blocks, n);
    return WEFT_OK;
}

static weft_status_t pull_state(const kv_pull_t *pull)
{
    assert_true(pull->is_used && !pull->is_ended);
    return pull->state;
}

static const char *pull_reason(const kv_pull_t *pull)
{
    return pull->state < 0 ? "so the test wants it" : "";
}

static uint32_t pull_tokens(const kv_pull_t *pull)
{
    assert_true(pull->is_used && !pull->is_ended);
    return pull->n == 0 ? 0 : tokens_of(pull);
}

/* Its tail first, as who read ahead would have it. */
static void let_go(kv_pull_t *pull)
{
    kv_pool_release(pull->mover->pool, pull->blocks, pull->n);
    pull->is_used = false;
}

static void pull_end(kv_pull_t *pull)
{
    fake_mover_t *mover = pull->mover;
    assert_true(pull->is_used && !pull->is_ended);
    mover->stats.given_up += pull->n > 0 && pull->state == WEFT_PENDING;
    mover->stats.unstarted += pull->n == 0 && pull->state == WEFT_PENDING;
    pull->is_ended = true;
    pull->landing = pull->state == WEFT_OK ? 0 : test_random_below(&mover->random, 4);
    if (pull->landing == 0) {
        let_go(pull);
    }
}

static void bring_block(kv_pull_t *pull)
{
    const uint32_t size = pull->mover->block_tokens;
    const uint32_t start = (pull->first + pull->n_done) * size;
    uint64_t *kv = block_kv(pull->mover, pull->blocks[pull->n_done]);
    for (uint32_t i = 0; i < size; i++) {
        kv[i] = start + i < pull->n_prompt ? fake_kv(pull->tokens, start + i + 1) : GARBAGE;
    }
    pull->n_done++;
}

static void write_garbage(kv_pull_t *pull)
{
    for (uint32_t i = pull->n_done; i < pull->n; i++) {
        block_kv(pull->mover, pull->blocks[i])[0] = GARBAGE;
    }
}

static void advance(kv_pull_t *pull)
{
    fake_mover_t *mover = pull->mover;
    if (pull->is_ended) {
        write_garbage(pull);
        pull->landing--;
        if (pull->landing == 0) {
            let_go(pull);
        }
        return;
    }
    if (pull->is_stalled || pull->state != WEFT_PENDING) {
        return;
    }
    if (pull->fails_at <= (pull->n == 0 ? 0 : tokens_of(pull))) {
        pull->state = WEFT_ERR_PEER_GONE;
        mover->stats.failed++;
        write_garbage(pull);
    } else if (pull->n_done < pull->n) {
        bring_block(pull);
    }
    if (pull->n > 0 && pull->n_done == pull->n && pull->state == WEFT_PENDING) {
        pull->state = WEFT_OK;
        mover->stats.pulled++;
    }
}

kv_pull_t *fake_mover_pull(fake_mover_t *mover, const int32_t *tokens, uint32_t n_prompt,
                           uint32_t fails_at)
{
    kv_pull_t *pull = mover->pulls;
    while (pull->is_used) {
        pull++;
        assert_true(pull < mover->pulls + FAKE_MOVER_MAX);
    }
    *pull = (kv_pull_t){.mover = mover,
                        .tokens = tokens,
                        .n_prompt = n_prompt,
                        .fails_at = fails_at,
                        .is_used = true,
                        .state = WEFT_PENDING};
    return pull;
}

void fake_pull_stall(kv_pull_t *pull, bool is_stalled)
{
    pull->is_stalled = is_stalled;
}

void fake_pull_bring(kv_pull_t *pull, uint32_t n_blocks)
{
    const bool is_stalled = pull->is_stalled;
    pull->is_stalled = false;
    for (uint32_t i = 0; i < n_blocks; i++) {
        advance(pull);
    }
    pull->is_stalled = is_stalled;
}

/* ---- leases ---- */

static void look(const kv_lease_t *lease)
{
    const uint32_t size = lease->mover->block_tokens;
    for (uint32_t i = 0; i < lease->n_tokens; i++) {
        const uint64_t *kv = block_kv(lease->mover, lease->blocks[i / size]);
        assert_true(kv[i % size] == fake_kv(lease->tokens, i + 1));
    }
}

kv_lease_t *fake_mover_open(fake_mover_t *mover, const int32_t *tokens)
{
    kv_lease_t *lease = mover->leases;
    while (lease->is_used) {
        lease++;
        assert_true(lease < mover->leases + FAKE_MOVER_MAX);
    }
    *lease = (kv_lease_t){.mover = mover, .tokens = tokens, .is_used = true};
    return lease;
}

static void set_blocks(kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                       uint32_t n_tokens)
{
    assert_true(lease->is_used && !lease->is_held);
    assert_true(n <= FAKE_MOVER_MAX_BLOCKS && n_tokens <= n * lease->mover->block_tokens);
    memcpy(lease->blocks, blocks, n * sizeof(blocks[0]));
    lease->n = n;
    lease->n_tokens = n_tokens;
    look(lease);
}

static void lease_progress(kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                           uint32_t n_tokens)
{
    assert_true(n_tokens >= lease->n_tokens);
    assert_memory_equal(blocks, lease->blocks, lease->n * sizeof(blocks[0]));
    set_blocks(lease, blocks, n, n_tokens);
    lease->mover->stats.told++;
}

static void lease_retract(kv_lease_t *lease)
{
    assert_true(lease->is_used && !lease->is_held);
    look(lease);
    lease->n = lease->n_tokens = 0;
    lease->mover->stats.retracted++;
}

static void lease_drop(kv_lease_t *lease)
{
    assert_true(lease->is_used && !lease->is_held);
    look(lease);
    lease->is_used = false;
    lease->mover->stats.dropped++;
}

void fake_mover_hold(fake_mover_t *mover, kv_lease_t *lease, const int32_t *tokens,
                     const kv_block_id_t *blocks, uint32_t n, uint32_t n_tokens)
{
    lease = lease == NULL ? fake_mover_open(mover, tokens) : lease;
    set_blocks(lease, blocks, n, n_tokens);
    lease->is_held = true;
    kv_pool_acquire(mover->pool, blocks, n);
    mover->stats.held++;
}

static void release_lease(kv_lease_t *lease)
{
    look(lease); /* nobody wrote to what it keeps */
    kv_pool_release(lease->mover->pool, lease->blocks, lease->n);
    lease->is_used = false;
}

/* ---- the mover ---- */

static uint32_t landing_blocks(const void *user)
{
    const fake_mover_t *mover = user;
    uint32_t n = 0;
    for (uint32_t i = 0; i < FAKE_MOVER_MAX; i++) {
        const kv_pull_t *pull = &mover->pulls[i];
        n += pull->is_used && pull->is_ended ? pull->n : 0;
    }
    return n;
}

static void count_held(const void *user, uint32_t *users)
{
    const fake_mover_t *mover = user;
    for (uint32_t i = 0; i < FAKE_MOVER_MAX; i++) {
        const kv_pull_t *pull = &mover->pulls[i];
        const kv_lease_t *lease = &mover->leases[i];
        for (uint32_t k = 0; pull->is_used && k < pull->n; k++) {
            users[pull->blocks[k]]++;
        }
        for (uint32_t k = 0; lease->is_used && lease->is_held && k < lease->n; k++) {
            users[lease->blocks[k]]++;
        }
    }
}

void fake_mover_poll(fake_mover_t *mover)
{
    for (uint32_t i = 0; i < FAKE_MOVER_MAX; i++) {
        kv_pull_t *pull = &mover->pulls[i];
        kv_lease_t *lease = &mover->leases[i];
        if (pull->is_used && test_random_below(&mover->random, 2) == 0) {
            advance(pull);
        }
        if (lease->is_used && lease->is_held && test_random_below(&mover->random, 6) == 0) {
            release_lease(lease);
        }
    }
}

bool fake_mover_is_busy(const fake_mover_t *mover)
{
    for (uint32_t i = 0; i < FAKE_MOVER_MAX; i++) {
        const kv_pull_t *pull = &mover->pulls[i];
        const bool runs = pull->state == WEFT_PENDING && !pull->is_stalled &&
                          (pull->n > 0 || pull->fails_at == 0);
        if ((pull->is_used && (pull->is_ended || runs)) ||
            (mover->leases[i].is_used && mover->leases[i].is_held)) {
            return true;
        }
    }
    return false;
}

fake_mover_t *fake_mover_create(kv_pool_t *pool, uint64_t seed)
{
    fake_mover_t *mover = calloc(1, sizeof(*mover));
    mover->pool = pool;
    mover->block_tokens = kv_pool_layout(pool)->block_tokens;
    mover->random = (test_random_t){seed};
    mover->ops = (sched_mover_t){
        .user = mover,
        .pull_start = pull_start,
        .pull_state = pull_state,
        .pull_reason = pull_reason,
        .pull_tokens = pull_tokens,
        .pull_end = pull_end,
        .lease_progress = lease_progress,
        .lease_retract = lease_retract,
        .lease_drop = lease_drop,
        .landing_blocks = landing_blocks,
        .count_held = count_held,
    };
    return mover;
}

void fake_mover_destroy(fake_mover_t *mover)
{
    for (uint32_t i = 0; mover != NULL && i < FAKE_MOVER_MAX; i++) {
        assert_false(mover->pulls[i].is_used);
        assert_false(mover->leases[i].is_used);
    }
    free(mover);
}

const sched_mover_t *fake_mover_ops(fake_mover_t *mover)
{
    return &mover->ops;
}

fake_mover_stats_t fake_mover_stats(const fake_mover_t *mover)
{
    return mover->stats;
}
