/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <math.h>
#include <stdbool.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

/* What is known of a row's experts while it chooses. */
typedef struct scores {
    float score[K_MAX_EXPERTS];
    float choice[K_MAX_EXPERTS]; /* score + bias; −inf: not to be chosen */
} scores_t;

static void softmax(const float *logits, uint32_t n, float *score)
{
    float max = logits[0];
    float sum = 0;
    for (uint32_t e = 1; e < n; e++) {
        max = fmaxf(max, logits[e]);
    }
    for (uint32_t e = 0; e < n; e++) {
        score[e] = expf(logits[e] - max);
        sum += score[e];
    }
    for (uint32_t e = 0; e < n; e++) {
        score[e] /= sum;
    }
}

static void score_row(const k_route_args_t *args, uint32_t row, scores_t *scores)
{
    const float *logits = args->logits + row * args->logits_stride;
    if (args->kind == K_ROUTE_SOFTMAX) {
        softmax(logits, args->experts, scores->score);
    }
    for (uint32_t e = 0; e < args->experts; e++) {
        if (args->kind == K_ROUTE_SIGMOID) {
            scores->score[e] = 1.0f / (1.0f + expf(-logits[e]));
        }
        const float choice = scores->score[e] + (args->bias == NULL ? 0 : args->bias[e]);
        scores->choice[e] = isnan(choice) ? -INFINITY : choice;
    }
}

/* Never one twice, whatever the values are: places for slots are counted on it. */
static uint32_t take_best(const float *values, uint32_t n, bool *is_taken)
{
    uint32_t best = 0;
    while (is_taken[best]) {
        best++;
    }
    for (uint32_t i = best + 1; i < n; i++) {
        best = !is_taken[i] && values[i] > values[best] ? i : best;
    }
    is_taken[best] = true;
    return best;
}

static float score_group(const float *choice, uint32_t n, bool takes_two)
{
    float first = -INFINITY;
    float second = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        const float lower = fminf(choice[i], first);
        first = fmaxf(choice[i], first);
        second = fmaxf(second, lower);
    }
    return takes_two && n > 1 ? first + second : first;
}

/* Leaves the experts of the best groups. */
static void keep_groups(const k_route_args_t *args, scores_t *scores)
{
    const uint32_t size = args->experts / args->n_groups;
    float group[K_MAX_EXPERTS];
    bool is_kept[K_MAX_EXPERTS] = {false};
    for (uint32_t g = 0; g < args->n_groups; g++) {
        group[g] = score_group(scores->choice + (size_t)g * size, size, args->bias != NULL);
    }
    for (uint32_t i = 0; i < args->groups_used; i++) {
        (void)take_best(group, args->n_groups, is_kept);
    }
    for (uint32_t e = 0; e < args->experts; e++) {
        scores->choice[e] = is_kept[e / size] ? scores->choice[e] : -INFINITY;
    }
}

/* slot_of takes the experts for now: a slot is known when all rows have chosen. */
static void route_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_route_args_t *args = arg;
    uint32_t *chosen = args->slot_of + (size_t)row * args->used;
    float *weights = args->weights + (size_t)row * args->used;
    scores_t scores;
    bool is_taken[K_MAX_EXPERTS] = {false};
    float sum = 0;
    score_row(args, row, &scores);
    if (args->n_groups > 1) {
        keep_groups(args, &scores);
    }
    for (uint32_t j = 0; j < args->used; j++) {
        chosen[j] = take_best(scores.choice, args->experts, is_taken);
        weights[j] = scores.score[chosen[j]];
        sum += weights[j];
    }
    for (uint32_t j = 0; j < args->used; j++) {
        weights[j] = (args->renormalizes ? weights[j] / sum : weights[j]) * args->scale;
    }
}

/* A counting sort of all choices by expert. */
static void place_slots(const k_route_args_t *args)
{
    const uint32_t slots = args->rows * args->used;
    uint32_t next[K_MAX_EXPERTS] = {0};
    uint32_t first = 0;
    for (uint32_t i = 0; i < slots; i++) {
        next[args->slot_of[i]]++;
    }
    for (uint32_t e = 0; e < args->experts; e++) {
        const uint32_t count = next[e];
        args->offsets[e] = first;
        next[e] = first;
        first += count;
    }
    args->offsets[args->experts] = first;
    for (uint32_t i = 0; i < slots; i++) {
        const uint32_t slot = next[args->slot_of[i]]++;
        args->row_of_slot[slot] = i / args->used;
        args->slot_of[i] = slot;
    }
}

void k_ref_route(k_stream_t *stream, const k_route_args_t *args)
{
    assert(args->experts <= K_MAX_EXPERTS && args->used <= args->experts);
    k_team_run(stream->team, args->rows, route_row, args);
    place_slots(args);
}
