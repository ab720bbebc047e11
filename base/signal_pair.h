/* SPDX-License-Identifier: Apache-2.0 */
/*
 * signal_pair: the first signal asks a program to end, the second one to end at once. timeout(1) and some
 * supervisors send one to the process and then to its group, so that it comes twice within microseconds:
 * that is still the first. Nobody presses Ctrl-C twice in a quarter of a second. Those that are found
 * together get one time, so that they are one on any machine.
 *
 * Threads  none of its own
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

#define WEFT_SIGNAL_ECHO_NS (250 * WEFT_NS_PER_MS)

typedef struct weft_signal_pair {
    int number; /* 0: none came */
    uint64_t since_ns;
} weft_signal_pair_t;

typedef enum weft_signal_turn {
    WEFT_SIGNAL_FIRST,
    WEFT_SIGNAL_ECHO, /* the first once more: nothing is meant by it */
    WEFT_SIGNAL_SECOND
} weft_signal_turn_t;

static inline weft_signal_turn_t weft_signal_take(weft_signal_pair_t *pair, int number,
                                                  uint64_t now_ns)
{
    if (pair->number == 0) {
        *pair = (weft_signal_pair_t){number, now_ns};
        return WEFT_SIGNAL_FIRST;
    }
    return number == pair->number && now_ns - pair->since_ns < WEFT_SIGNAL_ECHO_NS
               ? WEFT_SIGNAL_ECHO
               : WEFT_SIGNAL_SECOND;
}
