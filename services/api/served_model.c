/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "api"
#include "services/api/served_model.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "services/api/chat_messages.h"
#include "services/api/json_fields.h"
#include "services/api/override_config.h"
#include "services/api/template_file.h"

static char *token_text(const text_tokenizer_t *tokenizer, int32_t id)
{
    text_bytes_t bytes = {0};

    if (id < 0 || text_tokenizer_token_bytes(tokenizer, id, &bytes) < 0) {
        return weft_strdup("", "api.token");
    }
    char *text = weft_strndup(bytes.data, bytes.length, "api.token");
    text_bytes_free(bytes);
    return text;
}

static uint32_t max_logprobs(const api_options_t *options)
{
    const bool is_limited = options->max_logprobs >= 0 && options->max_logprobs < K_MAX_LOGPROBS;

    return is_limited ? (uint32_t)options->max_logprobs : K_MAX_LOGPROBS;
}

static void judge_template(served_model_t *model, const api_options_t *options, const char *source,
                           size_t length)
{
    const char *format = options->chat_template_content_format;
    api_model_t *api = &model->api;

    api->template_knows_developer = memmem(source, length, "developer", 9) != NULL;
    api->template_takes_parts =
        strcmp(format, "openai") == 0 ||
        (strcmp(format, "auto") == 0 && chat_messages_template_takes_parts(source, length));
    api->tool_parser = options->tool_call_parser[0] != '\0'
                           ? options->tool_call_parser
                           : text_output_guess_tool_parser(source, length);
    api->reasoning_parser = options->reasoning_parser[0] != '\0'
                                ? options->reasoning_parser
                                : text_output_guess_reasoning_parser(source, length);
    if (!options->enable_auto_tool_choice) {
        api->tool_parser = NULL;
    }
}

/* A template of the model's that does not compile costs the chat, not the server. */
static weft_status_t use_template(served_model_t *model, const api_options_t *options,
                                  const char *source, size_t length, bool is_given,
                                  weft_diag_t *diag)
{
    weft_diag_t *into = is_given ? diag : &model->template_diag;
    weft_status_t status = text_template_create(source, length, model->bos, model->eos, into,
                                                &model->api.chat_template);

    if (status < 0 && is_given) {
        weft_diag_prefix(diag, "--chat-template");
        return status;
    }
    if (status < 0) {
        model->api.template_error = model->template_diag.text;
        weft_log_warn("the model's chat template cannot be used: %s", model->template_diag.text);
        return WEFT_OK;
    }
    judge_template(model, options, source, length);
    return WEFT_OK;
}

static weft_status_t load_template(served_model_t *model, const api_options_t *options,
                                   weft_diag_t *diag)
{
    if (options->chat_template[0] != '\0') {
        weft_buffer_t given = {0};
        weft_status_t status = template_file_read(options->chat_template, &given, diag);
        if (status == WEFT_OK) {
            status = use_template(model, options, given.data != NULL ? given.data : "",
                                  given.length, true, diag);
        }
        weft_buffer_free(&given);
        return status;
    }
    size_t length = 0;
    const char *source = model_source_chat_template(model->source, &length);
    return source == NULL ? WEFT_OK : use_template(model, options, source, length, false, diag);
}

/* Parsers that a flag names must exist: found out now, not at the first request. */
static weft_status_t check_parsers(const served_model_t *model, weft_diag_t *diag)
{
    text_output_t *output = NULL;
    weft_status_t status = text_output_create(model->api.tool_parser, model->api.reasoning_parser,
                                              false, diag, &output);
    text_output_destroy(output);
    return status;
}

static void fill_names(served_model_t *model, const api_options_t *options, const char *path)
{
    model->name = path;
    model->api.names =
        options->served_model_name.count > 0 ? options->served_model_name.items : &model->name;
    model->api.n_names =
        options->served_model_name.count > 0 ? options->served_model_name.count : 1;
    model->api.root = path;
    model->api.created = weft_wallclock_ns() / WEFT_NS_PER_SECOND;
}

static weft_status_t fill_defaults(served_model_t *model, const api_options_t *options,
                                   weft_diag_t *diag)
{
    const model_config_t *config = model_source_config(model->source);
    bool uses_model = strcmp(options->generation_config, "vllm") != 0;
    api_model_t *api = &model->api;

    api->temperature =
        uses_model && isfinite(config->default_temperature) ? config->default_temperature : 1.0;
    api->top_p = uses_model && isfinite(config->default_top_p) && config->default_top_p > 0
                     ? config->default_top_p
                     : 1.0;
    api->top_k = uses_model && config->default_top_k > 0 ? config->default_top_k : 0;
    api->min_p = 0;
    api->repetition_penalty = 1;
    api->max_tokens = JSON_UNSET;
    return override_config_apply(options->override_generation_config, api, diag);
}

/* --default-chat-template-kwargs */
static weft_status_t read_template_kwargs(served_model_t *model, const char *text,
                                          weft_diag_t *diag)
{
    api_error_t error = {0};

    if (text[0] == '\0') {
        return WEFT_OK;
    }
    weft_status_t status = json_fields_parse(text, strlen(text), &model->template_kwargs, &error);
    model->api.template_kwargs = model->template_kwargs;
    return status < 0
               ? weft_diag(diag, status, "--default-chat-template-kwargs: %s", error.message.text)
               : WEFT_OK;
}

weft_status_t served_model_open(const api_options_t *options, const char *path, weft_diag_t *diag,
                                served_model_t *model)
{
    weft_status_t status = model_source_open(path, diag, &model->source);

    if (status == WEFT_OK) {
        status = model_source_tokenizer(model->source, diag, &model->tokenizer);
    }
    if (status < 0) {
        return status;
    }
    fill_names(model, options, path);
    model->api.tokenizer = model->tokenizer;
    model->api.vocab = model_source_config(model->source)->vocab;
    model->api.eos = model_source_config(model->source)->eos;
    model->api.n_eos = model_source_config(model->source)->n_eos;
    model->api.max_logprobs = max_logprobs(options);
    model->api.has_priorities = strcmp(options->scheduling_policy, "priority") == 0;
    model->api.is_template_overridable = options->trust_request_chat_template;
    model->api.excludes_tools_when_none = options->exclude_tools_when_tool_choice_none;
    model->bos = token_text(model->tokenizer, text_tokenizer_bos(model->tokenizer));
    model->eos = token_text(model->tokenizer, text_tokenizer_eos(model->tokenizer));
    if (model->bos == NULL || model->eos == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    model->api.template_bos = model->bos;
    model->api.template_eos = model->eos;
    status = fill_defaults(model, options, diag);
    if (status == WEFT_OK) {
        status = read_template_kwargs(model, options->default_chat_template_kwargs, diag);
    }
    if (status == WEFT_OK) {
        status = load_template(model, options, diag);
    }
    return status == WEFT_OK ? check_parsers(model, diag) : status;
}

void served_model_attach(served_model_t *model, const engine_options_t *engine_options,
                         engine_t *engine)
{
    model->api.max_context = engine_max_context(engine);
    model->api.hidden = engine_model_config(engine)->hidden;
    model->api.engine = engine;
    model->api.grammars = engine_grammar_factory(engine);
    model->api.max_samples = engine_options->max_num_seqs < ENGINE_MAX_SAMPLES
                                 ? engine_options->max_num_seqs
                                 : ENGINE_MAX_SAMPLES;
}

void served_model_close(served_model_t *model)
{
    text_template_destroy(model->api.chat_template);
    json_decref(model->template_kwargs);
    weft_free(model->bos);
    weft_free(model->eos);
    text_tokenizer_destroy(model->tokenizer);
    model_source_close(model->source);
}
