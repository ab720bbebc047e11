/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_trace: which trace a request belongs to (W3C Trace Context), and its own span in it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define API_TRACE_ID_BYTES 16
#define API_SPAN_ID_BYTES  8

typedef struct api_trace {
    uint8_t trace_id[API_TRACE_ID_BYTES];
    uint8_t parent_id[API_SPAN_ID_BYTES]; /* zero: the request starts the trace */
    uint8_t span_id[API_SPAN_ID_BYTES];
    bool is_sampled;
} api_trace_t;

/*
 * From the header traceparent; NULL or malformed: a new trace, sampled. Per the recommendation a
 * version above 00 may have more fields, all-zero ids are invalid.
 */
void api_trace_init(api_trace_t *trace, const char *traceparent);
