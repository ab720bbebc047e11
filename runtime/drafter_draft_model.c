/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second, small model guesses: it answers greedily, some tokens ahead, for all sequences at once.
 *
 * Its KV cache has the blocks that the scheduler deals out, so there is nothing to be kept in step but
 * how far it has come. It follows each sequence that speculates in its slot: of every step a pass
 * computes what it lacks, as far as a step's tokens go, the newest tokens first and prompts with what
 * is left; whoever has none left to compute is guessed for, a pass for each further token. A sequence
 * that comes into a slot, for the first time or after preemption, finds what is there of it by the
 * names of its blocks, as they were when this model last filled them: a prefix computed once is not
 * computed again here either, unless the blocks went through a tier.
 *
 * Guesses are of the model alone: without the sequence's adapter, bias and mask. Those it had wrong
 * are overwritten: the tokens of a pass are told, and end the executor's history.
 */
#include <string.h>

#include "base/alloc.h"
#include "runtime/drafter.h"

#define WEFT_LOG_MODULE "drafter"
#include "base/log.h"

/* What is known of the sequence in a slot. */
typedef struct place {
    bool is_used;
    uint64_t order; /* the sequence's, and its epoch: whose place it is */
    uint32_t epoch;
    bool is_bound;      /* the executor knows the slot is its */
    uint32_t n_told;    /* blocks that the executor knows */
    uint32_t n_noted;   /* blocks whose names are noted */
    uint32_t computed;  /* tokens of its history in this model's cache */
    uint32_t n_guessed; /* tokens behind the history as it was; all but the last are in the cache */
    int32_t guess[STEP_MAX_DRAFTS];
} place_t;

/* A row of the pass over what is known. */
typedef struct entry {
    sched_seq_t *seq;
    place_t *place;
    uint32_t wanted; /* tokens to guess; 0: it only follows */
} entry_t;

typedef struct draft {
    drafter_t drafter;
    draft_model_t *model;
    step_limits_t limits;
    uint32_t block_tokens;
    uint32_t vocab;        /* its own */
    uint32_t answer_vocab; /* of the model that answers */
    bool is_broken;        /* a pass failed: no more guesses */
    uint64_t pass;
    uint32_t left; /* tokens of the pass being made */
    uint32_t n_entries;
    entry_t *entries;    /* [max_slots] */
    place_t *places;     /* [max_slots] */
    kv_hash_t *names;    /* [n_blocks] of what this model's cache holds; zeros: nothing known */
    uint64_t *filled_in; /* [n_blocks] the pass that wrote to it last */
} draft_t;

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- how far it has come --------------------------------------------------------------------- */

static bool is_noted(const draft_t *draft, const sched_draft_t *row, uint32_t i)
{
    const sched_seq_t *seq = row->seq;
    return i < row->n_blocks && seq->hashes != NULL && i < seq->n_hashes &&
           memcmp(&draft->names[row->blocks[i]], &seq->hashes[i], sizeof(kv_hash_t)) == 0;
}

static void take_place(const draft_t *draft, const sched_draft_t *row, place_t *place)
{
    *place = (place_t){.is_used = true, .order = row->seq->order, .epoch = row->seq->epoch};
    while (is_noted(draft, row, place->n_noted)) {
        place->n_noted++;
    }
    place->computed = place->n_noted * draft->block_tokens;
}

/* Guesses that the answer took are in the cache already. */
static void keep_right_guesses(const sched_seq_t *seq, place_t *place)
{
    for (uint32_t i = 0; i + 1 < place->n_guessed && place->computed < seq->n_tokens &&
                         seq->tokens[place->computed] == place->guess[i];
         i++) {
        place->computed++;
    }
    place->n_guessed = 0;
}

static void note_names(draft_t *draft, const sched_draft_t *row, place_t *place)
{
    const uint32_t full = place->computed / draft->block_tokens;
    const uint32_t n = smaller(full, row->seq->hashes == NULL ? 0 : row->seq->n_hashes);
    for (; place->n_noted < n; place->n_noted++) {
        draft->names[row->blocks[place->n_noted]] = row->seq->hashes[place->n_noted];
    }
}

/* Where there is to be a guess one token is computed in any case: it follows that. */
static void catch_up(draft_t *draft, const sched_draft_t *row)
{
    const sched_seq_t *seq = row->seq;
    place_t *place = &draft->places[seq->slot];
    if (!place->is_used || place->order != seq->order || place->epoch != seq->epoch) {
        take_place(draft, row, place);
    }
    keep_right_guesses(seq, place);
    note_names(draft, row, place);
    if (row->most > 0 && place->computed == seq->n_tokens) {
        place->computed--;
        place->n_noted = smaller(place->n_noted, place->computed / draft->block_tokens);
    }
}

/* ---- the pass over what is known ------------------------------------------------------------- */

/* Where a row that begins at `computed` has to end: at a token or block that is not to be had now. */
static uint32_t end_of(const draft_t *draft, const sched_draft_t *row, const place_t *place)
{
    const uint32_t size = draft->block_tokens;
    const uint32_t room = smaller(row->n_blocks * size, draft->limits.max_context);
    const uint32_t end = smaller(smaller(row->seq->n_tokens, room), place->computed + draft->left);
    for (uint32_t at = place->computed; at < end; at++) {
        const bool is_taken = draft->filled_in[row->blocks[at / size]] == draft->pass;
        if (is_taken || (uint32_t)row->seq->tokens[at] >= draft->vocab) {
            return at;
        }
    }
    return end;
}

/* Blocks of the row that are within its longest context. */
static uint32_t blocks_of(const draft_t *draft, const sched_draft_t *row)
{
    const uint32_t last = (draft->limits.max_context - 1) / draft->block_tokens;
    return smaller(row->n_blocks, last + 1);
}

/* Whether the plan has space for what the executor has to be told; rows' tokens have theirs. */
static bool fits(const draft_t *draft, const sched_draft_t *row, const place_t *place)
{
    const step_limits_t *limits = &draft->limits;
    const step_plan_t *plan = draft->model->step;
    const uint32_t bind_tokens = limits->max_bind_tokens - limits->max_tokens;
    return blocks_of(draft, row) - place->n_told <= limits->max_blocks - plan->n_blocks &&
           (place->is_bound || place->computed <= bind_tokens - plan->n_tokens);
}

static void bind(step_plan_t *plan, const sched_seq_t *seq, place_t *place)
{
    plan->binds[plan->n_binds++] = (step_bind_t){
        .slot = seq->slot,
        .first_token = plan->n_tokens,
        .n_tokens = place->computed,
        .sampling = {.top_p = 1, .repetition_penalty = 1},
    };
    memcpy(plan->tokens + plan->n_tokens, seq->tokens, place->computed * sizeof(int32_t));
    plan->n_tokens += place->computed;
    place->is_bound = true;
}

static void tell_blocks(const draft_t *draft, const sched_draft_t *row, place_t *place)
{
    step_plan_t *plan = draft->model->step;
    for (; place->n_told < blocks_of(draft, row); place->n_told++) {
        plan->blocks[plan->n_blocks++] = (step_block_t){
            .slot = row->seq->slot, .index = place->n_told, .block = row->blocks[place->n_told]};
    }
}

static void note_filled(draft_t *draft, const sched_draft_t *row, uint32_t first, uint32_t end)
{
    for (uint32_t i = first / draft->block_tokens; i * draft->block_tokens < end; i++) {
        draft->filled_in[row->blocks[i]] = draft->pass;
        draft->names[row->blocks[i]] = (kv_hash_t){0};
    }
}

/* Tokens that may be guessed: the cache must have room for all but the last of them. */
static uint32_t wanted_of(const draft_t *draft, const sched_draft_t *row, uint32_t end)
{
    const uint32_t room = smaller(row->n_blocks * draft->block_tokens, draft->limits.max_context);
    return end < row->seq->n_tokens ? 0 : smaller(row->most, room - end + 1);
}

static void add_row(draft_t *draft, const sched_draft_t *row)
{
    step_plan_t *plan = draft->model->step;
    sched_seq_t *seq = row->seq;
    place_t *place = &draft->places[seq->slot];
    const uint32_t first = place->computed;
    const uint32_t end = end_of(draft, row, place);
    if (end <= first || !fits(draft, row, place)) {
        return;
    }
    const uint32_t wanted = wanted_of(draft, row, end);
    if (!place->is_bound) {
        bind(plan, seq, place);
    }
    tell_blocks(draft, row, place);
    plan->rows[plan->n_rows++] = (step_row_t){
        .slot = seq->slot,
        .flags = STEP_ROW_TOLD | (wanted > 0 ? STEP_ROW_SAMPLE : 0),
        .start = first,
        .n_tokens = end - first,
    };
    note_filled(draft, row, first, end + (wanted > 0 ? wanted - 1 : 0));
    place->computed = end;
    draft->left -= end - first;
    draft->entries[draft->n_entries++] = (entry_t){seq, place, wanted};
}

/* Behind those of all binds. */
static void tell_tokens(draft_t *draft)
{
    step_plan_t *plan = draft->model->step;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const step_row_t *row = &plan->rows[i];
        memcpy(plan->tokens + plan->n_tokens, draft->entries[i].seq->tokens + row->start,
               row->n_tokens * sizeof(int32_t));
        plan->n_tokens += row->n_tokens;
    }
}

/* What is new since the last guess goes before prompts and what full passes left over. */
static bool is_near(const sched_draft_t *row, const place_t *place)
{
    return row->most > 0 && row->seq->n_tokens - place->computed <= STEP_MAX_DRAFTS + 1;
}

static void plan_known(draft_t *draft, const sched_draft_t *rows, uint32_t n)
{
    step_plan_clear(draft->model->step, ++draft->pass);
    draft->left = draft->limits.max_tokens;
    draft->n_entries = 0;
    for (uint32_t turn = 0; turn < 2; turn++) {
        for (uint32_t i = 0; i < n && draft->left > 0; i++) {
            const place_t *place = &draft->places[rows[i].seq->slot];
            if (is_near(&rows[i], place) == (turn == 0)) {
                add_row(draft, &rows[i]);
            }
        }
    }
    tell_tokens(draft);
}

/* ---- the passes over what is guessed --------------------------------------------------------- */

/* The guess at place `index`, of those that want one there. */
static void plan_guess(draft_t *draft, uint32_t index)
{
    step_plan_t *plan = draft->model->step;
    step_plan_clear(plan, ++draft->pass);
    for (uint32_t i = 0; i < draft->n_entries; i++) {
        const entry_t *entry = &draft->entries[i];
        if (entry->wanted > index) {
            plan->rows[plan->n_rows++] = (step_row_t){
                .slot = entry->seq->slot,
                .flags = STEP_ROW_FROM_SLOT | STEP_ROW_SAMPLE,
                .start = entry->seq->n_tokens + index - 1,
                .n_tokens = 1,
            };
        }
    }
}

/* The first pass has a row of each entry, the others of those that want that many guesses. */
static weft_status_t collect(draft_t *draft, uint32_t index)
{
    step_result_t result;
    const weft_status_t status = executor_collect(draft->model->executor, &result);
    uint32_t row = 0;
    for (uint32_t i = 0; status >= 0 && i < draft->n_entries; i++) {
        const entry_t *entry = &draft->entries[i];
        if (entry->wanted > index) {
            entry->place->guess[index] = result.rows[row].chosen.token;
        }
        row += index == 0 || entry->wanted > index;
    }
    return status;
}

static uint32_t most_wanted(const draft_t *draft)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < draft->n_entries; i++) {
        most = most < draft->entries[i].wanted ? draft->entries[i].wanted : most;
    }
    return most;
}

/* The pass that is planned and those that follow it; the device has always one to go on with. */
static weft_status_t run_passes(draft_t *draft)
{
    const uint32_t most = most_wanted(draft);
    const uint32_t n = most > 1 ? most : 1;
    uint32_t n_collected = 0;
    weft_status_t status = executor_launch(draft->model->executor, draft->model->step);
    for (uint32_t i = 1; status >= 0 && i < n; i++) {
        if (i - n_collected == EXECUTOR_MIN_DEPTH) {
            status = collect(draft, n_collected++);
        }
        if (status >= 0) {
            plan_guess(draft, i);
            status = executor_launch(draft->model->executor, draft->model->step);
        }
    }
    while (status >= 0 && n_collected < n) {
        status = collect(draft, n_collected++);
    }
    return status;
}

/* Up to a token that the model that answers does not have. */
static void give_guess(const draft_t *draft, const entry_t *entry)
{
    sched_seq_t *seq = entry->seq;
    entry->place->n_guessed = entry->wanted;
    while (seq->n_drafts < entry->wanted &&
           (uint32_t)entry->place->guess[seq->n_drafts] < draft->answer_vocab) {
        seq->drafts[seq->n_drafts] = entry->place->guess[seq->n_drafts];
        seq->n_drafts++;
    }
}

static void guess(drafter_t *drafter, const sched_draft_t *rows, uint32_t n)
{
    draft_t *draft = (draft_t *)drafter;
    for (uint32_t i = 0; i < n; i++) {
        if (rows[i].most > 0) {
            rows[i].seq->n_drafts = 0;
        }
        catch_up(draft, &rows[i]);
    }
    if (draft->is_broken) {
        return;
    }
    plan_known(draft, rows, n);
    if (draft->n_entries == 0) {
        return;
    }
    const weft_status_t status = run_passes(draft);
    if (status < 0) {
        weft_log_error("the model that guesses failed, no more guesses status=%s",
                       weft_strerror(status));
        draft->is_broken = true;
        return;
    }
    for (uint32_t i = 0; i < draft->n_entries; i++) {
        if (draft->entries[i].wanted > 0) {
            give_guess(draft, &draft->entries[i]);
        }
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

static void destroy(drafter_t *drafter)
{
    draft_t *draft = (draft_t *)drafter;
    draft_model_destroy(draft->model);
    weft_free(draft->entries);
    weft_free(draft->places);
    weft_free(draft->names);
    weft_free(draft->filled_in);
    weft_free(draft);
}

static weft_status_t take_arrays(draft_t *draft, uint32_t n_blocks)
{
    const uint32_t slots = draft->limits.max_slots;
    draft->entries = weft_calloc(slots, sizeof(entry_t), "drafter.entries");
    draft->places = weft_calloc(slots, sizeof(place_t), "drafter.places");
    draft->names = weft_calloc(n_blocks, sizeof(kv_hash_t), "drafter.names");
    draft->filled_in = weft_calloc(n_blocks, sizeof(uint64_t), "drafter.filled_in");
    return draft->entries == NULL || draft->places == NULL || draft->names == NULL ||
                   draft->filled_in == NULL
               ? WEFT_ERR_NO_MEMORY
               : WEFT_OK;
}

static weft_status_t create(const drafter_config_t *config, weft_diag_t *diag,
                            drafter_t **drafter_out)
{
    const draft_model_plan_t *plan = config->plan;
    draft_t *draft = weft_zalloc(sizeof(*draft), "runtime.drafter");
    if (draft == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory to guess tokens");
    }
    draft->drafter.kind = config->how->kind;
    draft->limits = plan->limits;
    draft->block_tokens = plan->layout.block_tokens;
    draft->vocab = model_source_config(config->source)->vocab;
    draft->answer_vocab = config->vocab;
    weft_status_t status = take_arrays(draft, plan->n_blocks);
    if (status < 0) {
        status = weft_diag(diag, status, "no memory to guess tokens");
    } else {
        status = draft_model_create(plan, config->source, config->stream, diag, &draft->model);
    }
    if (status < 0) {
        destroy(&draft->drafter);
        return status;
    }
    *drafter_out = &draft->drafter;
    return WEFT_OK;
}

const drafter_kind_t drafter_draft_model = {
    .method = "draft_model",
    .has_model = true,
    .create = create,
    .destroy = destroy,
    .guess = guess,
};
