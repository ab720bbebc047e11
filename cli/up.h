/* SPDX-License-Identifier: Apache-2.0 */
/* up: the options of `weft up`. */
#pragma once

#include "base/option.h"

typedef struct up_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/up.def"
#undef OPTION
} up_options_t;
