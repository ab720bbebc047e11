/* SPDX-License-Identifier: Apache-2.0 */
/* A request seen by those who gave it to the engine. */
#include "base/alloc.h"
#include "runtime/engine/engine_priv.h"

weft_status_t engine_submit(engine_t *engine, engine_client_t *client,
                            const engine_submit_t *submit, weft_diag_t *diag,
                            engine_request_t **request_out)
{
    const engine_health_t health = engine_health(engine);
    if (health == ENGINE_FAILED) {
        return weft_diag(diag, WEFT_ERR_DEVICE, "the engine has failed");
    }
    if (health != ENGINE_UP) {
        return weft_diag(diag, WEFT_ERR_PEER_GONE, "%s",
                         health == ENGINE_FORMING
                             ? "a rank of this model was lost, its group forms again"
                             : "a rank of this model was lost");
    }
    if (atomic_load(&engine->is_draining)) {
        return weft_diag(diag, WEFT_ERR_STOPPING, "shutting down, takes no new requests");
    }
    weft_status_t status = engine_request_check(engine, submit, diag);
    if (status < 0) {
        return status;
    }
    if (atomic_fetch_add(&engine->n_requests, 1) >= engine->max_requests) {
        atomic_fetch_sub(&engine->n_requests, 1);
        return weft_diag(diag, WEFT_ERR_QUEUE_FULL, "%u requests run or wait already",
                         engine->max_requests);
    }
    engine_request_t *request = NULL;
    status = engine_request_create(engine, submit, &request);
    if (status < 0) {
        atomic_fetch_sub(&engine->n_requests, 1);
        return weft_diag(diag, status, "no memory for the request");
    }
    request->client = client;
    atomic_fetch_add(&client->refs, 1);
    *request_out = request; /* before the post: news may arrive at once */
    engine_post(engine, &request->submit_command, ENGINE_COMMAND_SUBMIT);
    return WEFT_OK;
}

static bool is_finished(const engine_sample_t *sample)
{
    return atomic_load_explicit(&sample->finish, memory_order_acquire) != ENGINE_FINISH_NONE;
}

bool engine_request_is_finished(const engine_request_t *request)
{
    for (uint32_t i = 0; i < request->n_samples; i++) {
        if (!is_finished(&request->samples[i])) {
            return false;
        }
    }
    return true;
}

void engine_abort(engine_request_t *request)
{
    if (engine_request_is_finished(request) || atomic_exchange(&request->is_abort_posted, true)) {
        return;
    }
    atomic_fetch_add(&request->refs, 1);
    engine_post(request->engine, &request->abort_command, ENGINE_COMMAND_ABORT);
}

void engine_abort_sample(engine_request_t *request, uint32_t sample)
{
    engine_sample_t *s = &request->samples[sample];
    if (is_finished(s) || atomic_exchange(&s->is_abort_posted, true)) {
        return;
    }
    atomic_fetch_add(&request->refs, 1);
    engine_post(request->engine, &s->abort_command, ENGINE_COMMAND_ABORT_SAMPLE);
}

void engine_give_up_pull(engine_request_t *request)
{
    if (engine_request_is_finished(request) || atomic_exchange(&request->is_give_up_posted, true)) {
        return;
    }
    atomic_fetch_add(&request->refs, 1);
    engine_post(request->engine, &request->give_up_command, ENGINE_COMMAND_GIVE_UP_PULL);
}

void engine_request_release(engine_request_t *request)
{
    atomic_store(&request->is_released, true);
    engine_abort(request);
    engine_request_unref(request);
}

void engine_request_free(engine_request_t *request)
{
    for (uint32_t i = 0; i < request->n_samples; i++) {
        constraint_fini(&request->samples[i].constraint);
    }
    kv_transfer_params_fini(&request->transfer);
    kv_transfer_params_fini(&request->held);
    kv_extra_release(request->extra);
    engine_release_adapter(request->adapter);
    weft_free(request); /* everything else it points to lies behind it */
}

void engine_request_unref(engine_request_t *request)
{
    if (atomic_fetch_sub(&request->refs, 1) == 1) {
        engine_client_t *client = request->client;
        engine_request_free(request);
        engine_client_unref(client);
    }
}

void *engine_request_user(const engine_request_t *request)
{
    return request->user;
}

uint32_t engine_request_samples(const engine_request_t *request)
{
    return request->n_samples;
}

engine_answer_t engine_request_answer(const engine_request_t *request, uint32_t sample)
{
    const engine_sample_t *s = &request->samples[sample];
    /* The end first: when it is there, the count read after it is the last one. */
    const int finish = atomic_load_explicit(&s->finish, memory_order_acquire);
    return (engine_answer_t){
        .tokens = s->seq.tokens + request->n_prompt,
        .logprobs = s->logprobs,
        .n_tokens = atomic_load_explicit(&s->n_tokens, memory_order_acquire),
        .finish = (engine_finish_t)finish,
        .stop_token = finish == ENGINE_FINISH_NONE ? -1 : s->stop_token,
        .reason = finish == ENGINE_FINISH_CONSTRAINT || finish == ENGINE_FINISH_ERROR ||
                          finish == ENGINE_FINISH_LOST
                      ? s->reason
                      : NULL,
    };
}

engine_timings_t engine_request_timings(const engine_request_t *request)
{
    engine_timings_t timings = {
        .arrival_ns = request->arrival_ns,
        .scheduled_ns = atomic_load(&request->scheduled_ns),
        .first_token_ns = atomic_load(&request->first_token_ns),
        .finished_ns = atomic_load(&request->finished_ns),
        .cached_tokens = atomic_load(&request->cached_tokens),
        .pulled_tokens = atomic_load(&request->pulled_tokens),
        .preemptions = atomic_load(&request->preemptions),
    };
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        timings.cached_tokens_from[id] = atomic_load(&request->cached_tokens_from[id]);
    }
    return timings;
}

const float *engine_request_embedding(const engine_request_t *request)
{
    const engine_sample_t *sample = &request->samples[0];
    return atomic_load_explicit(&sample->finish, memory_order_acquire) == ENGINE_FINISH_LENGTH
               ? request->embedding
               : NULL;
}

const k_sampled_t *engine_request_prompt_logprobs(const engine_request_t *request)
{
    return atomic_load_explicit(&request->has_prompt_logprobs, memory_order_acquire)
               ? request->prompt_logprobs
               : NULL;
}
