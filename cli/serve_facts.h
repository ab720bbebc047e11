/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serve_facts: what the ranks of one `weft serve` must have alike: the model's files, and every option of
 * the engine and of the ranks but those that are one rank's own affair.
 */
#pragma once

#include "base/diag.h"
#include "launcher/launch_group.h"
#include "launcher/launch_options.h"
#include "runtime/engine/engine.h"

#define SERVE_MAX_FACTS  60
#define SERVE_FACT_BYTES 512

typedef struct serve_facts {
    launch_fact_t facts[SERVE_MAX_FACTS]; /* their texts are below, keys the rows' */
    char values[SERVE_MAX_FACTS][SERVE_FACT_BYTES];
    char keys[SERVE_MAX_FACTS][64];
    uint32_t n;
} serve_facts_t;

weft_status_t serve_facts_make(const char *model, const engine_options_t *engine,
                               const launch_options_t *launch, weft_diag_t *diag,
                               serve_facts_t *facts_out);
