/* SPDX-License-Identifier: Apache-2.0 */
/* events: the parts of `weft events`. */
#pragma once

#include "base/json_writer.h"
#include "base/option.h"
#include "kvstore/events/kv_event_mirror.h"
#include "kvstore/events/kv_event_subscriber.h"

typedef struct events_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/events.def"
#undef OPTION
} events_options_t;

/*
 * One event as a JSON object: sequence, ts, rank, topic, then vLLM's fields, those that are nil left
 * out. Hashes and bytes are hex: 64-bit numbers would lose digits in many a JSON reader.
 */
void events_write_json(weft_json_t *json, const kv_event_news_t *news, const kv_event_t *event);

/* What a followed stream came to. */
typedef struct events_check events_check_t;

weft_status_t events_check_create(events_check_t **check_out);
void events_check_destroy(events_check_t *check); /* NULL is fine */

/* Reports what does not fit on stderr, a line each. */
weft_status_t events_check_news(events_check_t *check, const kv_event_news_t *news);
uint64_t events_check_holes(const events_check_t *check);
void events_check_print(const events_check_t *check); /* what is present, what did not fit */
