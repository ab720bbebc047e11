/* SPDX-License-Identifier: Apache-2.0 */
/* api_answers: routes that need no worker, or little: models, health, version, metrics. */
#pragma once

#include "services/api/api_call.h"

void answer_models(api_call_t *call);
void answer_health(api_call_t *call);
void answer_version(api_call_t *call);
void answer_load(api_call_t *call);
void answer_metrics(api_call_t *call);
void answer_reset_cache(api_call_t *call);
void answer_kv_event_sources(api_call_t *call);
void answer_abort(api_call_t *call);
void answer_adapter(api_call_t *call);

/* Whether adapters are served and, by VLLM_ALLOW_RUNTIME_LORA_UPDATING, may come and go. */
bool adapters_may_change(const engine_t *engine);

/* Sends call->answer, made by prepare, as JSON. */
void api_call_respond(api_call_t *call);
