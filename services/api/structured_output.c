/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/structured_output.h"

#include <stdio.h>
#include <string.h>

#include "services/api/json_fields.h"
#include "services/api/json_text.h"

static weft_status_t set_source(structured_output_t *output, text_grammar_kind_t kind,
                                const json_t *source, const char *field, weft_arena_t *arena,
                                api_error_t *error)
{
    weft_buffer_t text = {0};

    if (json_is_string(source)) {
        weft_buffer_append(&text, json_string_value(source), json_string_length(source));
    } else {
        json_text_append(source, &text);
    }
    output->length = text.length;
    output->source =
        text.is_failed ? NULL
                       : weft_arena_strndup(arena, text.data != NULL ? text.data : "", text.length);
    weft_buffer_free(&text);
    if (output->source == NULL) {
        return api_error_no_memory(error);
    }
    output->is_set = true;
    output->kind = kind;
    output->field = field;
    return WEFT_OK;
}

weft_status_t structured_output_set_schema(const json_t *schema, const char *field,
                                           weft_arena_t *arena, structured_output_t *output_out,
                                           api_error_t *error)
{
    *output_out = (structured_output_t){0};
    return set_source(output_out, TEXT_GRAMMAR_JSON_SCHEMA, schema, field, arena, error);
}

static weft_status_t read_format(const json_t *format, weft_arena_t *arena,
                                 structured_output_t *output, api_error_t *error)
{
    const char *type = json_string_value(json_object_get(format, "type"));

    if (strcmp(type, "json_object") == 0) {
        *output = (structured_output_t){.is_set = true,
                                        .kind = TEXT_GRAMMAR_JSON_OBJECT,
                                        .source = "",
                                        .field = "response_format"};
    } else if (strcmp(type, "json_schema") == 0) {
        const json_t *holder = json_object_get(format, "json_schema");
        return set_source(output, TEXT_GRAMMAR_JSON_SCHEMA, json_object_get(holder, "schema"),
                          "response_format", arena, error);
    }
    return WEFT_OK;
}

typedef struct option_row {
    const char *name;
    const char *field;
    text_grammar_kind_t kind;
    const char *expectation;
} option_row_t;

static const option_row_t option_rows[] = {
    {"json", "structured_outputs.json", TEXT_GRAMMAR_JSON_SCHEMA,
     "Input should be a valid dictionary or string"},
    {"regex", "structured_outputs.regex", TEXT_GRAMMAR_REGEX, "Input should be a valid string"},
    {"choice", "structured_outputs.choice", TEXT_GRAMMAR_CHOICE,
     "Input should be a list of at least one string"},
    {"grammar", "structured_outputs.grammar", TEXT_GRAMMAR_LARK, "Input should be a valid string"},
    {"json_object", "structured_outputs.json_object", TEXT_GRAMMAR_JSON_OBJECT,
     "Input should be a valid boolean"},
};

static const json_field_t switch_rows[] = {
    {"disable_any_whitespace", JSON_FIELD_BOOL,
     offsetof(text_grammar_options_t, disable_any_whitespace), 0, 0, ""},
    {"disable_additional_properties", JSON_FIELD_BOOL,
     offsetof(text_grammar_options_t, disable_additional_properties), 0, 0, ""},
    {"whitespace_pattern", JSON_FIELD_STR, offsetof(text_grammar_options_t, whitespace_pattern), 0,
     0, ""},
};

static bool is_asked(const json_t *value)
{
    return value != NULL && !json_is_null(value) && !json_is_false(value);
}

/* Whether value is what this kind of constraint is written as. */
static bool fits_kind(const json_t *value, text_grammar_kind_t kind)
{
    switch (kind) {
    case TEXT_GRAMMAR_JSON_SCHEMA:
        return json_is_object(value) || json_is_string(value);
    case TEXT_GRAMMAR_CHOICE:
        for (size_t i = 0; i < json_array_size(value); i++) {
            if (!json_is_string(json_array_get(value, i))) {
                return false;
            }
        }
        return json_array_size(value) > 0;
    case TEXT_GRAMMAR_JSON_OBJECT:
        return json_is_boolean(value);
    default:
        return json_fields_is_text(value);
    }
}

static weft_status_t read_options(const json_t *options, weft_arena_t *arena,
                                  structured_output_t *output, api_error_t *error)
{
    if (is_asked(json_object_get(options, "structural_tag"))) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "structured_outputs.structural_tag",
                             "structural_tag is not supported.");
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(option_rows); i++) {
        const option_row_t *row = &option_rows[i];
        const json_t *value = json_object_get(options, row->name);
        if (!is_asked(value)) {
            continue;
        }
        if (output->is_set) {
            return api_error_set(error, API_ERROR_BAD_REQUEST, "structured_outputs",
                                 "You can only use one kind of structured outputs constraint but "
                                 "multiple are specified: %s and %s",
                                 output->field, row->field);
        }
        if (set_source(output, row->kind, value, row->field, arena, error) != WEFT_OK) {
            return WEFT_ERR_INVALID;
        }
    }
    return WEFT_OK;
}

void structured_output_check_format(const json_t *format, api_error_t *error)
{
    const json_t *type = json_object_get(format, "type");
    const char *name = json_string_value(type);

    if (format == NULL) {
        return;
    }
    if (name == NULL) {
        api_error_violation(error, "response_format.type",
                            type == NULL ? "Field required" : "Input should be a valid string");
    } else if (strcmp(name, "json_schema") == 0) {
        const json_t *holder = json_object_get(format, "json_schema");
        if (!json_is_object(json_object_get(holder, "schema"))) {
            api_error_violation(error, "response_format.json_schema.schema",
                                "Input should be a valid dictionary");
        }
    } else if (strcmp(name, "text") != 0 && strcmp(name, "json_object") != 0) {
        api_error_violation(error, "response_format.type",
                            "Input should be 'text', 'json_object' or 'json_schema'");
    }
}

void structured_output_check(const json_t *options, const char *path, api_error_t *error)
{
    text_grammar_options_t switches;
    char name[96];

    snprintf(name, sizeof(name), "%s%sstructured_outputs", path, path[0] != '\0' ? "." : "");
    json_fields_read(options, switch_rows, WEFT_ARRAY_LEN(switch_rows), name, &switches, error);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(option_rows); i++) {
        const option_row_t *row = &option_rows[i];
        const json_t *value = json_object_get(options, row->name);
        if (is_asked(value) && !fits_kind(value, row->kind)) {
            snprintf(name, sizeof(name), "%s%s%s", path, path[0] != '\0' ? "." : "", row->field);
            api_error_violation(error, name, row->expectation);
        }
    }
}

weft_status_t structured_output_read(const json_t *format, const json_t *options,
                                     weft_arena_t *arena, structured_output_t *output_out,
                                     api_error_t *error)
{
    *output_out = (structured_output_t){0};
    if (format != NULL && read_format(format, arena, output_out, error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    json_fields_read(options, switch_rows, WEFT_ARRAY_LEN(switch_rows), "structured_outputs",
                     &output_out->options, error);
    return options == NULL ? WEFT_OK : read_options(options, arena, output_out, error);
}

weft_status_t structured_output_compile(const structured_output_t *output, const api_model_t *model,
                                        text_grammar_t **grammar_out, api_error_t *error)
{
    weft_diag_t diag = {0};

    *grammar_out = NULL;
    if (!output->is_set) {
        return WEFT_OK;
    }
    if (model->grammars == NULL) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, output->field,
                             "This model does not support structured outputs.");
    }
    weft_status_t status =
        text_grammar_create(model->grammars, output->kind, output->source, output->length,
                            &output->options, &diag, grammar_out);
    return status < 0 ? api_error_from(error, status, &diag, output->field) : WEFT_OK;
}
