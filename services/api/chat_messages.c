/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/chat_messages.h"

#include <stdio.h>
#include <string.h>

static void violation(api_error_t *error, size_t index, const char *member, const char *text)
{
    char path[64];

    snprintf(path, sizeof(path), "messages.%zu.%s", index, member);
    api_error_violation(error, path, text);
}

/* The text of a content part, borrowed; NULL when it is not text. */
static const json_t *part_text(const json_t *part)
{
    static const char *const members[] = {"text", "refusal", "thinking"};

    if (json_is_string(part)) {
        return part;
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(members); i++) {
        const json_t *text = json_object_get(part, members[i]);
        if (json_is_string(text)) {
            return text;
        }
    }
    return NULL;
}

/* A part that is wrongly written, not one of a kind that is known and not taken. */
static bool is_malformed_part(const json_t *part)
{
    const char *type = json_string_value(json_object_get(part, "type"));

    return part_text(part) == NULL && (type == NULL || strcmp(type, "text") == 0);
}

static void check_content(const json_t *content, size_t index, api_error_t *error)
{
    bool is_valid = content == NULL || json_is_null(content) || json_is_string(content) ||
                    json_is_array(content);

    for (size_t i = 0; i < json_array_size(content); i++) {
        is_valid = is_valid && !is_malformed_part(json_array_get(content, i));
    }
    if (!is_valid) {
        violation(error, index, "content", "Input should be a string or a list of parts");
    }
}

void chat_messages_check(const json_t *messages, api_error_t *error)
{
    if (json_array_size(messages) == 0) {
        api_error_violation(error, "messages", "List should have at least 1 item");
    }
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *message = json_array_get(messages, i);
        const json_t *role = json_object_get(message, "role");
        if (!json_is_object(message)) {
            violation(error, i, "role", "Input should be a valid dictionary");
            continue;
        }
        if (!json_is_string(role) || json_string_length(role) == 0) {
            violation(error, i, "role",
                      role == NULL ? "Field required" : "Input should be a valid string");
        }
        check_content(json_object_get(message, "content"), i, error);
    }
}

static weft_status_t refuse_part(api_error_t *error, const json_t *part)
{
    return api_error_set(error, API_ERROR_BAD_REQUEST, "messages",
                         "This model takes text only; a content part of type '%.40s' is not "
                         "supported.",
                         json_string_value(json_object_get(part, "type")));
}

static weft_status_t join_parts(const json_t *parts, json_t **content_out, api_error_t *error)
{
    weft_buffer_t joined = {0};

    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *text = part_text(json_array_get(parts, i));
        if (text == NULL) {
            weft_buffer_free(&joined);
            return refuse_part(error, json_array_get(parts, i));
        }
        weft_buffer_append(&joined, "\n", i > 0);
        weft_buffer_append(&joined, json_string_value(text), json_string_length(text));
    }
    *content_out = json_stringn(joined.data != NULL ? joined.data : "", joined.length);
    bool is_complete = !joined.is_failed && *content_out != NULL;
    weft_buffer_free(&joined);
    return is_complete ? WEFT_OK : api_error_no_memory(error);
}

/* A new reference; NULL: no memory. */
static json_t *text_part(const json_t *text)
{
    return json_pack("{s:s,s:o}", "type", "text", "text",
                     json_stringn(json_string_value(text), json_string_length(text)));
}

static weft_status_t keep_parts(const json_t *content, json_t **content_out, api_error_t *error)
{
    json_t *parts = json_array();
    size_t count = json_is_array(content) ? json_array_size(content) : 1;

    for (size_t i = 0; i < count; i++) {
        const json_t *part = json_is_array(content) ? json_array_get(content, i) : content;
        const json_t *text = part_text(part);
        if (text == NULL) {
            json_decref(parts);
            return refuse_part(error, part);
        }
        if (json_array_append_new(parts, text_part(text)) != 0) {
            json_decref(parts);
            return api_error_no_memory(error);
        }
    }
    *content_out = parts;
    return WEFT_OK;
}

static weft_status_t set_content(json_t *message, const api_model_t *model, api_error_t *error)
{
    const json_t *content = json_object_get(message, "content");
    json_t *normal = NULL;
    weft_status_t status = WEFT_OK;

    if (content == NULL || json_is_null(content)) {
        normal = model->template_takes_parts ? json_array() : json_string("");
    } else if (model->template_takes_parts) {
        status = keep_parts(content, &normal, error);
    } else if (json_is_array(content)) {
        status = join_parts(content, &normal, error);
    }
    bool is_replaced = normal != NULL || content == NULL || json_is_null(content);
    if (status < 0) {
        json_decref(normal);
        return status;
    }
    return is_replaced && json_object_set_new(message, "content", normal) != 0
               ? api_error_no_memory(error)
               : WEFT_OK;
}

/* Arguments come as the JSON text the model wrote; templates want the object. */
static int parse_arguments(json_t *message)
{
    json_t *calls = json_object_get(message, "tool_calls");
    int failed = 0;

    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *function = json_object_get(json_array_get(calls, i), "function");
        const json_t *text = json_object_get(function, "arguments");
        if (json_is_string(text) && json_string_length(text) == 0) {
            failed |= json_object_set_new(function, "arguments", json_object());
        } else if (json_is_string(text)) {
            json_error_t detail;
            json_t *parsed = json_loadb(json_string_value(text), json_string_length(text),
                                        JSON_ALLOW_NUL, &detail);
            if (parsed != NULL) {
                failed |= json_object_set_new(function, "arguments", parsed);
            }
            failed |= parsed == NULL && json_error_code(&detail) == json_error_out_of_memory;
        }
    }
    if (calls != NULL && (json_is_null(calls) || json_array_size(calls) == 0)) {
        json_object_del(message, "tool_calls"); /* templates ask whether it is there */
    }
    return failed;
}

/* Templates of reasoning models read the older member name. */
static int copy_reasoning(json_t *message)
{
    json_t *reasoning = json_object_get(message, "reasoning");

    if (!json_is_string(reasoning) || json_object_get(message, "reasoning_content") != NULL) {
        return 0;
    }
    return json_object_set(message, "reasoning_content", reasoning);
}

static weft_status_t normalize_message(json_t *message, const api_model_t *model,
                                       api_error_t *error)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    bool is_renamed = strcmp(role, "developer") == 0 && !model->template_knows_developer;
    if ((is_renamed && json_object_set_new(message, "role", json_string("system")) != 0) ||
        parse_arguments(message) != 0 || copy_reasoning(message) != 0) {
        return api_error_no_memory(error);
    }
    return set_content(message, model, error);
}

weft_status_t chat_messages_normalize(const json_t *messages, const api_model_t *model,
                                      json_t **messages_out, api_error_t *error)
{
    json_t *copy = json_deep_copy(messages);
    if (copy == NULL) {
        return api_error_no_memory(error);
    }
    for (size_t i = 0; i < json_array_size(copy); i++) {
        if (normalize_message(json_array_get(copy, i), model, error) != WEFT_OK) {
            json_decref(copy);
            return WEFT_ERR_INVALID;
        }
    }
    *messages_out = copy;
    return WEFT_OK;
}

bool chat_messages_template_takes_parts(const char *source, size_t length)
{
    static const char *const loops[] = {
        " in message['content']", " in message[\"content\"]", " in message.content", " in content ",
        " in content%}",          " in msg.content",          " in msg['content']",
    };

    for (size_t i = 0; i < WEFT_ARRAY_LEN(loops); i++) {
        const char *found = memmem(source, length, loops[i], strlen(loops[i]));
        /* "{% if '<think>' in content %}" asks a string; only a for loop takes parts. */
        while (found != NULL) {
            const char *tag = found;
            while (tag > source && tag[-1] != '%') {
                tag--;
            }
            size_t room = (size_t)(found - tag);
            if (memmem(tag, room, "for ", 4) != NULL) {
                return true;
            }
            size_t rest = length - (size_t)(found + 1 - source);
            found = memmem(found + 1, rest, loops[i], strlen(loops[i]));
        }
    }
    return false;
}
