/* SPDX-License-Identifier: Apache-2.0 */
/*
 * span_export: a span for each request, to an OpenTelemetry collector (OTLP over HTTP, JSON).
 *
 * A thread of its own sends what has gathered, every second at the latest. What a collector that
 * is slow or gone leaves over is dropped, and counted in the log.
 */
#pragma once

#include "base/diag.h"
#include "services/api/api_call.h"

typedef struct span_export span_export_t;

/* endpoint: http(s)://host:port[/v1/traces]; without a path that one is used. */
weft_status_t span_export_create(const char *endpoint, weft_diag_t *diag, span_export_t **out);
void span_export_destroy(span_export_t *export); /* sends what is left, for 2 s; NULL is fine */

/* The call is over. NULL export is fine. Loop only. */
void span_export_call(span_export_t *export, const api_call_t *call, uint32_t http_status,
                      uint64_t now_ns);
