/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serve_ranks: `weft serve` or `weft run` as one of several ranks: where it stands among them, how they
 * meet and what joins them (launcher's group, transport's collectives), as the engine asks for it
 * (engine_ranks.h).
 *
 * Threads  create, follow and destroy on one; the engine's calls as engine_ranks.h says
 */
#pragma once

#include "launcher/launch_options.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/engine_ranks.h"

typedef struct serve_ranks serve_ranks_t;

typedef struct serve_ranks_config {
    const launch_options_t *launch; /* all outlive the ranks */
    const engine_options_t *engine;
    uint32_t shutdown_timeout_s; /* that rank 0 gives what runs, at its end */
    const char *model;           /* its file or folder */
    char *const *words; /* [n_words] of the command line, for ranks that are started here */
    int n_words;
} serve_ranks_config_t;

/* What each rank of a model would find out for itself, and say: whether it can be cut for so many. */
weft_status_t serve_ranks_check(const char *model, const engine_options_t *engine,
                                weft_diag_t *diag);

/*
 * Alone, with a model cut for several ranks, the others are started on this host.
 * NULL in ranks_out: this process has the model by itself. WEFT_ERR_INVALID: the environment is
 * contradictory, or the ranks are not as many as the model is cut for.
 */
weft_status_t serve_ranks_create(const serve_ranks_config_t *config, weft_diag_t *diag,
                                 serve_ranks_t **ranks_out);
/* was_well: the others have been told to stop, and get some time to. NULL is fine. */
void serve_ranks_destroy(serve_ranks_t *ranks, bool was_well);

bool serve_ranks_is_leader(const serve_ranks_t *ranks);
const engine_ranks_t *serve_ranks_for_engine(const serve_ranks_t *ranks);

/*
 * What a rank but the first does: until rank 0 stops, or the group is lost. The first SIGTERM or SIGINT
 * leaves it to rank 0, which drains; a second one, or --shutdown-timeout and some seconds, end this
 * rank, and the others hear it.
 */
weft_status_t serve_ranks_follow(serve_ranks_t *ranks, weft_diag_t *diag);
