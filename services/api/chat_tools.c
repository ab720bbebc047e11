/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/chat_tools.h"

#include <stdio.h>
#include <string.h>

#include "services/api/json_fields.h"

/* NULL: it has none, or one with a NUL inside. */
static const char *tool_name(const json_t *tool)
{
    const json_t *name = json_object_get(json_object_get(tool, "function"), "name");

    return json_fields_is_text(name) ? json_string_value(name) : NULL;
}

static const json_t *find_tool(const json_t *tools, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const char *candidate = tool_name(json_array_get(tools, i));
        if (candidate != NULL && strcmp(candidate, name) == 0) {
            return json_array_get(tools, i);
        }
    }
    return NULL;
}

static bool is_choice(const json_t *choice)
{
    static const char *const words[] = {"none", "auto", "required"};
    const char *word = json_string_value(choice);

    for (size_t i = 0; word != NULL && i < WEFT_ARRAY_LEN(words); i++) {
        if (strcmp(word, words[i]) == 0) {
            return true;
        }
    }
    return tool_name(choice) != NULL;
}

void chat_tools_check(const json_t *tools, const json_t *choice, api_error_t *error)
{
    char path[64];

    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        const char *name = tool_name(tool);
        const json_t *parameters = json_object_get(json_object_get(tool, "function"), "parameters");
        if (name == NULL || name[0] == '\0') {
            snprintf(path, sizeof(path), "tools.%zu.function.name", i);
            api_error_violation(error, path,
                                json_object_get(json_object_get(tool, "function"), "name") == NULL
                                    ? "Field required"
                                    : "Input should be a valid string, not empty");
        }
        if (parameters != NULL && !json_is_null(parameters) && !json_is_object(parameters)) {
            snprintf(path, sizeof(path), "tools.%zu.function.parameters", i);
            api_error_violation(error, path, "Input should be a valid dictionary");
        }
    }
    if (choice != NULL && !is_choice(choice)) {
        api_error_violation(error, "tool_choice",
                            "Input should be 'none', 'auto', 'required' or a function");
    }
}

static weft_status_t read_choice(const json_t *tools, const json_t *choice, weft_arena_t *arena,
                                 chat_tools_t *out, api_error_t *error)
{
    const char *word = json_string_value(choice);

    if (word != NULL && strcmp(word, "none") == 0) {
        return WEFT_OK;
    }
    if (json_array_size(tools) == 0) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "tool_choice",
                             "When using `tool_choice`, `tools` must be set.");
    }
    if (word != NULL && (strcmp(word, "auto") == 0 || strcmp(word, "required") == 0)) {
        out->mode = word[0] == 'a' ? CHAT_TOOLS_AUTO : CHAT_TOOLS_REQUIRED;
        return WEFT_OK;
    }
    const char *name = tool_name(choice);
    if (find_tool(tools, name) == NULL) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "tool_choice",
                             "The tool specified in `tool_choice` does not match any of the "
                             "specified `tools`");
    }
    out->mode = CHAT_TOOLS_NAMED;
    out->name = weft_arena_strdup(arena, name);
    return out->name != NULL ? WEFT_OK : api_error_no_memory(error);
}

weft_status_t chat_tools_read(const json_t *tools, const json_t *choice, weft_arena_t *arena,
                              chat_tools_t *tools_out, api_error_t *error)
{
    *tools_out = (chat_tools_t){0};
    if (choice == NULL) {
        tools_out->mode = json_array_size(tools) > 0 ? CHAT_TOOLS_AUTO : CHAT_TOOLS_NONE;
        return WEFT_OK;
    }
    return read_choice(tools, choice, arena, tools_out, error);
}

/* A new reference: the tool's schema, or that of an object without members. */
static json_t *parameters_of(const json_t *tool)
{
    json_t *given = json_object_get(json_object_get(tool, "function"), "parameters");

    return json_is_object(given) ? json_deep_copy(given)
                                 : json_pack("{s:s,s:{}}", "type", "object", "properties");
}

/* "$ref": "#/$defs/x" means the root: a schema that moves inward leaves its definitions there. */
static int hoist_definitions(json_t *root, json_t *schema)
{
    static const char *const names[] = {"$defs", "definitions"};
    int failed = 0;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        json_t *inner = json_object_get(schema, names[i]);
        if (!json_is_object(inner)) {
            continue;
        }
        if (json_object_get(root, names[i]) == NULL) {
            failed |= json_object_set_new(root, names[i], json_object());
        }
        failed |= json_object_update(json_object_get(root, names[i]), inner);
        json_object_del(schema, names[i]);
    }
    return failed;
}

/* A new reference; NULL: no memory, so for the next. */
static json_t *call_schema(json_t *root, const json_t *tool)
{
    json_t *parameters = parameters_of(tool);

    if (hoist_definitions(root, parameters) != 0) {
        json_decref(parameters);
        return NULL;
    }
    return json_pack("{s:s,s:{s:{s:s},s:o},s:[s,s],s:b}", "type", "object", "properties", "name",
                     "const", tool_name(tool), "parameters", parameters, "required", "name",
                     "parameters", "additionalProperties", 0);
}

static json_t *calls_schema(const json_t *tools, bool is_parallel)
{
    json_t *root =
        json_pack("{s:s,s:i,s:{s:[]}}", "type", "array", "minItems", 1, "items", "anyOf");
    json_t *alternatives = json_object_get(json_object_get(root, "items"), "anyOf");
    int failed = 0;

    for (size_t i = 0; i < json_array_size(tools); i++) {
        failed |= json_array_append_new(alternatives, call_schema(root, json_array_get(tools, i)));
    }
    if (!is_parallel) {
        failed |= json_object_set_new(root, "maxItems", json_integer(1));
    }
    if (failed != 0) {
        json_decref(root);
        return NULL;
    }
    return root;
}

weft_status_t chat_tools_constrain(const chat_tools_t *chat, const json_t *tools, bool is_parallel,
                                   weft_arena_t *arena, structured_output_t *output_out,
                                   api_error_t *error)
{
    json_t *schema = chat->mode == CHAT_TOOLS_NAMED ? parameters_of(find_tool(tools, chat->name))
                                                    : calls_schema(tools, is_parallel);
    weft_status_t status =
        schema == NULL ? api_error_no_memory(error)
                       : structured_output_set_schema(schema, "tools", arena, output_out, error);

    json_decref(schema);
    return status;
}
