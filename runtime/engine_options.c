/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine.h"

const weft_option_t engine_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(engine_options_t, __VA_ARGS__)
#include "runtime/options.def"
#undef OPTION
};

const size_t engine_option_count = sizeof(engine_option_rows) / sizeof(engine_option_rows[0]);
