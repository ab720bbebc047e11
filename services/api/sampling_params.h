/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sampling_params: how a request wants its tokens chosen, from JSON to what the engine takes.
 */
#pragma once

#include "base/arena.h"
#include "runtime/engine/engine.h"
#include "services/api/api_model.h"
#include "services/api/json_fields.h"

typedef struct sampling_params {
#define FIELD JSON_FIELD_MEMBER
#include "services/api/sampling_fields.def"
#undef FIELD
} sampling_params_t;

/* The strings that end an answer; arena memory. */
typedef struct sampling_stops {
    const char *const *texts; /* [count] */
    size_t count;
} sampling_stops_t;

/* What a request that says nothing gets. */
sampling_params_t sampling_params_default(const api_model_t *model);

/* Checks the items of its lists too. path: as in json_fields_read, which also says of errors. */
void sampling_params_read(const json_t *object, const char *path, sampling_params_t *params,
                          api_error_t *error);

/*
 * Checks what read cannot and fills the engine's struct, all but max_tokens and log-probabilities
 * of the answer; arrays live in arena.
 */
weft_status_t sampling_params_resolve(const sampling_params_t *params, const api_model_t *model,
                                      weft_arena_t *arena, engine_sampling_t *sampling_out,
                                      sampling_stops_t *stops_out, api_error_t *error);

/* Checks that k log-probabilities may be asked for; -1 is all of them. field names it. */
weft_status_t sampling_params_check_logprobs(int64_t k, const char *field, const api_model_t *model,
                                             api_error_t *error);

/*
 * Reads a list of token ids into arena memory, each checked against the vocabulary.
 * ids_out is NULL for an empty list.
 */
weft_status_t sampling_params_read_ids(const json_t *list, const char *field,
                                       const api_model_t *model, weft_arena_t *arena,
                                       int32_t **ids_out, uint32_t *n_out, api_error_t *error);
