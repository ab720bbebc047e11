/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_philox: counter-based random bits: the same (counter, key) gives the same words anywhere.
 * Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
 */
#pragma once

#include <stdint.h>

void k_philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t words_out[4]);
