/* SPDX-License-Identifier: Apache-2.0 */
/* bench_folder: a folder of our own, for the time of a measurement. */
#pragma once

#include "base/diag.h"

#define BENCH_FOLDER_BYTES 512 /* of a path */

/* Made in parent, which is there. */
weft_status_t bench_folder_create(const char *parent, weft_diag_t *diag,
                                  char path_out[BENCH_FOLDER_BYTES]);
void bench_folder_remove(const char *path); /* and all that is in it; "" is fine */
