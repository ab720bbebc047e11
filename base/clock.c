/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"

#include <time.h>

static uint64_t read_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * WEFT_NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

uint64_t weft_clock_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t weft_wallclock_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}
