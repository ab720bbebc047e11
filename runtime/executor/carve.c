/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/executor/carve.h"

#include <stdint.h>

void *carve_take(carve_t *carve, size_t count, size_t size)
{
    const size_t at = carve->used;
    const size_t room = at > SIZE_MAX - CARVE_ALIGNMENT ? 0 : SIZE_MAX - CARVE_ALIGNMENT - at;
    if (size > 0 && count > room / size) {
        carve->used = SIZE_MAX;
        return NULL;
    }
    const size_t mask = CARVE_ALIGNMENT - 1;
    carve->used += (count * size + mask) & ~mask;
    return carve->base == NULL ? NULL : carve->base + at;
}
