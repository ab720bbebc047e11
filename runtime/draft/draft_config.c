/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/draft/draft_config.h"

#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "base/json_struct.h"
#include "runtime/draft/drafter.h"
#include "runtime/sched/step_plan.h"

#define WHERE "--speculative-config: "

enum {
    MAX_LOOKUP = 64,
    DEFAULT_LOOKUP = 5, /* vLLM's, of both */
};

typedef struct words {
    char *method;
    char *model;
    uint64_t num_speculative_tokens;
    uint64_t prompt_lookup_min;
    uint64_t prompt_lookup_max;
    uint64_t draft_tensor_parallel_size;
    uint64_t max_model_len;
} words_t;

static const weft_json_field_t fields[] = {
    {"method", WEFT_JSON_OPTIONAL, offsetof(words_t, method), 0, 0},
    {"model", WEFT_JSON_OPTIONAL, offsetof(words_t, model), 0, 0},
    {"num_speculative_tokens", WEFT_JSON_COUNT, offsetof(words_t, num_speculative_tokens), 1,
     STEP_MAX_DRAFTS},
    {"prompt_lookup_min", WEFT_JSON_COUNT, offsetof(words_t, prompt_lookup_min), 0, MAX_LOOKUP},
    {"prompt_lookup_max", WEFT_JSON_COUNT, offsetof(words_t, prompt_lookup_max), 0, MAX_LOOKUP},
    {"draft_tensor_parallel_size", WEFT_JSON_COUNT, offsetof(words_t, draft_tensor_parallel_size),
     0, UINT32_MAX},
    {"max_model_len", WEFT_JSON_COUNT, offsetof(words_t, max_model_len), 0, UINT32_MAX},
};

static weft_status_t find_kind(const words_t *words, weft_diag_t *diag, draft_config_t *config)
{
    const bool is_implied = words->method == NULL && words->model != NULL;
    const char *method = is_implied ? "draft_model" : words->method;
    if (method == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, WHERE "method is missing; known:%s",
                         drafter_methods);
    }
    config->kind = drafter_find(method);
    if (config->kind == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, WHERE "method \"%s\" is unknown; known:%s",
                         method, drafter_methods);
    }
    if (config->kind->has_model != (words->model != NULL)) {
        return weft_diag(diag, WEFT_ERR_INVALID, WHERE "method \"%s\" %s", method,
                         config->kind->has_model ? "needs a model" : "has no model");
    }
    return WEFT_OK;
}

/* One of the two lengths alone stands for both, as in vLLM. */
static weft_status_t set_lookup(const words_t *words, weft_diag_t *diag, draft_config_t *config)
{
    const uint32_t min = (uint32_t)words->prompt_lookup_min;
    const uint32_t max = (uint32_t)words->prompt_lookup_max;
    config->min_lookup = min > 0 ? min : max > 0 ? max : DEFAULT_LOOKUP;
    config->max_lookup = max > 0 ? max : config->min_lookup;
    if (config->min_lookup > config->max_lookup) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         WHERE "prompt_lookup_min %u is above prompt_lookup_max %u",
                         config->min_lookup, config->max_lookup);
    }
    return WEFT_OK;
}

static weft_status_t settle(const words_t *words, weft_diag_t *diag, draft_config_t *config)
{
    weft_status_t status = find_kind(words, diag, config);
    const uint64_t n = words->num_speculative_tokens;
    if (status >= 0 && n == 0) {
        status = weft_diag(diag, WEFT_ERR_INVALID, WHERE "num_speculative_tokens is missing");
    }
    if (status >= 0 && words->draft_tensor_parallel_size > 1) {
        status = weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                           WHERE "draft_tensor_parallel_size %u: the model that guesses is on one "
                                 "rank, whatever the other is on",
                           (uint32_t)words->draft_tensor_parallel_size);
    }
    if (status >= 0) {
        status = set_lookup(words, diag, config);
    }
    config->n_tokens = (uint32_t)n;
    config->max_context = (uint32_t)words->max_model_len;
    return status;
}

weft_status_t draft_config_parse(const char *text, weft_diag_t *diag, draft_config_t *config_out)
{
    words_t words = {0};
    draft_config_t config = {0};
    weft_status_t status = WEFT_OK;
    if (text[0] != '\0') {
        status = weft_json_read_object(text, fields, WEFT_ARRAY_LEN(fields), WHERE, diag, &words);
        if (status >= 0) {
            status = settle(&words, diag, &config);
        }
        if (status >= 0) {
            config.model = words.model;
            words.model = NULL; /* the config owns it now */
        }
        weft_json_free_texts(fields, WEFT_ARRAY_LEN(fields), &words);
    }
    if (status >= 0) {
        *config_out = config;
    }
    return status;
}

void draft_config_fini(draft_config_t *config)
{
    weft_free(config->model);
    *config = (draft_config_t){0};
}
