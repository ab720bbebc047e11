/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_writer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

void weft_json_init(weft_json_t *json, weft_buffer_t *out)
{
    *json = (weft_json_t){.out = out};
}

static void before_value(weft_json_t *json)
{
    if (json->needs_comma) {
        weft_buffer_append(json->out, ",", 1);
    }
    json->needs_comma = true;
}

static void begin(weft_json_t *json, const char *bracket)
{
    before_value(json);
    weft_buffer_append(json->out, bracket, 1);
    json->needs_comma = false;
}

static void end(weft_json_t *json, const char *bracket)
{
    weft_buffer_append(json->out, bracket, 1);
    json->needs_comma = true;
}

void weft_json_begin_object(weft_json_t *json)
{
    begin(json, "{");
}

void weft_json_end_object(weft_json_t *json)
{
    end(json, "}");
}

void weft_json_begin_array(weft_json_t *json)
{
    begin(json, "[");
}

void weft_json_end_array(weft_json_t *json)
{
    end(json, "]");
}

void weft_json_key(weft_json_t *json, const char *name)
{
    weft_json_string(json, name);
    weft_buffer_append(json->out, ":", 1);
    json->needs_comma = false;
}

static void write_escape(weft_buffer_t *out, unsigned char c)
{
    static const char shorts[] = "\"\"\\\\\bb\ff\nn\rr\tt";

    for (size_t i = 0; i + 1 < sizeof(shorts); i += 2) {
        if (c == (unsigned char)shorts[i]) {
            weft_buffer_append(out, (char[2]){'\\', shorts[i + 1]}, 2);
            return;
        }
    }
    weft_buffer_printf(out, "\\u%04x", c);
}

/* Bytes from the front of text that stand for themselves. */
static size_t plain_length(const char *text, size_t length)
{
    size_t i = 0;
    while (i < length) {
        unsigned char c = (unsigned char)text[i];
        size_t step = c < 0x80 ? 1 : weft_utf8_length(text + i, length - i);
        if (c < 0x20 || c == '"' || c == '\\' || step == 0) {
            break;
        }
        i += step;
    }
    return i;
}

void weft_json_text(weft_json_t *json, const char *text, size_t length)
{
    before_value(json);
    weft_buffer_append(json->out, "\"", 1);
    while (length > 0) {
        size_t plain = plain_length(text, length);
        weft_buffer_append(json->out, text, plain);
        text += plain;
        length -= plain;
        if (length > 0) {
            if ((unsigned char)*text < 0x80) {
                write_escape(json->out, (unsigned char)*text);
            } else {
                weft_buffer_puts(json->out, "\xef\xbf\xbd");
            }
            text++;
            length--;
        }
    }
    weft_buffer_append(json->out, "\"", 1);
}

void weft_json_string(weft_json_t *json, const char *text)
{
    if (text == NULL) {
        weft_json_null(json);
    } else {
        weft_json_text(json, text, strlen(text));
    }
}

void weft_json_i64(weft_json_t *json, int64_t value)
{
    before_value(json);
    weft_buffer_printf(json->out, "%" PRId64, value);
}

void weft_json_u64(weft_json_t *json, uint64_t value)
{
    before_value(json);
    weft_buffer_printf(json->out, "%" PRIu64, value);
}

void weft_json_f64(weft_json_t *json, double value)
{
    char text[40] = "null";

    for (int digits = 15; isfinite(value) && digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    weft_json_raw(json, text, strlen(text));
}

void weft_json_f32(weft_json_t *json, float value)
{
    char text[40] = "null";

    for (int digits = 6; isfinite(value) && digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) {
            break;
        }
    }
    weft_json_raw(json, text, strlen(text));
}

void weft_json_bool(weft_json_t *json, bool value)
{
    weft_json_raw(json, value ? "true" : "false", value ? 4 : 5);
}

void weft_json_null(weft_json_t *json)
{
    weft_json_raw(json, "null", 4);
}

void weft_json_raw(weft_json_t *json, const char *text, size_t length)
{
    before_value(json);
    weft_buffer_append(json->out, text, length);
}

void weft_json_put_string(weft_json_t *json, const char *name, const char *text)
{
    weft_json_key(json, name);
    weft_json_string(json, text);
}

void weft_json_put_i64(weft_json_t *json, const char *name, int64_t value)
{
    weft_json_key(json, name);
    weft_json_i64(json, value);
}

void weft_json_put_u64(weft_json_t *json, const char *name, uint64_t value)
{
    weft_json_key(json, name);
    weft_json_u64(json, value);
}

void weft_json_put_f64(weft_json_t *json, const char *name, double value)
{
    weft_json_key(json, name);
    weft_json_f64(json, value);
}

void weft_json_put_bool(weft_json_t *json, const char *name, bool value)
{
    weft_json_key(json, name);
    weft_json_bool(json, value);
}

void weft_json_put_null(weft_json_t *json, const char *name)
{
    weft_json_key(json, name);
    weft_json_null(json);
}
