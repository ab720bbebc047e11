/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_events_config: what --kv-events-config says, and vLLM's rules for the endpoints in it.
 *
 * Threads  none of its own
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef bool kv_events_BOOL_t;
typedef char *kv_events_TEXT_t;     /* owned */
typedef char *kv_events_OPTIONAL_t; /* owned; NULL: none, null in JSON */
typedef uint64_t kv_events_COUNT_t;

typedef struct kv_events_config {
#define CONFIG(field, type, fallback) kv_events_##type##_t field;
#include "kvstore/events/kv_events_config.def"
#undef CONFIG
} kv_events_config_t;

/*
 * text: a JSON object; NULL and "" are one without fields. The publisher is resolved.
 * WEFT_ERR_INVALID: diag names the field.
 */
weft_status_t kv_events_config_parse(const char *text, weft_diag_t *diag,
                                     kv_events_config_t *config_out);
void kv_events_config_fini(kv_events_config_t *config);

bool kv_events_config_is_on(const kv_events_config_t *config);

/* The fields, as GET /kv_event_sources shows them. A new reference, or NULL: no memory. */
json_t *kv_events_config_json(const kv_events_config_t *config);

/*
 * An events endpoint is bound when it has a '*' or "::", is of ipc or inproc, or has port 0, which
 * nobody could connect to; else connected, so tcp://0.0.0.0:5557 is. Replay endpoints are bound.
 */
bool kv_events_is_bound(const char *endpoint);

/*
 * Of data-parallel rank r: a tcp port + r (0 stays 0, the system's choice), an inproc name + "_dp<r>".
 * WEFT_ERR_INVALID: ipc of a rank above 0, a port beyond 65535, or no such endpoint.
 */
weft_status_t kv_events_shift(const char *endpoint, uint32_t rank, weft_diag_t *diag,
                              char **endpoint_out);
