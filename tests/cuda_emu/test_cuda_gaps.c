/* SPDX-License-Identifier: Apache-2.0 */
/* What engine and metrics tell of the device's time: steps that follow another one have a gap. */
#include <math.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "services/api/api_metrics.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/engine_rig.h"

enum { PROMPT = 20, ANSWER = 12, CHUNK = 8, CHUNKS = 3 };

#define DRAFT_MODEL                                                                                \
    "{\"model\": \"" WEFT_TEST_VECTORS "/tiny-models/llama\", \"num_speculative_tokens\": 2}"

/* Every prompt is computed as a whole, in three steps. */
static engine_options_t gap_options(const char *drafts)
{
    engine_options_t options = engine_rig_options();
    options.device = "cuda";
    options.max_model_len = 64;
    options.num_gpu_blocks = 16;
    options.max_num_seqs = 2;
    options.max_num_batched_tokens = CHUNK;
    options.enable_prefix_caching = false;
    options.speculative_config = drafts;
    return options;
}

static void open_engine(engine_rig_t *rig, const char *drafts)
{
    const engine_options_t options = gap_options(drafts);
    engine_rig_open(rig, ENGINE_RIG_MODEL, &options);
}

/* The last prompt step gives the first token. */
static engine_stats_t answer(engine_rig_t *rig)
{
    engine_request_release(engine_rig_greedy(rig, ANSWER));
    return engine_rig_wait_idle(rig);
}

static void each_step_but_the_first_of_a_request_has_a_gap(void **state)
{
    (void)state;
    engine_rig_t rig;
    open_engine(&rig, "");
    for (uint32_t requests = 1; requests <= 3; requests++) {
        const engine_stats_t stats = answer(&rig);
        const engine_device_stats_t *decode = &stats.device[ENGINE_STEP_DECODE];
        const engine_device_stats_t *prompt = &stats.device[ENGINE_STEP_PROMPT];
        assert_int_equal(stats.steps, requests * (CHUNKS + ANSWER - 1));
        assert_int_equal(prompt->gaps, requests * (CHUNKS - 1));
        assert_int_equal(decode->gaps, requests * (ANSWER - 1));
        assert_true(prompt->busy_ns > 0 && decode->busy_ns > 0);
        assert_true(prompt->gap_ns > 0 && decode->gap_ns > 0);
    }
    engine_rig_close(&rig);
}

static double value_of(const char *exposition, const char *name, const char *kind)
{
    char series[96];
    snprintf(series, sizeof(series), "\n%s{step=\"%s\"} ", name, kind);
    const char *at = strstr(exposition, series);
    assert_non_null(at);
    return strtod(at + strlen(series), NULL);
}

static void assert_seconds(double seconds, uint64_t ns)
{
    assert_true(fabs(seconds * (double)WEFT_NS_PER_SECOND - (double)ns) < 1);
}

static void assert_shown(const char *exposition, const char *kind,
                         const engine_device_stats_t *device)
{
    assert_seconds(value_of(exposition, "weft:device_busy_seconds_total", kind), device->busy_ns);
    assert_seconds(value_of(exposition, "weft:device_gap_seconds_total", kind), device->gap_ns);
    assert_int_equal(value_of(exposition, "weft:device_gaps_total", kind), device->gaps);
}

static void metrics_show_what_was_counted_so_far(void **state)
{
    (void)state;
    const char *const names[] = {"m"};
    const api_model_t model = {.names = names, .n_names = 1, .max_context = 64};
    const engine_options_t options = gap_options("");
    const api_metrics_gauges_t gauges = {0};
    engine_rig_t rig;
    api_metrics_t *metrics = NULL;
    open_engine(&rig, "");
    assert_status(api_metrics_create(&model, &options, rig.engine, &metrics), WEFT_OK);
    for (uint32_t requests = 0; requests < 3; requests++) {
        size_t length = 0;
        const engine_stats_t stats = requests == 0 ? engine_stats(rig.engine) : answer(&rig);
        char *exposition = api_metrics_text(metrics, rig.engine, &gauges, &length);
        assert_non_null(exposition);
        assert_shown(exposition, "decode", &stats.device[ENGINE_STEP_DECODE]);
        assert_shown(exposition, "prompt", &stats.device[ENGINE_STEP_PROMPT]);
        weft_free(exposition);
    }
    api_metrics_destroy(metrics);
    engine_rig_close(&rig);
}

static void a_draft_model_leaves_the_time_uncounted(void **state)
{
    (void)state;
    const engine_device_stats_t none[ENGINE_STEP_KINDS] = {{0}};
    engine_rig_t rig;
    open_engine(&rig, DRAFT_MODEL);
    const engine_stats_t stats = answer(&rig);
    assert_true(stats.draft_tokens > 0);
    assert_memory_equal(stats.device, none, sizeof(none));
    engine_rig_close(&rig);
}

int main(void)
{
    cuda_skip_without_device();
    weft_log_set_level(WEFT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_step_but_the_first_of_a_request_has_a_gap),
        cmocka_unit_test(metrics_show_what_was_counted_so_far),
        cmocka_unit_test(a_draft_model_leaves_the_time_uncounted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
