/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json_input: JSON files from outside, bounded before jansson builds a tree of them, and their
 * fields, typed.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

/* A tree takes at most about 250 bytes a value besides its strings. */
#define JSON_INPUT_MAX_VALUES (UINT32_C(1) << 20)

/*
 * text [length] to a tree, freed by json_decref. flags: jansson's, as JSON_REJECT_DUPLICATES. name:
 * how errors call it.
 * WEFT_ERR_TOO_LARGE: over max_bytes, or over JSON_INPUT_MAX_VALUES brackets, commas and colons.
 */
weft_status_t json_input_parse(const char *text, size_t length, size_t max_bytes, size_t flags,
                               const char *name, weft_diag_t *diag, json_t **root_out);

/*
 * Reads fields of one object. The first fault is kept in status and diag, what follows returns
 * fallbacks: check status once, after the last field. null counts as absent.
 */
typedef struct json_reader {
    const json_t *object;
    const char *name; /* "config.json", "config.json: rope_scaling" */
    weft_diag_t *diag;
    weft_status_t status;
} json_reader_t;

/* NULL when absent. */
const json_t *json_reader_get(const json_reader_t *reader, const char *key);

uint32_t json_reader_u32(json_reader_t *reader, const char *key, uint32_t fallback);
double json_reader_f64(json_reader_t *reader, const char *key, double fallback);
bool json_reader_bool(json_reader_t *reader, const char *key, bool fallback);
const char *json_reader_string(json_reader_t *reader, const char *key, const char *fallback);

/* Absent is a fault. */
uint32_t json_reader_need_u32(json_reader_t *reader, const char *key);
double json_reader_need_f64(json_reader_t *reader, const char *key);

/* Keeps "name: key: reason" unless a fault is kept already. */
void json_reader_refuse(json_reader_t *reader, weft_status_t status, const char *key,
                        const char *reason);
