/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/draft/draft_lookup.h"

/* How many tokens that end at (and before) i are those that end at n - 1; max at most. */
static uint32_t match_length(const int32_t *tokens, uint32_t n, uint32_t i, uint32_t max)
{
    uint32_t length = 0;
    while (length < max && length <= i && tokens[i - length] == tokens[n - 1 - length]) {
        length++;
    }
    return length;
}

uint32_t draft_lookup(const int32_t *tokens, uint32_t n, uint32_t min, uint32_t max, uint32_t most,
                      int32_t *out)
{
    uint32_t best = min - 1;
    uint32_t best_end = 0;
    for (uint32_t end = n - 1; end > 0 && best < max; end--) { /* the place ends at end - 1 */
        const uint32_t length = match_length(tokens, n, end - 1, max);
        if (length > best) {
            best = length;
            best_end = end;
        }
    }
    if (best_end == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < most; i++) {
        const uint32_t at = best_end + i;
        out[i] = at < n ? tokens[at] : out[at - n];
    }
    return most;
}
