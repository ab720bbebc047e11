/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json_writer: JSON text, written front to back into a buffer, without a tree.
 *
 * The caller keeps begins and ends in balance; commas are the writer's. A failed allocation shows
 * in the buffer (is_failed).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"

typedef struct weft_json {
    weft_buffer_t *out; /* borrowed */
    bool needs_comma;
} weft_json_t;

void weft_json_init(weft_json_t *json, weft_buffer_t *out); /* appends to what out holds */

void weft_json_begin_object(weft_json_t *json);
void weft_json_end_object(weft_json_t *json);
void weft_json_begin_array(weft_json_t *json);
void weft_json_end_array(weft_json_t *json);
void weft_json_key(weft_json_t *json, const char *name);

/* Bytes that are not UTF-8 become U+FFFD. NULL is written as null. */
void weft_json_string(weft_json_t *json, const char *text);
void weft_json_text(weft_json_t *json, const char *text, size_t length);
void weft_json_i64(weft_json_t *json, int64_t value);
void weft_json_u64(weft_json_t *json, uint64_t value);
void weft_json_f64(weft_json_t *json, double value); /* the shortest form; not finite: null */
void weft_json_f32(weft_json_t *json, float value);
void weft_json_bool(weft_json_t *json, bool value);
void weft_json_null(weft_json_t *json);
void weft_json_raw(weft_json_t *json, const char *text, size_t length); /* JSON already */

/* key and value in one call. */
void weft_json_put_string(weft_json_t *json, const char *name, const char *text);
void weft_json_put_i64(weft_json_t *json, const char *name, int64_t value);
void weft_json_put_u64(weft_json_t *json, const char *name, uint64_t value);
void weft_json_put_f64(weft_json_t *json, const char *name, double value);
void weft_json_put_bool(weft_json_t *json, const char *name, bool value);
void weft_json_put_null(weft_json_t *json, const char *name);
