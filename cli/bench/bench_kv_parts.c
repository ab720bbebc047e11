/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_kv_parts.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "base/json_writer.h"
#include "cli/bench/bench_machine.h"
#include "cli/bench/bench_print.h"
#include "cli/bench/bench_progress.h"
#include "cli/bench/bench_random.h"

#define MAX_BLOCKS (UINT32_C(1) << 28)
#define PRIME      UINT64_C(2654435761) /* above MAX_BLOCKS: it divides no number of blocks */

/* ---- for every part -------------------------------------------------------------------------- */

weft_status_t bench_kv_note(bench_kv_bench_t *bench, const char *name, const char *unit,
                            double value)
{
    return bench->is_warming ? WEFT_OK : bench_figures_note(&bench->figures, name, unit, value);
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
#include "cli/bench/bench_kv_parts.def"
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

static weft_status_t print_text(bench_kv_bench_t *bench)
{
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    printf("%s; %u blocks, prompt of %u tokens; median of %u (min to max)\n", cpu,
           bench->options->index_blocks, bench->options->prompt_tokens,
           bench->options->repetitions);
    bench_figures_print(&bench->figures);
    return fflush(stdout) == 0 ? WEFT_OK : WEFT_ERR_IO;
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
    bench_figures_put(&bench->figures, &json);
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
    bench_figures_fini(&bench.figures);
    weft_device_close(bench.device);
    return status;
}
