/* SPDX-License-Identifier: Apache-2.0 */
/* front_priv: the front's state, for its siblings on the loop. */
#pragma once

#include "base/buffer.h"
#include "base/compiler.h"
#include "base/http_client.h"
#include "base/http_server.h"
#include "services/front/front.h"
#include "services/front/front_call.h"
#include "services/front/front_workers.h"

enum {
#define METRIC(field, kind, name, labels, help) METRIC_##field,
#include "services/front/metrics.def"
#undef METRIC
    METRIC_COUNT
};

struct front {
    weft_loop_t *loop;
    weft_http_server_t *http;
    weft_http_client_t *client;
    front_workers_t workers;
    bool is_overlapped;
    bool is_draining;
    front_call_t *calls; /* open ones */
    uint32_t n_calls;
    weft_metrics_t *metrics;
};

/* The series of a row with these label values; NULL is fine to count into. */
weft_series_t *front_series(const front_t *front, int field, const char *const *labels);

/* An error in OpenAI's shape as the whole answer; 503 says when to try again. */
void front_answer_error(weft_http_exchange_t *exchange, uint32_t http_status, const char *type,
                        const char *message);
