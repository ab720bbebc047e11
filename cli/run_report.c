/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/clock.h"
#include "base/json_writer.h"
#include "cli/run.h"

static void put_ids(weft_json_t *json, const char *name, const int32_t *ids, uint32_t n)
{
    weft_json_key(json, name);
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        weft_json_i64(json, ids[i]);
    }
    weft_json_end_array(json);
}

static void put_logprob(weft_json_t *json, const k_logprob_t *logprob)
{
    weft_json_put_i64(json, "token_id", logprob->token);
    weft_json_key(json, "logprob");
    weft_json_f32(json, logprob->logprob);
    weft_json_put_u64(json, "rank", logprob->rank);
}

static void put_sampled(weft_json_t *json, const k_sampled_t *sampled)
{
    weft_json_begin_object(json);
    put_logprob(json, &sampled->chosen);
    weft_json_key(json, "top");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < sampled->n_top; i++) {
        weft_json_begin_object(json);
        put_logprob(json, &sampled->top[i]);
        weft_json_end_object(json);
    }
    weft_json_end_array(json);
    weft_json_end_object(json);
}

static void put_logprobs(weft_json_t *json, const char *name, const k_sampled_t *logprobs,
                         uint32_t n, bool has_first)
{
    if (logprobs == NULL) {
        return;
    }
    weft_json_key(json, name);
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        if (i == 0 && !has_first) {
            weft_json_null(json);
        } else {
            put_sampled(json, &logprobs[i]);
        }
    }
    weft_json_end_array(json);
}

static void put_ms(weft_json_t *json, const char *name, uint64_t from_ns, uint64_t to_ns)
{
    if (from_ns != 0 && to_ns >= from_ns) {
        weft_json_put_f64(json, name, (double)(to_ns - from_ns) / WEFT_NS_PER_MS);
    } else {
        weft_json_put_null(json, name);
    }
}

static void put_timings(weft_json_t *json, const run_answer_t *answer)
{
    const engine_timings_t *timings = &answer->timings;
    weft_json_key(json, "timings");
    weft_json_begin_object(json);
    weft_json_put_f64(json, "load_ms", (double)answer->load_ns / WEFT_NS_PER_MS);
    put_ms(json, "first_token_ms", timings->arrival_ns, timings->first_token_ns);
    put_ms(json, "total_ms", timings->arrival_ns, timings->finished_ns);
    weft_json_put_u64(json, "prompt_tokens", answer->prompt->n);
    weft_json_put_u64(json, "output_tokens", answer->n_tokens);
    if (answer->n_tokens > 1 && timings->finished_ns > timings->first_token_ns) {
        const double seconds =
            (double)(timings->finished_ns - timings->first_token_ns) / WEFT_NS_PER_SECOND;
        weft_json_put_f64(json, "decode_tokens_per_second", (answer->n_tokens - 1) / seconds);
    }
    weft_json_end_object(json);
}

weft_status_t run_report_json(const run_answer_t *answer)
{
    weft_buffer_t out = {0};
    weft_json_t json;
    weft_json_init(&json, &out);
    weft_json_begin_object(&json);
    put_ids(&json, "prompt_token_ids", answer->prompt->ids, answer->prompt->n);
    put_ids(&json, "token_ids", answer->tokens, answer->n_tokens);
    weft_json_key(&json, "text");
    weft_json_text(&json, answer->text->length > 0 ? answer->text->data : "", answer->text->length);
    weft_json_put_string(&json, "finish_reason", answer->finish_reason);
    put_logprobs(&json, "logprobs", answer->logprobs, answer->n_tokens, true);
    put_logprobs(&json, "prompt_logprobs", answer->prompt_logprobs, answer->prompt->n, false);
    put_timings(&json, answer);
    weft_json_end_object(&json);
    weft_buffer_puts(&out, "\n");

    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (!out.is_failed) {
        const bool is_written =
            fwrite(out.data, 1, out.length, stdout) == out.length && fflush(stdout) == 0;
        status = is_written ? WEFT_OK : WEFT_ERR_IO;
    }
    weft_buffer_free(&out);
    return status;
}
