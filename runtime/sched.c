/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/sched.h"

#include <assert.h>

#include "base/alloc.h"
#include "runtime/sched_priv.h"

#define MAX_OUTPUTS 64 /* rows of logits made at a time: enough for a matrix product's speed */

static uint32_t blocks_of(uint32_t tokens, uint32_t block_tokens)
{
    return tokens / block_tokens + (tokens % block_tokens != 0);
}

step_limits_t sched_limits(uint32_t max_slots, uint32_t max_tokens, uint32_t max_context,
                           uint32_t block_tokens, uint32_t max_drafts)
{
    /* Each bind brings a history and may end in a block begun; each row may begin one more, and
     * bring its token or drafts. */
    const uint32_t bind_tokens = max_context + max_tokens;
    const uint32_t row_tokens = max_drafts > 1 ? max_slots * max_drafts : max_slots;
    const uint32_t max_samples = max_slots * (1 + max_drafts);
    return (step_limits_t){
        .max_slots = max_slots,
        .max_tokens = max_tokens,
        .max_context = max_context,
        .max_blocks = blocks_of(bind_tokens, block_tokens) + blocks_of(max_tokens, block_tokens) +
                      2 * max_slots,
        .max_bind_tokens = bind_tokens + row_tokens,
        .max_biases = ENGINE_MAX_LOGIT_BIAS,
        .max_outputs = max_samples < MAX_OUTPUTS ? max_samples : MAX_OUTPUTS,
        .max_drafts = max_drafts,
    };
}

static weft_status_t create_arrays(sched_t *sched)
{
    const uint32_t slots = sched->config.limits.max_slots;
    sched->free_slots = weft_calloc(slots, sizeof(uint32_t), "sched.free_slots");
    sched->tables =
        weft_calloc((size_t)slots * sched->table_blocks, sizeof(kv_block_id_t), "sched.tables");
    sched->scratch = weft_calloc(sched->table_blocks, sizeof(kv_block_id_t), "sched.scratch");
    sched->drafting = weft_calloc(slots, sizeof(sched_draft_t), "sched.drafting");
    if (sched->free_slots == NULL || sched->tables == NULL || sched->scratch == NULL ||
        sched->drafting == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < SCHED_MAX_IN_FLIGHT; i++) {
        sched->flights[i].rows = weft_calloc(slots, sizeof(sched_row_t), "sched.rows");
        if (sched->flights[i].rows == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
    }
    sched->n_free_slots = slots;
    for (uint32_t i = 0; i < slots; i++) {
        sched->free_slots[i] = slots - 1 - i;
    }
    return WEFT_OK;
}

weft_status_t sched_create(const sched_config_t *config, sched_t **sched_out)
{
    const step_limits_t *limits = &config->limits;
    if (limits->max_slots == 0 || limits->max_tokens < limits->max_slots) {
        return WEFT_ERR_INVALID;
    }
    sched_t *sched = weft_zalloc(sizeof(*sched), "sched.sched");
    if (sched == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    sched->config = *config;
    sched->pool = kv_store_pool(config->store);
    sched->block_tokens = kv_pool_layout(sched->pool)->block_tokens;
    sched->table_blocks = blocks_of(limits->max_context, sched->block_tokens);
    sched->budget = limits->max_tokens;
    sched->most_prompt = UINT32_MAX;
    const weft_status_t status = create_arrays(sched);
    if (status < 0) {
        sched_destroy(sched);
        return status;
    }
    *sched_out = sched;
    return WEFT_OK;
}

void sched_destroy(sched_t *sched)
{
    if (sched == NULL) {
        return;
    }
    for (uint32_t i = 0; i < SCHED_MAX_IN_FLIGHT; i++) {
        weft_free(sched->flights[i].rows);
    }
    weft_free(sched->drafting);
    weft_free(sched->scratch);
    weft_free(sched->tables);
    weft_free(sched->free_slots);
    weft_free(sched);
}

bool sched_is_before(const sched_seq_t *a, const sched_seq_t *b)
{
    if (a->priority != b->priority) {
        return a->priority < b->priority;
    }
    if (a->arrival_ns != b->arrival_ns) {
        return a->arrival_ns < b->arrival_ns;
    }
    return a->order < b->order;
}

/* Walks from the end: new work mostly belongs there. */
void sched_list_insert(sched_list_t *list, sched_seq_t *seq)
{
    sched_seq_t *before = list->last;
    while (before != NULL && sched_is_before(seq, before)) {
        before = before->prev;
    }
    seq->prev = before;
    seq->next = before == NULL ? list->first : before->next;
    *(seq->prev == NULL ? &list->first : &seq->prev->next) = seq;
    *(seq->next == NULL ? &list->last : &seq->next->prev) = seq;
    list->count++;
}

void sched_list_remove(sched_list_t *list, sched_seq_t *seq)
{
    *(seq->prev == NULL ? &list->first : &seq->prev->next) = seq->next;
    *(seq->next == NULL ? &list->last : &seq->next->prev) = seq->prev;
    seq->prev = seq->next = NULL;
    list->count--;
}

weft_status_t sched_submit(sched_t *sched, sched_seq_t *seq)
{
    const step_limits_t *limits = &sched->config.limits;
    const uint32_t tokens = seq->n_prompt + seq->max_tokens;
    assert(seq->state == SCHED_SEQ_NEW && seq->n_prompt > 0 && seq->sibling != NULL);
    if (seq->n_prompt > limits->max_context || tokens > limits->max_context ||
        seq->n_bias > limits->max_biases ||
        blocks_of(tokens, sched->block_tokens) > kv_pool_total_blocks(sched->pool)) {
        return WEFT_ERR_TOO_LARGE;
    }
    seq->n_tokens = seq->n_prompt;
    seq->order = sched->next_order++;
    seq->state = SCHED_SEQ_WAITING;
    sched_list_insert(&sched->waiting, seq);
    sched->n_pulls += seq->pull != NULL;
    if (sched_goal(seq) == 0) {
        sched_finish(sched, seq, ENGINE_FINISH_LENGTH);
    }
    return WEFT_OK;
}

void sched_abort(sched_t *sched, sched_seq_t *seq, engine_finish_t reason)
{
    if (seq->state == SCHED_SEQ_WAITING || seq->state == SCHED_SEQ_RUNNING) {
        sched_finish(sched, seq, reason);
    }
}

void sched_abort_all(sched_t *sched, engine_finish_t reason)
{
    while (sched->running.first != NULL) {
        sched_finish(sched, sched->running.first, reason);
    }
    while (sched->waiting.first != NULL) {
        sched_finish(sched, sched->waiting.first, reason);
    }
}

void sched_finish(sched_t *sched, sched_seq_t *seq, engine_finish_t reason)
{
    const sched_events_t *events = &sched->config.events;
    sched_close_lease(sched, seq, reason);
    if (seq->state == SCHED_SEQ_RUNNING) {
        sched_unbind(sched, seq);
    } else {
        sched_end_fetch(sched, seq);
        sched_end_pull(sched, seq);
        sched_list_remove(&sched->waiting, seq);
    }
    seq->state = SCHED_SEQ_DONE;
    seq->finish = reason;
    events->on_finish(events->user, seq);
    if (seq->in_flight == 0) {
        events->on_retired(events->user, seq);
    }
}

void sched_preempt(sched_t *sched, sched_seq_t *seq)
{
    sched_retract_lease(sched, seq);
    sched_unbind(sched, seq);
    seq->state = SCHED_SEQ_WAITING;
    seq->preemptions++;
    seq->blocked_at = seq->fetch_blocked_at = seq->overtaken = 0;
    seq->has_fetched = seq->is_awaiting_read = false;
    sched->stats.preemptions++;
    sched_list_insert(&sched->waiting, seq);
}

void sched_preempt_all(sched_t *sched)
{
    while (sched->running.first != NULL) {
        sched_preempt(sched, sched->running.first);
    }
}

void sched_preempt_nth(sched_t *sched, uint32_t nth)
{
    if (sched->running.count == 0) {
        return;
    }
    sched_seq_t *seq = sched->running.first;
    for (uint32_t i = nth % sched->running.count; i > 0; i--) {
        seq = seq->next;
    }
    sched_preempt(sched, seq);
}

void sched_set_budget(sched_t *sched, uint32_t tokens)
{
    const uint32_t most = sched->config.limits.max_tokens;
    sched->budget = tokens == 0 ? 1 : tokens > most ? most : tokens;
}

void sched_set_prompt_tokens(sched_t *sched, uint32_t most)
{
    sched->most_prompt = most;
}

uint32_t sched_goal(const sched_seq_t *seq)
{
    const bool is_prompt_alone = seq->max_tokens == 0 && !seq->wants_embedding;
    return is_prompt_alone ? seq->n_prompt - 1 : seq->n_tokens + seq->pending;
}

bool sched_is_decode(const sched_seq_t *seq)
{
    return seq->n_tokens + seq->pending > seq->n_prompt && seq->planned + 1 == sched_goal(seq);
}

uint32_t sched_in_flight(const sched_t *sched)
{
    return sched->n_flights;
}

bool sched_is_empty(const sched_t *sched)
{
    return sched->waiting.count == 0 && sched->running.count == 0;
}

sched_stats_t sched_stats(const sched_t *sched)
{
    sched_stats_t stats = sched->stats;
    stats.running = sched->running.count;
    stats.waiting = sched->waiting.count;
    return stats;
}
