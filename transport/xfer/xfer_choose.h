/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_choose: which of several ways takes a request. All of the rule is here:
 *
 * 1. A way whose last link was lost comes after all that are not so, until something went well.
 * 2. Where the first in the order of preference is memory of this host, it is taken: no wire is
 *    faster, and trying one would only cost.
 * 3. Once the first was measured, each other gets one big request, to be measured by.
 * 4. Otherwise the fastest one, where the one used before is left only for one that is faster by a
 *    quarter: two that are alike do not alternate. While nothing is measured this is the first.
 *
 * Measured are big requests that had their way for themselves: so a way that is always busy stays,
 * and is not compared with what another can do when idle.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Below, a request says little of speed; above, trying a slow way costs too much. */
#define XFER_MEASURED_BYTES_MIN ((uint64_t)1 << 20)
#define XFER_TRIED_BYTES_MAX    ((uint64_t)64 << 20)

typedef struct xfer_choice {
    bool is_usable;
    bool is_on_host;         /* cannot reach other hosts */
    bool is_doubtful;        /* its last link was lost */
    bool is_tried;           /* has had a big request */
    double bytes_per_second; /* 0: not measured */
} xfer_choice_t;

/* Of choices [n] in the order of preference; n: none is usable. last: the one used before with
 * this peer, or n. */
size_t xfer_choose(const xfer_choice_t *choices, size_t n, size_t last, uint64_t bytes);

/* What was measured, joined with what is known (0: nothing). */
double xfer_choose_smooth(double known, uint64_t bytes, uint64_t ns);
