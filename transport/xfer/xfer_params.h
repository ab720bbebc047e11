/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_params: "tcp.host=10.0.0.7,ucx.error_mode=none" taken apart, and which of it was asked for.
 *
 * Threads  one
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/diag.h"

typedef struct xfer_params xfer_params_t;

/* text is copied; NULL: none. WEFT_ERR_INVALID: a word is not <backend>.<key>=<value>. */
weft_status_t xfer_params_parse(const char *text, weft_diag_t *diag, xfer_params_t **params_out);
void xfer_params_destroy(xfer_params_t *params); /* NULL is fine */

/* The last value of that key, which now counts as known; NULL: not given. Lives as long as params. */
const char *xfer_params_get(xfer_params_t *params, const char *backend, const char *key);

/* The backend of the i-th word; NULL behind the last. */
const char *xfer_params_backend(const xfer_params_t *params, size_t i);
/* A key of this backend that nobody has asked for; NULL: none. */
const char *xfer_params_unknown(const xfer_params_t *params, const char *backend);

/* Whether name is one of names, "shm,tcp". */
bool xfer_names_have(const char *names, const char *name);
/* The first of names that is not empty, and where the next begin; false: none is left. */
bool xfer_names_next(const char **names, const char **name_out, size_t *length_out);
