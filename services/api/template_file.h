/* SPDX-License-Identifier: Apache-2.0 */
/* template_file: --chat-template, the path of a file or the template itself. */
#pragma once

#include "base/buffer.h"
#include "base/diag.h"

/* given is the template when it holds a brace or a line end, else a path. */
weft_status_t template_file_read(const char *given, weft_buffer_t *source_out, weft_diag_t *diag);
