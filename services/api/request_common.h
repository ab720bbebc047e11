/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request_common: the fields that completions, chat and generate share, and how they fill a
 * generation's plan.
 */
#pragma once

#include "services/api/api_call.h"
#include "services/api/json_fields.h"

typedef struct request_common {
#define FIELD JSON_FIELD_MEMBER
#include "services/api/request_fields.def"
#undef FIELD
    bool include_usage; /* of stream_options, so for the next */
    bool continuous_usage_stats;
} request_common_t;

request_common_t request_common_default(void);
void request_common_read(const json_t *object, request_common_t *common, api_error_t *error);

/* Reads call->body; the tree is the caller's. The body is freed. */
weft_status_t request_common_parse_body(api_call_t *call, json_t **json_out);

/*
 * Model, stream options, priority, salt, ids and sampling into generation. The constraint is left
 * to request_common_constrain, since tools may bring another.
 */
weft_status_t request_common_apply(api_call_t *call, const request_common_t *common,
                                   const sampling_params_t *params, generation_t *generation);

/* Compiles output for generation. */
weft_status_t request_common_constrain(api_call_t *call, const structured_output_t *output,
                                       generation_t *generation);

/* Token ids of text, cut as truncate_prompt_tokens says. Freed with text_ids_free. */
weft_status_t request_common_encode(api_call_t *call, const request_common_t *common,
                                    const char *text, size_t length, text_ids_t *ids_out);

/* The part of ids [*n] that truncate_prompt_tokens keeps. */
weft_status_t request_common_truncate(api_call_t *call, const request_common_t *common,
                                      int64_t max_tokens, const int32_t **ids, size_t *n);
