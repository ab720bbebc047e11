/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_report.h"

#include <stdio.h>

#include "base/json_writer.h"
#include "cli/bench/bench_machine.h"
#include "cli/bench/bench_print.h"

#define GB 1e9 /* bytes */
#define US 1e6 /* in a second */

/* How fast the transfers were, where 1 is the floor; 0: it was not measured. */
static double ratio(const bench_fabric_result_t *result, size_t floor)
{
    const double rate = result->series[floor].rate.p50;
    return rate > 0 ? result->series[0].rate.p50 / rate : 0;
}

/* ---- for people ------------------------------------------------------------------------------ */

/* 65536 as "64K". */
static const char *name_bytes(uint64_t bytes, char *name, size_t size)
{
    static const char units[] = {'B', 'K', 'M', 'G'};
    size_t unit = 0;
    while (bytes >= 1024 && bytes % 1024 == 0 && unit + 1 < sizeof(units)) {
        bytes /= 1024;
        unit++;
    }
    snprintf(name, size, "%llu%c", (unsigned long long)bytes, units[unit]);
    return name;
}

static void print_head(const bench_fabric_report_t *report)
{
    const bench_fabric_options_t *options = report->options;
    char cpu[256];
    char pool[32];
    bench_machine_cpu(cpu, sizeof(cpu));
    printf("%s\n%s, %s to %s, %s, %s, pools of %s, %u threads with %u in flight each; median of %u "
           "rounds\n",
           cpu, options->op, options->initiator_segment, options->target_segment, options->memory,
           options->layout, name_bytes(report->geometry->pool_bytes, pool, sizeof(pool)),
           options->posters, options->pipeline, options->rounds);
    printf("%7s %8s %8s %8s  %24s %9s %9s", "block", "blocks", "total", "extents",
           "GB/s   (min to max)", "p50 us", "p99 us");
    for (size_t i = 1; i < report->n_series; i++) {
        printf("  %8s ratio", report->results[0].series[i].name);
    }
    printf("  backend\n");
}

static void print_result(const bench_fabric_report_t *report, const bench_fabric_result_t *result)
{
    const bench_fabric_series_t *own = &result->series[0];
    char block[32];
    char total[32];
    name_bytes(result->size.block_bytes, block, sizeof(block));
    name_bytes(result->size.block_bytes * result->size.n_blocks, total, sizeof(total));
    printf("%7s %8llu %8s %8llu  %8.3f (%6.3f to %6.3f) %9.1f %9.1f", block,
           (unsigned long long)result->size.n_blocks, total, (unsigned long long)result->extents,
           own->rate.p50 / GB, own->rate.min / GB, own->rate.max / GB, own->time.p50 * US,
           own->time.p99 * US);
    for (size_t i = 1; i < report->n_series; i++) {
        printf("  %8.3f %5.2f", result->series[i].rate.p50 / GB, ratio(result, i));
    }
    printf("  %s\n", result->backend);
}

static weft_status_t print_text(const bench_fabric_report_t *report)
{
    print_head(report);
    for (size_t i = 0; i < report->n_results; i++) {
        print_result(report, &report->results[i]);
    }
    return fflush(stdout) == 0 ? WEFT_OK : WEFT_ERR_IO;
}

/* ---- for programs ---------------------------------------------------------------------------- */

static void put_options(weft_json_t *json, const bench_fabric_report_t *report)
{
    const bench_fabric_options_t *options = report->options;
    weft_json_put_string(json, "op", options->op);
    weft_json_put_string(json, "initiator_segment", options->initiator_segment);
    weft_json_put_string(json, "target_segment", options->target_segment);
    weft_json_put_string(json, "memory", options->memory);
    weft_json_put_string(json, "layout", options->layout);
    weft_json_put_u64(json, "pool_bytes", report->geometry->pool_bytes);
    weft_json_put_u64(json, "threads", options->posters);
    weft_json_put_u64(json, "pipeline", options->pipeline);
    weft_json_put_string(json, "progress", options->progress);
    weft_json_put_string(json, "checksum", options->checksum);
    weft_json_put_bool(json, "guard", options->guard);
    weft_json_put_bool(json, "notify", options->notify);
    weft_json_put_bool(json, "netns", options->netns);
    weft_json_put_string(json, "backends", options->backend);
    weft_json_put_string(json, "params", options->params);
    weft_json_put_string(json, "cpus", options->cpus);
    weft_json_put_u64(json, "rounds", options->rounds);
}

static void put_series(weft_json_t *json, const bench_fabric_result_t *result, size_t i)
{
    const bench_fabric_series_t *series = &result->series[i];
    weft_json_key(json, series->name);
    weft_json_begin_object(json);
    weft_json_put_f64(json, "gb_s", series->rate.p50 / GB);
    weft_json_put_f64(json, "gb_s_min", series->rate.min / GB);
    weft_json_put_f64(json, "gb_s_max", series->rate.max / GB);
    weft_json_put_f64(json, "p50_us", series->time.p50 * US);
    weft_json_put_f64(json, "p99_us", series->time.p99 * US);
    weft_json_put_u64(json, "transfers", series->times.n);
    if (i > 0) {
        weft_json_put_f64(json, "ratio", ratio(result, i));
    }
    weft_json_end_object(json);
}

static void put_result(weft_json_t *json, const bench_fabric_report_t *report,
                       const bench_fabric_result_t *result)
{
    weft_json_begin_object(json);
    weft_json_put_u64(json, "block_bytes", result->size.block_bytes);
    weft_json_put_u64(json, "blocks", result->size.n_blocks);
    weft_json_put_u64(json, "total_bytes", result->size.block_bytes * result->size.n_blocks);
    weft_json_put_u64(json, "extents", result->extents);
    weft_json_put_string(json, "backend", result->backend);
    for (size_t i = 0; i < report->n_series; i++) {
        put_series(json, result, i);
    }
    weft_json_end_object(json);
}

static weft_status_t print_json(const bench_fabric_report_t *report)
{
    char cpu[256];
    weft_buffer_t out = {0};
    weft_json_t json;
    bench_machine_cpu(cpu, sizeof(cpu));
    weft_json_init(&json, &out);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "version", WEFT_VERSION);
    weft_json_put_string(&json, "cpu", cpu);
    put_options(&json, report);
    weft_json_key(&json, "results");
    weft_json_begin_array(&json);
    for (size_t i = 0; i < report->n_results; i++) {
        put_result(&json, report, &report->results[i]);
    }
    weft_json_end_array(&json);
    weft_json_end_object(&json);
    return bench_print_buffer(&out);
}

weft_status_t bench_fabric_report_print(const bench_fabric_report_t *report)
{
    return report->options->json ? print_json(report) : print_text(report);
}
