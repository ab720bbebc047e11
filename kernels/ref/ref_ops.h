/* SPDX-License-Identifier: Apache-2.0 */
/* ref_ops: the ops in plain C and f32, sums from first to last: the truth other sets are held to. */
#pragma once

#include "kernels/k_isa.h"

#define OP(name) K_ISA_DECLARE(ref, name);
#include "kernels/ops.def"
#undef OP
