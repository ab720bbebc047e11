/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench_kv_parts.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "base/json_writer.h"
#include "cli/bench_machine.h"
#include "cli/bench_print.h"
#include "cli/bench_progress.h"
#include "cli/bench_random.h"

#define MAX_BLOCKS (UINT32_C(1) << 28)
#define PRIME      UINT64_C(2654435761) /* above MAX_BLOCKS: it divides no number of blocks */

/* ---- for every part -------------------------------------------------------------------------- */

weft_status_t bench_kv_note(bench_kv_bench_t *bench, const char *name, const char *unit,
                            double value)
{
    uint32_t i = 0;
    if (bench->is_warming) {
        return WEFT_OK;
    }
    while (i < bench->n_figures && strcmp(bench->figures[i].name, name) != 0) {
        i++;
    }
    if (i == BENCH_KV_MAX_FIGURES) {
        return WEFT_ERR_TOO_LARGE;
    }
    if (i == bench->n_figures) {
        bench->figures[bench->n_figures++] = (bench_kv_figure_t){.name = name, .unit = unit};
    }
    return bench_samples_add(&bench->figures[i].samples, value);
}

weft_status_t bench_kv_note_rate(bench_kv_bench_t *bench, const char *name, const char *unit,
                                 uint64_t count, uint64_t ns)
{
    const double seconds = (double)(ns > 0 ? ns : 1) / (double)WEFT_NS_PER_SECOND;
    return bench_kv_note(bench, name, unit, (double)count / seconds);
}

void bench_kv_hashes(const bench_kv_bench_t *bench, uint64_t first, uint32_t n, kv_hash_t *hashes)
{
    for (uint32_t i = 0; i < n; i++) {
        bench_random_t random = {.state = bench->seed + (first + i) * PRIME};
        for (size_t at = 0; at < KV_HASH_BYTES; at += sizeof(uint64_t)) {
            const uint64_t word = bench_random_next(&random);
            memcpy(&hashes[i].bytes[at], &word, sizeof(word));
        }
    }
}

uint32_t bench_kv_shuffled(uint32_t i, uint32_t n)
{
    return (uint32_t)(i * PRIME % n);
}

/* ---- all of them ----------------------------------------------------------------------------- */

static weft_status_t check_options(const bench_kv_options_t *options, uint32_t block_tokens,
                                   weft_diag_t *diag)
{
    if (options->index_blocks == 0 || options->index_blocks > MAX_BLOCKS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--index-blocks %u: 1 to %u are possible",
                         options->index_blocks, MAX_BLOCKS);
    }
    if (block_tokens == 0 || block_tokens > KV_HASH_MAX_TOKENS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--block-size %u: 1 to %u are possible",
                         block_tokens, KV_HASH_MAX_TOKENS);
    }
    if (options->prompt_tokens < block_tokens || options->prompt_tokens > MAX_BLOCKS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--prompt-tokens %u: %u to %u are possible",
                         options->prompt_tokens, block_tokens, MAX_BLOCKS);
    }
    if (options->block_bytes == 0 || options->tier_bytes < options->block_bytes) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--tier-bytes %llu: must hold a block of --block-bytes %llu, 1 or more",
                         (unsigned long long)options->tier_bytes,
                         (unsigned long long)options->block_bytes);
    }
    if (options->repetitions == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--repetitions: 1 or more");
    }
    return WEFT_OK;
}

static weft_status_t measure_all(bench_kv_bench_t *bench, weft_diag_t *diag)
{
    static const struct {
        const char *name;
        bench_kv_part_fn measure;
    } parts[] = {
#define PART(name) {#name, bench_kv_part_##name},
#include "cli/bench_kv_parts.def"
#undef PART
    };
    const uint32_t repetitions = bench->options->repetitions;
    bench_progress_t progress = {0};
    weft_status_t status = WEFT_OK;
    for (uint32_t r = 0; status >= 0 && r <= repetitions; r++) {
        bench->is_warming = r == 0;
        for (size_t i = 0; status >= 0 && i < WEFT_ARRAY_LEN(parts); i++) {
            bench_progress_show(&progress, "%s, %u of %u", parts[i].name, r, repetitions);
            status = parts[i].measure(bench, diag);
        }
    }
    bench_progress_end(&progress);
    return status;
}

/* ---- telling --------------------------------------------------------------------------------- */

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

static weft_status_t print_text(bench_kv_bench_t *bench)
{
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    printf("%s; %u blocks, prompt of %u tokens; median of %u (min to max)\n", cpu,
           bench->options->index_blocks, bench->options->prompt_tokens,
           bench->options->repetitions);
    for (uint32_t i = 0; i < bench->n_figures; i++) {
        bench_kv_figure_t *figure = &bench->figures[i];
        const bench_distribution_t d = bench_samples_distribute(&figure->samples);
        printf("%-24s", figure->name);
        print_value(d.p50, figure->unit);
        print_value(d.min, figure->unit);
        print_value(d.max, figure->unit);
        putchar('\n');
    }
    return fflush(stdout) == 0 ? WEFT_OK : WEFT_ERR_IO;
}

static void put_figure(weft_json_t *json, bench_kv_figure_t *figure)
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

static weft_status_t print_json(bench_kv_bench_t *bench)
{
    const bench_kv_options_t *options = bench->options;
    char cpu[256];
    weft_buffer_t out = {0};
    weft_json_t json;
    bench_machine_cpu(cpu, sizeof(cpu));
    weft_json_init(&json, &out);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "version", WEFT_VERSION);
    weft_json_put_string(&json, "cpu", cpu);
    weft_json_put_u64(&json, "block_tokens", bench->block_tokens);
    weft_json_put_u64(&json, "index_blocks", options->index_blocks);
    weft_json_put_u64(&json, "prompt_tokens", options->prompt_tokens);
    weft_json_put_u64(&json, "block_bytes", options->block_bytes);
    weft_json_put_u64(&json, "tier_bytes", options->tier_bytes);
    weft_json_put_u64(&json, "repetitions", options->repetitions);
    weft_json_key(&json, "figures");
    weft_json_begin_array(&json);
    for (uint32_t i = 0; i < bench->n_figures; i++) {
        put_figure(&json, &bench->figures[i]);
    }
    weft_json_end_array(&json);
    weft_json_end_object(&json);
    return bench_print_buffer(&out);
}

weft_status_t bench_kv_parts(const bench_kv_options_t *options, const engine_options_t *engine,
                             weft_diag_t *diag)
{
    static bench_kv_bench_t bench;
    bench = (bench_kv_bench_t){
        .options = options, .block_tokens = engine->block_size, .seed = engine->seed};
    weft_status_t status = check_options(options, engine->block_size, diag);
    if (status >= 0) {
        status = weft_device_open(engine->device, 0, diag, &bench.device);
    }
    if (status >= 0) {
        status = measure_all(&bench, diag);
    }
    if (status >= 0) {
        status = options->json ? print_json(&bench) : print_text(&bench);
    }
    for (uint32_t i = 0; i < bench.n_figures; i++) {
        bench_samples_fini(&bench.figures[i].samples);
    }
    weft_device_close(bench.device);
    return status;
}
