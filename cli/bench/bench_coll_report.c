/* SPDX-License-Identifier: Apache-2.0 */
/* nccl-tests' columns for people, an object for programs. */
#include <stdio.h>

#include "base/alloc.h"
#include "base/json_writer.h"
#include "cli/bench/bench_coll.h"
#include "cli/bench/bench_machine.h"
#include "cli/bench/bench_print.h"

#define US 1e6 /* in a second */
#define GB 1e9

struct bench_coll_report {
    const bench_coll_options_t *options;
    weft_buffer_t text; /* of the JSON object */
    weft_json_t json;
    uint32_t n_rows;
};

static const char *redop(const bench_coll_options_t *options)
{
    return bench_coll_is_sum(options) ? "sum" : "none";
}

static double rate(const bench_coll_row_t *row, const bench_coll_figure_t *figure)
{
    return figure->seconds > 0 ? (double)row->bytes / figure->seconds / GB : 0;
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_head(const bench_coll_options_t *options, const char *backend)
{
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    printf("# %u ranks on %s, device %s, backend %s, median of %u rounds\n", options->ranks, cpu,
           options->device, backend, options->rounds);
    printf("#%66s %33s\n", "out-of-place", "in-place");
    printf("#%11s %12s %6s %6s %5s %8s %7s %7s %6s %8s %7s %7s %6s\n", "size", "count", "type",
           "redop", "root", "time", "algbw", "busbw", "#wrong", "time", "algbw", "busbw", "#wrong");
    printf("#%11s %12s %6s %6s %5s %8s %7s %7s %6s %8s %7s %7s\n", "(B)", "(elements)", "", "", "",
           "(us)", "(GB/s)", "(GB/s)", "", "(us)", "(GB/s)", "(GB/s)");
}

static void print_figure(const bench_coll_report_t *report, const bench_coll_row_t *row,
                         const bench_coll_figure_t *figure)
{
    const double algbw = rate(row, figure);
    printf(" %8.2f %7.2f %7.2f", figure->seconds * US, algbw,
           algbw * bench_coll_bus_factor(report->options));
    if (report->options->check) {
        printf(" %6llu", (unsigned long long)figure->n_wrong);
    } else {
        printf(" %6s", "N/A");
    }
}

static void print_row(const bench_coll_report_t *report, const bench_coll_row_t *row)
{
    const bench_coll_options_t *options = report->options;
    printf("%12llu %12llu %6s %6s %5d", (unsigned long long)row->bytes,
           (unsigned long long)row->count, options->type, redop(options),
           bench_coll_has_root(options) ? (int)options->root : -1);
    print_figure(report, row, &row->out_of_place);
    if (row->has_in_place) {
        print_figure(report, row, &row->in_place);
    }
    putchar('\n');
    (void)fflush(stdout); /* a sweep takes its time */
}

/* ---- for programs ---------------------------------------------------------------------------- */

static void put_head(weft_json_t *json, const bench_coll_options_t *options, const char *backend)
{
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    weft_json_put_string(json, "cpu", cpu);
    weft_json_put_string(json, "op", options->op);
    weft_json_put_string(json, "type", options->type);
    weft_json_put_string(json, "redop", redop(options));
    weft_json_put_string(json, "device", options->device);
    weft_json_put_string(json, "backend", backend);
    weft_json_put_bool(json, "deterministic", options->deterministic);
    weft_json_put_string(json, "cpus", options->cpus);
    weft_json_put_u64(json, "ranks", options->ranks);
    weft_json_put_u64(json, "root", options->root);
    weft_json_put_u64(json, "rounds", options->rounds);
    weft_json_key(json, "rows");
    weft_json_begin_array(json);
}

static void put_figure(const bench_coll_report_t *report, weft_json_t *json, const char *name,
                       const bench_coll_row_t *row, const bench_coll_figure_t *figure)
{
    const double algbw = rate(row, figure);
    weft_json_key(json, name);
    weft_json_begin_object(json);
    weft_json_put_f64(json, "time_us", figure->seconds * US);
    weft_json_put_f64(json, "min_us", figure->min_seconds * US);
    weft_json_put_f64(json, "max_us", figure->max_seconds * US);
    weft_json_put_f64(json, "algbw_gb_s", algbw);
    weft_json_put_f64(json, "busbw_gb_s", algbw * bench_coll_bus_factor(report->options));
    if (report->options->check) {
        weft_json_put_u64(json, "wrong", figure->n_wrong);
    }
    weft_json_end_object(json);
}

static void put_row(bench_coll_report_t *report, const bench_coll_row_t *row)
{
    weft_json_t *json = &report->json;
    weft_json_begin_object(json);
    weft_json_put_u64(json, "bytes", row->bytes);
    weft_json_put_u64(json, "count", row->count);
    weft_json_put_u64(json, "iterations", row->iterations);
    put_figure(report, json, "out_of_place", row, &row->out_of_place);
    if (row->has_in_place) {
        put_figure(report, json, "in_place", row, &row->in_place);
    }
    weft_json_end_object(json);
}

/* ---- both ------------------------------------------------------------------------------------ */

weft_status_t bench_coll_report_create(const bench_coll_options_t *options,
                                       bench_coll_report_t **report_out)
{
    bench_coll_report_t *report = weft_zalloc(sizeof(*report), "bench.coll.report");
    if (report == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    report->options = options;
    weft_json_init(&report->json, &report->text);
    *report_out = report;
    return WEFT_OK;
}

void bench_coll_report_row(void *user, const char *backend, const bench_coll_row_t *row)
{
    bench_coll_report_t *report = user;
    const bool is_first = report->n_rows++ == 0;
    if (report->options->json) {
        if (is_first) {
            weft_json_begin_object(&report->json);
            put_head(&report->json, report->options, backend);
        }
        put_row(report, row);
        return;
    }
    if (is_first) {
        print_head(report->options, backend);
    }
    print_row(report, row);
}

weft_status_t bench_coll_report_finish(bench_coll_report_t *report)
{
    if (!report->options->json) {
        return fflush(stdout) == 0 ? WEFT_OK : WEFT_ERR_IO;
    }
    weft_json_end_array(&report->json);
    weft_json_end_object(&report->json);
    return bench_print_buffer(&report->text);
}

void bench_coll_report_destroy(bench_coll_report_t *report)
{
    if (report != NULL) {
        weft_buffer_free(&report->text);
        weft_free(report);
    }
}
