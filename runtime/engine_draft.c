/* SPDX-License-Identifier: Apache-2.0 */
/* Guesses of the tokens that follow, for requests whose tokens do not depend on more than logits. */
#include "runtime/draft_lookup.h"
#include "runtime/engine_priv.h"

bool engine_may_draft(const engine_t *engine, const step_sampling_t *sampling, bool has_mask)
{
    return engine->plan.draft.n_tokens > 0 && !step_has_penalties(sampling) && !has_mask;
}

void engine_draft(void *user, sched_seq_t *const *seqs, uint32_t n)
{
    const draft_config_t *config = &((const engine_t *)user)->plan.draft;
    for (uint32_t i = 0; i < n; i++) {
        sched_seq_t *seq = seqs[i];
        seq->n_drafts = draft_lookup(seq->tokens, seq->n_tokens, config->min_lookup,
                                     config->max_lookup, config->n_tokens, seq->drafts);
    }
}
