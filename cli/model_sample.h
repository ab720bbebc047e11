/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_sample: a name for what is in a model's files, made in a moment: ranks that map a file of
 * hundreds of gigabytes can tell that they mean the same one. SHA-256 of every small file, and of the
 * size, the beginning and places all over of every large one. Not proof against somebody who builds
 * two files to look alike.
 */
#pragma once

#include <stddef.h>

#include "base/diag.h"

#define MODEL_SAMPLE_TEXT 65

/* path: a model's file or folder. text_out: 64 hexadecimal digits. Where files lie does not count. */
weft_status_t model_sample(const char *path, weft_diag_t *diag, char text_out[MODEL_SAMPLE_TEXT]);
