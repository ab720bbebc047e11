/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kernels: `weft bench kernels`, each op on shapes of models beside its roofline: the longer
 * of the time to read its bytes and the time to do its operations, at the best rates that the same
 * run measured of the machine.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "base/option.h"
#include "cli/bench/bench_kernels_cases.h"
#include "cli/bench/bench_kernels_machine.h"
#include "cli/bench/bench_machine.h"
#include "cli/bench/bench_print.h"
#include "cli/bench/bench_samples.h"
#include "cli/commands.h"
#include "cli/option_tables.h"

enum { MIN_TIMES = 3, MAX_ROWS = 4096 };

typedef struct bench_kernels_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/bench/bench_kernels.def"
#undef OPTION
} bench_kernels_options_t;

const weft_option_t bench_kernels_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(bench_kernels_options_t, __VA_ARGS__)
#include "cli/bench/bench_kernels.def"
#undef OPTION
};
const size_t bench_kernels_option_count = WEFT_ARRAY_LEN(bench_kernels_option_rows);

typedef struct bench {
    bench_kernels_options_t options;
    weft_option_set_t *set;
    weft_device_t *device;
    k_stream_t *stream;
    bench_ceilings_t ceilings;
    weft_buffer_t out;
    weft_json_t json;
    weft_status_t status;
} bench_t;

/* ---- lists --------------------------------------------------------------------------------- */

static const char *const op_names[] = {"linear", "rms_norm", "attention", "sample"};

/* The next name of a list with commas; false at its end. */
static bool next_name(const char **list, char *name, size_t size)
{
    const size_t length = strcspn(*list, ",");
    if (length == 0) {
        return false;
    }
    snprintf(name, size, "%.*s", (int)length, *list);
    *list += length + ((*list)[length] == ',' ? 1 : 0);
    return true;
}

static bool has_name(const char *list, const char *name)
{
    char one[32];
    while (next_name(&list, one, sizeof(one))) {
        if (strcmp(one, name) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_op(const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(op_names); i++) {
        if (strcmp(op_names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static weft_status_t check_options(const bench_kernels_options_t *options, weft_diag_t *diag)
{
    char name[32];
    if (!(options->seconds >= 0 && options->seconds <= 3600)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--seconds %g: 0 to 3600 are possible",
                         options->seconds);
    }
    for (const char *list = options->ops; next_name(&list, name, sizeof(name));) {
        if (!is_op(name)) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "--ops: linear, rms_norm, attention or sample, not \"%s\"", name);
        }
    }
    for (const char *list = options->shapes; next_name(&list, name, sizeof(name));) {
        if (bench_shape_of(name) == NULL) {
            return weft_diag(diag, WEFT_ERR_INVALID, "--shapes: 135m, 1b or 8b, not \"%s\"", name);
        }
    }
    for (const char *list = options->dtypes; next_name(&list, name, sizeof(name));) {
        k_dtype_t dtype;
        if (k_dtype_from_name(name, &dtype) < 0) {
            return weft_diag(diag, WEFT_ERR_INVALID, "--dtypes: no type \"%s\"", name);
        }
    }
    for (const char *list = options->rows; next_name(&list, name, sizeof(name));) {
        const long rows = strtol(name, NULL, 10);
        if (rows < 1 || rows > MAX_ROWS) {
            return weft_diag(diag, WEFT_ERR_INVALID, "--rows: 1 to %d each", MAX_ROWS);
        }
    }
    return WEFT_OK;
}

/* ---- measuring ------------------------------------------------------------------------------- */

static weft_status_t time_runs(double seconds, void (*run)(void *state), void *state,
                               bench_samples_t *samples)
{
    const uint64_t begin = weft_clock_ns();
    weft_status_t status = WEFT_OK;
    run(state); /* to warm up */
    for (uint32_t i = 0; status >= 0; i++) {
        const uint64_t start = weft_clock_ns();
        if (i >= MIN_TIMES && (double)(start - begin) > seconds * WEFT_NS_PER_SECOND) {
            break;
        }
        run(state);
        status =
            bench_samples_add(samples, (double)(weft_clock_ns() - start + 1) / WEFT_NS_PER_SECOND);
    }
    return status;
}

static void put_case(bench_t *bench, const bench_case_t *one, const bench_distribution_t *times,
                     double floor, bool is_memory)
{
    weft_json_t *json = &bench->json;
    weft_json_begin_object(json);
    weft_json_put_string(json, "op", one->op);
    weft_json_put_string(json, "detail", one->detail);
    weft_json_put_string(json, "shape", one->shape->name);
    weft_json_put_string(json, "dtype", k_dtype_info(one->dtype)->name);
    weft_json_put_u64(json, "rows", one->rows);
    weft_json_put_f64(json, "bytes", one->bytes);
    weft_json_put_f64(json, "operations", one->operations);
    weft_json_put_f64(json, "seconds_median", times->p50);
    weft_json_put_f64(json, "seconds_min", times->min);
    weft_json_put_f64(json, "floor_seconds", floor);
    weft_json_put_string(json, "bound", is_memory ? "memory" : "compute");
    weft_json_put_f64(json, "share_of_ceiling", floor / times->p50);
    weft_json_end_object(json);
}

static void visit(void *user, const bench_case_t *one, void (*run)(void *state), void *state)
{
    bench_t *bench = user;
    bench_samples_t samples = {0};
    bench->status = time_runs(bench->options.seconds, run, state, &samples);
    if (bench->status >= 0) {
        const bench_distribution_t times = bench_samples_distribute(&samples);
        const double peak =
            bench_ceiling_of(&bench->ceilings, one->op[0] == 'l' ? one->dtype : K_F32);
        const double reading = one->bytes / bench->ceilings.read_bytes;
        const double computing = peak > 0 ? one->operations / peak : 0;
        const bool is_memory = reading >= computing;
        const double floor = is_memory ? reading : computing;
        if (bench->options.json) {
            put_case(bench, one, &times, floor, is_memory);
        } else {
            printf("%-9s %-10s %-5s %-8s %5u %10.1f %10.1f %8.2f %8.1f  %-7s %4.0f%% %4.0f%%\n",
                   one->op, one->detail, one->shape->name, k_dtype_info(one->dtype)->name,
                   one->rows, times.p50 * 1e6, times.min * 1e6, one->bytes / times.p50 * 1e-9,
                   one->operations / times.p50 * 1e-9, is_memory ? "memory" : "compute",
                   100 * floor / times.p50, 100 * floor / times.min);
            fflush(stdout);
        }
    }
    bench_samples_fini(&samples);
}

static weft_status_t run_shape(bench_t *bench, const bench_shape_t *shape, uint32_t rows)
{
    const bench_kernels_options_t *options = &bench->options;
    const bench_visitor_t visitor = {visit, bench};
    weft_status_t status = WEFT_OK;
    char name[32];
    for (const char *list = has_name(options->ops, "linear") ? options->dtypes : "";
         status >= 0 && next_name(&list, name, sizeof(name));) {
        k_dtype_t dtype = K_F32;
        k_dtype_from_name(name, &dtype);
        status = bench_linear_cases(bench->stream, shape, dtype, rows, &visitor);
    }
    if (status >= 0 && has_name(options->ops, "rms_norm")) {
        status = bench_norm_case(bench->stream, shape, rows, &visitor);
    }
    if (status >= 0 && has_name(options->ops, "attention")) {
        status = bench_attention_cases(bench->stream, shape, rows, &visitor);
    }
    if (status >= 0 && rows <= 64 && has_name(options->ops, "sample")) {
        status = bench_sample_cases(bench->stream, shape, rows, &visitor);
    }
    return status < 0 ? status : bench->status;
}

static weft_status_t run_all(bench_t *bench)
{
    weft_status_t status = WEFT_OK;
    char shape[32];
    char rows[32];
    for (const char *names = bench->options.shapes;
         status >= 0 && next_name(&names, shape, sizeof(shape));) {
        for (const char *list = bench->options.rows;
             status >= 0 && next_name(&list, rows, sizeof(rows));) {
            status = run_shape(bench, bench_shape_of(shape), (uint32_t)strtol(rows, NULL, 10));
        }
    }
    return status;
}

/* ---- the command ----------------------------------------------------------------------------- */

static weft_status_t parse_options(bench_t *bench, int argc, char **argv, weft_diag_t *diag)
{
    const weft_option_group_t group =
        CLI_OPTION_GROUP(bench_kernels, "Measurement", &bench->options);
    const weft_option_spec_t spec = {
        .usage = "weft bench kernels --shapes 1b --dtypes q4_0,bf16 --rows 1,512 [--json]",
        .about = "Measures this machine's read bandwidth and its peaks of int8, bf16 and f32 "
                 "products, then each op of the CPU kernels beside them.",
        .groups = &group,
        .n_groups = 1,
    };
    const weft_status_t status = weft_option_set_parse(&spec, argc, argv, diag, &bench->set);
    return status < 0 ? status : check_options(&bench->options, diag);
}

static weft_status_t open_stream(bench_t *bench, weft_diag_t *diag)
{
    weft_status_t status = weft_device_open("cpu", 0, diag, &bench->device);
    if (status >= 0) {
        status = k_stream_create(bench->device, bench->options.cpu_isa, bench->options.threads,
                                 diag, &bench->stream);
    }
    if (status >= 0) {
        status = k_stream_reserve(bench->stream, MAX_ROWS, 14336);
    }
    if (status >= 0) {
        status = k_stream_reserve(bench->stream, 64, 128256);
    }
    return status < 0 ? status : bench_kernels_machine(bench->stream, diag, &bench->ceilings);
}

static void begin(bench_t *bench)
{
    const bench_ceilings_t *most = &bench->ceilings;
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    if (!bench->options.json) {
        printf("%s, %s, %u threads: reads %.1f GB/s; int8 %.0f, bf16 %.0f, f32 %.0f GOP/s\n", cpu,
               bench->stream->ops->name, k_stream_threads(bench->stream), most->read_bytes * 1e-9,
               most->i8 * 1e-9, most->bf16 * 1e-9, most->f32 * 1e-9);
        printf("%-9s %-10s %-5s %-8s %5s %10s %10s %8s %8s  %-7s %5s %5s\n", "op", "", "shape",
               "type", "rows", "median us", "best us", "GB/s", "GOP/s", "bound", "share", "best");
        return;
    }
    weft_json_t *json = &bench->json;
    weft_json_init(json, &bench->out);
    weft_json_begin_object(json);
    weft_json_put_string(json, "version", WEFT_VERSION);
    weft_json_put_string(json, "cpu", cpu);
    weft_json_put_string(json, "isa", bench->stream->ops->name);
    weft_json_put_u64(json, "threads", k_stream_threads(bench->stream));
    weft_json_put_f64(json, "read_bytes_s", most->read_bytes);
    weft_json_put_f64(json, "int8_op_s", most->i8);
    weft_json_put_f64(json, "bf16_op_s", most->bf16);
    weft_json_put_f64(json, "f32_op_s", most->f32);
    weft_json_key(json, "cases");
    weft_json_begin_array(json);
}

static weft_status_t end(bench_t *bench)
{
    if (!bench->options.json) {
        return WEFT_OK;
    }
    weft_json_end_array(&bench->json);
    weft_json_end_object(&bench->json);
    return bench_print_buffer(&bench->out);
}

int bench_kernels(int argc, char **argv)
{
    bench_t bench = {0};
    weft_diag_t diag = {0};
    weft_log_set_level(WEFT_LOG_WARN);

    weft_status_t status = parse_options(&bench, argc, argv, &diag);
    if (status >= 0) {
        status = open_stream(&bench, &diag);
    }
    if (status >= 0) {
        begin(&bench);
        status = run_all(&bench);
        if (status == WEFT_ERR_NO_MEMORY) {
            weft_diag(&diag, status, "not enough memory for these shapes");
        }
    }
    if (status >= 0) {
        status = end(&bench);
    }
    weft_buffer_free(&bench.out);
    k_stream_destroy(bench.stream);
    weft_device_close(bench.device);
    weft_option_set_destroy(bench.set);
    return status >= 0 || status == WEFT_ERR_CANCELLED ? CLI_EXIT_OK : cli_fail(status, &diag);
}
