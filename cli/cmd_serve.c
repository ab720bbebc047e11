/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/data_parallel.h"
#include "cli/serve_options.h"
#include "cli/serve_ranks.h"
#include "services/api/api_server.h"

static weft_status_t find_model(const weft_option_set_t *set, const api_options_t *options,
                                weft_diag_t *diag, const char **path_out)
{
    const char *named = options->model[0] != '\0' ? options->model : NULL;
    const char *placed =
        weft_option_positional_count(set) > 0 ? weft_option_positional(set, 0) : NULL;

    if (named != NULL && placed != NULL && strcmp(named, placed) != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "two models: %s and --model %s", placed, named);
    }
    *path_out = placed != NULL ? placed : named;
    return *path_out != NULL
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID,
                           "no model: weft serve MODEL (a .gguf or .safetensors file, "
                           "or a folder)");
}

/* With the whole model, or as the rank that leads. */
static weft_status_t serve_http(const api_options_t *options,
                                const engine_options_t *engine_options, const char *path,
                                const engine_ranks_t *ranks, weft_diag_t *diag)
{
    api_server_t *server = NULL;
    weft_status_t status = api_server_create(options, engine_options, path, ranks, diag, &server);

    if (status == WEFT_OK) {
        status = api_server_run(server);
        if (status == WEFT_ERR_PEER_GONE) {
            weft_diag(diag, status, "a rank was lost, and the model with it");
        } else if (status == WEFT_ERR_DEVICE) {
            weft_diag(diag, status, "the engine failed: its error above says why");
        }
    }
    api_server_destroy(server);
    return status;
}

static weft_status_t serve_as_rank(const serve_ranks_config_t *config, const api_options_t *api,
                                   weft_diag_t *diag)
{
    serve_ranks_t *ranks = NULL;
    weft_status_t status = serve_ranks_create(config, diag, &ranks);

    if (status < 0) {
        return status;
    }
    if (ranks == NULL) {
        return serve_http(api, config->engine, config->model, NULL, diag);
    }
    status = serve_ranks_is_leader(ranks) ? serve_http(api, config->engine, config->model,
                                                       serve_ranks_for_engine(ranks), diag)
                                          : serve_ranks_follow(ranks, diag);
    serve_ranks_destroy(ranks, status == WEFT_OK);
    return status;
}

/* A copy of a model that is not cut: what LWS and others say is of the machines of all copies. */
static bool is_whole_copy(const data_parallel_config_t *copies)
{
    const engine_options_t *o = copies->engine;

    return copies->api->data_parallel_size > 1 && o->tensor_parallel_size == 1 &&
           o->pipeline_parallel_size == 1;
}

/* early_signal_out: of data_parallel_run; the other ways end the process by it. */
static weft_status_t serve(const data_parallel_config_t *copies, weft_diag_t *diag,
                           int *early_signal_out)
{
    weft_log_level_t level;
    serve_ranks_config_t config = {
        .launch = copies->launch,
        .engine = copies->engine,
        .shutdown_timeout_s = copies->api->shutdown_timeout,
        .words = copies->words,
        .n_words = copies->n_words,
    };
    weft_status_t status = weft_log_level_parse(copies->api->log_level, diag, &level);

    if (status < 0) {
        weft_diag_prefix(diag, "--log-level");
        return status;
    }
    weft_log_set_level(level);
    status = find_model(copies->set, copies->api, diag, &config.model);
    if (status >= 0) {
        status = engine_options_check(copies->engine, diag);
    }
    if (status < 0) {
        return status;
    }
    if (data_parallel_is_asked(copies)) {
        status = serve_ranks_check(config.model, copies->engine, diag);
        return status < 0 ? status : data_parallel_run(copies, diag, early_signal_out);
    }
    return is_whole_copy(copies) ? serve_http(copies->api, config.engine, config.model, NULL, diag)
                                 : serve_as_rank(&config, copies->api, diag);
}

int cmd_serve(int argc, char **argv)
{
    serve_options_t options = {0};
    weft_diag_t diag = {0};
    int early_signal = 0;
    weft_status_t status = serve_options_parse(argc, argv, &diag, &options);

    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status == WEFT_OK) {
        const data_parallel_config_t copies = {.set = options.set,
                                               .api = &options.api,
                                               .engine = &options.engine,
                                               .launch = &options.launch,
                                               .words = argv,
                                               .n_words = argc};
        status = serve(&copies, &diag, &early_signal);
    }
    serve_options_fini(&options);
    if (status < 0) {
        return cli_fail(status, &diag);
    }
    return early_signal > 0 ? CLI_EXIT_SIGNALLED + early_signal : CLI_EXIT_OK;
}
