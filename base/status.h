/* SPDX-License-Identifier: Apache-2.0 */
/*
 * status: what a call came to. One list (status.def) makes the enum, the names and the texts.
 *
 * A negative status is a failure; results go through _out arguments, written only on success.
 * Whoever first sees the cause says it, with its numbers, to the log or to a diag; callers pass
 * the status up in silence.
 */
#pragma once

typedef enum weft_status {
#define STATUS(name, value, text) WEFT_##name = value,
#include "base/status.def"
#undef STATUS
} weft_status_t;

/* The text of status for people. Never NULL; unknown values say so. */
const char *weft_strerror(weft_status_t status);

/* The name of status, as in "ERR_NO_BLOCKS". Never NULL. */
const char *weft_status_name(weft_status_t status);
