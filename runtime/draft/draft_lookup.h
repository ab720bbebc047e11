/* SPDX-License-Identifier: Apache-2.0 */
/*
 * draft_lookup: guesses what follows a history from the history itself (prompt lookup, also called
 * n-gram speculation): what came after the last time that its newest tokens stood there.
 */
#pragma once

#include <stdint.h>

/*
 * Looks for the newest earlier place of the longest end of tokens [n] that is min to max tokens long,
 * min >= 1. Writes the `most` tokens behind it to out, which go on with themselves where the history
 * ends, and returns most; 0: there is no such place.
 */
uint32_t draft_lookup(const int32_t *tokens, uint32_t n, uint32_t min, uint32_t max, uint32_t most,
                      int32_t *out);
