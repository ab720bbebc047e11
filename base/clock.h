/* SPDX-License-Identifier: Apache-2.0 */
/* clock: time as uint64_t nanoseconds. */
#pragma once

#include <stdint.h>

#define WEFT_NS_PER_SECOND UINT64_C(1000000000)
#define WEFT_NS_PER_MS     UINT64_C(1000000)

uint64_t weft_clock_ns(void);     /* monotonic */
uint64_t weft_wallclock_ns(void); /* since 1970 UTC */
