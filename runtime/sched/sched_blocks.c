/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduler's dealings with the store: block tables grow, are named, shared, given up. */
#include <assert.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "runtime/sched/sched_priv.h"

kv_block_id_t *sched_table(const sched_t *sched, const sched_seq_t *seq)
{
    return sched->tables + (size_t)seq->slot * sched->table_blocks;
}

uint32_t sched_blocks_for(const sched_t *sched, uint32_t tokens)
{
    return tokens / sched->block_tokens + (tokens % sched->block_tokens != 0);
}

uint32_t sched_grow(sched_t *sched, sched_seq_t *seq, uint32_t tokens)
{
    const uint32_t wanted = sched_blocks_for(sched, tokens);
    if (wanted > seq->n_blocks) {
        const uint32_t free = kv_pool_free_blocks(sched->pool);
        const uint32_t missing = wanted - seq->n_blocks;
        const uint32_t n = missing < free ? missing : free;
        kv_pool_alloc(sched->pool, n, sched_table(sched, seq) + seq->n_blocks);
        seq->n_blocks += n;
    }
    const uint32_t room = seq->n_blocks * sched->block_tokens;
    return room < tokens ? room : tokens;
}

/* The last to be served of those that wait behind seq gives up what it reads or pulls. */
static bool end_last_arrival(sched_t *sched, const sched_seq_t *seq)
{
    for (sched_seq_t *last = sched->waiting.last; last != NULL && last != seq; last = last->prev) {
        if (last->fetch != NULL) {
            sched_end_fetch(sched, last);
            return true;
        }
        if (sched_holds_pulled(last)) {
            sched_end_pull(sched, last);
            return true;
        }
    }
    return false;
}

bool sched_yield_to_waiting(sched_t *sched, const sched_seq_t *seq)
{
    if (end_last_arrival(sched, seq)) {
        return true;
    }
    return sched->running.count == 0 && !sched_is_landing(sched) &&
           kv_store_unpin_all(sched->config.store) > 0;
}

bool sched_is_landing(const sched_t *sched)
{
    const sched_mover_t *mover = sched->config.mover;
    return kv_store_landing_blocks(sched->config.store) > 0 ||
           (mover != NULL && mover->landing_blocks(mover->user) > 0);
}

/*
 * Frees blocks for seq, of those who can best do without; false: nobody is left, or blocks are about
 * to be free, once readings that were given up have landed in them.
 */
static bool give_way(sched_t *sched, const sched_seq_t *seq)
{
    if (end_last_arrival(sched, NULL)) {
        return true;
    }
    if (sched_is_landing(sched)) {
        return false;
    }
    if (sched->running.last != seq) {
        sched_preempt(sched, sched->running.last);
        return true;
    }
    return kv_store_unpin_all(sched->config.store) > 0;
}

uint32_t sched_grow_by_force(sched_t *sched, sched_seq_t *seq, uint32_t tokens)
{
    uint32_t room = sched_grow(sched, seq, tokens);
    while (room < tokens && give_way(sched, seq)) {
        room = sched_grow(sched, seq, tokens);
    }
    return room;
}

kv_chain_t sched_chain(const sched_seq_t *seq, uint32_t n)
{
    return (kv_chain_t){
        .hashes = seq->hashes,
        .tokens = seq->tokens,
        .extra = seq->extra,
        .n = seq->n_hashes < n ? seq->n_hashes : n,
    };
}

void sched_hash_block(sched_t *sched, sched_seq_t *seq, uint32_t i)
{
    if (seq->n_hashes == i) {
        const kv_hash_t *parent = i == 0 ? NULL : &seq->hashes[i - 1];
        kv_hasher_block(sched->config.hasher, parent, seq->tokens + (size_t)i * sched->block_tokens,
                        sched->block_tokens, seq->extra, &seq->hashes[i]);
        seq->n_hashes++;
    }
}

/* Of the blocks from..to-1, those of the prompt, if it asked. */
static void pin_prompt(sched_t *sched, const sched_seq_t *seq, uint32_t from, uint32_t to)
{
    const uint32_t most = seq->pins_prompt ? seq->n_prompt / sched->block_tokens : 0;
    to = to < most ? to : most;
    if (from < to) {
        kv_store_pin(sched->config.store, sched_table(sched, seq) + from, to - from);
    }
}

void sched_name_blocks(sched_t *sched, sched_seq_t *seq)
{
    if (seq->hashes == NULL) {
        return;
    }
    const uint32_t first = seq->n_named;
    for (; seq->n_named < seq->computed / sched->block_tokens; seq->n_named++) {
        sched_hash_block(sched, seq, seq->n_named);
        const kv_chain_t chain = sched_chain(seq, seq->n_named + 1);
        kv_store_name(sched->config.store, &chain, seq->n_named,
                      sched_table(sched, seq)[seq->n_named], seq->goes_on);
    }
    pin_prompt(sched, seq, first, seq->n_named);
}

void sched_unbind(sched_t *sched, sched_seq_t *seq)
{
    kv_pool_release(sched->pool, sched_table(sched, seq), seq->n_blocks);
    sched->free_slots[sched->n_free_slots++] = seq->slot;
    sched->left += seq->grant;
    sched_list_remove(&sched->running, seq);
    seq->n_blocks = seq->n_told = seq->n_named = 0;
    seq->planned = seq->computed = 0;
    seq->grant = 0;
    seq->is_bound = false;
    seq->epoch++;
}

uint32_t sched_unclaimed_blocks(const sched_t *sched)
{
    uint32_t unclaimed = kv_pool_free_blocks(sched->pool);
    for (const sched_seq_t *seq = sched->running.first; seq != NULL; seq = seq->next) {
        const uint32_t wanted = sched_blocks_for(sched, sched_goal(seq));
        const uint32_t missing = wanted > seq->n_blocks ? wanted - seq->n_blocks : 0;
        unclaimed = unclaimed > missing ? unclaimed - missing : 0;
    }
    return unclaimed;
}

bool sched_looks_up(const sched_seq_t *seq)
{
    return !seq->wants_prompt_logprobs || seq->is_prompt_reported;
}

/* Blocks of the prompt that a running sample of the same request has computed. */
static uint32_t share_with_sibling(const sched_t *sched, const sched_seq_t *seq, uint32_t most,
                                   kv_block_id_t *blocks_out)
{
    const sched_seq_t *best = NULL;
    for (const sched_seq_t *s = seq->sibling; s != seq; s = s->sibling) {
        if (s->state == SCHED_SEQ_RUNNING && (best == NULL || s->computed > best->computed)) {
            best = s;
        }
    }
    if (best == NULL) {
        return 0;
    }
    uint32_t n = best->computed / sched->block_tokens;
    n = n < most ? n : most;
    n = n < seq->n_prompt / sched->block_tokens ? n : seq->n_prompt / sched->block_tokens;
    for (uint32_t i = 0; i < n; i++) {
        blocks_out[i] = sched_table(sched, best)[i];
    }
    return n;
}

/* At least one token stays to be computed: the last one's logits are what sampling needs. */
static uint32_t useful_blocks(const sched_t *sched, const sched_seq_t *seq)
{
    return (sched_goal(seq) - 1) / sched->block_tokens;
}

static uint32_t find_computed_blocks(const sched_t *sched, const sched_seq_t *seq,
                                     kv_block_id_t *blocks_out)
{
    const uint32_t most = useful_blocks(sched, seq);
    if (!sched_looks_up(seq)) {
        return 0;
    }
    if (seq->hashes == NULL) {
        return share_with_sibling(sched, seq, most, blocks_out);
    }
    const kv_chain_t chain = sched_chain(seq, most);
    return kv_store_match(sched->config.store, &chain, blocks_out);
}

/* What a peer brought has a name already; that it is used is noted now. */
static void note_pulled(sched_t *sched, const sched_seq_t *seq)
{
    const uint32_t first = (seq->cached_tokens - seq->pulled_tokens) / sched->block_tokens;
    for (uint32_t i = first; i < seq->n_named; i++) {
        const kv_chain_t chain = sched_chain(seq, i + 1);
        kv_store_name(sched->config.store, &chain, i, sched_table(sched, seq)[i], seq->goes_on);
    }
}

static void count_lookup(sched_t *sched, sched_seq_t *seq)
{
    const uint32_t local = seq->cached_tokens - seq->pulled_tokens;
    const kv_chain_t chain = sched_chain(seq, useful_blocks(sched, seq));
    sched->stats.prefix_queries += seq->n_prompt;
    sched->stats.prefix_hits += local;
    seq->goes_on = kv_store_begin(sched->config.store, &chain, local / sched->block_tokens,
                                  seq->cached_blocks_from);
    if (seq->pulled_tokens > 0) {
        note_pulled(sched, seq);
    }
}

static void count_first_schedule(sched_t *sched, sched_seq_t *seq, uint32_t pulled_tokens)
{
    const sched_events_t *events = &sched->config.events;
    if (seq->was_scheduled) {
        return;
    }
    seq->was_scheduled = true;
    seq->cached_tokens = seq->computed;
    seq->pulled_tokens = pulled_tokens;
    sched->stats.prompt_tokens += seq->n_prompt;
    sched->stats.pull_hits += pulled_tokens;
    if (seq->hashes != NULL && !seq->wants_prompt_logprobs) {
        count_lookup(sched, seq);
    }
    events->on_scheduled(events->user, seq);
}

void sched_take_fetched(sched_t *sched, sched_seq_t *seq)
{
    if (seq->fetch != NULL && !seq->was_scheduled) {
        kv_fetch_count(seq->fetch, seq->cached_blocks_from);
    }
    sched_end_fetch(sched, seq);
}

/* What seq need not compute: in blocks that are found, or that a peer filled for it. */
typedef struct start {
    uint32_t n_blocks; /* in its table, each with a reference */
    uint32_t tokens;
    uint32_t pulled_tokens;
} start_t;

/* False: the rest does not fit now; nothing has changed but that fetched blocks may be taken. */
static bool take_start(sched_t *sched, sched_seq_t *seq, kv_block_id_t *table, start_t *start_out)
{
    const uint32_t goal = sched_blocks_for(sched, sched_goal(seq));
    const uint32_t found = find_computed_blocks(sched, seq, table);
    const uint32_t pulled = sched_pulled_tokens(sched, seq);
    const bool is_pulled = pulled > 0 && pulled >= found * sched->block_tokens;
    const uint32_t n = is_pulled ? sched_blocks_for(sched, pulled) : found;
    const uint32_t acquired = is_pulled ? 0 : found; /* it has references to what it pulled */
    kv_pool_acquire(sched->pool, table, acquired);
    sched_take_fetched(sched, seq);
    if (!is_pulled) {
        sched_end_pull(sched, seq);
    }
    if (goal - n > sched_unclaimed_blocks(sched)) {
        kv_pool_release(sched->pool, table, acquired);
        return false;
    }
    *start_out = (start_t){.n_blocks = n, .tokens = is_pulled ? pulled : n * sched->block_tokens};
    if (is_pulled) {
        start_out->pulled_tokens = pulled - seq->n_pulled_first * sched->block_tokens;
        sched_take_pulled(sched, seq, n, table);
    }
    return true;
}

bool sched_admit(sched_t *sched, sched_seq_t *seq)
{
    const uint32_t unclaimed = sched_unclaimed_blocks(sched);
    start_t start;
    if (sched->running.count > 0 && unclaimed <= seq->blocked_at) {
        return false;
    }
    seq->slot = sched->free_slots[sched->n_free_slots - 1];
    if (!take_start(sched, seq, sched_table(sched, seq), &start)) {
        seq->blocked_at = unclaimed;
        return false;
    }
    sched->n_free_slots--;
    sched_list_remove(&sched->waiting, seq);
    sched_list_insert(&sched->running, seq);
    seq->state = SCHED_SEQ_RUNNING;
    seq->n_blocks = start.n_blocks;
    seq->planned = seq->computed = start.tokens;
    seq->n_named = start.tokens / sched->block_tokens;
    pin_prompt(sched, seq, 0, seq->n_named);
    count_first_schedule(sched, seq, start.pulled_tokens);
    sched_tell_lease(sched, seq);
    return true;
}

/* ---- reading from tiers ---- */

bool sched_is_fetching(const sched_seq_t *seq)
{
    return seq->fetch != NULL && !kv_fetch_is_done(seq->fetch);
}

void sched_end_fetch(sched_t *sched, sched_seq_t *seq)
{
    if (seq->fetch != NULL) {
        kv_store_fetch_end(sched->config.store, seq->fetch);
        seq->fetch = NULL;
    }
}

/* Whether a step in flight has a row of a sequence that has left its slot since. */
static bool has_left_rows(const sched_t *sched)
{
    for (uint32_t i = 0; i < sched->n_flights; i++) {
        const sched_flight_t *flight =
            &sched->flights[(sched->first_flight + i) % SCHED_MAX_IN_FLIGHT];
        for (uint32_t j = 0; j < flight->n_rows; j++) {
            if (flight->rows[j].epoch != flight->rows[j].seq->epoch) {
                return true;
            }
        }
    }
    return false;
}

void sched_settle(const sched_t *sched)
{
    const sched_events_t *events = &sched->config.events;
    if (events->settle != NULL && has_left_rows(sched)) {
        events->settle(events->user);
    }
}

/*
 * Only if the whole sequence would fit now: else it would read what is pushed out again. What is on
 * the device already is held meanwhile, so that it is not what makes room.
 */
static void fetch_rest(sched_t *sched, sched_seq_t *seq, const kv_chain_t *chain, uint32_t found)
{
    kv_pool_acquire(sched->pool, sched->scratch, found);
    const uint32_t unclaimed = sched_unclaimed_blocks(sched);
    if (sched_blocks_for(sched, sched_goal(seq)) - found <= unclaimed) {
        sched_settle(sched);
        seq->has_fetched = true;
        seq->fetch = kv_store_fetch(sched->config.store, chain, found, unclaimed);
    }
    kv_pool_release(sched->pool, sched->scratch, found); /* now the last to be given away */
}

static void start_fetch(sched_t *sched, sched_seq_t *seq)
{
    kv_store_t *store = sched->config.store;
    const uint32_t unclaimed = sched_unclaimed_blocks(sched);
    seq->is_awaiting_read = false;
    if (unclaimed <= seq->fetch_blocked_at) {
        return;
    }
    const kv_chain_t chain = sched_chain(seq, useful_blocks(sched, seq));
    const uint32_t found = kv_store_match(store, &chain, sched->scratch);
    if (found == chain.n) {
        seq->has_fetched = true;
    } else if (kv_store_is_fetching(store, &chain.hashes[found])) {
        seq->is_awaiting_read = true;
    } else if (kv_store_ask(store, &chain, found) == WEFT_PENDING) {
        seq->is_awaiting_read = true; /* of peers' answers, for which there is a time */
    } else {
        fetch_rest(sched, seq, &chain, found);
        seq->fetch_blocked_at = seq->has_fetched ? 0 : unclaimed;
    }
}

void sched_fetch_for_waiting(sched_t *sched)
{
    const kv_store_t *store = sched->config.store;
    uint32_t n = 0;
    for (sched_seq_t *seq = sched->waiting.first;
         seq != NULL && n < SCHED_LOOKAHEAD && kv_store_can_fetch(store); seq = seq->next, n++) {
        if (seq->hashes != NULL && !seq->has_fetched && seq->pending == 0 && sched_looks_up(seq)) {
            start_fetch(sched, seq);
        }
    }
}

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void check_sequence(const sched_t *sched, const sched_seq_t *seq, uint32_t *users)
{
    require(seq->state == SCHED_SEQ_RUNNING && seq->slot < sched->config.limits.max_slots);
    require(seq->computed <= seq->planned && seq->planned <= seq->n_blocks * sched->block_tokens);
    require(seq->n_told <= seq->n_blocks && seq->n_named <= seq->computed / sched->block_tokens);
    require(seq->next == NULL || sched_is_before(seq, seq->next));
    for (uint32_t i = 0; i < seq->n_blocks; i++) {
        users[sched_table(sched, seq)[i]]++;
    }
}

static void check_waiting(const sched_t *sched, uint32_t *users)
{
    uint32_t n_pulls = 0;
    for (const sched_seq_t *seq = sched->waiting.first; seq != NULL; seq = seq->next) {
        require(seq->state == SCHED_SEQ_WAITING && seq->n_blocks == 0);
        require(seq->pull != NULL || seq->n_pulled == 0);
        require(seq->n_pulled_first <= seq->n_pulled);
        for (uint32_t i = 0; i < seq->n_pulled; i++) {
            users[seq->pulled[i]]++;
        }
        n_pulls += seq->pull != NULL;
    }
    require(n_pulls == sched->n_pulls);
}

void sched_check(const sched_t *sched)
{
    const kv_pool_t *pool = sched->pool;
    uint32_t pinned = 0;
    const uint32_t n_blocks = kv_pool_total_blocks(pool);
    uint32_t *users = weft_calloc(n_blocks, sizeof(uint32_t), "sched.check");
    require(users != NULL);
    uint32_t running = 0;
    for (const sched_seq_t *seq = sched->running.first; seq != NULL; seq = seq->next) {
        check_sequence(sched, seq, users);
        running++;
    }
    require(running == sched->running.count);
    check_waiting(sched, users);
    kv_store_count_fetching(sched->config.store, users);
    if (sched->config.mover != NULL) {
        sched->config.mover->count_held(sched->config.mover->user, users);
    }
    require(running + sched->n_free_slots == sched->config.limits.max_slots);
    uint32_t held = 0;
    for (uint32_t i = 0; i < n_blocks; i++) {
        require(users[i] == kv_pool_refs(pool, i));
        held += users[i] > 0;
        pinned += users[i] == 0 && kv_pool_is_pinned(pool, i);
    }
    require(held == kv_pool_held_blocks(pool));
    require(held + pinned + kv_pool_free_blocks(pool) == n_blocks);
    weft_free(users);
}
