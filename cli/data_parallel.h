/* SPDX-License-Identifier: Apache-2.0 */
/*
 * data_parallel: `weft serve --data-parallel-size N`: a process for each rank of this machine, with a
 * part of its threads and memory, and this one, which starts them, hands them signals, and ends all
 * when one ends. docs/parallel.md has the rules.
 *
 * Threads  one, until it returns
 */
#pragma once

#include "base/option.h"
#include "launcher/launch_options.h"
#include "runtime/engine/engine.h"
#include "services/api/api_options.h"

typedef struct data_parallel_config {
    const weft_option_set_t *set; /* what was given; outlives the call */
    const api_options_t *api;
    const engine_options_t *engine;
    const launch_options_t *launch;
    char *const *words; /* [n_words] of the command line, the subcommand first */
    int n_words;
} data_parallel_config_t;

/* Whether these options ask for it: several ranks, and it is not said which this process is. */
bool data_parallel_is_asked(const data_parallel_config_t *config);

/*
 * Until all ranks have ended. WEFT_ERR_PEER_GONE: a rank or another machine did so by itself; diag names
 * it. WEFT_ERR_CANCELLED, WEFT_ERR_TIMEOUT: told to stop they were killed, by a second signal or for being late.
 * early_signal_out, also written with an error: the signal that came before all of them served; 0: none did.
 */
weft_status_t data_parallel_run(const data_parallel_config_t *config, weft_diag_t *diag,
                                int *early_signal_out);
