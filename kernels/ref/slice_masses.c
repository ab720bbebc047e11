/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

typedef struct part {
    const k_slice_masses_args_t *args;
    const k_sample_row_t *params;
    const k_slice_cuts_t *cuts;
    float max;
    k_masses_t *out;
} part_t;

static void add(const part_t *part, float scaled, uint32_t n)
{
    const uint32_t round = part->args->round;
    const uint32_t below = k_below_of(scaled);
    const uint32_t found = part->args->by_top_p ? part->cuts->top_p.below : part->cuts->top_k.below;
    const uint32_t digits = below >> k_cut_shift(round);
    if (round == 0 || digits >> k_cut_bits(round) == found) {
        const uint32_t digit = digits & ((1U << k_cut_bits(round)) - 1);
        part->out->count[digit] += n;
        part->out->weight[digit] += n * k_weight_of(scaled);
    }
}

/* Which top_k keeps, where top_p is looked for: of those at its end, as many as the slice's ties. */
static void add_token(const part_t *part, float scaled, uint32_t *ties)
{
    const uint32_t below = k_below_of(scaled);
    const k_slice_cut_t *top_k = &part->cuts->top_k;
    const bool has_limit = part->args->by_top_p && part->params->top_k > 0;
    if (!has_limit || below < top_k->below) {
        add(part, scaled, 1);
    } else if (below == top_k->below && *ties > 0) {
        add(part, scaled, 1);
        (*ties)--;
    }
}

static void slice_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_slice_masses_args_t *args = arg;
    const part_t part = {.args = args,
                         .params = &args->params[row],
                         .cuts = &args->cuts[row],
                         .max = args->state[row].max_z,
                         .out = &args->out[row]};
    const float *z = args->z + row * args->stride;
    uint32_t ties = part.cuts->top_k.ties;
    memset(part.out, 0, sizeof(*part.out));
    if (!k_cut_is_wanted(part.params, &args->state[row], args->by_top_p)) {
        return;
    }
    for (uint32_t t = 0; t < args->tokens; t++) {
        float scaled = z[t];
        k_sampling_scale(part.params, part.max, 1, &scaled);
        if (scaled > -INFINITY) {
            add_token(&part, scaled, &ties);
        }
    }
}

void k_ref_slice_masses(k_stream_t *stream, const k_slice_masses_args_t *args)
{
    k_team_run(stream->team, args->rows, slice_row, args);
}
