/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/prompt_list.h"

#include <stdio.h>

#define MAX_PROMPTS 2048
#define MAX_CHOICES 16384

static bool is_list(const json_t *value)
{
    const json_t *first = json_array_get(value, 0);
    return json_is_string(first) || json_is_array(first);
}

void prompt_list_check(const json_t *value, const char *field, api_error_t *error)
{
    char path[48];

    if (value != NULL && !json_is_string(value) && !json_is_array(value)) {
        api_error_violation(error, field,
                            "Input should be a string, a list of strings or token ids");
    }
    if (!is_list(value)) {
        json_fields_check_items(value, JSON_FIELD_I64, field, error);
        return;
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *item = json_array_get(value, i);
        snprintf(path, sizeof(path), "%s.%zu", field, i);
        if (!json_is_string(item) && !json_is_array(item)) {
            api_error_violation(error, path, "Input should be a string or a list of token ids");
        }
        json_fields_check_items(item, JSON_FIELD_I64, path, error);
    }
}

static weft_status_t add_ids(api_call_t *call, const request_common_t *common,
                             const prompt_list_t *list, generation_t *generation,
                             const int32_t *ids, size_t n)
{
    if (request_common_truncate(call, common, list->max_tokens, &ids, &n) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    return generation_add_prompt(generation, ids, (uint32_t)n, list->max_tokens,
                                 list->default_max_tokens, &call->error);
}

static weft_status_t add_text(api_call_t *call, const request_common_t *common,
                              const prompt_list_t *list, generation_t *generation,
                              const json_t *text)
{
    text_ids_t ids = {0};

    if (request_common_encode(call, common, json_string_value(text), json_string_length(text),
                              &ids) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    weft_status_t status = add_ids(call, common, list, generation, ids.data, ids.length);
    text_ids_free(ids);
    if (status == WEFT_OK && list->keeps_text) {
        generation_prompt_t *prompt = &generation->prompts[generation->n_prompts - 1];
        prompt->text =
            weft_arena_strndup(&call->arena, json_string_value(text), json_string_length(text));
        prompt->text_length = prompt->text != NULL ? json_string_length(text) : 0;
    }
    return status;
}

static weft_status_t add_prompt(api_call_t *call, const request_common_t *common,
                                const prompt_list_t *list, generation_t *generation,
                                const json_t *prompt)
{
    int32_t *ids = NULL;
    uint32_t n = 0;

    if (json_is_string(prompt)) {
        return add_text(call, common, list, generation, prompt);
    }
    if (json_array_size(prompt) > call->model->max_context &&
        common->truncate_prompt_tokens == JSON_UNSET) {
        return generation_add_prompt(generation, NULL, (uint32_t)json_array_size(prompt),
                                     list->max_tokens, list->default_max_tokens, &call->error);
    }
    if (sampling_params_read_ids(prompt, list->field, call->model, &call->arena, &ids, &n,
                                 &call->error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    return add_ids(call, common, list, generation, ids, n);
}

weft_status_t prompt_list_add(api_call_t *call, const request_common_t *common,
                              const prompt_list_t *list, generation_t *generation)
{
    bool has_many = is_list(list->value);
    size_t count = has_many ? json_array_size(list->value) : 1;

    if (count > MAX_PROMPTS || count * (size_t)generation->n > MAX_CHOICES) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, list->field,
                             "At most %d prompts and %d choices in one request.", MAX_PROMPTS,
                             MAX_CHOICES);
    }
    generation->prompts = weft_arena_calloc(&call->arena, count, sizeof(*generation->prompts));
    if (generation->prompts == NULL) {
        return api_error_no_memory(&call->error);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *item = has_many ? json_array_get(list->value, i) : list->value;
        if (add_prompt(call, common, list, generation, item) != WEFT_OK) {
            return WEFT_ERR_INVALID;
        }
    }
    return WEFT_OK;
}
