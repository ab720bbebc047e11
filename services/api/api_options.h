/* SPDX-License-Identifier: Apache-2.0 */
/* api_options: what `weft serve` can be told about its HTTP side. */
#pragma once

#include "base/option.h"

typedef struct api_options {
#define OPTION WEFT_OPTION_FIELD
#include "services/api/options.def"
#undef OPTION
} api_options_t;

extern const weft_option_t api_option_rows[];
extern const size_t api_option_count;

/* vLLM's flags that mean nothing here, and its other names for what does. */
extern const weft_option_ignored_t api_option_ignored[];
extern const size_t api_option_ignored_count;
extern const weft_option_alias_t api_option_variables[];
extern const size_t api_option_variable_count;
extern const weft_option_alias_t api_option_flags[];
extern const size_t api_option_flag_count;

/* Refuses what parses but cannot be served, one line each. */
weft_status_t api_options_check(const api_options_t *options, weft_diag_t *diag);
