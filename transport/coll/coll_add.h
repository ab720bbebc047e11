/* SPDX-License-Identifier: Apache-2.0 */
/* coll_add: vectors of ranks, added in the order of the ranks. */
#pragma once

#include "transport/coll/coll.h"

size_t coll_dtype_bytes(coll_dtype_t dtype);

/*
 * out[i] = parts[0][i] + parts[1][i] + … from the left; f16 and bf16 are added in f32 and rounded once,
 * to nearest even. out, parts[] [n]; out may be any of the parts.
 */
void coll_add(void *out, const void *const *parts, uint32_t n_parts, size_t n, coll_dtype_t dtype);
