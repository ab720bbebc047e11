/* SPDX-License-Identifier: Apache-2.0 */
/* Command lines of pods that were made for vLLM. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "launcher/launch_options.h"
#include "runtime/engine/engine.h"
#include "services/api/api_options.h"

static api_options_t options;
static weft_diag_t diag;

/* What `weft serve` says of these words of a shell. */
static weft_status_t check(const char *words)
{
    engine_options_t engine;
    launch_options_t launch;
    const weft_option_group_t groups[] = {
        {"HTTP", api_option_rows, api_option_count, &options},
        {"Engine", engine_option_rows, engine_option_count, &engine},
        {"Ranks", launch_option_rows, launch_option_count, &launch},
    };
    const weft_option_spec_t spec = {
        .usage = "",
        .about = "",
        .groups = groups,
        .n_groups = WEFT_ARRAY_LEN(groups),
        .flags = api_option_flags,
        .n_flags = api_option_flag_count,
        .ignored = api_option_ignored,
        .n_ignored = api_option_ignored_count,
        .extra_arguments_variable = "VLLM_ADDITIONAL_ARGS",
        .max_positional = 1,
    };
    char *argv[] = {"weft", NULL};
    weft_option_set_t *set = NULL;

    diag = (weft_diag_t){0};
    setenv("VLLM_ADDITIONAL_ARGS", words, 1);
    weft_status_t status = weft_option_set_parse(&spec, 1, argv, &diag, &set);
    if (status == WEFT_OK) {
        status = api_options_check(&options, &diag);
    }
    weft_option_set_destroy(set);
    return status;
}

static void assert_taken(const char *words)
{
    if (check(words) != WEFT_OK) {
        fail_msg("%s: %s", words, diag.text);
    }
}

static void assert_refused(const char *words, const char *start)
{
    assert_true(check(words) < 0);
    if (strncmp(diag.text, start, strlen(start)) != 0) {
        fail_msg("%s: %s", words, diag.text);
    }
}

static void flags_that_change_nothing_are_taken(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "--sse-keep-alive-interval 15",
        "--max-cudagraph-capture-size 512 --cudagraph-capture-sizes 1 2 4 8",
        "--safetensors-load-strategy eager --pt-load-map-location cpu",
        "--ignore-patterns 'original/**/*' '*.bin'",
        "--mm-processor-cache-gb 0 --skip-mm-profiling",
        "--attention-config '{\"backend\": \"FLASH_ATTN\"}' --attention-config.backend=X",
        "--disable-access-log-for-endpoints /health /metrics --enable-log-deltas",
        "--no-enable-log-deltas --disable-hybrid-kv-cache-manager",
        "--lora-modules a=/x b=/y --enable-lora",
    };

    for (size_t i = 0; i < WEFT_ARRAY_LEN(lines); i++) {
        assert_taken(lines[i]);
    }
}

static void short_names_stand_for_long_ones(void **state)
{
    (void)state;
    assert_taken("-q fp8 -O 3 -O3 -O.mode=3 -cc '{}' -cc.mode 3 -ep -dpl 1 -dpr 0 -dpa host "
                 "-dpb mp -dpn 0 -dpp 13345 -dcp 1 -n 1 -r 0 -tp 1 -pp 1 -dp 1");
    assert_refused("-dcp 2", "--decode-context-parallel-size 2: ");
}

static void values_that_would_change_answers_are_refused(void **state)
{
    (void)state;
    assert_taken("--max-num-queued-tokens 0 --logprobs-mode raw_logprobs");
    assert_refused("--max-num-queued-tokens 4096", "--max-num-queued-tokens 4096: ");
    assert_refused("--logprobs-mode processed_logits", "--logprobs-mode processed_logits: ");
    assert_refused("--ssl-ciphers ECDHE", "--ssl-ciphers: ");
}

static void the_number_of_workers_is_bounded(void **state)
{
    (void)state;
    assert_taken("--request-workers 1");
    assert_taken("--request-workers 64");
    assert_refused("--request-workers 0", "--request-workers 0: 1 to 64");
    assert_refused("--request-workers 65", "--request-workers 65: 1 to 64");
}

static void the_number_of_copies_is_bounded(void **state)
{
    (void)state;
    assert_taken("--data-parallel-size 1024");
    assert_refused("--data-parallel-size 0", "--data-parallel-size 0: 1 to 1024");
    assert_refused("-dp 4000000000", "--data-parallel-size 4000000000: 1 to 1024");
}

static void prefill_urls_are_addresses_or_any(void **state)
{
    (void)state;
    assert_taken("--prefill-urls '*'");
    assert_taken("--prefill-urls http://10.0.0.7:8000 https://prefill.local");
    assert_refused("--prefill-urls 10.0.0.7:8000", "--prefill-urls 10.0.0.7:8000: ");
    assert_refused("--prefill-urls http://", "--prefill-urls http://: ");
    assert_refused("--prefill-urls http://a:1 http://a:1/v1", "--prefill-urls http://a:1/v1: ");
    assert_refused("--prefill-urls ftp://a", "--prefill-urls ftp://a: ");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags_that_change_nothing_are_taken),
        cmocka_unit_test(short_names_stand_for_long_ones),
        cmocka_unit_test(values_that_would_change_answers_are_refused),
        cmocka_unit_test(the_number_of_workers_is_bounded),
        cmocka_unit_test(the_number_of_copies_is_bounded),
        cmocka_unit_test(prefill_urls_are_addresses_or_any),
    };
    weft_log_set_level(WEFT_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
