/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mapped_file: a regular file's bytes, mapped read-only and private; the descriptor is closed.
 *
 * Limits   a file that another process truncates while it is mapped makes reads of the lost pages
 *          raise SIGBUS. Nobody can guard against that from here: replace model files by rename
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

/* Differs where the file is another one, or was written to or replaced since. */
typedef struct weft_file_stamp {
    uint64_t device;
    uint64_t inode;
    uint64_t bytes;
    uint64_t modified_ns;
    uint64_t changed_ns;
} weft_file_stamp_t;

typedef struct weft_mapped_file {
    const void *data; /* [length], page-aligned; NULL when nothing is mapped */
    size_t length;
    weft_file_stamp_t stamp; /* when it was opened */
} weft_mapped_file_t;

/*
 * WEFT_ERR_NOT_FOUND: no such file. WEFT_ERR_INVALID: empty, or not a regular file (a FIFO does not
 * make this wait). The line in diag names path.
 */
weft_status_t weft_mapped_file_open(const char *path, weft_diag_t *diag,
                                    weft_mapped_file_t *file_out);
void weft_mapped_file_close(weft_mapped_file_t *file); /* unmapped is fine */
