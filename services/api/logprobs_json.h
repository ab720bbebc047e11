/* SPDX-License-Identifier: Apache-2.0 */
/*
 * logprobs_json: log-probabilities in the three forms of the API: completions (parallel arrays),
 * chat (a list of objects) and prompt (a list of maps by token id).
 */
#pragma once

#include "base/json_writer.h"
#include "services/api/generation.h"

/* Of choice's tokens [from, to); advances choice's text offset. with_prompt: the prompt's first. */
void logprobs_json_completion(generation_choice_t *choice, uint32_t from, uint32_t to,
                              bool with_prompt, weft_json_t *json);

void logprobs_json_chat(const generation_choice_t *choice, uint32_t from, uint32_t to,
                        weft_json_t *json);

/* null when the request did not ask for them. */
void logprobs_json_prompt(const generation_prompt_t *prompt, weft_json_t *json);
