/* SPDX-License-Identifier: Apache-2.0 */
/* The AMX kernels with tiles in memory, for any processor with AVX-512: k_ops_emulated. */
#define AMX_EMULATED
#define ISA_NAME emulated
#include "kernels/cpu/ops_amx.c" /* its table is what is tested */
