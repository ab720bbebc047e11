/* SPDX-License-Identifier: Apache-2.0 */
/*
 * diag: one line that tells a person what was wrong with what they gave us.
 *
 * Everything that reads outside input (files, options, requests, templates) takes a weft_diag_t and
 * fills it where the fault is first seen: "model.gguf: tensor blk.0.attn_q.weight: ends 96 bytes
 * past the file". The outermost caller prints it or answers with it. A diag is plain memory:
 * declare it on the stack, zeroed.
 */
#pragma once

#include "base/compiler.h"
#include "base/status.h"

#define WEFT_DIAG_BYTES 1024

typedef struct weft_diag {
    char text[WEFT_DIAG_BYTES]; /* UTF-8, one line, cut with "..." when too long */
} weft_diag_t;

/*
 * Writes the line and returns status, so that a check reads `return weft_diag(d, WEFT_ERR_…, "…")`.
 * diag may be NULL. Control characters and invalid UTF-8 in the result become '?'.
 */
weft_status_t weft_diag(weft_diag_t *diag, weft_status_t status, const char *format, ...)
    WEFT_PRINTF(3, 4);

/* Puts "prefix: " in front of the line; for a caller who knows the file or field. */
void weft_diag_prefix(weft_diag_t *diag, const char *format, ...) WEFT_PRINTF(2, 3);
