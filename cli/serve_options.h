/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serve_options: the options of `weft serve`, which `weft up` reads as well: they are its workers'.
 *
 * Threads  one
 */
#pragma once

#include "base/option.h"
#include "launcher/launch_options.h"
#include "runtime/engine/engine.h"
#include "services/api/api_options.h"

typedef struct serve_options {
    api_options_t api;
    engine_options_t engine;
    launch_options_t launch;
    weft_option_set_t *set; /* of what was given; owns their strings */
} serve_options_t;

/* argv[0] is skipped. As weft_option_set_parse. */
weft_status_t serve_options_parse(int argc, char **argv, weft_diag_t *diag,
                                  serve_options_t *options);
void serve_options_fini(serve_options_t *options);
