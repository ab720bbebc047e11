/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chat_tools: which functions a chat may call and whether it must.
 */
#pragma once

#include <jansson.h>

#include "base/arena.h"
#include "services/api/api_error.h"
#include "services/api/structured_output.h"

typedef enum chat_tool_mode {
    CHAT_TOOLS_NONE,
    CHAT_TOOLS_AUTO,     /* the model decides; its tool parser reads the calls */
    CHAT_TOOLS_NAMED,    /* the answer is one function's arguments */
    CHAT_TOOLS_REQUIRED, /* the answer is an array of {"name", "parameters"} */
} chat_tool_mode_t;

typedef struct chat_tools {
    chat_tool_mode_t mode;
    const char *name; /* of CHAT_TOOLS_NAMED, arena memory */
} chat_tools_t;

/* What the schema of a request says of them; NULL when the request has none. */
void chat_tools_check(const json_t *tools, const json_t *choice, api_error_t *error);

/* tools, choice: checked; NULL when the request has none. */
weft_status_t chat_tools_read(const json_t *tools, const json_t *choice, weft_arena_t *arena,
                              chat_tools_t *tools_out, api_error_t *error);

/* The constraint that makes the answer one of the calls; for the last two modes. */
weft_status_t chat_tools_constrain(const chat_tools_t *chat, const json_t *tools, bool is_parallel,
                                   weft_arena_t *arena, structured_output_t *output_out,
                                   api_error_t *error);
