/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_model: `weft bench model`, tokens a second of one model on this machine, as llama-bench
 * counts them: prefill is one prompt from an empty cache, its last token sampled; decode is n
 * tokens one by one of each sequence of a batch. The executor is driven directly: no scheduler, no
 * text.
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
#include "runtime/engine/engine.h"
#include "runtime/engine/engine_kv_dtype.h"
#include "runtime/executor/executor.h"

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

/* Device time of decode steps, where the device has a clock. */
typedef struct step_times {
    uint64_t steps;
    uint64_t busy_ns;
    uint64_t gap_ns;
} step_times_t;

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
    uint32_t blocks;    /* of a sequence */
    uint32_t in_flight; /* steps */
    step_times_t times; /* of decode steps since the warm-up, but for the first of a run */
    bool is_counting;
    size_t weight_bytes; /* read by a decode step */
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
    if (options->model[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID, "no model: give --model PATH");
    }
    if (options->repetitions == 0 || options->repetitions > MAX_REPETITIONS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--repetitions: 1 to %d", MAX_REPETITIONS);
    }
    if (options->n_batch == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--n-batch: 1 or more");
    }
    if (options->n_prompt == 0 && options->n_gen == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "nothing to measure: -p and -n are 0");
    }
    if (bench->engine.block_size == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--block-size: 1 or more");
    }
    return engine_kv_dtype_parse(bench->engine.kv_cache_dtype, K_F16, diag, &bench->kv_dtype);
}

/* ---- the machine it runs on ------------------------------------------------------------------ */

static void set_limits(bench_t *bench, uint32_t context)
{
    const uint32_t batch = bench->options.n_batch;
    const uint32_t step_tokens = engine_step_tokens(&bench->engine, bench->device);
    const uint32_t tokens = context < step_tokens ? context : step_tokens;
    bench->blocks = context / bench->engine.block_size + 1;
    bench->limits = (step_limits_t){
        .max_slots = batch,
        .max_tokens = tokens > batch ? tokens : batch,
        .max_context = context,
        .max_blocks = batch * bench->blocks,
        .max_bind_tokens = batch * context,
        .max_biases = 1,
        .max_outputs = batch,
    };
}

/* All but an embedding that is not the output matrix too: of that a row is read. */
static void count_weights(bench_t *bench)
{
    const model_source_t *source = bench->source;
    model_tensor_t table;
    for (size_t i = 0; i < model_source_tensor_count(source); i++) {
        bench->weight_bytes += model_source_tensor_at(source, i).bytes;
    }
    if (!model_source_config(source)->is_embedding_tied &&
        model_source_find(source, (model_tensor_key_t){.id = MODEL_TENSOR_EMBEDDING}, NULL,
                          &table) >= 0) {
        bench->weight_bytes -= table.bytes;
    }
}

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
    if (strcmp(engine->kv_cache_dtype, "auto") == 0 && bench->stream->ops->act == K_BF16) {
        bench->kv_dtype = K_BF16;
    }
    const bench_model_options_t *options = &bench->options;
    const uint32_t decoded = options->n_context + options->n_gen;
    const uint32_t context = options->n_prompt > decoded ? options->n_prompt : decoded;
    const uint32_t max_context = model_source_config(bench->source)->max_context;
    if (context > max_context) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%u tokens: the model's context is %u", context,
                         max_context);
    }
    set_limits(bench, context);
    count_weights(bench);
    const model_limits_t limits = {.max_rows = bench->limits.max_tokens,
                                   .max_outputs = bench->limits.max_outputs,
                                   .max_context = context,
                                   .keeps_packed = engine->keep_packed_weights};
    return model_create(bench->source, NULL, &limits, bench->stream, diag, &bench->model);
}

static weft_status_t open_kv(bench_t *bench, weft_diag_t *diag)
{
    const model_config_t *config = model_config(bench->model);
    const uint32_t blocks = bench->limits.max_blocks;
    bench->layout = (kv_layout_t){
        .order = KV_ORDER_BHLNC,
        .block_tokens = bench->engine.block_size,
        .element_bytes = k_dtype_info(bench->kv_dtype)->block_bytes,
        .scale_bytes = k_kv_scale_bytes(bench->kv_dtype),
        .n_groups = 1,
        .groups = {{config->layers, config->kv_heads, config->head_dim, model_kv_window(config)}},
    };
    weft_status_t status = engine_kv_dtype_check(bench->kv_dtype, config, diag);
    if (status >= 0) {
        status = kv_layout_init(&bench->layout, blocks, diag);
    }
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
        .is_timed = bench->device->ops->elapsed_ns != NULL,
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

static weft_status_t collect(bench_t *bench)
{
    step_result_t result;
    const weft_status_t status = executor_collect(bench->executor, &result);
    if (status >= 0) {
        bench->in_flight--;
        bench->times.steps += bench->is_counting;
        bench->times.busy_ns += bench->is_counting ? result.busy_ns : 0;
        bench->times.gap_ns += bench->is_counting ? result.gap_ns : 0;
    }
    return status;
}

static weft_status_t collect_all(bench_t *bench)
{
    weft_status_t status = WEFT_OK;
    while (status >= 0 && bench->in_flight > 0) {
        status = collect(bench);
    }
    return status;
}

/* As the engine: the next step is launched while one runs, where there is something to gain. */
static weft_status_t run_step(bench_t *bench)
{
    const uint32_t most = bench->device->ops->is_host ? 0 : 1;
    weft_status_t status = executor_launch(bench->executor, bench->plan);
    step_plan_clear(bench->plan, ++bench->step);
    bench->in_flight += status >= 0;
    while (status >= 0 && bench->in_flight > most) {
        status = collect(bench);
    }
    return status;
}

/* New sequences of n tokens each, any will do, with all the blocks they can need. */
static void plan_sequences(bench_t *bench, uint32_t sequences, uint32_t n)
{
    step_plan_t *plan = bench->plan;
    const uint32_t vocab = model_config(bench->model)->vocab;
    for (uint32_t slot = 0; slot < sequences; slot++) {
        for (uint32_t i = 0; i < n; i++) {
            plan->tokens[plan->n_tokens + i] =
                (int32_t)((i * UINT64_C(2654435761) + 17 + slot) % vocab);
        }
        plan->binds[plan->n_binds++] = (step_bind_t){
            .slot = slot,
            .prompt_tokens = n,
            .first_token = plan->n_tokens,
            .n_tokens = n,
            .sampling = {.top_p = 1.0f, .repetition_penalty = 1.0f},
        };
        plan->n_tokens += n;
        for (uint32_t i = 0; i < bench->blocks; i++) {
            plan->blocks[plan->n_blocks++] =
                (step_block_t){.slot = slot, .index = i, .block = slot * bench->blocks + i};
        }
    }
}

static void plan_row(bench_t *bench, uint32_t slot, uint32_t start, uint32_t n, uint32_t flags)
{
    bench->plan->rows[bench->plan->n_rows++] =
        (step_row_t){.slot = slot, .flags = flags, .start = start, .n_tokens = n};
}

static weft_status_t prefill(bench_t *bench, uint32_t n)
{
    weft_status_t status = WEFT_OK;
    plan_sequences(bench, 1, n);
    for (uint32_t at = 0; status >= 0 && at < n;) {
        const uint32_t left = n - at;
        const uint32_t chunk = left < bench->limits.max_tokens ? left : bench->limits.max_tokens;
        plan_row(bench, 0, at, chunk, chunk == left ? STEP_ROW_SAMPLE : 0);
        status = run_step(bench);
        at += chunk;
    }
    return status < 0 ? status : collect_all(bench);
}

/* The first sequence's cache becomes everyone's: what is in it does not matter, that it is does. */
static void copy_cache(bench_t *bench)
{
    const size_t bytes = bench->blocks * bench->layout.block_bytes[0];
    char *base = bench->kv.addr;
    for (uint32_t i = 1; i < bench->options.n_batch; i++) {
        bench->device->ops->copy(bench->stream->queue, base + i * bytes, base, bytes);
    }
}

static weft_status_t fill_cache(bench_t *bench)
{
    if (bench->options.n_context == 0 || bench->options.n_gen == 0) {
        return WEFT_OK;
    }
    const weft_status_t status = prefill(bench, bench->options.n_context);
    copy_cache(bench);
    return status < 0 ? status : k_stream_sync(bench->stream);
}

static weft_status_t decode(bench_t *bench, uint32_t n)
{
    const uint32_t context = bench->options.n_context;
    weft_status_t status = WEFT_OK;
    plan_sequences(bench, bench->options.n_batch, context + 1);
    for (uint32_t at = 0; status >= 0 && at < n; at++) {
        for (uint32_t slot = 0; slot < bench->options.n_batch; slot++) {
            plan_row(bench, slot, context + at, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT);
        }
        status = run_step(bench);
        bench->is_counting = at > 0;
    }
    status = status < 0 ? status : collect_all(bench);
    bench->is_counting = false;
    return status;
}

static weft_status_t measure(bench_t *bench, weft_status_t (*run)(bench_t *bench, uint32_t n),
                             uint32_t n, rates_t *rates)
{
    if (n == 0) {
        return WEFT_OK;
    }
    const uint32_t sequences = run == decode ? bench->options.n_batch : 1;
    const uint64_t start = weft_clock_ns();
    const weft_status_t status = run(bench, n);
    const uint64_t ns = weft_clock_ns() - start;
    rates->tok_s[rates->n++] =
        (double)n * sequences * WEFT_NS_PER_SECOND / (double)(ns > 0 ? ns : 1);
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
    weft_status_t status = fill_cache(bench);
    if (status >= 0) {
        status = measure(bench, prefill, options->n_prompt, prefills);
    }
    if (status >= 0) {
        status = measure(bench, decode, options->n_gen < 8 ? options->n_gen : 8, decodes);
    }
    prefills->n = 0; /* that was to warm up */
    decodes->n = 0;
    bench->times = (step_times_t){0};
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

/* Bytes a decode step reads: weights, and keys and values of all sequences. */
static double step_bytes(const bench_t *bench)
{
    const double tokens = bench->options.n_context + bench->options.n_gen / 2.0;
    const double token_bytes = (double)bench->layout.block_bytes[0] / bench->layout.block_tokens;
    return (double)bench->weight_bytes + bench->options.n_batch * tokens * token_bytes;
}

static double step_ns(const bench_t *bench, const rates_t *decodes)
{
    return bench->options.n_batch * (double)WEFT_NS_PER_SECOND / median(decodes);
}

static void put_steps(weft_json_t *json, const bench_t *bench, const rates_t *decodes)
{
    const step_times_t *times = &bench->times;
    weft_json_put_u64(json, "batch", bench->options.n_batch);
    weft_json_put_u64(json, "context", bench->options.n_context);
    if (decodes->n == 0) {
        return;
    }
    weft_json_put_f64(json, "step_us", step_ns(bench, decodes) / 1e3);
    weft_json_put_f64(json, "step_gb_s", step_bytes(bench) / step_ns(bench, decodes));
    if (times->busy_ns > 0) {
        weft_json_put_f64(json, "step_busy_us",
                          (double)times->busy_ns / 1e3 / (double)times->steps);
        weft_json_put_f64(json, "step_gap_us", (double)times->gap_ns / 1e3 / (double)times->steps);
    }
}

static void print_steps(const bench_t *bench, const rates_t *decodes)
{
    const step_times_t *times = &bench->times;
    if (decodes->n == 0) {
        return;
    }
    printf("step     %u sequences of %u tokens %10.1f us, %.1f GB/s of weights and cache",
           bench->options.n_batch, bench->options.n_context, step_ns(bench, decodes) / 1e3,
           step_bytes(bench) / step_ns(bench, decodes));
    if (times->busy_ns > 0) {
        printf("; the device works %.1f us and waits %.1f us",
               (double)times->busy_ns / 1e3 / (double)times->steps,
               (double)times->gap_ns / 1e3 / (double)times->steps);
    }
    putchar('\n');
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
    /* One rank: nothing is faster without, see the option. */
    weft_json_put_bool(&json, "deterministic", bench->engine.deterministic);
    weft_json_put_u64(&json, "repetitions", bench->options.repetitions);
    put_rates(&json, "prefill", bench->options.n_prompt, prefills);
    put_rates(&json, "decode", bench->options.n_gen, decodes);
    put_steps(&json, bench, decodes);
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
    printf("%s on %s, %s, %u threads, %s cache, %s\n", model_config(bench->model)->name, cpu,
           bench->stream->ops->name, k_stream_threads(bench->stream),
           k_dtype_info(bench->kv_dtype)->name,
           bench->engine.deterministic ? "deterministic" : "not deterministic");
    print_rates("prefill", bench->options.n_prompt, prefills);
    print_rates("decode", bench->options.n_gen, decodes);
    print_steps(bench, decodes);
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
