/* SPDX-License-Identifier: Apache-2.0 */
/* launch: the options of `weft launch`. */
#pragma once

#include "base/option.h"

typedef struct launch_command_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/launch.def"
#undef OPTION
} launch_command_options_t;
