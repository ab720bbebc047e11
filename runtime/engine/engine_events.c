/* SPDX-License-Identifier: Apache-2.0 */
/* What the scheduler reports, written where the request's consumer reads it. */
#include <string.h>

#include "base/clock.h"
#include "runtime/engine/engine_priv.h"

#define WEFT_LOG_MODULE "engine"
#include "base/log.h"

static void set_once(atomic_uint_fast64_t *time_ns)
{
    if (atomic_load_explicit(time_ns, memory_order_relaxed) == 0) {
        atomic_store(time_ns, weft_clock_ns());
    }
}

static void note_cached(engine_request_t *r, const sched_seq_t *seq)
{
    const uint32_t size = r->engine->plan.layout.block_tokens;
    uint32_t on_device = seq->cached_tokens - seq->pulled_tokens;
    for (kv_tier_id_t id = KV_TIER_device + 1; id < KV_TIER_COUNT; id++) {
        const uint32_t tokens = seq->cached_blocks_from[id] * size;
        const uint32_t from = tokens < on_device ? tokens : on_device;
        on_device -= from;
        atomic_store(&r->cached_tokens_from[id], from);
    }
    atomic_store(&r->cached_tokens_from[KV_TIER_device], on_device);
    atomic_store(&r->pulled_tokens, seq->pulled_tokens);
    atomic_store(&r->cached_tokens, seq->cached_tokens);
}

static void on_scheduled(void *user, sched_seq_t *seq)
{
    engine_request_t *r = ((engine_sample_t *)seq->user)->request;
    engine_transfer_open(user, seq);
    engine_adapter_runs(r->adapter);
    if (atomic_load_explicit(&r->scheduled_ns, memory_order_relaxed) == 0) {
        note_cached(r, seq);
        set_once(&r->scheduled_ns);
    }
}

static bool is_end(const engine_request_t *r, int32_t token, uint32_t n_ids)
{
    for (uint32_t i = 0; i < n_ids; i++) {
        if (r->stop_ids[i] == token) {
            return true;
        }
    }
    return false;
}

/* The next mask, unless the token was the last one. */
static void advance_constraint(engine_t *engine, engine_sample_t *sample, int32_t token)
{
    const sched_seq_t *seq = &sample->seq;
    engine_request_t *r = sample->request;
    const bool is_last =
        is_end(r, token, r->n_stop_ids) || seq->n_tokens - seq->n_prompt == seq->max_tokens;
    if (sample->constraint.matcher != NULL && !is_last) {
        atomic_fetch_add(&r->refs, 1);
        constraint_advance(engine->worker, &sample->constraint, token);
    }
}

static void on_token(void *user, sched_seq_t *seq, const k_sampled_t *sampled)
{
    engine_sample_t *sample = seq->user;
    engine_request_t *r = sample->request;
    const uint32_t n = seq->n_tokens - seq->n_prompt;
    if (sample->logprobs != NULL) {
        sample->logprobs[n - 1] = *sampled;
    }
    set_once(&r->first_token_ns);
    atomic_store_explicit(&sample->n_tokens, n, memory_order_release);
    advance_constraint(user, sample, sampled->chosen.token);
    if (n >= r->min_tokens && sample->constraint.matcher == NULL && r->allowed == NULL &&
        r->n_bad_words == 0) {
        seq->has_mask = false; /* it was min_tokens alone */
    }
    engine_client_note(r);
}

static void on_prompt(void *user, sched_seq_t *seq, uint32_t first, const k_sampled_t *entries,
                      uint32_t n)
{
    (void)user;
    engine_request_t *r = ((engine_sample_t *)seq->user)->request;
    if (atomic_load_explicit(&r->has_prompt_logprobs, memory_order_relaxed)) {
        return; /* complete; a step that was in flight says the same again */
    }
    memcpy(r->prompt_logprobs + first, entries, n * sizeof(*entries));
    if (first + n == r->n_prompt) {
        atomic_store_explicit(&r->has_prompt_logprobs, true, memory_order_release);
        engine_client_note(r);
    }
}

static void on_embedding(void *user, sched_seq_t *seq, const void *hidden)
{
    const engine_t *engine = user;
    engine_request_t *r = ((engine_sample_t *)seq->user)->request;
    k_dequantize(engine->stream->ops->act, hidden, r->embedding, engine->model_config.hidden);
}

static void log_finish(const engine_sample_t *sample, engine_finish_t reason)
{
    static const char *const names[] = {"none",       "stop",  "length", "abort",
                                        "constraint", "error", "lost"};
    const engine_request_t *r = sample->request;
    if (reason == ENGINE_FINISH_ERROR || reason == ENGINE_FINISH_LOST) {
        weft_log_warn("id=%s finish=%s reason=\"%s\"", r->id, names[reason],
                      sample->reason != NULL ? sample->reason : "the device failed");
        return;
    }
    weft_log_debug("id=%s finish=%s prompt_tokens=%u answer_tokens=%u cached_tokens=%u", r->id,
                   names[reason], r->n_prompt, sample->seq.n_tokens - r->n_prompt,
                   sample->seq.cached_tokens);
}

void engine_sample_finish(engine_sample_t *sample, engine_finish_t reason)
{
    engine_request_t *r = sample->request;
    engine_adapter_ends(r->adapter, sample->seq.was_scheduled);
    atomic_fetch_add(&r->preemptions, sample->seq.preemptions);
    r->n_unfinished--;
    if (r->n_unfinished == 0) {
        set_once(&r->finished_ns);
        atomic_fetch_sub(&r->engine->n_requests, 1);
    }
    log_finish(sample, reason);
    sample->end = (int)reason;
    engine_client_note(r);
}

static void on_finish(void *user, sched_seq_t *seq)
{
    engine_sample_t *sample = seq->user;
    if (seq->finish == ENGINE_FINISH_LOST) {
        sample->reason = ((const engine_t *)user)->loss.text;
    }
    if (seq->finish == ENGINE_FINISH_STOP) {
        const int32_t last = seq->tokens[seq->n_tokens - 1];
        const engine_request_t *r = sample->request;
        sample->stop_token = is_end(r, last, r->n_end_ids) ? -1 : last;
    }
    engine_sample_finish(sample, seq->finish);
}

void engine_sample_retire(engine_sample_t *sample)
{
    engine_request_t *r = sample->request;
    r->n_unretired--;
    if (r->n_unretired == 0) {
        engine_request_unref(r);
    }
}

static void on_retired(void *user, sched_seq_t *seq)
{
    (void)user;
    engine_sample_retire(seq->user);
}

static sched_mask_t mask_state(void *user, sched_seq_t *seq)
{
    (void)user;
    return engine_mask_make(seq->user);
}

static void write_mask(void *user, sched_seq_t *seq)
{
    const engine_t *engine = user;
    const engine_sample_t *sample = seq->user;
    memcpy(executor_mask(engine->executor, seq->slot), sample->mask,
           engine->mask_words * sizeof(uint32_t));
}

static void on_pull_failed(void *user, sched_seq_t *seq, weft_status_t status, const char *reason)
{
    (void)user;
    engine_transfer_failed(seq, status, reason);
}

static void on_hold(void *user, sched_seq_t *seq, const kv_block_id_t *blocks, uint32_t n,
                    uint32_t n_tokens)
{
    engine_transfer_hold(user, seq, blocks, n, n_tokens);
}

static void settle(void *user)
{
    (void)k_stream_sync(
        ((engine_t *)user)->stream); /* a failure shows when results are collected */
}

sched_events_t engine_events(engine_t *engine)
{
    return (sched_events_t){
        .user = engine,
        .on_scheduled = on_scheduled,
        .on_token = on_token,
        .on_prompt = on_prompt,
        .on_embedding = on_embedding,
        .on_finish = on_finish,
        .on_retired = on_retired,
        .mask_state = mask_state,
        .write_mask = write_mask,
        .draft = engine_draft,
        .on_pull_failed = on_pull_failed,
        .on_hold = on_hold,
        .settle = engine->device->ops->is_host ? NULL : settle,
    };
}

void engine_on_mask_made(void *user, constraint_t *constraint)
{
    engine_t *engine = user;
    mailbox_wake(&engine->mailbox);
    engine_request_unref(((engine_sample_t *)constraint->user)->request);
}
