/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_sum_lanes: the loop of a vector way, for a file that defines LANES, lanes_t, lanes_add and for
 * each type load_<type> and store_<type>. Two vectors at a time keep the adders busy where there are
 * many ranks.
 */
#pragma once

#include "transport/coll/coll_sum_priv.h"

#define COLL_SUM_DEFINE(type, element_t)                                                           \
    static size_t sum_##type(void *out, void *copy, const void *const *in, uint32_t count,         \
                             size_t first, size_t n)                                               \
    {                                                                                              \
        element_t *to = out;                                                                       \
        element_t *also_to = copy;                                                                 \
        for (; first + 2 * LANES <= n; first += 2 * LANES) {                                       \
            const element_t *from = (const element_t *)in[0] + first;                              \
            lanes_t low = load_##type(from);                                                       \
            lanes_t high = load_##type(from + LANES);                                              \
            for (uint32_t k = 1; k < count; k++) {                                                 \
                from = (const element_t *)in[k] + first;                                           \
                low = lanes_add(low, load_##type(from));                                           \
                high = lanes_add(high, load_##type(from + LANES));                                 \
            }                                                                                      \
            store_##type(to + first, low);                                                         \
            store_##type(to + first + LANES, high);                                                \
            if (also_to != NULL) {                                                                 \
                store_##type(also_to + first, low);                                                \
                store_##type(also_to + first + LANES, high);                                       \
            }                                                                                      \
        }                                                                                          \
        return first;                                                                              \
    }
