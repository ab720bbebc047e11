/* SPDX-License-Identifier: Apache-2.0 */
/*
 * alloc: heap memory with a name, so that a report says who holds what and a test can make the
 * n-th allocation fail.
 *
 * Threads  any
 * Names    "module.thing", string literals; they must outlive the process's last report
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/compiler.h"

/* size bytes, uninitialized; NULL when there is no memory or a fault is injected. */
void *weft_alloc(size_t size, const char *name);

/* The same, zeroed. */
void *weft_zalloc(size_t size, const char *name);

/* count × size zeroed bytes; NULL also when the product overflows. */
void *weft_calloc(size_t count, size_t size, const char *name);

/* size bytes at a multiple of alignment (a power of two). Free with weft_free. */
void *weft_alloc_aligned(size_t alignment, size_t size, const char *name);

/* Like realloc: ptr stays valid when NULL is returned. ptr came from weft_alloc/zalloc/calloc. */
void *weft_realloc(void *ptr, size_t size, const char *name);

char *weft_strdup(const char *text, const char *name);
char *weft_strndup(const char *text, size_t length, const char *name);

void weft_free(void *ptr); /* NULL is fine */

/*
 * Fault injection, per thread group: from now on the n-th weft_* allocation of the process (1 = the
 * next) fails, and only that one. 0 turns it off. Returns how many allocations happened since the
 * last call, so a test can try every n until none failed.
 */
uint64_t weft_alloc_fail_nth(uint64_t n);

/* Bytes now held through this module. */
size_t weft_alloc_live_bytes(void);

/* One line a name, largest first: bytes, count, name. */
void weft_alloc_report(FILE *file);
