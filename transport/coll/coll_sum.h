/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_sum: adds what ranks gave, in rank order, for backends that add on the host.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "transport/coll/coll.h"

size_t coll_dtype_bytes(coll_dtype_t dtype);

/*
 * out[i] = (in[0][i] + in[1][i]) + …: f16 and bf16 in f32, rounded to nearest even once, the same bits
 * whatever the processor has. in [count] of [n], count >= 1; out [n] may be one of them. copy: a second
 * place for the result, or NULL. Any alignment that the type allows.
 */
void coll_sum(coll_dtype_t dtype, void *out, void *copy, const void *const *in, uint32_t count,
              size_t n);
