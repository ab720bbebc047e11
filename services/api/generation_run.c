/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "api"
#include "services/api/generation_run.h"

#include "base/log.h"
#include "services/api/api_server_priv.h"
#include "services/api/api_transfer.h"

/* ---- events ---------------------------------------------------------------------------------- */

static weft_json_t begin_event(api_call_t *call)
{
    weft_json_t json;

    weft_buffer_clear(&call->server->scratch);
    weft_buffer_puts(&call->server->scratch, "data: ");
    weft_json_init(&json, &call->server->scratch);
    return json;
}

static void end_event(api_call_t *call)
{
    weft_buffer_t *event = &call->server->scratch;

    weft_buffer_puts(event, "\n\n");
    if (event->is_failed ||
        weft_http_stream_write(call->exchange, event->data, event->length) < 0) {
        weft_log_warn("%s an event was lost: out of memory", call->request_id);
    }
}

static void send_done(api_call_t *call)
{
    static const char done[] = "data: [DONE]\n\n";

    weft_http_stream_write(call->exchange, done, sizeof(done) - 1);
}

static void send_chunk(generation_choice_t *choice)
{
    const generation_t *generation = choice->generation;
    api_call_t *call = generation->call;

    if (!choice->is_begun && generation->format->write_first != NULL) {
        weft_json_t first = begin_event(call);
        generation->format->write_first(choice, &first);
        end_event(call);
    }
    if (generation_has_news(choice)) {
        weft_json_t json = begin_event(call);
        generation->format->write_chunk(choice, &json);
        end_event(call);
        generation_mark_sent(choice);
    }
}

/* ---- ending ---------------------------------------------------------------------------------- */

static void close_prompt(api_call_t *call, generation_prompt_t *prompt, const char *reason)
{
    if (prompt->request != NULL) {
        api_metrics_prompt_finished(call->server->metrics, prompt, reason);
        prompt->timings = engine_request_timings(prompt->request);
        engine_request_release(prompt->request);
        prompt->request = NULL;
    }
}

void generation_run_release(api_call_t *call)
{
    generation_t *generation = call->generation;

    for (uint32_t i = 0; generation != NULL && i < generation->n_prompts; i++) {
        close_prompt(call, &generation->prompts[i], NULL);
    }
}

void generation_run_fail(api_call_t *call, const api_error_t *error)
{
    generation_t *generation = call->generation;

    for (uint32_t i = 0; i < generation->n_prompts; i++) {
        close_prompt(call, &generation->prompts[i],
                     error->kind == API_ERROR_UNAVAILABLE ? "abort" : "error");
    }
    call->error = *error;
    if (!call->is_streaming) {
        api_call_fail(call);
        return;
    }
    weft_json_t json = begin_event(call);
    api_error_write(error, &json);
    end_event(call);
    send_done(call);
    api_call_end_stream(call);
}

void generation_run_abort(api_call_t *call)
{
    generation_t *generation = call->generation;

    for (uint32_t i = 0; i < generation->n_prompts; i++) {
        if (generation->prompts[i].request != NULL) {
            engine_abort(generation->prompts[i].request);
        }
    }
}

static void finish_stream(api_call_t *call)
{
    const generation_t *generation = call->generation;

    if (generation->includes_usage) {
        weft_json_t json = begin_event(call);
        generation->format->write_usage(generation, &json);
        end_event(call);
    }
    send_done(call);
    api_call_end_stream(call);
}

static void finish_whole(api_call_t *call)
{
    weft_json_t json;

    weft_json_init(&json, &call->answer);
    call->generation->format->write_answer(call->generation, &json);
    if (call->answer.is_failed) {
        api_error_no_memory(&call->error);
        api_call_fail(call);
        return;
    }
    api_call_send(call, 200, "application/json", call->answer.data, call->answer.length);
}

/* ---- running --------------------------------------------------------------------------------- */

static weft_status_t submit_prompt(api_call_t *call, generation_prompt_t *prompt)
{
    const generation_t *generation = call->generation;
    weft_diag_t diag = {0};
    engine_submit_t submit = {
        .id = generation->id,
        .prompt = prompt->ids,
        .n_prompt = prompt->n_ids,
        .n = generation->n,
        .priority = generation->priority,
        .cache_salt = generation->cache_salt,
        .adapter = generation->adapter,
        .pin_prompt = generation->pins_prompt,
        .arrival_ns = call->arrival_ns,
        .sampling = generation->sampling,
        .wants_embedding = generation->embeds,
        .grammar = generation->grammar,
        .transfer = api_transfer_of_prompt(call, (uint32_t)(prompt - generation->prompts)),
        .user = prompt,
    };

    submit.sampling.max_tokens = prompt->max_tokens;
    weft_status_t status =
        engine_submit(call->server->engine, call->server->client, &submit, &diag, &prompt->request);
    if (status == WEFT_ERR_QUEUE_FULL) {
        api_metrics_rejected(call->server->metrics);
    }
    if (status < 0) {
        return api_error_from(&call->error, status, &diag, NULL);
    }
    call->owes_release = call->owes_release && submit.transfer == NULL; /* the engine's now */
    return WEFT_OK;
}

void generation_run_start(api_call_t *call)
{
    if (!api_transfer_prefill(call)) {
        generation_run_submit(call);
    }
}

void generation_run_submit(api_call_t *call)
{
    generation_t *generation = call->generation;

    for (uint32_t i = 0; i < generation->n_prompts; i++) {
        if (submit_prompt(call, &generation->prompts[i]) != WEFT_OK) {
            api_error_t error = call->error;
            generation_run_fail(call, &error);
            return;
        }
    }
    weft_log_debug("%s submitted prompts=%u n=%u", generation->id, generation->n_prompts,
                   generation->n);
    if (generation->is_stream) {
        api_call_begin_stream(call);
    }
}

/* The choices of one prompt lie together. */
static generation_choice_t *choices_of(const generation_prompt_t *prompt)
{
    generation_t *generation = prompt->generation;

    return &generation->choices[(size_t)(prompt - generation->prompts) * generation->n];
}

static weft_status_t take_choice(api_call_t *call, generation_choice_t *choice)
{
    api_error_t error = {0};
    uint32_t n_new = generation_take(choice, &error);

    if (n_new > 0 || choice->finish_reason != NULL) {
        api_metrics_prompt_done(call->server->metrics, choice->prompt);
    }
    if (n_new > 0) {
        api_metrics_tokens(call->server->metrics, choice);
    }
    if (error.kind != API_ERROR_NONE) {
        generation_run_fail(call, &error);
        return WEFT_ERR_CANCELLED;
    }
    if (choice->stop_string >= 0) { /* the engine knows nothing of it */
        engine_abort_sample(choice->prompt->request, choice->sample);
    }
    if (call->is_streaming && (n_new > 0 || choice->finish_reason != NULL)) {
        send_chunk(choice);
    }
    return WEFT_OK;
}

static bool are_finished(const generation_choice_t *choices, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (choices[i].finish_reason == NULL) {
            return false;
        }
    }
    return true;
}

void generation_run_news(engine_request_t *request)
{
    generation_prompt_t *prompt = engine_request_user(request);
    generation_t *generation = prompt->generation;
    api_call_t *call = generation->call;
    generation_choice_t *choices = choices_of(prompt);

    for (uint32_t i = 0; i < generation->n; i++) {
        if (take_choice(call, &choices[i]) != WEFT_OK) {
            return; /* the call is gone */
        }
    }
    if (call->is_streaming && are_finished(choices, generation->n)) {
        close_prompt(call, prompt, NULL);
    }
    if (generation->n_finished == generation->n_choices) {
        if (call->is_streaming) {
            finish_stream(call);
        } else {
            finish_whole(call);
        }
    }
}
