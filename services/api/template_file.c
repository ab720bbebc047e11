/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/template_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MAX_TEMPLATE_BYTES (1 << 20)

weft_status_t template_file_read(const char *given, weft_buffer_t *source_out, weft_diag_t *diag)
{
    char piece[4096];

    if (strpbrk(given, "{}\n") != NULL) {
        weft_buffer_puts(source_out, given);
        return source_out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    FILE *file = fopen(given, "r");
    if (file == NULL) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "--chat-template %s: %s", given,
                         strerror(errno));
    }
    size_t n;
    while ((n = fread(piece, 1, sizeof(piece), file)) > 0 &&
           source_out->length <= MAX_TEMPLATE_BYTES) {
        weft_buffer_append(source_out, piece, n);
    }
    bool is_broken = ferror(file) != 0;
    fclose(file);
    if (is_broken) {
        return weft_diag(diag, WEFT_ERR_IO, "--chat-template %s: cannot be read", given);
    }
    if (source_out->length > MAX_TEMPLATE_BYTES) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "--chat-template %s: over 1 MiB", given);
    }
    return source_out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}
