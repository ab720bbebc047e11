/* SPDX-License-Identifier: Apache-2.0 */
/* Applying a step's result: tokens join histories, full blocks get names, answers end. */
#include <assert.h>

#include "runtime/sched/sched_priv.h"

static bool is_stop(const sched_seq_t *seq, int32_t token)
{
    for (uint32_t i = 0; i < seq->n_stop_ids; i++) {
        if (seq->stop_ids[i] == token) {
            return true;
        }
    }
    return false;
}

/* How many entries of the result's prompt log-probabilities belong to row. */
static uint32_t prompt_entries(const sched_row_t *row)
{
    if ((row->flags & STEP_ROW_PROMPT_LOGPROBS) == 0) {
        return 0;
    }
    return row->n_tokens - ((row->flags & STEP_ROW_SAMPLE) != 0);
}

static void report_prompt(sched_t *sched, const sched_row_t *row, const k_sampled_t *entries,
                          uint32_t n)
{
    const sched_events_t *events = &sched->config.events;
    sched_seq_t *seq = row->seq;
    if (n > 0) {
        events->on_prompt(events->user, seq, row->start + 1, entries, n);
    }
    seq->is_prompt_reported |= row->start + n + 1 >= seq->n_prompt;
}

/* False: it was the last one, and the sequence may be gone. */
static bool take_token(sched_t *sched, sched_seq_t *seq, const k_sampled_t *sampled)
{
    const sched_events_t *events = &sched->config.events;
    const int32_t token = sampled->chosen.token;
    seq->tokens[seq->n_tokens++] = token;
    sched->stats.sampled_tokens++;
    events->on_token(events->user, seq, sampled);
    if (is_stop(seq, token)) {
        sched_finish(sched, seq, ENGINE_FINISH_STOP);
        return false;
    }
    if (seq->n_tokens - seq->n_prompt == seq->max_tokens) {
        sched_finish(sched, seq, ENGINE_FINISH_LENGTH);
        return false;
    }
    return true;
}

/*
 * How many of the row's drafts join the history: up to the first that is not what was sampled before
 * it, or that follows the end of the answer. They lie behind the history when this returns.
 */
static uint32_t accept_drafts(sched_t *sched, const sched_row_t *row, const k_sampled_t *sampled,
                              const k_sampled_t *drafted)
{
    sched_seq_t *seq = row->seq;
    uint32_t n = 0;
    seq->n_drafts = 0;
    sched->stats.drafts += row->n_drafts > 0;
    sched->stats.draft_tokens += row->n_drafts;
    while (n < row->n_drafts && seq->drafts[n] == sampled->chosen.token &&
           !is_stop(seq, seq->drafts[n])) {
        seq->tokens[seq->n_tokens + n] = seq->drafts[n];
        sched->stats.accepted[n]++;
        sampled = &drafted[n++];
    }
    return n;
}

/* The token sampled after the row and those after its accepted drafts. */
static void take_tokens(sched_t *sched, sched_seq_t *seq, const k_sampled_t *sampled,
                        const k_sampled_t *drafted, uint32_t n_accepted)
{
    for (uint32_t i = 0; take_token(sched, seq, sampled) && i < n_accepted; i++) {
        sampled = &drafted[i];
    }
}

/* True when the sequence was done before: it may be gone now. */
static bool land_row(sched_t *sched, const sched_row_t *row)
{
    const sched_events_t *events = &sched->config.events;
    sched_seq_t *seq = row->seq;
    seq->in_flight--;
    seq->pending -= (row->flags & STEP_ROW_SAMPLE) != 0;
    if (seq->state != SCHED_SEQ_DONE) {
        return false;
    }
    if (seq->in_flight == 0) {
        events->on_retired(events->user, seq);
    }
    return true;
}

/* The sequence may be gone when this returns. */
static void commit_row(sched_t *sched, const sched_row_t *row, const k_sampled_t *sampled,
                       const k_sampled_t *drafted, const k_sampled_t *prompt, uint32_t n_prompt,
                       const void *embedding)
{
    const sched_events_t *events = &sched->config.events;
    sched_seq_t *seq = row->seq;
    if (land_row(sched, row)) {
        return;
    }
    const uint32_t n_accepted = accept_drafts(sched, row, sampled, drafted);
    if (row->epoch == seq->epoch) {
        seq->computed = row->start + row->n_tokens + n_accepted;
        seq->planned += n_accepted;
        sched_name_blocks(sched, seq);
        sched_tell_lease(sched, seq);
    }
    if ((row->flags & STEP_ROW_PROMPT_LOGPROBS) != 0) {
        report_prompt(sched, row, prompt, n_prompt); /* true even if preempted meanwhile */
    }
    if ((row->flags & STEP_ROW_EMBED) != 0) {
        events->on_embedding(events->user, seq, embedding);
    }
    if ((row->flags & STEP_ROW_SAMPLE) != 0) {
        take_tokens(sched, seq, sampled, drafted, n_accepted);
    } else if (row->epoch == seq->epoch && seq->max_tokens == 0 &&
               seq->computed == sched_goal(seq)) {
        sched_finish(sched, seq, ENGINE_FINISH_LENGTH);
    }
}

static const sched_flight_t *pop_flight(sched_t *sched)
{
    assert(sched->n_flights > 0);
    const sched_flight_t *flight = &sched->flights[sched->first_flight];
    sched->first_flight = (sched->first_flight + 1) % SCHED_MAX_IN_FLIGHT;
    sched->n_flights--;
    return flight;
}

void sched_commit(sched_t *sched, const step_result_t *result)
{
    const sched_flight_t *flight = pop_flight(sched);
    const k_sampled_t *prompt = result->prompt;
    const k_sampled_t *drafted = result->drafted;
    const char *embedding = result->embeddings;
    assert(result->step == flight->step && result->n_rows == flight->n_rows);
    for (uint32_t i = 0; i < flight->n_rows; i++) {
        const uint32_t n = prompt_entries(&flight->rows[i]);
        commit_row(sched, &flight->rows[i], &result->rows[i], drafted, prompt, n, embedding);
        drafted += flight->rows[i].n_drafts;
        prompt += n;
        if ((flight->rows[i].flags & STEP_ROW_EMBED) != 0) {
            embedding += result->embedding_stride;
        }
    }
    kv_store_flush(sched->config.store);
}

void sched_forget_flights(sched_t *sched)
{
    while (sched->n_flights > 0) {
        const sched_flight_t *flight = pop_flight(sched);
        for (uint32_t i = 0; i < flight->n_rows; i++) {
            (void)land_row(sched, &flight->rows[i]);
        }
    }
}
