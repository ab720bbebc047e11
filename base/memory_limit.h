/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory_limit: how much memory this process may still take: the machine's free memory, the limits
 * of its control groups (versions 1 and 2, every ancestor) and its address space limit.
 *
 * Threads  any
 */
#pragma once

#include <stddef.h>

/*
 * root is put before /proc and /sys: "" for the real ones, a folder for a test.
 * What cannot be read limits nothing. Memory that was mapped but never touched counts as free.
 */
size_t weft_memory_available(const char *root);
