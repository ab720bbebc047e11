/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks that another worker computed, or will read. A pull's blocks are the waiting sequence's own,
 * in seq->pulled, from the prompt's first one on: those that were here, then those that are filled.
 */
#include <assert.h>
#include <string.h>

#include "runtime/sched/sched_priv.h"

/* ---- pulling --------------------------------------------------------------------------------- */

/* All but the last token, which is computed for its logits. */
static uint32_t wanted_tokens(const sched_seq_t *seq)
{
    return sched_goal(seq) - 1;
}

bool sched_holds_pulled(const sched_seq_t *seq)
{
    return seq->n_pulled > 0;
}

bool sched_is_pulling(const sched_t *sched, const sched_seq_t *seq)
{
    return seq->pull != NULL && sched->config.mover->pull_state(seq->pull) == WEFT_PENDING;
}

uint32_t sched_pulled_tokens(const sched_t *sched, const sched_seq_t *seq)
{
    if (seq->n_pulled == 0) {
        return 0;
    }
    const uint32_t tokens = sched->config.mover->pull_tokens(seq->pull);
    return tokens < wanted_tokens(seq) ? tokens : wanted_tokens(seq);
}

static void forget_pull(sched_t *sched, sched_seq_t *seq)
{
    sched->config.mover->pull_end(seq->pull);
    seq->pull = NULL;
    seq->n_pulled = seq->n_pulled_first = seq->n_pulled_named = 0;
    seq->is_pull_blocked = false;
    sched->n_pulls--;
}

void sched_end_pull(sched_t *sched, sched_seq_t *seq)
{
    if (seq->pull != NULL) {
        kv_pool_release(sched->pool, seq->pulled, seq->n_pulled);
        forget_pull(sched, seq);
    }
}

void sched_take_pulled(sched_t *sched, sched_seq_t *seq, uint32_t n, kv_block_id_t *table)
{
    assert(n <= seq->n_pulled);
    memcpy(table, seq->pulled, n * sizeof(*table));
    kv_pool_release(sched->pool, seq->pulled + n, seq->n_pulled - n);
    forget_pull(sched, seq);
}

/* What has come is found by others, too. */
static void name_pulled(sched_t *sched, sched_seq_t *seq)
{
    const uint32_t full = sched_pulled_tokens(sched, seq) / sched->block_tokens;
    for (; seq->hashes != NULL && seq->n_pulled_named < full; seq->n_pulled_named++) {
        const uint32_t i = seq->n_pulled_named;
        sched_hash_block(sched, seq, i);
        const kv_chain_t chain = sched_chain(seq, i + 1);
        kv_store_name_pulled(sched->config.store, &chain, i, seq->pulled[i]);
    }
}

/* What came before it failed stays of use. seq may be gone when this returns. */
static void fail_pull(sched_t *sched, sched_seq_t *seq, weft_status_t status)
{
    const sched_events_t *events = &sched->config.events;
    seq->is_pull_told = true;
    events->on_pull_failed(events->user, seq, status, sched->config.mover->pull_reason(seq->pull));
    if (seq->needs_pull) {
        sched_finish(sched, seq, ENGINE_FINISH_ERROR);
    } else if (sched_pulled_tokens(sched, seq) == 0 || sched_is_pulling(sched, seq)) {
        sched_end_pull(sched, seq);
    }
}

/* ---- beginning to ---------------------------------------------------------------------------- */

/*
 * The blocks from found on, all at once: they are given up together, too. A block for each running
 * sequence is left, or the pull would soon have to give way. False: no space now.
 */
static bool take_blocks(sched_t *sched, sched_seq_t *seq, uint32_t found, uint32_t n)
{
    const uint32_t goal = sched_blocks_for(sched, sched_goal(seq));
    kv_pool_acquire(sched->pool, seq->pulled, found);
    if (goal - found + sched->running.count > sched_unclaimed_blocks(sched)) {
        kv_pool_release(sched->pool, seq->pulled, found);
        return false;
    }
    const weft_status_t status = kv_pool_alloc(sched->pool, n - found, seq->pulled + found);
    assert(status == WEFT_OK); /* goal ≥ n, and unclaimed blocks are free */
    (void)status;
    return true;
}

/* False: there is no space for it now. *status_out: what became of it else. */
static bool start_pull(sched_t *sched, sched_seq_t *seq, weft_status_t *status_out)
{
    const uint32_t n = sched_blocks_for(sched, wanted_tokens(seq));
    const kv_chain_t chain = sched_chain(seq, wanted_tokens(seq) / sched->block_tokens);
    const uint32_t found =
        seq->hashes == NULL ? 0 : kv_store_match(sched->config.store, &chain, seq->pulled);
    if (found == n || !sched_looks_up(seq)) {
        sched_end_pull(sched, seq); /* everything is here, or all has to be computed */
        *status_out = WEFT_OK;
        return true;
    }
    if (!take_blocks(sched, seq, found, n)) {
        return false;
    }
    sched_take_fetched(sched, seq);
    seq->n_pulled = n;
    seq->n_pulled_first = seq->n_pulled_named = found;
    if (!seq->was_scheduled) {
        sched->stats.pull_queries += wanted_tokens(seq) - found * sched->block_tokens;
    }
    sched_settle(sched);
    *status_out = sched->config.mover->pull_start(seq->pull, found, seq->pulled + found, n - found);
    return true;
}

/* One that has to be next takes from those behind it. seq may be gone when this returns. */
static void try_pull(sched_t *sched, sched_seq_t *seq)
{
    const uint32_t unclaimed = sched_unclaimed_blocks(sched);
    weft_status_t status = WEFT_OK;
    if (unclaimed <= seq->blocked_at && !sched_is_next(sched, seq)) {
        return;
    }
    while (!start_pull(sched, seq, &status)) {
        seq->is_pull_blocked = true;
        seq->blocked_at = unclaimed;
        if (!sched_is_next(sched, seq) || !sched_yield_to_waiting(sched, seq)) {
            return;
        }
    }
    seq->is_pull_blocked = false;
    seq->blocked_at = 0;
    if (status < 0) {
        fail_pull(sched, seq, status);
    }
}

/* What a tier below has comes from there: it is nearer than a peer. */
static bool may_start(const sched_t *sched, const sched_seq_t *seq)
{
    return seq->n_pulled == 0 && sched_is_pulling(sched, seq) && !sched_is_fetching(seq) &&
           !seq->is_awaiting_read;
}

static bool has_same_block(const sched_seq_t *a, const sched_seq_t *b, uint32_t i)
{
    return i < a->n_hashes && i < b->n_hashes &&
           memcmp(&a->hashes[i], &b->hashes[i], sizeof(a->hashes[i])) == 0;
}

/* One before it is just pulling a block that is in its own prompt, too: it is found when it has come. */
static bool is_coming(const sched_t *sched, const sched_seq_t *seq)
{
    const uint32_t wanted = wanted_tokens(seq) / sched->block_tokens;
    for (const sched_seq_t *other = sched->waiting.first; other != seq; other = other->next) {
        const uint32_t next = other->n_pulled_named;
        const uint32_t theirs = wanted_tokens(other) / sched->block_tokens;
        if (other->n_pulled > 0 && sched_is_pulling(sched, other) && sched_looks_up(seq) &&
            next < wanted && next < theirs && has_same_block(other, seq, next)) {
            return true;
        }
    }
    return false;
}

static void look_after(sched_t *sched, sched_seq_t *seq, bool is_near)
{
    const weft_status_t state = sched->config.mover->pull_state(seq->pull);
    name_pulled(sched, seq);
    if (state < 0 && !seq->is_pull_told) {
        fail_pull(sched, seq, state);
    } else if (is_near && may_start(sched, seq) && !is_coming(sched, seq)) {
        try_pull(sched, seq);
    }
}

void sched_pull_for_waiting(sched_t *sched)
{
    uint32_t n = 0;
    sched_seq_t *next = NULL;
    for (sched_seq_t *seq = sched->waiting.first; seq != NULL && sched->n_pulls > 0; seq = next) {
        next = seq->next;
        if (seq->pull != NULL) {
            look_after(sched, seq, n < SCHED_LOOKAHEAD);
        }
        n++;
    }
}

static void lose_pull(sched_t *sched, sched_seq_t *seq, weft_status_t status, const char *reason)
{
    const sched_events_t *events = &sched->config.events;
    if (!seq->is_pull_told) {
        seq->is_pull_told = true;
        events->on_pull_failed(events->user, seq, status, reason);
    }
    if (seq->needs_pull) {
        sched_finish(sched, seq, ENGINE_FINISH_ERROR);
    } else {
        sched_end_pull(sched, seq);
    }
}

void sched_fail_pulls(sched_t *sched, weft_status_t status, const char *reason)
{
    sched_seq_t *next = NULL;
    for (sched_seq_t *seq = sched->waiting.first; seq != NULL; seq = next) {
        next = seq->next;
        if (seq->pull != NULL) {
            lose_pull(sched, seq, status, reason);
        }
    }
}

void sched_give_up_pull(sched_t *sched, sched_seq_t *seq)
{
    if (seq->state == SCHED_SEQ_WAITING && seq->pull != NULL) {
        name_pulled(sched, seq);
        sched_end_pull(sched, seq);
    }
}

/* ---- leases ---------------------------------------------------------------------------------- */

void sched_tell_lease(sched_t *sched, sched_seq_t *seq)
{
    if (seq->lease != NULL && seq->computed > 0) {
        sched->config.mover->lease_progress(seq->lease, sched_table(sched, seq),
                                            sched_blocks_for(sched, seq->computed), seq->computed);
    }
}

void sched_retract_lease(sched_t *sched, sched_seq_t *seq)
{
    if (seq->lease != NULL) {
        sched->config.mover->lease_retract(seq->lease);
    }
}

/* One that was preempted after its last step left blocks that may still be found. */
static void hold_what_is_found(sched_t *sched, sched_seq_t *seq)
{
    const sched_events_t *events = &sched->config.events;
    const kv_chain_t chain = sched_chain(seq, seq->n_prompt / sched->block_tokens);
    const uint32_t n =
        seq->hashes == NULL ? 0 : kv_store_match(sched->config.store, &chain, sched->scratch);
    events->on_hold(events->user, seq, sched->scratch, n, n * sched->block_tokens);
}

void sched_close_lease(sched_t *sched, sched_seq_t *seq, engine_finish_t reason)
{
    const sched_events_t *events = &sched->config.events;
    const bool is_good = reason == ENGINE_FINISH_LENGTH || reason == ENGINE_FINISH_STOP;
    if (!seq->is_kept || !is_good) {
        if (seq->lease != NULL) {
            sched->config.mover->lease_drop(seq->lease);
        }
    } else if (seq->state == SCHED_SEQ_RUNNING) {
        events->on_hold(events->user, seq, sched_table(sched, seq),
                        sched_blocks_for(sched, seq->computed), seq->computed);
    } else {
        hold_what_is_found(sched, seq);
    }
    seq->lease = NULL;
}
