/* SPDX-License-Identifier: Apache-2.0 */
/*
 * buffer: bytes that grow. A failed allocation sticks (is_failed) and later appends do nothing, so
 * that a writer checks once, at its end.
 *
 * Zeroed memory is an empty buffer. Not shared between threads.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/compiler.h"

typedef struct weft_buffer {
    char *data; /* [length], not terminated; NULL while nothing was appended */
    size_t length;
    size_t capacity;
    bool is_failed;
} weft_buffer_t;

void weft_buffer_append(weft_buffer_t *buffer, const void *data, size_t length);
void weft_buffer_puts(weft_buffer_t *buffer, const char *text);
void weft_buffer_printf(weft_buffer_t *buffer, const char *format, ...) WEFT_PRINTF(2, 3);

/* Drops the first n bytes; memory that is mostly unused then goes back. */
void weft_buffer_drop_front(weft_buffer_t *buffer, size_t n);

/*
 * The bytes with a NUL behind them, for the caller to weft_free; the buffer is empty again.
 * NULL: an append had failed. length_out may be NULL.
 */
char *weft_buffer_take(weft_buffer_t *buffer, size_t *length_out);

void weft_buffer_clear(weft_buffer_t *buffer); /* keeps the memory; forgets a failure */
void weft_buffer_free(weft_buffer_t *buffer);  /* empty again; NULL is fine */
