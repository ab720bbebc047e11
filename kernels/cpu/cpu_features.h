/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_features: which instruction sets processor and operating system both support. */
#pragma once

#include <stdbool.h>

bool cpu_features_has_avx2(void);        /* AVX2, FMA and F16C */
bool cpu_features_has_avx512(void);      /* AVX-512 F, BW, DQ, VL and VNNI besides */
bool cpu_features_has_avx512_bf16(void); /* and AVX-512 BF16 */
bool cpu_features_has_amx(void);         /* and AMX's tiles of int8, which the system lets us use */
