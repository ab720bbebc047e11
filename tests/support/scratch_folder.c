/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/scratch_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include "tests/support/check.h"

void scratch_folder_make(char *path_out, size_t size)
{
    const char *root = getenv("TMPDIR");
    snprintf(path_out, size, "%s/weft-test-XXXXXX", root == NULL ? "/tmp" : root);
    assert_non_null(mkdtemp(path_out));
}

void scratch_folder_remove(const char *path)
{
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        (void)unlinkat(dirfd(folder), entry->d_name, 0); /* "." and ".." stay */
    }
    closedir(folder);
    assert_int_equal(rmdir(path), 0);
}
