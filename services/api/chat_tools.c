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

static bool is_named(const char *key, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(key, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* "#" and "#/…" mean the schema's root, which now lies at place. */
static int move_reference(json_t *schema, const char *place)
{
    const char *target = json_string_value(json_object_get(schema, "$ref"));

    if (target == NULL || target[0] != '#' || (target[1] != '\0' && target[1] != '/')) {
        return 0;
    }
    return json_object_set_new(schema, "$ref", json_sprintf("%s%s", place, target + 1));
}

/*
 * Makes a schema that moves inward refer to its own parts: tools may have definitions of one name
 * that say different things. Parts with an "$id" are roots of their own. Recurses as deep as the
 * parser of JSON lets a body nest.
 */
static int move_references(json_t *schema, const char *place)
{
    static const char *const maps[] = {"properties", "patternProperties", "$defs", "definitions",
                                       "dependentSchemas"};
    static const char *const data[] = {"const", "enum", "default", "examples"};
    const char *key;
    json_t *value;
    json_t *inner;
    size_t i;

    if (json_object_get(schema, "$id") != NULL) {
        return 0;
    }
    int failed = move_reference(schema, place);
    json_array_foreach(schema, i, value)
    {
        failed |= move_references(value, place);
    }
    json_object_foreach(schema, key, value)
    {
        const char *name;
        if (is_named(key, data, WEFT_ARRAY_LEN(data))) {
            continue;
        }
        if (!is_named(key, maps, WEFT_ARRAY_LEN(maps))) {
            failed |= move_references(value, place);
            continue;
        }
        json_object_foreach(value, name, inner)
        {
            failed |= move_references(inner, place);
        }
    }
    return failed;
}

/* The call of the i-th tool. A new reference; NULL: no memory, so for the next. */
static json_t *call_schema(const json_t *tool, size_t i)
{
    json_t *parameters = parameters_of(tool);
    char place[64];

    snprintf(place, sizeof(place), "#/items/anyOf/%zu/properties/parameters", i);
    json_object_del(parameters, "$id");
    if (move_references(parameters, place) != 0) {
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
        failed |= json_array_append_new(alternatives, call_schema(json_array_get(tools, i), i));
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
