/* SPDX-License-Identifier: Apache-2.0 */
/* launch_options: the options of ranks, and the place that they and the environment make. */
#pragma once

#include "base/option.h"
#include "launcher/launch_place.h"

typedef struct launch_options {
#define OPTION WEFT_OPTION_FIELD
#include "launcher/options.def"
#undef OPTION
} launch_options_t;

extern const weft_option_t launch_option_rows[];
extern const size_t launch_option_count;

/* Whether they themselves say that there is more than this process. */
bool launch_options_name_ranks(const launch_options_t *options);

/* A value that cannot be, or two that contradict each other: diag names them. Reads the secret. */
weft_status_t launch_options_check(const launch_options_t *options, weft_diag_t *diag);

/* As launch_place_read, with vLLM's spellings as what they mean. WEFT_ERR_INVALID: both, and not the same. */
weft_status_t launch_options_place(const launch_options_t *options, weft_diag_t *diag,
                                   launch_place_t *place_out);
