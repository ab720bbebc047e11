/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_server: the OpenAI-compatible server in front of one engine.
 *
 * Threads  one loop for all HTTP, a few request workers, the engine's own; create, run and destroy
 *          on one thread, which becomes the loop's. SIGTERM and SIGINT belong to the server from
 *          create on: the first drains, the second ends the process
 */
#pragma once

#include "runtime/engine/engine.h"
#include "services/api/api_options.h"

typedef struct api_server api_server_t;

/*
 * Loads the model, starts the engine, listens. path: the model; ranks: NULL, or the others that run
 * it (see engine_create). options and ranks outlive the server.
 */
weft_status_t api_server_create(const api_options_t *options,
                                const engine_options_t *engine_options, const char *path,
                                const engine_ranks_t *ranks, weft_diag_t *diag,
                                api_server_t **server_out);

/*
 * Serves until drained. WEFT_ERR_PEER_GONE: a rank was lost for good; what ran was answered with 503.
 * WEFT_ERR_DEVICE: the engine failed, on whatever device; what ran was answered with 500.
 */
weft_status_t api_server_run(api_server_t *server);
void api_server_destroy(api_server_t *server); /* NULL is fine */
