/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/sched/step_pace.h"

#define WEIGHT 0.125 /* of a new time against those before */

static void learn(double *mean, double value)
{
    *mean = *mean == 0 ? value : *mean + WEIGHT * (value - *mean);
}

static bool is_far_from(uint32_t n, uint32_t before)
{
    return 2 * (uint64_t)n > 3 * (uint64_t)before || 3 * (uint64_t)n < 2 * (uint64_t)before;
}

void step_pace_note(step_pace_t *pace, uint32_t decodes, uint32_t prompt_tokens, uint64_t ns)
{
    const double time = (double)ns;
    pace->n_mixed = decodes > 0 && prompt_tokens > 0 ? pace->n_mixed + 1 : 0;
    pace->is_stale = decodes > 0 && is_far_from(decodes, pace->decodes);
    if (prompt_tokens == 0 && decodes > 0) {
        if (pace->is_stale) {
            pace->decode_ns = 0; /* what was learnt is of other steps */
        }
        learn(&pace->decode_ns, time);
        pace->decodes = decodes;
        pace->is_stale = false;
    } else if (prompt_tokens >= STEP_PACE_LEAST && !pace->is_stale) {
        const double rest = decodes == 0 ? time : time - pace->decode_ns;
        learn(&pace->token_ns, (rest > 0 ? rest : time) / prompt_tokens);
    }
}

uint32_t step_pace_tokens(const step_pace_t *pace)
{
    if (pace->target == 0 || pace->decode_ns == 0 || pace->token_ns == 0) {
        return UINT32_MAX;
    }
    if (pace->n_mixed >= STEP_PACE_MIXED || pace->is_stale) {
        return 0;
    }
    const double tokens = (pace->target - 1) * pace->decode_ns / pace->token_ns;
    return tokens < STEP_PACE_LEAST      ? STEP_PACE_LEAST
           : tokens < (double)UINT32_MAX ? (uint32_t)tokens
                                         : UINT32_MAX;
}
