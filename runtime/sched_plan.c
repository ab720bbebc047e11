/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing a step: first who gets how many tokens (a victim of preemption loses its grant again),
 * then the plan is written from the grants.
 */
#include <assert.h>
#include <string.h>

#include "runtime/sched_priv.h"

/* Tokens to compute before the next sampling; 0: the last one is already planned. */
static uint32_t remaining(const sched_seq_t *seq)
{
    const uint32_t answers = seq->n_tokens + seq->pending - seq->n_prompt;
    if (seq->max_tokens > 0 && answers >= seq->max_tokens) {
        return 0;
    }
    return sched_goal(seq) - seq->planned;
}

static sched_mask_t mask_state(const sched_t *sched, sched_seq_t *seq)
{
    const sched_events_t *events = &sched->config.events;
    if (!seq->has_mask) {
        return SCHED_MASK_READY;
    }
    /* The mask depends on what a step in flight is about to sample. */
    return seq->pending > 0 ? SCHED_MASK_LATER : events->mask_state(events->user, seq);
}

/* Whether there will never be a mask to sample under, and seq is ended for it. */
static bool end_without_mask(sched_t *sched, sched_seq_t *seq, sched_mask_t mask)
{
    if (mask == SCHED_MASK_READY || mask == SCHED_MASK_LATER) {
        return false;
    }
    sched_finish(sched, seq,
                 mask == SCHED_MASK_EMPTY ? ENGINE_FINISH_CONSTRAINT : ENGINE_FINISH_ERROR);
    return true;
}

static void give(sched_t *sched, sched_seq_t *seq, uint32_t tokens)
{
    assert(tokens <= sched->left);
    seq->grant += tokens;
    sched->left -= tokens;
}

/* False when seq has left the running list. */
static bool grant_decode(sched_t *sched, sched_seq_t *seq)
{
    const sched_mask_t mask = mask_state(sched, seq);
    if (end_without_mask(sched, seq, mask)) {
        return false;
    }
    if (mask == SCHED_MASK_LATER) {
        return true;
    }
    if (sched_grow_by_force(sched, seq, seq->planned + 1) <= seq->planned) {
        if (sched_is_landing(sched)) {
            return true; /* in the next step */
        }
        sched_preempt(sched, seq);
        return false;
    }
    give(sched, seq, 1);
    return true;
}

/* At most `most` tokens more; the one that samples waits for its mask. */
static bool grant_prefill(sched_t *sched, sched_seq_t *seq, uint32_t most, bool by_force)
{
    const uint32_t have = seq->planned + seq->grant;
    const uint32_t goal = sched_goal(seq);
    uint32_t end = goal - have <= most ? goal : have + most;
    if (end == goal && seq->max_tokens > 0) {
        const sched_mask_t mask = mask_state(sched, seq);
        if (end_without_mask(sched, seq, mask)) {
            return false;
        }
        end -= mask == SCHED_MASK_LATER;
    }
    if (end > have) {
        const uint32_t room =
            by_force ? sched_grow_by_force(sched, seq, end) : sched_grow(sched, seq, end);
        give(sched, seq, room > have ? room - have : 0);
    }
    return true;
}

/* A long prefill leaves half of what is left to those behind it. */
static uint32_t share_of(const sched_t *sched, const sched_seq_t *seq, bool has_followers)
{
    if (has_followers && remaining(seq) > sched->left) {
        return (sched->left + 1) / 2;
    }
    return sched->left;
}

static bool wants_token(const sched_seq_t *seq)
{
    return sched_is_decode(seq) && remaining(seq) > 0;
}

/* Each of the steps that the stages work on at a time gets its part. */
static uint32_t count_decodes(const sched_t *sched)
{
    const uint32_t parts = sched->config.stages;
    uint32_t n = 0;
    if (!sched_has_stages(sched)) {
        return UINT32_MAX;
    }
    for (const sched_seq_t *seq = sched->running.first; seq != NULL; seq = seq->next) {
        n += wants_token(seq);
    }
    return n / parts + (n % parts != 0);
}

/* Where its newest token has to be known here, and is not yet, a sequence waits. */
static bool may_go_on(const sched_t *sched, const sched_seq_t *seq)
{
    return seq->pending == 0 || (!sched_has_stages(sched) && seq->drafts == NULL);
}

static void grant_decodes(sched_t *sched)
{
    uint32_t left = count_decodes(sched);
    sched_seq_t *next = NULL;
    for (sched_seq_t *seq = sched->running.first; seq != NULL && sched->left > 0 && left > 0;
         seq = next) {
        next = seq->next;
        if (wants_token(seq) && may_go_on(sched, seq) && grant_decode(sched, seq)) {
            left -= seq->grant > 0;
            next = seq->next; /* its follower may have been preempted */
        }
    }
}

static uint32_t count_prefills(const sched_t *sched)
{
    uint32_t n = 0;
    for (const sched_seq_t *seq = sched->running.first; seq != NULL; seq = seq->next) {
        n += !sched_is_decode(seq) && remaining(seq) > 0;
    }
    return n;
}

static void grant_prefills(sched_t *sched)
{
    const bool has_waiting = sched->waiting.count > 0 && sched->n_free_slots > 0;
    uint32_t followers = count_prefills(sched);
    sched_seq_t *next = NULL;
    for (sched_seq_t *seq = sched->running.first; seq != NULL && sched->left > 0; seq = next) {
        next = seq->next;
        if (sched_is_decode(seq) || remaining(seq) == 0) {
            continue;
        }
        followers = followers > 0 ? followers - 1 : 0;
        if (grant_prefill(sched, seq, share_of(sched, seq, has_waiting || followers > 0), true)) {
            next = seq->next;
        }
    }
}

/* Without names, samples of one prompt wait for the first of them, whose blocks they will share. */
static bool is_sibling_ahead(const sched_t *sched, const sched_seq_t *seq)
{
    const uint32_t shareable = (seq->n_prompt - 1) / sched->block_tokens * sched->block_tokens;
    for (const sched_seq_t *s = seq->sibling; s != seq; s = s->sibling) {
        if (s->state == SCHED_SEQ_RUNNING && s->computed < shareable) {
            return true;
        }
    }
    return false;
}

static bool is_sibling_pulling(const sched_t *sched, const sched_seq_t *seq)
{
    for (const sched_seq_t *s = seq->sibling; s != seq; s = s->sibling) {
        if (s->state == SCHED_SEQ_WAITING && sched_is_pulling(sched, s)) {
            return true;
        }
    }
    return false;
}

/* A prefill served before it is about to compute the very block that it would compute too. */
static bool is_twin_ahead(const sched_t *sched, const sched_seq_t *seq)
{
    const uint32_t useful = (sched_goal(seq) - 1) / sched->block_tokens;
    const uint32_t n = seq->n_hashes < useful ? seq->n_hashes : useful;
    for (const sched_seq_t *s = sched->running.first; s != NULL && sched_is_before(s, seq);
         s = s->next) {
        const uint32_t next = s->computed / sched->block_tokens;
        if (next < n && next < s->n_hashes &&
            memcmp(&s->hashes[next], &seq->hashes[next], sizeof(kv_hash_t)) == 0 &&
            !kv_store_has(sched->config.store, &seq->hashes[next])) {
            return true;
        }
    }
    return false;
}

/* It is worth while to wait for blocks that are being computed or read. */
static bool is_held_back(const sched_t *sched, const sched_seq_t *seq)
{
    if (seq->pending > 0) {
        return true; /* preempted in flight: its history is not known yet */
    }
    if (sched_is_fetching(seq) || seq->is_awaiting_read || sched_is_pulling(sched, seq) ||
        is_sibling_pulling(sched, seq)) {
        return true;
    }
    if (seq->hashes == NULL) {
        return is_sibling_ahead(sched, seq);
    }
    return sched_looks_up(seq) && is_twin_ahead(sched, seq);
}

bool sched_is_next(const sched_t *sched, const sched_seq_t *seq)
{
    return sched->running.count == 0 || seq->overtaken >= SCHED_MAX_OVERTAKEN;
}

/* One that has to be next takes from those behind it that already read. */
static bool admit(sched_t *sched, sched_seq_t *seq)
{
    if (seq->is_pull_blocked) {
        return false;
    }
    while (!sched_admit(sched, seq)) {
        if (!sched_is_next(sched, seq) || !sched_yield_to_waiting(sched, seq)) {
            return false;
        }
    }
    return true;
}

static void admit_waiting(sched_t *sched)
{
    sched_seq_t *blocked[SCHED_LOOKAHEAD];
    uint32_t n_blocked = 0;
    sched_seq_t *next = NULL;
    for (sched_seq_t *seq = sched->waiting.first;
         seq != NULL && sched->left > 0 && sched->n_free_slots > 0 && n_blocked < SCHED_LOOKAHEAD;
         seq = next) {
        next = seq->next;
        if (!seq->is_pull_blocked && is_held_back(sched, seq)) {
            continue;
        }
        if (!admit(sched, seq)) {
            blocked[n_blocked++] = seq;
            if (seq->overtaken >= SCHED_MAX_OVERTAKEN) {
                break;
            }
            continue;
        }
        for (uint32_t i = 0; i < n_blocked; i++) {
            blocked[i]->overtaken++;
        }
        grant_prefill(sched, seq, share_of(sched, seq, next != NULL), false);
    }
}

/* What short prefills did not use goes to the long ones. */
static void grant_rest(sched_t *sched)
{
    sched_seq_t *next = NULL;
    for (sched_seq_t *seq = sched->running.first; seq != NULL && sched->left > 0; seq = next) {
        next = seq->next;
        if (!sched_is_decode(seq) && remaining(seq) > seq->grant) {
            grant_prefill(sched, seq, sched->left, false);
        }
    }
}

/* Tokens of a guess that the budget and the answer have use for; those with a token in this step. */
static uint32_t useful_drafts(const sched_t *sched, const sched_seq_t *seq)
{
    if (seq->grant == 0 || !sched_is_decode(seq)) {
        return 0;
    }
    const uint32_t useful = seq->max_tokens - (seq->n_tokens - seq->n_prompt) - 1;
    const uint32_t n =
        useful < sched->config.limits.max_drafts ? useful : sched->config.limits.max_drafts;
    return n < sched->left ? n : sched->left;
}

/* Drafts get what nobody else wants: tokens of the budget, and blocks that are free. */
static uint32_t make_room_for_drafts(sched_t *sched, sched_seq_t *seq)
{
    const uint32_t useful = useful_drafts(sched, seq);
    return useful == 0 ? 0 : sched_grow(sched, seq, seq->planned + 1 + useful) - seq->planned - 1;
}

static void ask_for_drafts(sched_t *sched)
{
    const sched_events_t *events = &sched->config.events;
    uint32_t n = 0;
    for (sched_seq_t *seq = sched->running.first; seq != NULL; seq = seq->next) {
        if (seq->drafts != NULL && seq->pending == 0) {
            const uint32_t most = make_room_for_drafts(sched, seq);
            sched->drafting[n++] = (sched_draft_t){
                .seq = seq,
                .blocks = sched_table(sched, seq),
                .n_blocks = seq->n_blocks,
                .most = most,
            };
        }
    }
    if (n > 0) {
        events->draft(events->user, sched->drafting, n);
    }
}

static void grant_drafts(sched_t *sched)
{
    if (sched->left == sched->budget) {
        return; /* no step */
    }
    ask_for_drafts(sched);
    for (sched_seq_t *seq = sched->running.first; seq != NULL; seq = seq->next) {
        if (seq->n_drafts > 0 && seq->grant > 0) {
            seq->n_drafts = seq->n_drafts < sched->left ? seq->n_drafts : sched->left;
            sched->left -= seq->n_drafts;
        }
    }
}

/* Where there are decodes, prompts do without a part of the budget: how much. */
static uint32_t withhold(sched_t *sched)
{
    const bool has_decodes = sched->left < sched->budget;
    const uint32_t most = has_decodes ? sched->most_prompt : UINT32_MAX;
    const uint32_t withheld = sched->left > most ? sched->left - most : 0;
    sched->left -= withheld;
    return withheld;
}

/* Whether what the executor has to be told about seq fits the plan's arrays. */
static bool fits(const sched_t *sched, const step_plan_t *plan, const sched_seq_t *seq)
{
    const step_limits_t *limits = &sched->config.limits;
    const uint32_t most = limits->max_drafts > 1 ? limits->max_drafts : 1; /* a row brings */
    const uint32_t bind_tokens = limits->max_bind_tokens - most * limits->max_slots;
    return seq->n_blocks - seq->n_told <= limits->max_blocks - plan->n_blocks &&
           (seq->is_bound || (seq->n_tokens <= bind_tokens - plan->n_tokens &&
                              seq->n_bias <= limits->max_biases - plan->n_biases));
}

static void write_bind(step_plan_t *plan, sched_seq_t *seq)
{
    plan->binds[plan->n_binds++] = (step_bind_t){
        .slot = seq->slot,
        .prompt_tokens = seq->n_prompt,
        .first_token = plan->n_tokens,
        .n_tokens = seq->n_tokens,
        .first_bias = plan->n_biases,
        .n_bias = seq->n_bias,
        .adapter = seq->adapter,
        .sampling = seq->sampling,
    };
    memcpy(plan->tokens + plan->n_tokens, seq->tokens, seq->n_tokens * sizeof(int32_t));
    plan->n_tokens += seq->n_tokens;
    for (uint32_t i = 0; i < seq->n_bias; i++) {
        plan->biases[plan->n_biases++] = (step_bias_t){seq->bias[i].token, seq->bias[i].value};
    }
    seq->is_bound = true;
}

static void write_blocks(const sched_t *sched, step_plan_t *plan, sched_seq_t *seq)
{
    for (; seq->n_told < seq->n_blocks; seq->n_told++) {
        plan->blocks[plan->n_blocks++] = (step_block_t){
            .slot = seq->slot,
            .index = seq->n_told,
            .block = sched_table(sched, seq)[seq->n_told],
        };
    }
}

static uint32_t row_flags(const sched_t *sched, const sched_seq_t *seq)
{
    uint32_t flags = 0;
    if (seq->max_tokens > 0 && seq->planned + seq->grant == sched_goal(seq)) {
        flags |= STEP_ROW_SAMPLE;
        flags |= seq->has_mask ? STEP_ROW_MASKED : 0;
    }
    if (seq->wants_embedding && seq->planned + seq->grant == sched_goal(seq)) {
        flags |= STEP_ROW_EMBED;
    }
    if (sched_is_decode(seq)) {
        flags |= STEP_ROW_FROM_SLOT;
        flags |= sched_has_stages(sched) ? STEP_ROW_TOLD : 0;
    }
    if (seq->wants_prompt_logprobs && !seq->is_prompt_reported) {
        flags |= STEP_ROW_PROMPT_LOGPROBS;
    }
    return flags;
}

static void write_row(sched_t *sched, step_plan_t *plan, sched_flight_t *flight, sched_seq_t *seq)
{
    const sched_events_t *events = &sched->config.events;
    const uint32_t flags = row_flags(sched, seq);
    plan->rows[plan->n_rows++] = (step_row_t){
        .slot = seq->slot,
        .flags = flags,
        .start = seq->planned,
        .n_tokens = seq->grant,
        .n_drafts = seq->n_drafts,
        .output_index = seq->n_tokens + seq->pending - seq->n_prompt,
    };
    flight->rows[flight->n_rows++] = (sched_row_t){
        .seq = seq,
        .epoch = seq->epoch,
        .flags = flags,
        .start = seq->planned,
        .n_tokens = seq->grant,
        .n_drafts = seq->n_drafts,
    };
    if ((flags & STEP_ROW_MASKED) != 0) {
        events->write_mask(events->user, seq);
    }
    sched->stats.last_step_tokens += seq->grant + seq->n_drafts;
    sched->stats.last_step_prompt += (flags & STEP_ROW_FROM_SLOT) != 0 ? 0 : seq->grant;
    seq->planned += seq->grant;
    seq->in_flight++;
    seq->pending += (flags & STEP_ROW_SAMPLE) != 0;
}

static void tell_tokens(step_plan_t *plan, const sched_flight_t *flight)
{
    for (uint32_t i = 0; i < flight->n_rows; i++) {
        const sched_row_t *row = &flight->rows[i];
        const sched_seq_t *seq = row->seq;
        if ((row->flags & STEP_ROW_TOLD) != 0) {
            plan->tokens[plan->n_tokens++] = seq->tokens[seq->n_tokens - 1];
        }
        for (uint32_t j = 0; j < row->n_drafts; j++) {
            plan->tokens[plan->n_tokens++] = seq->drafts[j];
        }
    }
}

static void write_plan(sched_t *sched, step_plan_t *plan, sched_flight_t *flight)
{
    for (sched_seq_t *seq = sched->running.first; seq != NULL; seq = seq->next) {
        if (seq->grant > 0 && fits(sched, plan, seq)) {
            if (!seq->is_bound) {
                write_bind(plan, seq);
            }
            write_blocks(sched, plan, seq);
            write_row(sched, plan, flight, seq);
        } else if (seq->pending == 0) {
            seq->n_drafts = 0; /* of no row */
        }
        seq->grant = 0;
    }
    tell_tokens(plan, flight);
}

uint32_t sched_plan(sched_t *sched, step_plan_t *plan)
{
    assert(sched->n_flights < SCHED_MAX_IN_FLIGHT);
    kv_store_poll(sched->config.store);
    sched->left = sched->budget;
    grant_decodes(sched);
    const uint32_t withheld = withhold(sched);
    grant_prefills(sched);
    sched_fetch_for_waiting(sched);
    sched_pull_for_waiting(sched);
    admit_waiting(sched);
    grant_rest(sched);
    sched->left += withheld;
    grant_drafts(sched);
    if (sched->left == sched->budget) {
        kv_store_flush(sched->config.store);
        return 0;
    }
    sched_flight_t *flight =
        &sched->flights[(sched->first_flight + sched->n_flights) % SCHED_MAX_IN_FLIGHT];
    flight->step = ++sched->stats.steps;
    flight->n_rows = 0;
    sched->stats.last_step_tokens = 0;
    sched->stats.last_step_prompt = 0;
    step_plan_clear(plan, flight->step);
    write_plan(sched, plan, flight);
    assert(plan->n_rows > 0);
    sched->n_flights++;
    return plan->n_rows;
}
