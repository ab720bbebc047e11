/* SPDX-License-Identifier: Apache-2.0 */
/* A request made from what was submitted: checked, then copied into one piece of memory. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "runtime/carve.h"
#include "runtime/engine_priv.h"

#define GREEDY_BELOW 1e-5f /* a temperature whose division would overflow */

/* ---- checks ---- */

static weft_status_t check_range(weft_diag_t *diag, const char *field, float value, float low,
                                 float high)
{
    if (value >= low && value <= high) { /* false for NaN */
        return WEFT_OK;
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "%s must be from %g to %g, got %g", field, (double)low,
                     (double)high, (double)value);
}

static weft_status_t check_ids(const engine_t *engine, weft_diag_t *diag, const char *field,
                               const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= engine->model_config.vocab) {
            return weft_diag(diag, WEFT_ERR_INVALID, "%s: token id %d is not in the vocabulary",
                             field, ids[i]);
        }
    }
    return WEFT_OK;
}

static weft_status_t check_floats(const engine_sampling_t *s, weft_diag_t *diag)
{
    const struct {
        const char *field;
        float value;
        float low;
        float high;
    } rows[] = {
        {"temperature", s->temperature, 0.0f, 1e6f},
        {"top_p", s->top_p, 1e-9f, 1.0f},
        {"min_p", s->min_p, 0.0f, 1.0f},
        {"repetition_penalty", s->repetition_penalty, 1e-6f, 1e6f},
        {"frequency_penalty", s->frequency_penalty, -2.0f, 2.0f},
        {"presence_penalty", s->presence_penalty, -2.0f, 2.0f},
    };
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]) && status == WEFT_OK; i++) {
        status = check_range(diag, rows[i].field, rows[i].value, rows[i].low, rows[i].high);
    }
    return status;
}

static weft_status_t check_counts(const engine_submit_t *submit, weft_diag_t *diag)
{
    const engine_sampling_t *s = &submit->sampling;
    const struct {
        const char *field;
        int64_t value;
        int64_t low;
        int64_t high;
    } rows[] = {
        {"n", submit->n, 1, ENGINE_MAX_SAMPLES},
        {"prompt tokens", submit->n_prompt, 1, UINT32_MAX},
        {"top_k", s->top_k, -1, INT32_MAX},
        {"min_tokens", s->min_tokens, 0, s->max_tokens},
        {"logprobs", s->n_top_logprobs, 0, K_MAX_LOGPROBS},
        {"prompt_logprobs", s->n_prompt_top_logprobs, 0, K_MAX_LOGPROBS},
        {"logit_bias entries", s->n_logit_bias, 0, ENGINE_MAX_LOGIT_BIAS},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (rows[i].value < rows[i].low || rows[i].value > rows[i].high) {
            return weft_diag(diag, WEFT_ERR_INVALID, "%s must be from %lld to %lld, got %lld",
                             rows[i].field, (long long)rows[i].low, (long long)rows[i].high,
                             (long long)rows[i].value);
        }
    }
    return WEFT_OK;
}

static size_t bad_word_tokens(const engine_sampling_t *s)
{
    size_t n = 0;
    for (uint32_t i = 0; i < s->n_bad_words; i++) {
        n += s->bad_word_lengths[i];
    }
    return n;
}

static weft_status_t check_tokens(const engine_t *engine, const engine_submit_t *submit,
                                  weft_diag_t *diag)
{
    const engine_sampling_t *s = &submit->sampling;
    weft_status_t status = check_ids(engine, diag, "prompt", submit->prompt, submit->n_prompt);
    for (uint32_t i = 0; i < s->n_logit_bias && status == WEFT_OK; i++) {
        status = check_ids(engine, diag, "logit_bias", &s->logit_bias[i].token, 1);
        if (status == WEFT_OK && !isfinite(s->logit_bias[i].value)) {
            status = weft_diag(diag, WEFT_ERR_INVALID, "logit_bias of token %d is not a number",
                               s->logit_bias[i].token);
        }
    }
    if (status == WEFT_OK) {
        status = check_ids(engine, diag, "allowed_token_ids", s->allowed_token_ids,
                           s->n_allowed_token_ids);
    }
    for (uint32_t i = 0; i < s->n_bad_words && status == WEFT_OK; i++) {
        if (s->bad_word_lengths[i] == 0) {
            status = weft_diag(diag, WEFT_ERR_INVALID, "bad_words: one is empty");
        }
    }
    return status < 0 ? status
                      : check_ids(engine, diag, "bad_words", s->bad_words, bad_word_tokens(s));
}

/* What the model is loaded for. */
static weft_status_t check_kind(const engine_t *engine, const engine_submit_t *submit,
                                weft_diag_t *diag)
{
    const engine_sampling_t *s = &submit->sampling;
    if (submit->wants_embedding != engine->plan.embeds) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         engine->plan.embeds ? "this model gives embeddings alone"
                                             : "this model gives no embeddings");
    }
    if (submit->wants_embedding &&
        (s->max_tokens > 0 || submit->n != 1 || s->wants_prompt_logprobs)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "an embedding has no tokens and no logprobs");
    }
    return WEFT_OK;
}

weft_status_t engine_request_check(const engine_t *engine, const engine_submit_t *submit,
                                   weft_diag_t *diag)
{
    const engine_sampling_t *s = &submit->sampling;
    const uint32_t room = s->max_tokens > 0 ? 1 : 0;
    weft_status_t status = check_counts(submit, diag);
    if (status == WEFT_OK) {
        status = check_floats(s, diag);
    }
    if (status == WEFT_OK) {
        status = check_kind(engine, submit, diag);
    }
    if (status == WEFT_OK && submit->n_prompt > engine->plan.max_context - room) {
        status = weft_diag(diag, WEFT_ERR_TOO_LARGE,
                           "the prompt has %u tokens, the longest sequence is %u, answer included",
                           submit->n_prompt, engine->plan.max_context);
    }
    if (status == WEFT_OK) {
        status = check_tokens(engine, submit, diag);
    }
    if (status == WEFT_OK && s->allowed_token_ids != NULL && s->n_allowed_token_ids == 0) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "allowed_token_ids is empty");
    }
    if (status == WEFT_OK && submit->cache_salt != NULL && submit->cache_salt[0] == '\0') {
        status = weft_diag(diag, WEFT_ERR_INVALID, "cache_salt is empty");
    }
    if (status == WEFT_OK && submit->cache_salt != NULL &&
        strlen(submit->cache_salt) >= KV_EXTRA_MAX_BYTES) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "cache_salt has %zu bytes, %d are possible",
                           strlen(submit->cache_salt), KV_EXTRA_MAX_BYTES - 1);
    }
    if (status == WEFT_OK && submit->grammar != NULL && engine->grammars == NULL) {
        status = weft_diag(diag, WEFT_ERR_UNSUPPORTED, "this engine has no grammars");
    }
    return status;
}

/* ---- memory ---- */

/* Everything of a request; arrays of samples lie one after another. */
typedef struct parts {
    engine_request_t *request;
    engine_sample_t *samples;
    weft_diag_t *diag;
    char *id;
    char *internal_id;
    kv_block_id_t *pulled; /* [pulled_blocks] */
    int32_t *stop_ids;
    k_bias_t *bias;
    uint32_t *allowed;
    int32_t *bad_words;
    uint32_t *bad_word_lengths;
    float *embedding;
    k_sampled_t *prompt_logprobs;
    int32_t *drafts;       /* [n][max_drafts] */
    int32_t *tokens;       /* [n][n_tokens] */
    kv_hash_t *hashes;     /* [n][n_hashes] */
    k_sampled_t *logprobs; /* [n][max_tokens] */
    uint32_t *masks;       /* [n][words] */
    uint32_t *grammar_masks;
} parts_t;

typedef struct sizes {
    uint32_t hidden;
    uint32_t n_prompt;
    uint32_t max_tokens; /* that fit the context */
    uint32_t n_tokens;
    uint32_t n_hashes;
    uint32_t pulled_blocks;
    uint32_t words;
    uint32_t max_drafts; /* 0: none are made */
    bool ignores_end;
    bool has_mask;
} sizes_t;

static step_sampling_t sampling_of(const engine_sampling_t *s, uint64_t seed)
{
    return (step_sampling_t){
        .temperature = s->temperature < GREEDY_BELOW ? 0 : s->temperature,
        .top_p = s->top_p,
        .min_p = s->min_p,
        .top_k = s->top_k > 0 ? s->top_k : 0,
        .repetition_penalty = s->repetition_penalty,
        .frequency_penalty = s->frequency_penalty,
        .presence_penalty = s->presence_penalty,
        .n_top = s->wants_logprobs ? s->n_top_logprobs : 0,
        .n_prompt_top = s->n_prompt_top_logprobs,
        .wants_logprob = s->wants_logprobs,
        .seed = seed,
    };
}

static sizes_t sizes_of(const engine_t *engine, const engine_submit_t *submit)
{
    const engine_sampling_t *s = &submit->sampling;
    const uint32_t room = engine->plan.max_context - submit->n_prompt;
    sizes_t sizes = {
        .hidden = engine->model_config.hidden,
        .n_prompt = submit->n_prompt,
        .max_tokens = s->max_tokens < room ? s->max_tokens : room,
        .words = engine->mask_words,
        /* A grammar's end is said by an end token. */
        .ignores_end = s->ignore_eos && submit->grammar == NULL,
        .has_mask = submit->grammar != NULL || s->allowed_token_ids != NULL || s->n_bad_words > 0 ||
                    s->min_tokens > 0,
    };
    const step_sampling_t sampling = sampling_of(s, 0);
    sizes.n_tokens = sizes.n_prompt + sizes.max_tokens;
    sizes.max_drafts = engine_may_draft(engine, submit, &sampling, sizes.has_mask)
                           ? engine->plan.max_drafts
                           : 0;
    if (submit->transfer != NULL && submit->transfer->do_remote_prefill) {
        sizes.pulled_blocks = sizes.n_prompt / engine->plan.layout.block_tokens + 1;
    }
    sizes.n_hashes = engine->is_caching ? sizes.n_tokens / engine->plan.layout.block_tokens : 0;
    return sizes;
}

static void *take_if(bool is_wanted, carve_t *carve, size_t count, size_t size)
{
    return is_wanted ? carve_take(carve, count, size) : NULL;
}

static size_t internal_id_bytes(const engine_submit_t *submit)
{
    return (submit->id == NULL ? 0 : strlen(submit->id)) + sizeof("-0-00000000");
}

static parts_t lay_out(carve_t *carve, const sizes_t *z, const engine_submit_t *submit)
{
    const engine_sampling_t *s = &submit->sampling;
    const size_t n = submit->n;
    const bool has_grammar = submit->grammar != NULL;
    return (parts_t){
        .request = carve_take(carve, 1, sizeof(engine_request_t)),
        .samples = carve_take(carve, n, sizeof(engine_sample_t)),
        .diag = take_if(has_grammar, carve, n, sizeof(weft_diag_t)),
        .id =
            take_if(submit->id != NULL, carve, submit->id == NULL ? 0 : strlen(submit->id) + 1, 1),
        .internal_id = take_if(submit->transfer != NULL, carve, internal_id_bytes(submit), 1),
        .pulled = take_if(z->pulled_blocks > 0, carve, z->pulled_blocks, sizeof(kv_block_id_t)),
        .stop_ids = carve_take(carve, MODEL_MAX_EOS + (size_t)s->n_stop_token_ids, sizeof(int32_t)),
        .bias = carve_take(carve, s->n_logit_bias, sizeof(k_bias_t)),
        .allowed = take_if(s->allowed_token_ids != NULL, carve, z->words, sizeof(uint32_t)),
        .bad_words = carve_take(carve, bad_word_tokens(s), sizeof(int32_t)),
        .bad_word_lengths = carve_take(carve, s->n_bad_words, sizeof(uint32_t)),
        .embedding = take_if(submit->wants_embedding, carve, z->hidden, sizeof(float)),
        .prompt_logprobs =
            take_if(s->wants_prompt_logprobs, carve, z->n_prompt, sizeof(k_sampled_t)),
        .drafts = take_if(z->max_drafts > 0, carve, n * z->max_drafts, sizeof(int32_t)),
        .tokens = carve_take(carve, n * z->n_tokens, sizeof(int32_t)),
        .hashes = take_if(z->n_hashes > 0, carve, n * z->n_hashes, sizeof(kv_hash_t)),
        .logprobs = take_if(s->wants_logprobs, carve, n * z->max_tokens, sizeof(k_sampled_t)),
        .masks = take_if(z->has_mask, carve, n * z->words, sizeof(uint32_t)),
        .grammar_masks = take_if(has_grammar, carve, n * z->words, sizeof(uint32_t)),
    };
}

/* ---- filling ---- */

static uint64_t draw_seed(engine_t *engine)
{
    /* splitmix64 of a counter: as many different seeds as there are requests. */
    uint64_t z = engine->seed +
                 UINT64_C(0x9e3779b97f4a7c15) * (atomic_fetch_add(&engine->n_drawn_seeds, 1) + 1);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void copy(void *to, const void *from, size_t count, size_t size)
{
    if (count > 0) {
        memcpy(to, from, count * size);
    }
}

static void fill_stop_ids(const engine_t *engine, const engine_submit_t *submit,
                          const sizes_t *sizes, const parts_t *parts)
{
    engine_request_t *r = parts->request;
    const engine_sampling_t *s = &submit->sampling;
    r->n_end_ids = sizes->ignores_end ? 0 : engine->model_config.n_eos;
    r->n_stop_ids = r->n_end_ids + s->n_stop_token_ids;
    r->stop_ids = parts->stop_ids;
    copy(parts->stop_ids, engine->model_config.eos, r->n_end_ids, sizeof(int32_t));
    copy(parts->stop_ids + r->n_end_ids, s->stop_token_ids, s->n_stop_token_ids, sizeof(int32_t));
}

static void fill_masks(const engine_submit_t *submit, const sizes_t *sizes, const parts_t *parts)
{
    engine_request_t *r = parts->request;
    const engine_sampling_t *s = &submit->sampling;
    copy(parts->bad_words, s->bad_words, bad_word_tokens(s), sizeof(int32_t));
    copy(parts->bad_word_lengths, s->bad_word_lengths, s->n_bad_words, sizeof(uint32_t));
    r->bad_words = parts->bad_words;
    r->bad_word_lengths = parts->bad_word_lengths;
    r->n_bad_words = s->n_bad_words;
    r->min_tokens = s->min_tokens < sizes->max_tokens ? s->min_tokens : sizes->max_tokens;
    r->allowed = parts->allowed;
    if (parts->allowed != NULL) {
        memset(parts->allowed, 0, sizes->words * sizeof(uint32_t));
    }
    for (uint32_t i = 0; i < s->n_allowed_token_ids; i++) {
        const uint32_t id = (uint32_t)s->allowed_token_ids[i];
        parts->allowed[id / 32] |= UINT32_C(1) << id % 32;
    }
}

/* Whoever knows a request's own id cannot guess it, nor do two requests with one id share it. */
static uint32_t draw_suffix(engine_t *engine)
{
    uint32_t suffix;
    /* It does not fail for 4 bytes once the kernel is up; early on a number will do. */
    return getrandom(&suffix, sizeof(suffix), GRND_NONBLOCK) == (ssize_t)sizeof(suffix)
               ? suffix
               : atomic_fetch_add(&engine->n_internal_ids, 1);
}

/* As vLLM makes it; peers write ids one behind another, with commas between. */
static void write_internal_id(engine_t *engine, const engine_submit_t *submit, char *out)
{
    const size_t size = internal_id_bytes(submit);
    snprintf(out, size, "%s-0-%08x", submit->id == NULL ? "" : submit->id, draw_suffix(engine));
    for (char *c = strchr(out, ','); c != NULL; c = strchr(c, ',')) {
        *c = '_';
    }
}

static weft_status_t fill_transfer(engine_t *engine, const engine_submit_t *submit,
                                   const parts_t *parts)
{
    engine_request_t *r = parts->request;
    if (submit->transfer == NULL) {
        return WEFT_OK;
    }
    r->has_transfer = true;
    r->internal_id = parts->internal_id;
    write_internal_id(engine, submit, r->internal_id);
    parts->samples[0].seq.pulled = parts->pulled;
    return kv_transfer_params_copy(submit->transfer, &r->transfer);
}

static void fill_request(engine_t *engine, const engine_submit_t *submit, const sizes_t *sizes,
                         const parts_t *parts)
{
    engine_request_t *r = parts->request;
    r->engine = engine;
    r->user = submit->user;
    r->adapter = engine_adapter_acquire(submit->adapter);
    r->id = submit->id == NULL ? "" : strcpy(parts->id, submit->id);
    atomic_init(&r->refs, 2); /* the owner's and the engine's */
    r->n_prompt = submit->n_prompt;
    r->arrival_ns = submit->arrival_ns == 0 ? weft_clock_ns() : submit->arrival_ns;
    r->n_samples = r->n_unfinished = r->n_unretired = submit->n;
    r->samples = parts->samples;
    r->bias = parts->bias;
    copy(parts->bias, submit->sampling.logit_bias, submit->sampling.n_logit_bias, sizeof(k_bias_t));
    r->diag = parts->diag;
    r->embedding = parts->embedding;
    r->prompt_logprobs = parts->prompt_logprobs;
    if (parts->prompt_logprobs != NULL) {
        memset(parts->prompt_logprobs, 0, sizeof(k_sampled_t));
        atomic_init(&r->has_prompt_logprobs, submit->n_prompt == 1);
    }
    fill_stop_ids(engine, submit, sizes, parts);
    fill_masks(submit, sizes, parts);
}

static void fill_constraint(const engine_submit_t *submit, const sizes_t *sizes,
                            const parts_t *parts, uint32_t i)
{
    engine_sample_t *sample = &parts->samples[i];
    if (submit->grammar == NULL) {
        return;
    }
    sample->constraint = (constraint_t){
        .mask = parts->grammar_masks + (size_t)i * sizes->words,
        .words = sizes->words,
        .diag = &parts->diag[i],
        .user = sample,
    };
    parts->diag[i] = (weft_diag_t){0};
}

static void fill_sample(const engine_submit_t *submit, const sizes_t *sizes, const parts_t *parts,
                        uint32_t i, uint64_t seed)
{
    engine_request_t *r = parts->request;
    engine_sample_t *sample = &parts->samples[i];
    int32_t *tokens = parts->tokens + (size_t)i * sizes->n_tokens;
    memcpy(tokens, submit->prompt, sizes->n_prompt * sizeof(int32_t));
    sample->request = r;
    sample->stop_token = -1;
    if (parts->logprobs != NULL) {
        sample->logprobs = parts->logprobs + (size_t)i * sizes->max_tokens;
    }
    if (parts->masks != NULL) {
        sample->mask = parts->masks + (size_t)i * sizes->words;
    }
    fill_constraint(submit, sizes, parts, i);
    sample->seq = (sched_seq_t){
        .tokens = tokens,
        .hashes = parts->hashes == NULL ? NULL : parts->hashes + (size_t)i * sizes->n_hashes,
        .extra = r->extra,
        .n_prompt = sizes->n_prompt,
        .max_tokens = sizes->max_tokens,
        .priority = submit->priority,
        .pins_prompt = submit->pin_prompt,
        .arrival_ns = r->arrival_ns,
        .sampling = sampling_of(&submit->sampling, seed + i),
        .bias = r->bias,
        .n_bias = submit->sampling.n_logit_bias,
        .stop_ids = r->stop_ids,
        .n_stop_ids = r->n_stop_ids,
        .wants_prompt_logprobs = submit->sampling.wants_prompt_logprobs && i == 0,
        .wants_embedding = submit->wants_embedding,
        .adapter = engine_adapter_number(r->adapter),
        .has_mask = sizes->has_mask,
        .drafts = parts->drafts == NULL ? NULL : parts->drafts + (size_t)i * sizes->max_drafts,
        .sibling = &parts->samples[(i + 1) % submit->n].seq,
        .user = sample,
    };
}

static void fill_samples(engine_t *engine, const engine_submit_t *submit, const sizes_t *sizes,
                         const parts_t *parts)
{
    const uint64_t seed =
        submit->sampling.seed == ENGINE_NO_SEED ? draw_seed(engine) : submit->sampling.seed;
    for (uint32_t i = 0; i < submit->n; i++) {
        fill_sample(submit, sizes, parts, i, seed);
    }
}

/* On the submitting thread: a long prompt's hashes cost more than the engine should wait for. */
static weft_status_t hash_prompt(const engine_t *engine, engine_request_t *r)
{
    const uint32_t size = engine->plan.layout.block_tokens;
    sched_seq_t *first = &r->samples[0].seq;
    kv_hasher_t *hasher = NULL;
    if (first->hashes == NULL) {
        return WEFT_OK;
    }
    const weft_status_t status = kv_hasher_clone(engine->hasher, &hasher);
    if (status < 0) {
        return status;
    }
    for (; first->n_hashes < r->n_prompt / size; first->n_hashes++) {
        const uint32_t i = first->n_hashes;
        kv_hasher_block(hasher, i == 0 ? NULL : &first->hashes[i - 1],
                        first->tokens + (size_t)i * size, size, first->extra, &first->hashes[i]);
    }
    kv_hasher_destroy(hasher);
    for (uint32_t i = 1; i < r->n_samples; i++) {
        copy(r->samples[i].seq.hashes, first->hashes, first->n_hashes, sizeof(kv_hash_t));
        r->samples[i].seq.n_hashes = first->n_hashes;
    }
    return WEFT_OK;
}

static weft_status_t create_matchers(const engine_submit_t *submit, engine_request_t *r)
{
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; submit->grammar != NULL && status == WEFT_OK && i < r->n_samples; i++) {
        status = text_matcher_create(submit->grammar, &r->samples[i].constraint.matcher);
    }
    return status;
}

weft_status_t engine_request_create(engine_t *engine, const engine_submit_t *submit,
                                    engine_request_t **request_out)
{
    const sizes_t sizes = sizes_of(engine, submit);
    carve_t carve = {0};
    (void)lay_out(&carve, &sizes, submit);
    if (carve.used == SIZE_MAX) {
        return WEFT_ERR_NO_MEMORY;
    }
    carve = (carve_t){.base = weft_alloc_aligned(CARVE_ALIGNMENT, carve.used, "engine.request")};
    if (carve.base == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const parts_t parts = lay_out(&carve, &sizes, submit);
    memset(parts.request, 0, sizeof(*parts.request));
    memset(parts.samples, 0, submit->n * sizeof(*parts.samples));
    fill_request(engine, submit, &sizes, &parts);
    const char *adapter = submit->adapter == NULL ? NULL : engine_adapter_name(submit->adapter);
    const char *path = submit->adapter == NULL ? NULL : engine_adapter_path(submit->adapter);
    weft_status_t status =
        kv_extra_create(submit->cache_salt, adapter, path, &parts.request->extra);
    fill_samples(engine, submit, &sizes, &parts);
    if (status == WEFT_OK) {
        status = fill_transfer(engine, submit, &parts);
    }
    if (status == WEFT_OK) {
        status = hash_prompt(engine, parts.request);
    }
    if (status == WEFT_OK) {
        status = create_matchers(submit, parts.request);
    }
    if (status < 0) {
        engine_request_free(parts.request);
        return status;
    }
    engine_adapter_waits(submit->adapter, submit->n);
    *request_out = parts.request;
    return WEFT_OK;
}
