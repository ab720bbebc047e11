/* SPDX-License-Identifier: Apache-2.0 */
#include "base/arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

#define CHUNK_BYTES 4096

struct weft_arena_chunk {
    weft_arena_chunk_t *next;
    size_t used;
    size_t capacity;
    max_align_t data[];
};

static weft_arena_chunk_t *add_chunk(weft_arena_t *arena, size_t size)
{
    size_t capacity = size > CHUNK_BYTES ? size : CHUNK_BYTES;
    weft_arena_chunk_t *chunk =
        weft_zalloc(offsetof(weft_arena_chunk_t, data) + capacity, "base.arena");

    if (chunk != NULL) {
        chunk->capacity = capacity;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    return chunk;
}

void *weft_arena_alloc(weft_arena_t *arena, size_t size)
{
    if (size > SIZE_MAX / 2) {
        return NULL;
    }
    size_t rounded = (size + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    weft_arena_chunk_t *chunk = arena->chunks;

    if (chunk == NULL || chunk->capacity - chunk->used < rounded) {
        chunk = add_chunk(arena, rounded);
        if (chunk == NULL) {
            return NULL;
        }
    }
    void *memory = (char *)chunk->data + chunk->used;
    chunk->used += rounded;
    return memory;
}

void *weft_arena_calloc(weft_arena_t *arena, size_t count, size_t size)
{
    return size > 0 && count > SIZE_MAX / size ? NULL : weft_arena_alloc(arena, count * size);
}

char *weft_arena_strndup(weft_arena_t *arena, const char *text, size_t length)
{
    char *copy = weft_arena_alloc(arena, length + 1);
    if (copy != NULL) {
        memcpy(copy, text, length);
    }
    return copy;
}

char *weft_arena_strdup(weft_arena_t *arena, const char *text)
{
    return weft_arena_strndup(arena, text, strlen(text));
}

char *weft_arena_vprintf(weft_arena_t *arena, const char *format, va_list arguments)
{
    va_list again;
    va_copy(again, arguments);
    const int length = vsnprintf(NULL, 0, format, arguments);
    char *text = length < 0 ? NULL : weft_arena_alloc(arena, (size_t)length + 1);
    if (text != NULL) {
        vsnprintf(text, (size_t)length + 1, format, again);
    }
    va_end(again);
    return text;
}

char *weft_arena_printf(weft_arena_t *arena, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *text = weft_arena_vprintf(arena, format, arguments);
    va_end(arguments);
    return text;
}

void weft_arena_free(weft_arena_t *arena)
{
    while (arena->chunks != NULL) {
        weft_arena_chunk_t *next = arena->chunks->next;
        weft_free(arena->chunks);
        arena->chunks = next;
    }
}
