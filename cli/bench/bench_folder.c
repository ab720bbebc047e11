/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_folder.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPEN_FOLDERS 8

weft_status_t bench_folder_create(const char *parent, weft_diag_t *diag,
                                  char path_out[BENCH_FOLDER_BYTES])
{
    char path[BENCH_FOLDER_BYTES];
    const int n = snprintf(path, sizeof(path), "%s/weft-bench-XXXXXX", parent);
    if (n < 0 || (size_t)n >= sizeof(path)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%.64s...: too long a path", parent);
    }
    if (mkdtemp(path) == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: no folder can be made there: %s", parent,
                         strerror(errno));
    }
    memcpy(path_out, path, sizeof(path));
    return WEFT_OK;
}

static int remove_one(const char *path, const struct stat *stat, int kind, struct FTW *where)
{
    (void)stat;
    (void)kind;
    (void)where;
    return remove(path);
}

void bench_folder_remove(const char *path)
{
    if (path[0] != '\0') {
        (void)nftw(path, remove_one, OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS);
    }
}
