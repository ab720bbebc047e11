/* SPDX-License-Identifier: Apache-2.0 */
/* scratch_folder: a folder of a test's own, and its end. */
#pragma once

#include <stddef.h>

/* Made under TMPDIR or /tmp; its path, in path_out [size]. */
void scratch_folder_make(char *path_out, size_t size);
void scratch_folder_remove(const char *path); /* with the files in it */
