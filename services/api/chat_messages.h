/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chat_messages: a chat's messages as templates take them.
 *
 * Text parts are joined (or kept as parts when the template loops over them), the arguments of
 * tool calls become objects, and "developer" is "system" to a template that does not know it.
 */
#pragma once

#include <jansson.h>

#include "services/api/api_model.h"

/* What the schema of a request says of its messages: a violation for each that is wrong. */
void chat_messages_check(const json_t *messages, api_error_t *error);

/* messages: checked. A new tree, the caller's. */
weft_status_t chat_messages_normalize(const json_t *messages, const api_model_t *model,
                                      json_t **messages_out, api_error_t *error);

/* Whether a template loops over a message's content, judged by its text. */
bool chat_messages_template_takes_parts(const char *source, size_t length);
