/* SPDX-License-Identifier: Apache-2.0 */
/* chat_request: the fields of a chat, and its prompt out of the template. */
#pragma once

#include "services/api/request_common.h"

typedef struct chat_fields {
#define FIELD JSON_FIELD_MEMBER
#include "services/api/chat_fields.def"
#undef FIELD
} chat_fields_t;

chat_fields_t chat_fields_default(void);
void chat_fields_read(const json_t *json, chat_fields_t *fields, api_error_t *error);

/* The prompt's text, freed with text_bytes_free. */
weft_status_t chat_request_render(api_call_t *call, const chat_fields_t *fields,
                                  text_bytes_t *text_out);
