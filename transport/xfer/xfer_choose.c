/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_choose.h"

#define NEWEST_PART  0.25 /* of what is known that comes from the newest measurement */
#define FASTER_BY    1.25
#define NS_IN_SECOND 1e9

static bool is_usable(const xfer_choice_t *choice, bool is_doubtful)
{
    return choice->is_usable && choice->is_doubtful == is_doubtful;
}

static size_t find_first(const xfer_choice_t *choices, size_t n, bool is_doubtful)
{
    size_t i = 0;
    while (i < n && !is_usable(&choices[i], is_doubtful)) {
        i++;
    }
    return i;
}

static size_t find_untried(const xfer_choice_t *choices, size_t n, size_t first, bool is_doubtful)
{
    size_t i = first + 1;
    while (i < n && (!is_usable(&choices[i], is_doubtful) || choices[i].is_tried)) {
        i++;
    }
    return i;
}

/* The first usable one, or one that is faster than all before. */
static size_t find_fastest(const xfer_choice_t *choices, size_t n, size_t last, bool is_doubtful)
{
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
        if (is_usable(&choices[i], is_doubtful) &&
            (best == n || choices[i].bytes_per_second > choices[best].bytes_per_second)) {
            best = i;
        }
    }
    if (best < n && last < n && is_usable(&choices[last], is_doubtful) &&
        choices[best].bytes_per_second < FASTER_BY * choices[last].bytes_per_second) {
        return last;
    }
    return best;
}

static size_t choose_among(const xfer_choice_t *choices, size_t n, size_t last, uint64_t bytes,
                           bool is_doubtful)
{
    const size_t first = find_first(choices, n, is_doubtful);
    if (first == n || choices[first].is_on_host) {
        return first;
    }
    if (choices[first].bytes_per_second > 0 && bytes >= XFER_MEASURED_BYTES_MIN &&
        bytes <= XFER_TRIED_BYTES_MAX) {
        const size_t untried = find_untried(choices, n, first, is_doubtful);
        if (untried < n) {
            return untried;
        }
    }
    return find_fastest(choices, n, last, is_doubtful);
}

size_t xfer_choose(const xfer_choice_t *choices, size_t n, size_t last, uint64_t bytes)
{
    const size_t chosen = choose_among(choices, n, last, bytes, false);
    return chosen < n ? chosen : choose_among(choices, n, last, bytes, true);
}

double xfer_choose_smooth(double known, uint64_t bytes, uint64_t ns)
{
    const double now = (double)bytes * NS_IN_SECOND / (double)(ns == 0 ? 1 : ns);
    return known == 0 ? now : known + (now - known) * NEWEST_PART;
}
