/* SPDX-License-Identifier: Apache-2.0 */
/* prompt_list: a text, token ids, or a list of either, as the prompts of a generation. */
#pragma once

#include "services/api/request_common.h"

typedef struct prompt_list {
    const char *field;          /* of the request: "prompt", "input" */
    const json_t *value;        /* borrowed */
    int64_t max_tokens;         /* of each answer; JSON_UNSET: not given, so for the next */
    int64_t default_max_tokens; /* where it is not */
    bool keeps_text;            /* generation_prompt.text is what was given, for echo */
} prompt_list_t;

/* Violations for what is none of these. */
void prompt_list_check(const json_t *value, const char *field, api_error_t *error);

/* Encodes, cuts as truncate_prompt_tokens says, and adds all of them. */
weft_status_t prompt_list_add(api_call_t *call, const request_common_t *common,
                              const prompt_list_t *list, generation_t *generation);
