/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ucx_library: UCX's functions, from a library that is loaded when the first agent of the fabric or
 * group of ranks wants it and stays loaded. Two copies of UCX in one process get in each other's way,
 * so later ones take what the first one found.
 *
 * Threads  any
 */
#pragma once

#include "base/diag.h"

#ifdef WEFT_UCX_LIBRARY /* its headers are to be had */

#include <ucp/api/ucp.h>

#include "base/compiler.h"

typedef struct ucx_functions {
#define UCX_FUNCTION(name) weft_typeof(&(name)) name;
#include "transport/ucx/ucx_functions.def"
#undef UCX_FUNCTION
} ucx_functions_t;

/*
 * path: that library or none; NULL: $WEFT_UCX_LIBRARY, else the one that the build found, else
 * libucp.so.0 of the system. WEFT_ERR_UNSUPPORTED: diag names what was tried and what to install.
 */
weft_status_t ucx_load(const char *path, weft_diag_t *diag, const ucx_functions_t **functions_out);

#endif
