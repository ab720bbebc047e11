/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/weight_cache.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* So that the weights begin on a page. */
#define HEADER_BYTES 4096

/* In this machine's byte order: packed weights are of no use to another. */
typedef struct header {
    char magic[8];
    weight_cache_key_t key;
    uint64_t bytes; /* of weights */
    uint8_t unused[HEADER_BYTES - 32];
} header_t;
static_assert(sizeof(header_t) == HEADER_BYTES, "a page");

static const char magic[8] = "WEFTPACK";

static header_t header_of(const weight_cache_key_t *key, size_t bytes)
{
    header_t header = {.key = *key, .bytes = bytes};
    memcpy(header.magic, magic, sizeof(magic));
    return header;
}

weft_status_t weight_cache_open(const char *path, const weight_cache_key_t *key, size_t bytes,
                                weft_diag_t *diag, weft_mapped_file_t *file_out,
                                const void **weights_out)
{
    weft_mapped_file_t file = {0};
    weft_status_t status = weft_mapped_file_open(path, diag, &file);
    if (status == WEFT_ERR_INVALID) {
        status = WEFT_ERR_MALFORMED; /* empty: a diag line is there */
    }
    if (status < 0) {
        return status;
    }
    const header_t header = header_of(key, bytes);
    if (file.length < sizeof(header) || file.length - sizeof(header) != bytes ||
        memcmp(file.data, &header, sizeof(header)) != 0) {
        weft_mapped_file_close(&file);
        return weft_diag(diag, WEFT_ERR_MALFORMED,
                         "%s: not the packed weights of this model for this machine", path);
    }
    /* All of it is read once a token: ask for it before the first one. */
    (void)madvise((void *)(uintptr_t)file.data, file.length, MADV_WILLNEED);
    *weights_out = (const char *)file.data + sizeof(header);
    *file_out = file;
    return WEFT_OK;
}

static weft_status_t fail(weft_diag_t *diag, const char *path, const char *what)
{
    return weft_diag(diag, WEFT_ERR_IO, "%s: %s: %s", path, what, strerror(errno));
}

static int write_all(int fd, const void *data, size_t bytes)
{
    const char *at = data;
    while (bytes > 0) {
        const ssize_t n = write(fd, at, bytes);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -1;
        }
        at += n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Readable by whoever may read the model, which lies beside it. */
static int write_file(int fd, const header_t *header, const void *weights, size_t bytes)
{
    return fchmod(fd, 0644) != 0 || write_all(fd, header, sizeof(*header)) != 0 ||
                   write_all(fd, weights, bytes) != 0 || fsync(fd) != 0
               ? -1
               : 0;
}

weft_status_t weight_cache_save(const char *path, const weight_cache_key_t *key,
                                const void *weights, size_t bytes, weft_diag_t *diag)
{
    char temporary[PATH_MAX];
    const int length = snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path);
    if (length < 0 || (size_t)length >= sizeof(temporary)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: too long a name", path);
    }
    const int fd = mkstemp(temporary);
    if (fd < 0) {
        return fail(diag, path, "cannot be made");
    }
    const header_t header = header_of(key, bytes);
    weft_status_t status = WEFT_OK;
    if (write_file(fd, &header, weights, bytes) != 0) {
        status = fail(diag, path, "cannot be written");
    }
    if (close(fd) != 0 && status >= 0) {
        status = fail(diag, path, "cannot be written");
    }
    if (status >= 0 && rename(temporary, path) != 0) {
        status = fail(diag, path, "cannot be put in place");
    }
    if (status < 0) {
        (void)unlink(temporary);
    }
    return status;
}
