/* SPDX-License-Identifier: Apache-2.0 */
/* json_text: a JSON tree as text. */
#pragma once

#include <jansson.h>

#include "base/buffer.h"

/* Appends value as compact JSON. NULL, or what cannot be written, makes the buffer fail. */
void json_text_append(const json_t *value, weft_buffer_t *out);
