/* SPDX-License-Identifier: Apache-2.0 */
/* cli_input: what a person gives commands besides flags: files, lists of token ids. */
#pragma once

#include <stdint.h>

#include "base/buffer.h"
#include "base/diag.h"

/* Appends what the file holds, at most 64 MiB; "-" is standard input. diag names the file. */
weft_status_t cli_read_file(const char *path, weft_buffer_t *text, weft_diag_t *diag);

/*
 * "1,2,3" or nothing, blanks allowed, ids below limit. where: what a fault is told of, "--prompt-ids". Free
 * *ids_out [*n_out] with weft_free.
 */
weft_status_t cli_parse_ids(const char *text, const char *where, int64_t limit, weft_diag_t *diag,
                            int32_t **ids_out, uint32_t *n_out);
