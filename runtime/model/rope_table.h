/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rope_table: how fast each pair of a head rotates.
 *
 * plain    theta^(-2i/dim).   Su et al. 2021
 * linear   divided by factor.   Chen et al. 2023
 * llama3   as Llama 3.1's reference code: waves longer than the original context by low_freq_factor
 *          are divided by factor, shorter than by high_freq_factor kept, a ramp between
 * yarn     pairs that turn more than beta_fast times in the original context are kept, fewer than
 *          beta_slow times divided by factor, a linear ramp over the pair's index between; ramp
 *          ends rounded outwards.   Peng et al. 2023, section 3.2, and its authors' code
 * factors  plain, divided by one number a pair (rope_freqs.weight)
 */
#pragma once

#include "base/diag.h"
#include "base/status.h"
#include "runtime/model/model_config.h"

/*
 * inv_freq_out [rope->dim / 2], radians a position. factors [dim / 2] divides on top, NULL: none.
 * WEFT_ERR_INVALID: a divisor or parameter that makes a frequency zero or not finite.
 */
weft_status_t rope_table_fill(const model_rope_t *rope, const float *factors, weft_diag_t *diag,
                              float *inv_freq_out);
