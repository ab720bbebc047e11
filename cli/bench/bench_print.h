/* SPDX-License-Identifier: Apache-2.0 */
/* bench_print: a result to standard output. */
#pragma once

#include "base/buffer.h"
#include "base/status.h"

/* The buffer and an end of line; frees it. WEFT_ERR_IO: it could not be written. */
weft_status_t bench_print_buffer(weft_buffer_t *out);
