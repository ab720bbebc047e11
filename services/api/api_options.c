/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_options.h"

#include <inttypes.h>
#include <string.h>

#define MAX_COPIES          1024
#define MAX_REQUEST_WORKERS 64 /* each may need a stack to compile a grammar on */

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
    {"dcp", "decode-context-parallel-size"},
    {"ep", "enable-expert-parallel"},
    {"dpl", "data-parallel-size-local"},
    {"dpn", "data-parallel-rank"},
    {"dpr", "data-parallel-start-rank"},
    {"dpa", "data-parallel-address"},
    {"dpp", "data-parallel-rpc-port"},
    {"dpb", "data-parallel-backend"},
    {"dpe", "data-parallel-external-lb"},
    {"dph", "data-parallel-hybrid-lb"},
    {"n", "nnodes"},
    {"r", "node-rank"},
    {"q", "quantization"},
    {"O", "optimization-level"},
    {"cc", "compilation-config"},
};
const size_t api_option_flag_count = WEFT_ARRAY_LEN(api_option_flags);

/* What names ranks must name the one there is. */
static weft_status_t check_ranks(const api_options_t *options, weft_diag_t *diag)
{
    const struct {
        const char *flag;
        uint32_t value;
        uint32_t only;
    } counts[] = {
        {"decode-context-parallel-size", options->decode_context_parallel_size, 1},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(counts); i++) {
        if (counts[i].value != counts[i].only) {
            return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                             "--%s %u: this build runs on one rank; only %u is possible",
                             counts[i].flag, counts[i].value, counts[i].only);
        }
    }
    return WEFT_OK;
}

static weft_status_t check_copies(const api_options_t *options, weft_diag_t *diag)
{
    return options->data_parallel_size >= 1 && options->data_parallel_size <= MAX_COPIES
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID, "--data-parallel-size %u: 1 to %d",
                           options->data_parallel_size, MAX_COPIES);
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

static weft_status_t check_words(const api_options_t *options, weft_diag_t *diag)
{
    static const char *const formats[] = {"auto", "string", "openai"};
    static const char *const policies[] = {"fcfs", "priority"};
    static const char *const modes[] = {"raw_logprobs"};
    weft_status_t status =
        check_word(options->chat_template_content_format, "chat-template-content-format", formats,
                   WEFT_ARRAY_LEN(formats), diag);

    if (status == WEFT_OK) {
        status = check_word(options->scheduling_policy, "scheduling-policy", policies,
                            WEFT_ARRAY_LEN(policies), diag);
    }
    return status < 0 ? status
                      : check_word(options->logprobs_mode, "logprobs-mode", modes,
                                   WEFT_ARRAY_LEN(modes), diag);
}

static weft_status_t check_tls(const api_options_t *options, weft_diag_t *diag)
{
    if (options->ssl_ca_certs[0] != '\0') {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "--ssl-ca-certs: client certificates are not checked");
    }
    if (options->ssl_ciphers[0] != '\0') {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "--ssl-ciphers: the TLS library chooses; they cannot be narrowed");
    }
    if ((options->ssl_certfile[0] == '\0') != (options->ssl_keyfile[0] == '\0')) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--ssl-certfile and --ssl-keyfile come together or not at all");
    }
    return WEFT_OK;
}

static bool is_prefill_url(const char *url)
{
    static const char *const schemes[] = {"http://", "https://"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(schemes); i++) {
        const size_t length = strlen(schemes[i]);
        const char *host = url + length;
        if (strncmp(url, schemes[i], length) == 0) {
            return host[0] != '\0' && strpbrk(host, "/?# ") == NULL;
        }
    }
    return strcmp(url, "*") == 0;
}

static weft_status_t check_prefill_urls(const weft_list_t *urls, weft_diag_t *diag)
{
    for (uint32_t i = 0; i < urls->count; i++) {
        if (!is_prefill_url(urls->items[i])) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "--prefill-urls %s: neither * nor an address as in "
                             "http://10.0.0.7:8000, without a path",
                             urls->items[i]);
        }
    }
    return WEFT_OK;
}

weft_status_t api_options_check(const api_options_t *options, weft_diag_t *diag)
{
    weft_status_t status = check_ranks(options, diag);

    if (status == WEFT_OK) {
        status = check_copies(options, diag);
    }
    if (status == WEFT_OK) {
        status = check_words(options, diag);
    }
    if (status == WEFT_OK) {
        status = check_tls(options, diag);
    }
    if (status == WEFT_OK) {
        status = check_prefill_urls(&options->prefill_urls, diag);
    }
    if (status < 0) {
        return status;
    }
    if (options->max_logprobs < -1) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--max-logprobs %" PRId64 ": -1 or more",
                         options->max_logprobs);
    }
    if (options->request_workers < 1 || options->request_workers > MAX_REQUEST_WORKERS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--request-workers %u: 1 to %d",
                         options->request_workers, MAX_REQUEST_WORKERS);
    }
    if (options->port > UINT16_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--port %u: ports end at 65535", options->port);
    }
    if (options->max_num_queued_tokens != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "--max-num-queued-tokens %" PRIu64
                         ": waiting requests are bounded by --max-num-queued-reqs only",
                         options->max_num_queued_tokens);
    }
    return WEFT_OK;
}
