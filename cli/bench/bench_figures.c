/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_figures.h"

#include <stdio.h>
#include <string.h>

#include "base/compiler.h"

weft_status_t bench_figures_note(bench_figures_t *figures, const char *name, const char *unit,
                                 double value)
{
    uint32_t i = 0;
    while (i < figures->n && strcmp(figures->items[i].name, name) != 0) {
        i++;
    }
    if (i == BENCH_FIGURES_MAX) {
        return WEFT_ERR_TOO_LARGE;
    }
    if (i == figures->n) {
        figures->items[figures->n++] = (bench_figure_t){.name = name, .unit = unit};
    }
    return bench_samples_add(&figures->items[i].samples, value);
}

/* 1234567 B/s as 1.235 MB/s. */
static void print_value(double value, const char *unit)
{
    static const char *const prefixes[] = {"n", "u", "m", "", "k", "M", "G", "T"};
    size_t i = 3;
    while (value >= 1e3 && i + 1 < WEFT_ARRAY_LEN(prefixes)) {
        value /= 1e3;
        i++;
    }
    while (value > 0 && value < 1 && i > 0) {
        value *= 1e3;
        i--;
    }
    printf(" %8.4g %s%-10s", value, prefixes[i], unit);
}

void bench_figures_print(bench_figures_t *figures)
{
    int width = 24;
    for (uint32_t i = 0; i < figures->n; i++) {
        const int length = (int)strlen(figures->items[i].name);
        width = length > width ? length : width;
    }
    for (uint32_t i = 0; i < figures->n; i++) {
        bench_figure_t *figure = &figures->items[i];
        const bench_distribution_t d = bench_samples_distribute(&figure->samples);
        printf("%-*s", width, figure->name);
        print_value(d.p50, figure->unit);
        print_value(d.min, figure->unit);
        print_value(d.max, figure->unit);
        putchar('\n');
    }
}

static void put_figure(weft_json_t *json, bench_figure_t *figure)
{
    const bench_distribution_t d = bench_samples_distribute(&figure->samples);
    weft_json_begin_object(json);
    weft_json_put_string(json, "name", figure->name);
    weft_json_put_string(json, "unit", figure->unit);
    weft_json_put_f64(json, "median", d.p50);
    weft_json_put_f64(json, "min", d.min);
    weft_json_put_f64(json, "max", d.max);
    weft_json_end_object(json);
}

void bench_figures_put(bench_figures_t *figures, weft_json_t *json)
{
    weft_json_key(json, "figures");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < figures->n; i++) {
        put_figure(json, &figures->items[i]);
    }
    weft_json_end_array(json);
}

void bench_figures_fini(bench_figures_t *figures)
{
    for (uint32_t i = 0; i < figures->n; i++) {
        bench_samples_fini(&figures->items[i].samples);
    }
    figures->n = 0;
}
