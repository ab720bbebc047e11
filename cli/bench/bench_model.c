/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_model: `weft bench model`, tokens a second of one model on this machine, as llama-bench
 * counts them: prefill is one prompt from an empty cache, its last token sampled; decode is n
 * tokens one by one from an empty cache. The executor is driven directly: no scheduler, no text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "cli/bench/bench_machine.h"
#include "cli/bench/bench_print.h"
#include "cli/commands.h"
#include "cli/option_tables.h"
#include "runtime/engine.h"
#include "runtime/executor.h"

#define MAX_REPETITIONS 1000

typedef struct bench_model_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/bench/bench_model.def"
#undef OPTION
} bench_model_options_t;

const weft_option_t bench_model_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(bench_model_options_t, __VA_ARGS__)
#include "cli/bench/bench_model.def"
#undef OPTION
};
const size_t bench_model_option_count = WEFT_ARRAY_LEN(bench_model_option_rows);

typedef struct bench {
    bench_model_options_t options;
    engine_options_t engine;
    weft_option_set_t *set;
    weft_device_t *device;
    k_stream_t *stream;
    model_source_t *source;
    model_t *model;
    kv_layout_t layout;
    k_dtype_t kv_dtype;
    weft_mem_t kv;
    step_limits_t limits;
    executor_t *executor;
    step_plan_t *plan;
    uint64_t step;
} bench_t;

/* Sorted tokens a second of one kind of measurement. */
typedef struct rates {
    double tok_s[MAX_REPETITIONS];
    uint32_t n;
} rates_t;

/* ---- options ------------------------------------------------------------------------------- */

static weft_status_t parse_options(bench_t *bench, int argc, char **argv, weft_diag_t *diag)
{
    static const weft_option_alias_t letters[] = {
        {"m", "model"}, {"p", "n-prompt"}, {"n", "n-gen"}, {"r", "repetitions"}, {"t", "threads"},
    };
    const weft_option_group_t groups[] = {
        CLI_OPTION_GROUP(bench_model, "Measurement", &bench->options),
        CLI_OPTION_GROUP(engine, "Engine", &bench->engine),
    };
    const weft_option_spec_t spec = {
        .usage = "weft bench model --model PATH -p 512 -n 128 -t 2 -r 5 [--json]",
        .about = "Measures prefill and decode of one model, in tokens a second.",
        .groups = groups,
        .n_groups = WEFT_ARRAY_LEN(groups),
        .flags = letters,
        .n_flags = WEFT_ARRAY_LEN(letters),
        .max_positional = 1,
    };
    const weft_status_t status = weft_option_set_parse(&spec, argc, argv, diag, &bench->set);
    if (status >= 0 && bench->options.model[0] == '\0' &&
        weft_option_positional_count(bench->set) == 1) {
        bench->options.model = weft_option_positional(bench->set, 0);
    }
    return status;
}

static weft_status_t check_options(bench_t *bench, weft_diag_t *diag)
{
    const bench_model_options_t *options = &bench->options;
    const bool is_auto = strcmp(bench->engine.kv_cache_dtype, "auto") == 0;
    if (options->model[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID, "no model: give --model PATH");
    }
    if (options->repetitions == 0 || options->repetitions > MAX_REPETITIONS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--repetitions: 1 to %d", MAX_REPETITIONS);
    }
    if (options->n_prompt == 0 && options->n_gen == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "nothing to measure: -p and -n are 0");
    }
    if (bench->engine.max_num_batched_tokens == 0 || bench->engine.block_size == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--max-num-batched-tokens and --block-size: 1 or more");
    }
    const weft_status_t status =
        k_dtype_from_name(is_auto ? "f16" : bench->engine.kv_cache_dtype, &bench->kv_dtype);
    const bool is_float = status >= 0 && (bench->kv_dtype == K_F32 || bench->kv_dtype == K_F16 ||
                                          bench->kv_dtype == K_BF16);
    return is_float ? WEFT_OK
                    : weft_diag(diag, WEFT_ERR_INVALID, "--kv-cache-dtype: auto, f32, f16 or bf16");
}

/* ---- the machine it runs on ------------------------------------------------------------------ */

static weft_status_t open_model(bench_t *bench, weft_diag_t *diag)
{
    const engine_options_t *engine = &bench->engine;
    weft_status_t status = model_source_open(bench->options.model, diag, &bench->source);
    if (status >= 0) {
        status = weft_device_open(engine->device, 0, diag, &bench->device);
    }
    if (status >= 0) {
        status =
            k_stream_create(bench->device, engine->cpu_isa, engine->threads, diag, &bench->stream);
    }
    if (status < 0) {
        return status;
    }
    const uint32_t context = bench->options.n_prompt > bench->options.n_gen
                                 ? bench->options.n_prompt
                                 : bench->options.n_gen;
    const uint32_t max_context = model_source_config(bench->source)->max_context;
    if (context > max_context) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%u tokens: the model's context is %u", context,
                         max_context);
    }
    const uint32_t blocks = context / engine->block_size + 1;
    bench->limits = (step_limits_t){
        .max_slots = 1,
        .max_tokens =
            context < engine->max_num_batched_tokens ? context : engine->max_num_batched_tokens,
        .max_context = context,
        .max_blocks = blocks,
        .max_bind_tokens = context,
        .max_biases = 1,
        .max_outputs = 1,
    };
    const model_limits_t limits = {
        .max_rows = bench->limits.max_tokens, .max_outputs = 1, .max_context = context};
    return model_create(bench->source, &limits, bench->stream, diag, &bench->model);
}

static weft_status_t open_kv(bench_t *bench, weft_diag_t *diag)
{
    const model_config_t *config = model_config(bench->model);
    const uint32_t blocks = bench->limits.max_blocks;
    bench->layout = (kv_layout_t){
        .order = KV_ORDER_BHLNC,
        .block_tokens = bench->engine.block_size,
        .element_bytes = k_dtype_info(bench->kv_dtype)->block_bytes,
        .n_groups = 1,
        .groups = {{config->layers, config->kv_heads, config->head_dim, model_kv_window(config)}},
    };
    const weft_status_t status = kv_layout_init(&bench->layout, blocks, diag);
    return status < 0 ? status
                      : bench->device->ops->alloc(
                            bench->device, blocks * bench->layout.block_bytes[0], 0, &bench->kv);
}

static weft_status_t open_executor(bench_t *bench, weft_diag_t *diag)
{
    const executor_config_t config = {
        .model = bench->model,
        .stream = bench->stream,
        .limits = bench->limits,
        .layout = &bench->layout,
        .kv_dtype = bench->kv_dtype,
        .kv_base = bench->kv.addr,
    };
    weft_status_t status = executor_create(&config, diag, &bench->executor);
    if (status >= 0) {
        status = step_plan_create(&bench->limits, &bench->plan);
    }
    if (status >= 0) {
        step_plan_clear(bench->plan, ++bench->step);
    }
    return status;
}

static void close_bench(bench_t *bench)
{
    step_plan_destroy(bench->plan);
    executor_destroy(bench->executor);
    if (bench->kv.addr != NULL) {
        bench->device->ops->free(bench->device, &bench->kv);
    }
    model_destroy(bench->model);
    model_source_close(bench->source);
    k_stream_destroy(bench->stream);
    weft_device_close(bench->device);
    weft_option_set_destroy(bench->set);
}

/* ---- measuring ------------------------------------------------------------------------------- */

static weft_status_t run_step(bench_t *bench)
{
    step_result_t result;
    const weft_status_t status = executor_launch(bench->executor, bench->plan);
    step_plan_clear(bench->plan, ++bench->step);
    return status < 0 ? status : executor_collect(bench->executor, &result);
}

/* A new sequence of n tokens, any will do, with all the blocks there are. */
static void plan_sequence(bench_t *bench, uint32_t n)
{
    step_plan_t *plan = bench->plan;
    const uint32_t vocab = model_config(bench->model)->vocab;
    for (uint32_t i = 0; i < n; i++) {
        plan->tokens[i] = (int32_t)((i * UINT64_C(2654435761) + 17) % vocab);
    }
    plan->n_tokens = n;
    plan->binds[plan->n_binds++] = (step_bind_t){
        .prompt_tokens = n, .n_tokens = n, .sampling = {.top_p = 1.0f, .repetition_penalty = 1.0f}};
    for (uint32_t i = 0; i < bench->limits.max_blocks; i++) {
        plan->blocks[plan->n_blocks++] = (step_block_t){.index = i, .block = i};
    }
}

static void plan_row(bench_t *bench, uint32_t start, uint32_t n, uint32_t flags)
{
    bench->plan->rows[bench->plan->n_rows++] =
        (step_row_t){.flags = flags, .start = start, .n_tokens = n};
}

static weft_status_t prefill(bench_t *bench, uint32_t n)
{
    weft_status_t status = WEFT_OK;
    plan_sequence(bench, n);
    for (uint32_t at = 0; status >= 0 && at < n;) {
        const uint32_t left = n - at;
        const uint32_t chunk = left < bench->limits.max_tokens ? left : bench->limits.max_tokens;
        plan_row(bench, at, chunk, chunk == left ? STEP_ROW_SAMPLE : 0);
        status = run_step(bench);
        at += chunk;
    }
    return status;
}

static weft_status_t decode(bench_t *bench, uint32_t n)
{
    weft_status_t status = WEFT_OK;
    plan_sequence(bench, 1);
    for (uint32_t at = 0; status >= 0 && at < n; at++) {
        plan_row(bench, at, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT);
        status = run_step(bench);
    }
    return status;
}

static weft_status_t measure(bench_t *bench, weft_status_t (*run)(bench_t *bench, uint32_t n),
                             uint32_t n, rates_t *rates)
{
    if (n == 0) {
        return WEFT_OK;
    }
    const uint64_t start = weft_clock_ns();
    const weft_status_t status = run(bench, n);
    const uint64_t ns = weft_clock_ns() - start;
    rates->tok_s[rates->n++] = (double)n * WEFT_NS_PER_SECOND / (double)(ns > 0 ? ns : 1);
    return status;
}

static int compare_rates(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Prefill and decode by turns, so that what else the machine does meets both. */
static weft_status_t measure_all(bench_t *bench, rates_t *prefills, rates_t *decodes)
{
    const bench_model_options_t *options = &bench->options;
    weft_status_t status = measure(bench, prefill, options->n_prompt, prefills);
    if (status >= 0) {
        status = measure(bench, decode, options->n_gen < 8 ? options->n_gen : 8, decodes);
    }
    prefills->n = 0; /* that was to warm up */
    decodes->n = 0;
    for (uint32_t i = 0; status >= 0 && i < options->repetitions; i++) {
        status = measure(bench, prefill, options->n_prompt, prefills);
        if (status >= 0) {
            status = measure(bench, decode, options->n_gen, decodes);
        }
    }
    qsort(prefills->tok_s, prefills->n, sizeof(double), compare_rates);
    qsort(decodes->tok_s, decodes->n, sizeof(double), compare_rates);
    return status;
}

/* ---- telling --------------------------------------------------------------------------------- */

static double median(const rates_t *rates)
{
    const uint32_t n = rates->n;
    return n % 2 == 1 ? rates->tok_s[n / 2] : (rates->tok_s[n / 2 - 1] + rates->tok_s[n / 2]) / 2.0;
}

static void put_rates(weft_json_t *json, const char *name, uint32_t tokens, const rates_t *rates)
{
    if (rates->n == 0) {
        return;
    }
    weft_json_key(json, name);
    weft_json_begin_object(json);
    weft_json_put_u64(json, "tokens", tokens);
    weft_json_key(json, "tok_s");
    weft_json_begin_object(json);
    weft_json_put_f64(json, "median", median(rates));
    weft_json_put_f64(json, "min", rates->tok_s[0]);
    weft_json_put_f64(json, "max", rates->tok_s[rates->n - 1]);
    weft_json_end_object(json);
    weft_json_end_object(json);
}

static weft_status_t print_json(const bench_t *bench, const rates_t *prefills,
                                const rates_t *decodes)
{
    char cpu[256];
    weft_buffer_t out = {0};
    weft_json_t json;
    bench_machine_cpu(cpu, sizeof(cpu));
    weft_json_init(&json, &out);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "version", WEFT_VERSION);
    weft_json_put_string(&json, "model", model_config(bench->model)->name);
    weft_json_put_string(&json, "cpu", cpu);
    weft_json_put_string(&json, "device", bench->device->ops->name);
    weft_json_put_string(&json, "isa", bench->stream->ops->name);
    weft_json_put_u64(&json, "threads", k_stream_threads(bench->stream));
    weft_json_put_u64(&json, "batch_tokens", bench->limits.max_tokens);
    weft_json_put_string(&json, "kv_cache_dtype", k_dtype_info(bench->kv_dtype)->name);
    weft_json_put_u64(&json, "repetitions", bench->options.repetitions);
    put_rates(&json, "prefill", bench->options.n_prompt, prefills);
    put_rates(&json, "decode", bench->options.n_gen, decodes);
    weft_json_end_object(&json);
    return bench_print_buffer(&out);
}

static void print_rates(const char *name, uint32_t tokens, const rates_t *rates)
{
    if (rates->n > 0) {
        printf("%-8s %6u tokens %10.1f tok/s  (%.1f to %.1f)\n", name, tokens, median(rates),
               rates->tok_s[0], rates->tok_s[rates->n - 1]);
    }
}

static weft_status_t print_text(const bench_t *bench, const rates_t *prefills,
                                const rates_t *decodes)
{
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    printf("%s on %s, %s, %u threads, %s cache\n", model_config(bench->model)->name, cpu,
           bench->stream->ops->name, k_stream_threads(bench->stream),
           k_dtype_info(bench->kv_dtype)->name);
    print_rates("prefill", bench->options.n_prompt, prefills);
    print_rates("decode", bench->options.n_gen, decodes);
    return fflush(stdout) == 0 ? WEFT_OK : WEFT_ERR_IO;
}

int bench_model(int argc, char **argv)
{
    static rates_t prefills;
    static rates_t decodes;
    bench_t bench = {0};
    weft_diag_t diag = {0};
    weft_log_set_level(WEFT_LOG_WARN);

    weft_status_t status = parse_options(&bench, argc, argv, &diag);
    if (status >= 0) {
        status = check_options(&bench, &diag);
    }
    if (status >= 0) {
        status = open_model(&bench, &diag);
    }
    if (status >= 0) {
        status = open_kv(&bench, &diag);
    }
    if (status >= 0) {
        status = open_executor(&bench, &diag);
    }
    if (status >= 0) {
        status = measure_all(&bench, &prefills, &decodes);
    }
    if (status >= 0) {
        status = bench.options.json ? print_json(&bench, &prefills, &decodes)
                                    : print_text(&bench, &prefills, &decodes);
    }
    close_bench(&bench);
    return status >= 0 || status == WEFT_ERR_CANCELLED ? CLI_EXIT_OK : cli_fail(status, &diag);
}
