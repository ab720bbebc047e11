/* SPDX-License-Identifier: Apache-2.0 */
/*
 * iq_grids: the codebooks of GGUF's IQ types. An entry holds the elements that one index stands for,
 * each as the index of its level, the first lowest.
 */
#pragma once

#include <stdint.h>

extern const uint16_t k_iq2_xxs_grid[256]; /* 8 × 2 bits: levels 8, 25, 43; so for all iq2 */
extern const uint16_t k_iq2_xs_grid[512];
extern const uint16_t k_iq2_s_grid[1024];
extern const uint16_t k_iq3_xxs_grid[256]; /* 4 × 3 bits: levels 4, 12 … 52, 62 */
extern const uint16_t k_iq3_s_grid[512];   /* 4 × 3 bits: levels 1, 3 … 15 */
extern const uint16_t k_iq1_s_grid[2048];  /* 8 × 2 bits: levels −1, 0, 1 */
