/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt lookup: a sequence's own history says what may follow. */
#include "base/alloc.h"
#include "runtime/draft_lookup.h"
#include "runtime/drafter.h"

typedef struct ngram {
    drafter_t drafter;
    const draft_config_t *how;
} ngram_t;

static weft_status_t create(const drafter_config_t *config, weft_diag_t *diag,
                            drafter_t **drafter_out)
{
    ngram_t *ngram = weft_zalloc(sizeof(*ngram), "runtime.drafter");
    if (ngram == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory to guess tokens");
    }
    ngram->drafter.kind = config->how->kind;
    ngram->how = config->how;
    *drafter_out = &ngram->drafter;
    return WEFT_OK;
}

static void destroy(drafter_t *drafter)
{
    weft_free(drafter);
}

static void guess(drafter_t *drafter, const sched_draft_t *rows, uint32_t n)
{
    const draft_config_t *how = ((const ngram_t *)drafter)->how;
    for (uint32_t i = 0; i < n; i++) {
        sched_seq_t *seq = rows[i].seq;
        if (rows[i].most > 0) {
            seq->n_drafts = draft_lookup(seq->tokens, seq->n_tokens, how->min_lookup,
                                         how->max_lookup, rows[i].most, seq->drafts);
        }
    }
}

const drafter_kind_t drafter_ngram = {
    .method = "ngram",
    .create = create,
    .destroy = destroy,
    .guess = guess,
};
