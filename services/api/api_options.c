/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_options.h"

#include <inttypes.h>
#include <string.h>

const weft_option_t api_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(api_options_t, __VA_ARGS__)
#include "services/api/options.def"
#undef OPTION
};
const size_t api_option_count = WEFT_ARRAY_LEN(api_option_rows);

const weft_option_ignored_t api_option_ignored[] = {
#define IGNORED(flag, arity, reason) {flag, WEFT_OPTION_TAKES_##arity, reason},
#include "services/api/ignored_options.def"
#undef IGNORED
};
const size_t api_option_ignored_count = WEFT_ARRAY_LEN(api_option_ignored);

const weft_option_alias_t api_option_variables[] = {
    {"VLLM_API_KEY", "api-key"},
    {"VLLM_LOGGING_LEVEL", "log-level"},
    {"VLLM_SERVER_DEV_MODE", "server-dev-mode"},
    {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "otlp-traces-endpoint"},
};
const size_t api_option_variable_count = WEFT_ARRAY_LEN(api_option_variables);

const weft_option_alias_t api_option_flags[] = {
    {"enable-reasoning-parser", "reasoning-parser"},
    {"max-queued-requests", "max-num-queued-reqs"},
    {"tp", "tensor-parallel-size"},
    {"pp", "pipeline-parallel-size"},
    {"dp", "data-parallel-size"},
};
const size_t api_option_flag_count = WEFT_ARRAY_LEN(api_option_flags);

static weft_status_t check_single(uint32_t value, const char *flag, weft_diag_t *diag)
{
    return value == 1
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                           "--%s %u: this build runs on one rank; only 1 is possible", flag, value);
}

static weft_status_t check_word(const char *value, const char *flag, const char *const *known,
                                size_t n, weft_diag_t *diag)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(value, known[i]) == 0) {
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "--%s %s: not one of its values (%s%s%s%s%s)", flag,
                     value, known[0], n > 1 ? ", " : "", n > 1 ? known[1] : "", n > 2 ? ", " : "",
                     n > 2 ? known[2] : "");
}

weft_status_t api_options_check(const api_options_t *options, weft_diag_t *diag)
{
    static const char *const formats[] = {"auto", "string", "openai"};
    static const char *const policies[] = {"fcfs", "priority"};
    weft_status_t status =
        check_single(options->tensor_parallel_size, "tensor-parallel-size", diag);

    if (status == WEFT_OK) {
        status = check_single(options->pipeline_parallel_size, "pipeline-parallel-size", diag);
    }
    if (status == WEFT_OK) {
        status = check_single(options->data_parallel_size, "data-parallel-size", diag);
    }
    if (status == WEFT_OK) {
        status = check_word(options->chat_template_content_format, "chat-template-content-format",
                            formats, WEFT_ARRAY_LEN(formats), diag);
    }
    if (status == WEFT_OK) {
        status = check_word(options->scheduling_policy, "scheduling-policy", policies,
                            WEFT_ARRAY_LEN(policies), diag);
    }
    if (status < 0) {
        return status;
    }
    if (options->ssl_ca_certs[0] != '\0') {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "--ssl-ca-certs: client certificates are not checked");
    }
    if (options->max_logprobs < -1) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--max-logprobs %" PRId64 ": -1 or more",
                         options->max_logprobs);
    }
    if (options->port > UINT16_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--port %u: ports end at 65535", options->port);
    }
    if ((options->ssl_certfile[0] == '\0') != (options->ssl_keyfile[0] == '\0')) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--ssl-certfile and --ssl-keyfile come together or not at all");
    }
    return WEFT_OK;
}
