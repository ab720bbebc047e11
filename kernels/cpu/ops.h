/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ops: what the op templates (*.inc) of this folder share. ops_avx2.c and ops_avx512.c include a
 * simd_*.h, then this, then every template: each op exists once, compiled for each instruction set.
 */
#pragma once

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/compiler.h"
#include "base/int8.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/packing.h"
#include "kernels/dequantize_priv.h"
#include "kernels/k_isa.h"
#include "kernels/k_sampling.h"
#include "kernels/k_team.h"

#define ISA_FUNCTION__(isa, op) k_##isa##_##op
#define ISA_FUNCTION_(isa, op)  ISA_FUNCTION__(isa, op)
#define ISA_FUNCTION(op)        ISA_FUNCTION_(ISA_NAME, op)

#define OP(op) void ISA_FUNCTION(op)(k_stream_t * stream, const k_##op##_args_t *args);
#include "kernels/ops.def"
#undef OP
