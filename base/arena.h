/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arena: many small things that die together. Zeroed memory is an empty arena.
 *
 * Threads  one at a time
 */
#pragma once

#include <stdarg.h>
#include <stddef.h>

#include "base/compiler.h"

typedef struct weft_arena_chunk weft_arena_chunk_t;

typedef struct weft_arena {
    weft_arena_chunk_t *chunks; /* the newest first */
} weft_arena_t;

/* Zeroed, aligned for any type; NULL when there is no memory. */
void *weft_arena_alloc(weft_arena_t *arena, size_t size);

/* count × size; NULL also when the product overflows. */
void *weft_arena_calloc(weft_arena_t *arena, size_t count, size_t size);

/* A terminated copy of text [length]. */
char *weft_arena_strndup(weft_arena_t *arena, const char *text, size_t length);
char *weft_arena_strdup(weft_arena_t *arena, const char *text);
char *weft_arena_printf(weft_arena_t *arena, const char *format, ...) WEFT_PRINTF(2, 3);
char *weft_arena_vprintf(weft_arena_t *arena, const char *format, va_list arguments)
    WEFT_PRINTF(2, 0);

void weft_arena_free(weft_arena_t *arena); /* everything; the arena is empty again */
