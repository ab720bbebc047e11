/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/sampling_params.h"

#include <errno.h>
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/api/structured_output.h"

#define MAX_STOPS      256
#define MAX_STOP_BYTES 65536
#define MAX_BAD_WORDS  1024
#define MAX_WORD_BYTES 65536 /* of all bad words */

static const json_field_t rows[] = {
#define FIELD(...) JSON_FIELD_ROW(sampling_params_t, __VA_ARGS__)
#include "services/api/sampling_fields.def"
#undef FIELD
};

sampling_params_t sampling_params_default(const api_model_t *model)
{
    return (sampling_params_t){
        .n = 1,
        .max_tokens = JSON_UNSET,
        .temperature = model->temperature,
        .top_p = model->top_p,
        .top_k = model->top_k,
        .min_p = model->min_p,
        .repetition_penalty = model->repetition_penalty,
        .seed = JSON_UNSET,
        .skip_special_tokens = true,
        .spaces_between_special_tokens = true,
        .prompt_logprobs = JSON_UNSET,
    };
}

static void check_items(const json_t *container, json_field_type_t type, const char *path,
                        const char *name, api_error_t *error)
{
    char full[64];

    snprintf(full, sizeof(full), "%s%s%s", path, path[0] != '\0' ? "." : "", name);
    if (type == JSON_FIELD_STR && container != NULL && !json_is_array(container) &&
        !json_fields_is_text(container)) {
        api_error_violation(error, full, "Input should be a valid string or a list of strings");
    }
    json_fields_check_items(container, type, full, error);
}

void sampling_params_read(const json_t *object, const char *path, sampling_params_t *params,
                          api_error_t *error)
{
    json_fields_read(object, rows, WEFT_ARRAY_LEN(rows), path, params, error);
    check_items(params->stop, JSON_FIELD_STR, path, "stop", error);
    check_items(params->stop_token_ids, JSON_FIELD_I64, path, "stop_token_ids", error);
    check_items(params->allowed_token_ids, JSON_FIELD_I64, path, "allowed_token_ids", error);
    check_items(params->bad_words, JSON_FIELD_STR, path, "bad_words", error);
    check_items(params->logit_bias, JSON_FIELD_F64, path, "logit_bias", error);
    structured_output_check(params->structured_outputs, path, error);
}

weft_status_t sampling_params_read_ids(const json_t *list, const char *field,
                                       const api_model_t *model, weft_arena_t *arena,
                                       int32_t **ids_out, uint32_t *n_out, api_error_t *error)
{
    size_t n = json_array_size(list);
    int32_t *ids = n > 0 ? weft_arena_calloc(arena, n, sizeof(*ids)) : NULL;

    if (n > 0 && ids == NULL) {
        return api_error_no_memory(error);
    }
    for (size_t i = 0; i < n; i++) {
        int64_t id = -1;
        if (!json_fields_integer(json_array_get(list, i), &id)) {
            return api_error_violation(error, field, "Input should be a list of valid integers");
        }
        if (id < 0 || id >= model->vocab) {
            return api_error_set(error, API_ERROR_BAD_REQUEST, field,
                                 "Token id %lld is out of vocabulary (%u tokens).", (long long)id,
                                 model->vocab);
        }
        ids[i] = (int32_t)id;
    }
    *ids_out = ids;
    *n_out = (uint32_t)n;
    return WEFT_OK;
}

static weft_status_t add_stop(const json_t *value, weft_arena_t *arena, const char **stop_out,
                              size_t *bytes, api_error_t *error)
{
    *bytes += json_string_length(value);
    if (json_string_length(value) == 0) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "stop",
                             "stop cannot contain an empty string.");
    }
    if (*bytes > MAX_STOP_BYTES) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "stop",
                             "stop strings may have %d bytes in all.", MAX_STOP_BYTES);
    }
    *stop_out = weft_arena_strndup(arena, json_string_value(value), json_string_length(value));
    return *stop_out != NULL ? WEFT_OK : api_error_no_memory(error);
}

static weft_status_t resolve_stops(const json_t *stop, weft_arena_t *arena,
                                   sampling_stops_t *stops_out, api_error_t *error)
{
    size_t count = stop == NULL ? 0 : json_is_array(stop) ? json_array_size(stop) : 1;
    size_t bytes = 0;

    *stops_out = (sampling_stops_t){0};
    if (count == 0) {
        return WEFT_OK;
    }
    if (count > MAX_STOPS) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "stop", "At most %d stop strings.",
                             MAX_STOPS);
    }
    const char **texts = weft_arena_calloc(arena, count, sizeof(*texts));
    if (texts == NULL) {
        return api_error_no_memory(error);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_is_array(stop) ? json_array_get(stop, i) : stop;
        if (add_stop(value, arena, &texts[i], &bytes, error) != WEFT_OK) {
            return WEFT_ERR_INVALID;
        }
    }
    *stops_out = (sampling_stops_t){.texts = texts, .count = count};
    return WEFT_OK;
}

static weft_status_t read_bias_key(const char *key, const api_model_t *model, int32_t *id_out,
                                   api_error_t *error)
{
    char *end;
    errno = 0;
    long id = strtol(key, &end, 10);

    if (end == key || *end != '\0' || errno != 0) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "logit_bias",
                             "Found token_id `%.40s` in logit_bias that is not a number.", key);
    }
    if (id < 0 || id >= (long)model->vocab) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "logit_bias",
                             "token_id %ld in logit_bias is out of vocabulary (%u tokens).", id,
                             model->vocab);
    }
    *id_out = (int32_t)id;
    return WEFT_OK;
}

static weft_status_t resolve_bias(const sampling_params_t *params, const api_model_t *model,
                                  weft_arena_t *arena, engine_sampling_t *out, api_error_t *error)
{
    size_t count = json_object_size(params->logit_bias);
    const char *key;
    json_t *value;

    if (count == 0) {
        return WEFT_OK;
    }
    if (count > ENGINE_MAX_LOGIT_BIAS) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "logit_bias",
                             "logit_bias may have at most %d entries, got %zu.",
                             ENGINE_MAX_LOGIT_BIAS, count);
    }
    k_bias_t *bias = weft_arena_calloc(arena, count, sizeof(*bias));
    if (bias == NULL) {
        return api_error_no_memory(error);
    }
    out->logit_bias = bias;
    json_object_foreach(params->logit_bias, key, value)
    {
        if (read_bias_key(key, model, &bias->token, error) != WEFT_OK) {
            return WEFT_ERR_INVALID;
        }
        double amount = json_number_value(value);
        bias->value = (float)(amount > 100 ? 100 : amount < -100 ? -100 : amount);
        bias++;
        out->n_logit_bias++;
    }
    return WEFT_OK;
}

static weft_status_t add_bad_word(const char *text, const api_model_t *model, weft_buffer_t *ids,
                                  uint32_t *length_out, api_error_t *error)
{
    weft_diag_t diag = {0};
    text_ids_t encoded = {0};
    weft_status_t status =
        text_tokenizer_encode(model->tokenizer, text, strlen(text), false, false, &diag, &encoded);
    if (status < 0) {
        return api_error_from(error, status, &diag, "bad_words");
    }
    weft_buffer_append(ids, encoded.data, encoded.length * sizeof(*encoded.data));
    *length_out = (uint32_t)encoded.length;
    text_ids_free(encoded);
    return ids->is_failed ? api_error_no_memory(error) : WEFT_OK;
}

/* Each word as it stands and, as words in a text follow a space, with one in front. */
static weft_status_t collect_bad_words(const json_t *words, const api_model_t *model,
                                       weft_arena_t *arena, weft_buffer_t *ids, uint32_t *lengths,
                                       engine_sampling_t *out, api_error_t *error)
{
    for (size_t i = 0; i < json_array_size(words); i++) {
        const char *word = json_string_value(json_array_get(words, i));
        if (word[0] == '\0') {
            return api_error_set(error, API_ERROR_BAD_REQUEST, "bad_words",
                                 "bad_words must be strings that are not empty.");
        }
        const char *spaced = weft_arena_printf(arena, " %s", word + strspn(word, " "));
        if (spaced == NULL) {
            return api_error_no_memory(error);
        }
        for (int with_space = 0; with_space < 2; with_space++) {
            uint32_t *length = &lengths[out->n_bad_words];
            if (add_bad_word(with_space ? spaced : word, model, ids, length, error) != WEFT_OK) {
                return WEFT_ERR_INVALID;
            }
            out->n_bad_words += *length > 0;
        }
    }
    return WEFT_OK;
}

static weft_status_t resolve_bad_words(const sampling_params_t *params, const api_model_t *model,
                                       weft_arena_t *arena, engine_sampling_t *out,
                                       api_error_t *error)
{
    size_t count = json_array_size(params->bad_words);
    weft_buffer_t ids = {0};
    size_t bytes = 0;

    if (count == 0) {
        return WEFT_OK;
    }
    for (size_t i = 0; i < count; i++) {
        bytes += json_string_length(json_array_get(params->bad_words, i));
    }
    if (bytes > MAX_WORD_BYTES) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "bad_words",
                             "bad_words may have %d bytes in all.", MAX_WORD_BYTES);
    }
    if (count > MAX_BAD_WORDS) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "bad_words", "At most %d bad_words.",
                             MAX_BAD_WORDS);
    }
    uint32_t *lengths = weft_arena_calloc(arena, count * 2, sizeof(*lengths));
    if (lengths == NULL) {
        return api_error_no_memory(error);
    }
    weft_status_t status =
        collect_bad_words(params->bad_words, model, arena, &ids, lengths, out, error);
    if (status == WEFT_OK && ids.length > 0) {
        int32_t *copy = weft_arena_alloc(arena, ids.length);
        if (copy == NULL) {
            status = api_error_no_memory(error);
        } else {
            memcpy(copy, ids.data, ids.length);
            out->bad_words = copy;
            out->bad_word_lengths = lengths;
        }
    }
    weft_buffer_free(&ids);
    return status;
}

weft_status_t sampling_params_check_logprobs(int64_t k, const char *field, const api_model_t *model,
                                             api_error_t *error)
{
    int64_t wanted = k == -1 ? model->vocab : k;

    if (wanted > model->max_logprobs) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, field,
                             "Requested %s of %lld, which is greater than max allowed: %u", field,
                             (long long)wanted, model->max_logprobs);
    }
    return WEFT_OK;
}

static weft_status_t resolve_prompt_logprobs(const sampling_params_t *params,
                                             const api_model_t *model, engine_sampling_t *out,
                                             api_error_t *error)
{
    if (params->prompt_logprobs == JSON_UNSET) {
        return WEFT_OK;
    }
    out->wants_prompt_logprobs = true;
    out->n_prompt_top_logprobs = (uint32_t)params->prompt_logprobs;
    return sampling_params_check_logprobs(params->prompt_logprobs, "prompt_logprobs", model, error);
}

static weft_status_t check_samples(int64_t n, const api_model_t *model, api_error_t *error)
{
    const char *limit =
        model->max_samples < ENGINE_MAX_SAMPLES ? "the server's max_num_seqs" : "weft's limit";

    if (n > model->max_samples) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "n",
                             "n must be at most %s (%u), got %lld.", limit, model->max_samples,
                             (long long)n);
    }
    return WEFT_OK;
}

weft_status_t sampling_params_resolve(const sampling_params_t *params, const api_model_t *model,
                                      weft_arena_t *arena, engine_sampling_t *sampling_out,
                                      sampling_stops_t *stops_out, api_error_t *error)
{
    engine_sampling_t out = {
        .temperature = (float)params->temperature,
        .top_p = (float)params->top_p,
        .min_p = (float)params->min_p,
        .top_k = params->top_k > 0 ? (int32_t)params->top_k : 0,
        .repetition_penalty = (float)params->repetition_penalty,
        .frequency_penalty = (float)params->frequency_penalty,
        .presence_penalty = (float)params->presence_penalty,
        .seed = params->seed == JSON_UNSET ? ENGINE_NO_SEED : (uint64_t)params->seed,
        .min_tokens = (uint32_t)params->min_tokens,
        .ignore_eos = params->ignore_eos,
    };
    int32_t *ids = NULL;

    if (check_samples(params->n, model, error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    if (sampling_params_read_ids(params->stop_token_ids, "stop_token_ids", model, arena, &ids,
                                 &out.n_stop_token_ids, error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    out.stop_token_ids = ids;
    if (params->allowed_token_ids != NULL && json_array_size(params->allowed_token_ids) == 0) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "allowed_token_ids",
                             "allowed_token_ids is not None and empty!");
    }
    ids = NULL;
    if (sampling_params_read_ids(params->allowed_token_ids, "allowed_token_ids", model, arena, &ids,
                                 &out.n_allowed_token_ids, error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    out.allowed_token_ids = ids;
    if (resolve_bias(params, model, arena, &out, error) != WEFT_OK ||
        resolve_bad_words(params, model, arena, &out, error) != WEFT_OK ||
        resolve_prompt_logprobs(params, model, &out, error) != WEFT_OK ||
        resolve_stops(params->stop, arena, stops_out, error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    *sampling_out = out;
    return WEFT_OK;
}
