/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/forced_calls.h"

#include <string.h>

#define CALL_DEPTH 2 /* [ { */

void forced_calls_init(forced_calls_t *calls, const chat_tools_t *tools)
{
    *calls = (forced_calls_t){.name = tools->mode == CHAT_TOOLS_NAMED ? tools->name : NULL};
}

void forced_calls_fini(forced_calls_t *calls)
{
    weft_buffer_free(&calls->word);
}

static bool word_is(const forced_calls_t *calls, const char *text)
{
    size_t length = strlen(text);
    return calls->word.length == length && memcmp(calls->word.data, text, length) == 0;
}

/* A string of a call ended: a key says what comes, the value of "name" begins the call. */
static void end_word(forced_calls_t *calls, text_delta_fn on_delta, void *user)
{
    if (!calls->expects_value) {
        calls->is_key_name = word_is(calls, "\"name\"");
        calls->is_key_parameters = word_is(calls, "\"parameters\"");
    } else if (calls->is_key_name) {
        char *quoted = calls->word.data;
        json_t *name = json_loadb(quoted, calls->word.length, JSON_DECODE_ANY, NULL);
        if (name != NULL) {
            on_delta(user, TEXT_DELTA_TOOL_BEGIN, calls->n_calls++, json_string_value(name),
                     json_string_length(name));
            json_decref(name);
        }
    }
}

static void take_string_char(forced_calls_t *calls, char c, text_delta_fn on_delta, void *user)
{
    bool collects = calls->depth == CALL_DEPTH && !calls->in_arguments;

    if (collects) {
        weft_buffer_append(&calls->word, &c, 1);
    }
    if (calls->is_escaped) {
        calls->is_escaped = false;
    } else if (c == '\\') {
        calls->is_escaped = true;
    } else if (c == '"') {
        calls->in_string = false;
        if (collects) {
            end_word(calls, on_delta, user);
        }
    }
}

/* A character outside of strings. */
static void take_structure(forced_calls_t *calls, char c)
{
    switch (c) {
    case '"':
        calls->in_string = true;
        if (!calls->in_arguments) {
            weft_buffer_clear(&calls->word);
            weft_buffer_append(&calls->word, &c, 1);
        }
        break;
    case '[':
    case '{':
        calls->depth++;
        calls->expects_value = calls->expects_value && calls->depth != CALL_DEPTH;
        break;
    case ']':
    case '}':
        calls->depth -= calls->depth > 0;
        break;
    case ':':
        calls->expects_value = calls->expects_value || calls->depth == CALL_DEPTH;
        break;
    case ',':
        calls->expects_value = calls->expects_value && calls->depth != CALL_DEPTH;
        break;
    default:
        break;
    }
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static void push_array(forced_calls_t *calls, const char *text, size_t length,
                       text_delta_fn on_delta, void *user)
{
    size_t begin = 0; /* of the arguments in this piece */

    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        bool at_value = calls->expects_value && calls->is_key_parameters &&
                        calls->depth == CALL_DEPTH && !calls->in_string;
        if (calls->in_arguments && at_value && (c == ',' || c == '}')) {
            if (i > begin) {
                on_delta(user, TEXT_DELTA_TOOL_ARGUMENTS, calls->n_calls - 1, text + begin,
                         i - begin);
            }
            calls->in_arguments = false;
        } else if (!calls->in_arguments && at_value && !is_space(c) && calls->n_calls > 0) {
            calls->in_arguments = true;
            begin = i;
        }
        if (calls->in_string) {
            take_string_char(calls, c, on_delta, user);
        } else {
            take_structure(calls, c);
        }
    }
    if (calls->in_arguments && length > begin) {
        on_delta(user, TEXT_DELTA_TOOL_ARGUMENTS, calls->n_calls - 1, text + begin, length - begin);
    }
}

void forced_calls_push(forced_calls_t *calls, const char *text, size_t length,
                       text_delta_fn on_delta, void *user)
{
    if (calls->name == NULL) {
        push_array(calls, text, length, on_delta, user);
        return;
    }
    if (calls->n_calls == 0) {
        calls->n_calls = 1;
        on_delta(user, TEXT_DELTA_TOOL_BEGIN, 0, calls->name, strlen(calls->name));
    }
    if (length > 0) {
        on_delta(user, TEXT_DELTA_TOOL_ARGUMENTS, 0, text, length);
    }
}
