/* SPDX-License-Identifier: Apache-2.0 */
/*
 * span_export: a span for each request, to an OpenTelemetry collector (OTLP over HTTP, JSON).
 *
 * Sends what gathered in a second, one batch at a time. What a collector that is slow or gone leaves
 * over is dropped, and counted in the log.
 *
 * Threads  everything on the loop's thread
 */
#pragma once

#include <stdbool.h>

#include "base/diag.h"
#include "base/loop.h"
#include "services/api/api_call.h"

typedef struct span_export span_export_t;

/* endpoint: http(s)://host:port[/v1/traces]; without a path that one is used. */
weft_status_t span_export_create(weft_loop_t *loop, const char *endpoint, weft_diag_t *diag,
                                 span_export_t **out);
void span_export_destroy(span_export_t *export); /* what is left is lost; NULL is fine */

/* From now on sends at once. Whether nothing is left; true for NULL. */
bool span_export_flush(span_export_t *export);

/* The call is over. NULL export is fine. */
void span_export_call(span_export_t *export, const api_call_t *call, uint32_t http_status,
                      uint64_t now_ns);
