/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weight_cache: a model's matrices as they were packed for this machine, in a file: read at the next
 * start instead of packed anew.
 *
 * The file is a page of header, then the matrices as they lay in memory. It is written under another
 * name, forced to the disk, and renamed: there is all of it or none. Its key says of what and for what
 * it was packed; a file of another key or length is as good as none, and is replaced by the next save.
 *
 * Trust  whoever may write the file may change the model: it lies beside the model's own files
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/mapped_file.h"
#include "base/status.h"

typedef struct weight_cache_key {
    uint8_t bytes[16];
} weight_cache_key_t;

/*
 * WEFT_ERR_NOT_FOUND: there is no such file. WEFT_ERR_MALFORMED: it is another key's, not `bytes`
 * long, or no such file at all. weights_out [bytes], page-aligned, until file_out is closed.
 */
weft_status_t weight_cache_open(const char *path, const weight_cache_key_t *key, size_t bytes,
                                weft_diag_t *diag, weft_mapped_file_t *file_out,
                                const void **weights_out);

weft_status_t weight_cache_save(const char *path, const weight_cache_key_t *key,
                                const void *weights, size_t bytes, weft_diag_t *diag);
