/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

static bool reserve(weft_buffer_t *buffer, size_t extra)
{
    if (buffer->is_failed) {
        return false;
    }
    if (extra <= buffer->capacity - buffer->length) {
        return true;
    }
    size_t capacity = buffer->capacity < 256 ? 256 : buffer->capacity;
    while (capacity - buffer->length < extra) {
        if (capacity > SIZE_MAX / 2) {
            buffer->is_failed = true;
            return false;
        }
        capacity *= 2;
    }
    char *data = weft_realloc(buffer->data, capacity, "base.buffer");
    if (data == NULL) {
        buffer->is_failed = true;
        return false;
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

void weft_buffer_append(weft_buffer_t *buffer, const void *data, size_t length)
{
    if (length > 0 && reserve(buffer, length)) {
        memcpy(buffer->data + buffer->length, data, length);
        buffer->length += length;
    }
}

void weft_buffer_puts(weft_buffer_t *buffer, const char *text)
{
    weft_buffer_append(buffer, text, strlen(text));
}

void weft_buffer_printf(weft_buffer_t *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) {
        buffer->is_failed = true;
        return;
    }
    if (!reserve(buffer, (size_t)length + 1)) {
        return;
    }
    va_start(arguments, format);
    vsnprintf(buffer->data + buffer->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    buffer->length += (size_t)length;
}

void weft_buffer_drop_front(weft_buffer_t *buffer, size_t n)
{
    if (n == 0) {
        return;
    }
    buffer->length -= n;
    memmove(buffer->data, buffer->data + n, buffer->length);
    const size_t capacity = buffer->length < 256 ? 256 : buffer->length * 2;
    if (buffer->capacity / 4 >= capacity) {
        char *data = weft_realloc(buffer->data, capacity, "base.buffer");
        if (data != NULL) { /* else the larger one serves on */
            buffer->data = data;
            buffer->capacity = capacity;
        }
    }
}

char *weft_buffer_take(weft_buffer_t *buffer, size_t *length_out)
{
    weft_buffer_append(buffer, "", 1);
    if (buffer->is_failed) {
        weft_buffer_free(buffer);
        return NULL;
    }
    char *data = buffer->data;
    if (length_out != NULL) {
        *length_out = buffer->length - 1;
    }
    *buffer = (weft_buffer_t){0};
    return data;
}

void weft_buffer_clear(weft_buffer_t *buffer)
{
    buffer->length = 0;
    buffer->is_failed = false;
}

void weft_buffer_free(weft_buffer_t *buffer)
{
    if (buffer != NULL) {
        weft_free(buffer->data);
        *buffer = (weft_buffer_t){0};
    }
}
