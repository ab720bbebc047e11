/* SPDX-License-Identifier: Apache-2.0 */
/* response_common: what answers of all endpoints hold. */
#pragma once

#include "base/json_writer.h"
#include "services/api/generation.h"

/* id, object, created, model. */
void response_common_head(const generation_t *generation, const char *object, weft_json_t *json);

/* The member "usage". */
void response_common_usage(const generation_t *generation, weft_json_t *json);

/* "usage" of a chunk, when every chunk carries it. */
void response_common_chunk_usage(const generation_t *generation, weft_json_t *json);

/* The string or id that ended choice, or null. */
void response_common_stop_reason(const generation_choice_t *choice, weft_json_t *json);

void response_common_ids(const int32_t *ids, uint32_t n, weft_json_t *json);

/* Token ids [from, to) of the answer, as an array. */
void response_common_answer_ids(const generation_choice_t *choice, uint32_t from, uint32_t to,
                                weft_json_t *json);
