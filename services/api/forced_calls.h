/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forced_calls: reads tool calls out of an answer that a grammar made one: the arguments of a
 * named function, or an array of {"name": …, "parameters": …}.
 *
 * Takes the text in pieces of any size; memory is bounded by the longest function name.
 */
#pragma once

#include "base/buffer.h"
#include "services/api/chat_tools.h"

typedef struct forced_calls {
    const char *name; /* CHAT_TOOLS_NAMED; NULL: an array */
    uint32_t n_calls;
    uint32_t depth; /* of brackets */
    bool in_string;
    bool is_escaped;
    bool expects_value; /* after the colon of a member of a call */
    bool in_arguments;
    weft_buffer_t word; /* the string being read at depth 2, as JSON */
    bool is_key_parameters;
    bool is_key_name;
} forced_calls_t;

void forced_calls_init(forced_calls_t *calls, const chat_tools_t *tools);
void forced_calls_fini(forced_calls_t *calls);
void forced_calls_push(forced_calls_t *calls, const char *text, size_t length,
                       text_delta_fn on_delta, void *user);
