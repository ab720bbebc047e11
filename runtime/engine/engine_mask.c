/* SPDX-License-Identifier: Apache-2.0 */
/* What a sample's next token may be: grammar, allowed ids, min_tokens and bad words together. */
#include <string.h>

#include "runtime/engine/engine_priv.h"

static void forbid(uint32_t *mask, int32_t id)
{
    mask[id / 32] &= ~(UINT32_C(1) << id % 32);
}

static bool is_allowed(const uint32_t *mask, int32_t id)
{
    return (mask[id / 32] >> id % 32 & 1) != 0;
}

static bool is_empty(const uint32_t *mask, size_t words, uint32_t vocab)
{
    const uint32_t tail = vocab % 32 == 0 ? UINT32_MAX : (UINT32_C(1) << vocab % 32) - 1;
    uint32_t any = mask[words - 1] & tail;
    for (size_t i = 0; i < words - 1 && any == 0; i++) {
        any |= mask[i];
    }
    return any == 0;
}

static void start_mask(const engine_sample_t *sample, size_t words)
{
    const uint32_t *allowed = sample->request->allowed;
    const bool has_grammar = sample->constraint.matcher != NULL;
    for (size_t i = 0; i < words; i++) {
        sample->mask[i] = (allowed == NULL ? UINT32_MAX : allowed[i]) &
                          (has_grammar ? sample->constraint.mask[i] : UINT32_MAX);
    }
}

/* A grammar that has nothing but its end left wins over min_tokens. */
static void forbid_end(engine_sample_t *sample, size_t words, uint32_t vocab)
{
    const engine_request_t *r = sample->request;
    for (uint32_t i = 0; i < r->n_stop_ids; i++) {
        if ((uint32_t)r->stop_ids[i] < vocab) {
            forbid(sample->mask, r->stop_ids[i]);
        }
    }
    if (is_empty(sample->mask, words, vocab)) {
        start_mask(sample, words);
    }
}

/* As vLLM does: a sequence's last token is forbidden when the answer ends with those before it. */
static void forbid_bad_words(engine_sample_t *sample)
{
    const engine_request_t *r = sample->request;
    const int32_t *word = r->bad_words;
    const int32_t *end = sample->seq.tokens + sample->seq.n_tokens;
    const uint32_t n_answer = sample->seq.n_tokens - sample->seq.n_prompt;
    for (uint32_t i = 0; i < r->n_bad_words; i++) {
        const uint32_t before = r->bad_word_lengths[i] - 1;
        if (before <= n_answer &&
            (before == 0 || memcmp(end - before, word, before * sizeof(int32_t)) == 0) &&
            is_allowed(sample->mask, word[before])) {
            forbid(sample->mask, word[before]);
        }
        word += before + 1;
    }
}

static sched_mask_t end_of(engine_sample_t *sample)
{
    const constraint_t *constraint = &sample->constraint;
    sample->reason = constraint->diag->text;
    return constraint->status == WEFT_ERR_INVALID ? SCHED_MASK_EMPTY : SCHED_MASK_FAILED;
}

static sched_mask_t judge(engine_sample_t *sample, size_t words, uint32_t vocab)
{
    if (!is_empty(sample->mask, words, vocab)) {
        return SCHED_MASK_READY;
    }
    sample->reason = sample->constraint.matcher != NULL
                         ? "allowed_token_ids or bad_words leave none of the tokens that the "
                           "grammar lets follow"
                         : "allowed_token_ids and bad_words leave no token that may follow";
    return SCHED_MASK_EMPTY;
}

sched_mask_t engine_mask_make(engine_sample_t *sample)
{
    const engine_t *engine = sample->request->engine;
    const uint32_t vocab = engine->model_config.vocab;
    const size_t words = engine->mask_words;
    if (sample->constraint.matcher != NULL) {
        const constraint_state_t state = constraint_state(&sample->constraint);
        if (state != CONSTRAINT_READY) {
            return state == CONSTRAINT_FAILED ? end_of(sample) : SCHED_MASK_LATER;
        }
    }
    start_mask(sample, words);
    if (sample->seq.n_tokens - sample->seq.n_prompt < sample->request->min_tokens) {
        forbid_end(sample, words, vocab);
    }
    forbid_bad_words(sample);
    return judge(sample, words, vocab);
}
