/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sampling where the vocabulary is cut over ranks. Each op on the slice writes records; all ranks'
 * are gathered and every rank merges them alike, so that each appends the same token to its own
 * histories. Greedy rows take one exchange of a few bytes, log-probabilities one more. Other rows
 * exchange lists of candidates, most often one, where the host can see whether it was enough; on other
 * devices the cuts of top_k and top_p, three exchanges each, and then their best. The ranks run the same
 * plan: they agree on what is exchanged without asking.
 */
#include <assert.h>

#include "runtime/executor/executor_priv.h"

enum {
    TOP_P_CANDIDATES = 64,  /* of a rank, at first: a nucleus is seldom larger */
    TOP_K_CANDIDATES = 256, /* a larger top_k is asked for in several goes */
    MORE_CANDIDATES = 16,   /* times as many in the next go */
};

/* The rows of a turn. host: as params, where the host can read it; NULL: of targets. */
typedef struct turn {
    const k_sample_row_t *host;
    const k_sample_row_t *params;
    const int32_t *targets;
    const uint32_t *n_top; /* of targets */
    k_sampled_t *out;
    uint32_t rows;
    uint32_t max_top;
} turn_t;

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

void executor_slices_lay_out(const executor_t *executor, carve_t *carve, slices_t *slices)
{
    const size_t outputs = executor->limits.max_outputs;
    if (slices->ranks < 2) {
        return;
    }
    slices->bytes = outputs * sizeof(k_slice_max_t);
    slices->bytes = larger(slices->bytes, outputs * k_tally_bytes(K_MAX_LOGPROBS));
    if (slices->has_lists) {
        slices->bytes = larger(slices->bytes, outputs * k_candidates_bytes(TOP_K_CANDIDATES));
        slices->bytes = larger(slices->bytes, k_candidates_bytes(slices->largest));
    } else {
        slices->bytes = larger(slices->bytes, outputs * k_candidates_bytes(1));
        slices->bytes = larger(slices->bytes, outputs * sizeof(k_masses_t));
        slices->cuts = carve_take(carve, outputs, sizeof(k_slice_cuts_t));
    }
    slices->z = carve_take(carve, outputs * slices->vocab.n, sizeof(float));
    slices->state = carve_take(carve, outputs, sizeof(k_slice_row_t));
    slices->records = carve_take(carve, slices->ranks, slices->bytes);
}

/* Where this rank's records of so many bytes are written. */
static void *own_records(const slices_t *slices, size_t bytes)
{
    assert(bytes <= slices->bytes);
    return slices->records + slices->rank * bytes;
}

static void gather_records(executor_t *executor, size_t bytes)
{
    const slices_t *slices = &executor->slices;
    coll_all_gather(model_shard(executor->model)->tensor, executor->stream->queue,
                    own_records(slices, bytes), slices->records, bytes);
}

/* ---- what is decided by the largest -------------------------------------------------------- */

static void exchange_maxima(executor_t *executor, const turn_t *turn)
{
    const slices_t *slices = &executor->slices;
    const size_t bytes = turn->rows * sizeof(k_slice_max_t);
    const k_slice_max_args_t slice = {
        .logits = executor->device.logits,
        .params = turn->params,
        .targets = turn->targets,
        .z = slices->z,
        .out = own_records(slices, bytes),
        .rows = turn->rows,
        .first_token = slices->vocab.first,
        .tokens = slices->vocab.n,
        .stride = slices->vocab.n,
    };
    const k_merge_max_args_t merge = {
        .maxima = (const k_slice_max_t *)slices->records,
        .params = turn->params,
        .targets = turn->targets,
        .n_top = turn->n_top,
        .state = slices->state,
        .out = turn->out,
        .rows = turn->rows,
        .ranks = slices->ranks,
    };
    executor->stream->ops->slice_max(executor->stream, &slice);
    gather_records(executor, bytes);
    executor->stream->ops->merge_max(executor->stream, &merge);
}

/* ---- candidates ---------------------------------------------------------------------------- */

/* `most` of each rank for rows [first, first + rows) of the turn. */
static void exchange_candidates(executor_t *executor, const turn_t *turn, uint32_t first,
                                uint32_t rows, uint32_t most, bool is_again)
{
    const slices_t *slices = &executor->slices;
    const size_t bytes = rows * k_candidates_bytes(most);
    const size_t at = (size_t)first * slices->vocab.n;
    const k_slice_candidates_args_t slice = {
        .logits = executor->device.logits + at,
        .z = slices->z + at,
        .params = turn->params + first,
        .state = slices->state + first,
        .cuts = slices->cuts,
        .out = own_records(slices, bytes),
        .most = most,
        .is_again = is_again,
        .rows = rows,
        .first_token = slices->vocab.first,
        .tokens = slices->vocab.n,
        .stride = slices->vocab.n,
    };
    const k_merge_candidates_args_t merge = {
        .candidates = slices->records,
        .params = turn->params + first,
        .state = slices->state + first,
        .out = turn->out + first,
        .is_cut = !slices->has_lists,
        .most = most,
        .rows = rows,
        .ranks = slices->ranks,
    };
    executor->stream->ops->slice_candidates(executor->stream, &slice);
    gather_records(executor, bytes);
    executor->stream->ops->merge_candidates(executor->stream, &merge);
}

/* How many of each rank the rows take at first; 0: the largest decides. */
static uint32_t count_candidates(const slices_t *slices, const turn_t *turn)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < turn->rows; i++) {
        const k_sample_row_t *row = &turn->host[i];
        const uint32_t top_k = (uint32_t)(row->top_k > 0 ? row->top_k : 0);
        uint32_t n = 0;
        if (row->temperature > 0) {
            n = top_k > 0           ? top_k < TOP_K_CANDIDATES ? top_k : TOP_K_CANDIDATES
                : row->top_p < 1.0f ? TOP_P_CANDIDATES
                                    : 1;
        }
        most = most < n ? n : most;
    }
    return most < slices->largest ? most : slices->largest;
}

/* A row that stays open alone, for more: the host reads what ops have written. */
static void close_row(executor_t *executor, const turn_t *turn, uint32_t row, uint32_t most)
{
    const slices_t *slices = &executor->slices;
    while (slices->state[row].token < 0 && most < slices->largest) {
        const uint64_t more = (uint64_t)most * MORE_CANDIDATES;
        most = more < slices->largest ? (uint32_t)more : slices->largest;
        exchange_candidates(executor, turn, row, 1, most, true);
    }
}

static void choose_from_lists(executor_t *executor, const turn_t *turn)
{
    const uint32_t most = count_candidates(&executor->slices, turn);
    if (most == 0) {
        return;
    }
    exchange_candidates(executor, turn, 0, turn->rows, most, false);
    for (uint32_t i = 0; i < turn->rows; i++) {
        close_row(executor, turn, i, most);
    }
}

/* ---- cuts ---------------------------------------------------------------------------------- */

static void exchange_masses(executor_t *executor, const turn_t *turn, bool by_top_p, uint32_t round)
{
    const slices_t *slices = &executor->slices;
    const size_t bytes = turn->rows * sizeof(k_masses_t);
    const k_slice_masses_args_t slice = {
        .z = slices->z,
        .params = turn->params,
        .state = slices->state,
        .cuts = slices->cuts,
        .out = own_records(slices, bytes),
        .by_top_p = by_top_p,
        .round = round,
        .rows = turn->rows,
        .tokens = slices->vocab.n,
        .stride = slices->vocab.n,
    };
    const k_merge_masses_args_t merge = {
        .masses = (const k_masses_t *)(const void *)slices->records,
        .params = turn->params,
        .state = slices->state,
        .cuts = slices->cuts,
        .by_top_p = by_top_p,
        .round = round,
        .rows = turn->rows,
        .ranks = slices->ranks,
        .rank = slices->rank,
    };
    executor->stream->ops->slice_masses(executor->stream, &slice);
    gather_records(executor, bytes);
    executor->stream->ops->merge_masses(executor->stream, &merge);
}

static void choose_by_cuts(executor_t *executor, const turn_t *turn, uint32_t wants)
{
    for (uint32_t round = 0; (wants & SAMPLING_TOP_K) != 0 && round < K_CUT_ROUNDS; round++) {
        exchange_masses(executor, turn, false, round);
    }
    for (uint32_t round = 0; (wants & SAMPLING_TOP_P) != 0 && round < K_CUT_ROUNDS; round++) {
        exchange_masses(executor, turn, true, round);
    }
    exchange_candidates(executor, turn, 0, turn->rows, 1, false);
}

/* ---- log-probabilities --------------------------------------------------------------------- */

static void exchange_tallies(executor_t *executor, const turn_t *turn)
{
    const slices_t *slices = &executor->slices;
    const uint32_t max_top = turn->max_top < K_MAX_LOGPROBS ? turn->max_top : K_MAX_LOGPROBS;
    const size_t bytes = turn->rows * k_tally_bytes(max_top);
    const k_slice_logprobs_args_t slice = {
        .logits = executor->device.logits,
        .state = slices->state,
        .out = own_records(slices, bytes),
        .max_top = max_top,
        .rows = turn->rows,
        .first_token = slices->vocab.first,
        .tokens = slices->vocab.n,
        .stride = slices->vocab.n,
    };
    const k_merge_logprobs_args_t merge = {
        .tallies = slices->records,
        .state = slices->state,
        .out = turn->out,
        .max_top = max_top,
        .rows = turn->rows,
        .ranks = slices->ranks,
    };
    executor->stream->ops->slice_logprobs(executor->stream, &slice);
    gather_records(executor, bytes);
    executor->stream->ops->merge_logprobs(executor->stream, &merge);
}

/* ---- a step -------------------------------------------------------------------------------- */

uint32_t executor_slices_wants(const k_sample_row_t *row)
{
    const bool draws = row->temperature > 0;
    return (draws ? SAMPLING_DRAWS : 0) | (draws && row->top_k > 0 ? SAMPLING_TOP_K : 0) |
           (draws && row->top_p < 1.0f ? SAMPLING_TOP_P : 0) |
           (row->wants_logprob || row->n_top > 0 ? SAMPLING_REPORTS : 0);
}

/* The log-probabilities that a row of the turn wants at most. */
static uint32_t count_top(const turn_t *turn)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < turn->rows; i++) {
        most = most < turn->host[i].n_top ? turn->host[i].n_top : most;
    }
    return most;
}

void executor_slices_sample(executor_t *executor, const step_t *step)
{
    const device_state_t *device = &executor->device;
    const uint32_t n = step->n_sampled;
    for (uint32_t i = 0; i < n; i += executor_turn(executor, i, n)) {
        turn_t turn = {
            .host = step->inputs->samples + i,
            .params = device->inputs.samples + i,
            .out = device->sampled + i,
            .rows = executor_turn(executor, i, n),
        };
        /* A graph is for rows that want fewer as well. */
        turn.max_top = executor->slices.has_lists ? count_top(&turn) : K_MAX_LOGPROBS;
        model_logits(executor->model, executor->stream, device->inputs.sample_rows + i, turn.rows,
                     device->logits);
        exchange_maxima(executor, &turn);
        if (executor->slices.has_lists) {
            choose_from_lists(executor, &turn);
        } else if ((step->sampling & SAMPLING_DRAWS) != 0) {
            choose_by_cuts(executor, &turn, step->sampling);
        }
        if ((step->sampling & SAMPLING_REPORTS) != 0) {
            exchange_tallies(executor, &turn);
        }
    }
}

void executor_slices_prompt(executor_t *executor, const step_t *step)
{
    const device_state_t *device = &executor->device;
    const uint32_t n = step->n_prompt;
    const uint32_t *rows = (const uint32_t *)(device->inputs.tail + step->tail.prompt_rows);
    const uint32_t *tops = (const uint32_t *)(device->inputs.tail + step->tail.prompt_tops);
    const uint32_t *host_tops = (const uint32_t *)(step->inputs->tail + step->tail.prompt_tops);
    for (uint32_t i = 0; i < n; i += executor_turn(executor, i, n)) {
        turn_t turn = {
            .targets = device->targets + i,
            .n_top = tops + i,
            .out = device->prompt + i,
            .rows = executor_turn(executor, i, n),
        };
        for (uint32_t j = 0; j < turn.rows; j++) {
            turn.max_top = turn.max_top < host_tops[i + j] ? host_tops[i + j] : turn.max_top;
        }
        model_logits(executor->model, executor->stream, rows + i, turn.rows, device->logits);
        exchange_maxima(executor, &turn);
        exchange_tallies(executor, &turn);
    }
}
