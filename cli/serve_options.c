/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/serve_options.h"

#include "cli/option_tables.h"

weft_status_t serve_options_parse(int argc, char **argv, weft_diag_t *diag,
                                  serve_options_t *options)
{
    const weft_option_group_t groups[] = {
        CLI_OPTION_GROUP(api, "HTTP", &options->api),
        CLI_OPTION_GROUP(engine, "Engine", &options->engine),
        CLI_OPTION_GROUP(launch, "Ranks", &options->launch),
    };
    const weft_option_spec_t spec = {
        .usage = "weft serve MODEL [options]",
        .about = "Serves a model over the OpenAI API.",
        .groups = groups,
        .n_groups = WEFT_ARRAY_LEN(groups),
        .variables = api_option_variables,
        .n_variables = api_option_variable_count,
        .flags = api_option_flags,
        .n_flags = api_option_flag_count,
        .ignored = api_option_ignored,
        .n_ignored = api_option_ignored_count,
        .extra_arguments_variable = "VLLM_ADDITIONAL_ARGS",
        .max_positional = 1,
        .has_config_file = true,
    };
    return weft_option_set_parse(&spec, argc, argv, diag, &options->set);
}

void serve_options_fini(serve_options_t *options)
{
    weft_option_set_destroy(options->set);
    options->set = NULL;
}
