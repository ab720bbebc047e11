/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli_input.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

#define MAX_FILE_BYTES ((size_t)64 << 20)

static weft_status_t read_stream(FILE *file, const char *path, weft_buffer_t *text,
                                 weft_diag_t *diag)
{
    char piece[65536];
    size_t n;
    while ((n = fread(piece, 1, sizeof(piece), file)) > 0) {
        weft_buffer_append(text, piece, n);
        if (text->length > MAX_FILE_BYTES) {
            return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%s: over %zu MiB", path,
                             MAX_FILE_BYTES >> 20);
        }
    }
    if (ferror(file)) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: %s", path, strerror(errno));
    }
    return text->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

weft_status_t cli_read_file(const char *path, weft_buffer_t *text, weft_diag_t *diag)
{
    if (strcmp(path, "-") == 0) {
        return read_stream(stdin, "standard input", text, diag);
    }
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: %s", path, strerror(errno));
    }
    const weft_status_t status = read_stream(file, path, text, diag);
    fclose(file);
    return status;
}

weft_status_t cli_parse_ids(const char *text, const char *where, int64_t limit, weft_diag_t *diag,
                            int32_t **ids_out, uint32_t *n_out)
{
    const size_t most = strlen(text) / 2 + 1;
    int32_t *ids = weft_calloc(most, sizeof(int32_t), "cli.ids");
    if (ids == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    uint32_t n = 0;
    const char *at = text + strspn(text, " \t\r\n");
    bool is_done = *at == '\0';
    while (!is_done) {
        char *end;
        errno = 0;
        const long id = strtol(at, &end, 10);
        if (end == at || errno != 0 || id < 0 || id >= limit) {
            weft_free(ids);
            return weft_diag(diag, WEFT_ERR_INVALID, "%s: \"%.20s\" is no token id from 0 to %lld",
                             where, at, (long long)limit - 1);
        }
        ids[n++] = (int32_t)id;
        while (isspace((unsigned char)*end)) {
            end++;
        }
        is_done = *end == '\0';
        at = *end == ',' ? end + 1 : end;
    }
    *ids_out = ids;
    *n_out = n;
    return WEFT_OK;
}
