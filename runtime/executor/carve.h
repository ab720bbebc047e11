/* SPDX-License-Identifier: Apache-2.0 */
/*
 * carve: one piece of memory cut into arrays by one function that runs twice: first to measure
 * (base NULL), then to hand out addresses. So what is announced is what is taken.
 */
#pragma once

#include <stddef.h>

#define CARVE_ALIGNMENT 128 /* what bulk copies and tiles of a GPU want */

typedef struct carve {
    char *base;  /* NULL: measuring; else aligned to CARVE_ALIGNMENT */
    size_t used; /* bytes so far; SIZE_MAX when the sum does not fit in size_t */
} carve_t;

/* count elements of size bytes, aligned. NULL while measuring. */
void *carve_take(carve_t *carve, size_t count, size_t size);
