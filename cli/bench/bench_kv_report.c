/* SPDX-License-Identifier: Apache-2.0 */
/* What the runs of a trace gave: a table for people, an object for programs. */
#include <stdio.h>

#include "base/json_writer.h"
#include "cli/bench/bench_kv_grid.h"
#include "cli/bench/bench_machine.h"
#include "cli/bench/bench_print.h"

#define MS  1e3 /* in a second */
#define MIB ((double)(1 << 20))

/* Part of the prompts' tokens that was found in a tier. */
static double hit_rate(const bench_kv_run_t *run, kv_tier_id_t tier)
{
    return run->replay.prompt_tokens == 0
               ? 0
               : (double)run->replay.cached_tokens[tier] / (double)run->replay.prompt_tokens;
}

/* How much sooner than in the cold run half of the turns got their first token; 0: none was made. */
static double speedup(const bench_kv_grid_t *grid, const bench_kv_run_t *run)
{
    const bench_kv_run_t *first = &grid->runs[0];
    return first->store->is_cold && run->ttft.p50 > 0 ? first->ttft.p50 / run->ttft.p50 : 0;
}

static double seconds_of_round(const bench_kv_grid_t *grid, const bench_kv_run_t *run)
{
    return run->replay.seconds / grid->options->rounds;
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_head(const bench_kv_grid_t *grid)
{
    const bench_kv_trace_t *trace = &grid->trace;
    const double block_bytes = (double)grid->layout.block_bytes[0];
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    printf("%s on %s\n", grid->model->name, cpu);
    printf("%u conversations of %u turns, %u tokens shared, %u new and %u answered a turn, %u at a "
           "time\n",
           trace->conversations, trace->turns, trace->system_len, trace->input_len,
           trace->output_len, trace->concurrency);
    printf("working set %llu blocks (%.1f MiB), device %u blocks (%.1f MiB)\n\n",
           (unsigned long long)grid->working_set, (double)grid->working_set * block_bytes / MIB,
           grid->device_blocks, grid->device_blocks * block_bytes / MIB);
    printf("%-5s %-6s %5s %7s %7s %7s %9s %9s %9s %6s %8s %9s  %s\n", "store", "policy", "size",
           "device", "host", "disk", "ttft p50", "p90", "p99 ms", "faster", "total s", "MiB to",
           "tokens");
    printf("%-5s %-6s %5s %23s %9s %9s %9s %6s %8s %9s\n", "", "", "of ws", "% of prompt tokens",
           "", "", "", "x", "", "disk");
}

static void print_run(const bench_kv_grid_t *grid, const bench_kv_run_t *run)
{
    const bool has_cold = grid->runs[0].store->is_cold;
    printf("%-5s %-6s %5g %7.1f %7.1f %7.1f %9.1f %9.1f %9.1f %6.2f %8.1f %9.1f  %s%s\n",
           run->store->name, run->policy == NULL ? "" : run->policy, run->size,
           100 * hit_rate(run, KV_TIER_device), 100 * hit_rate(run, KV_TIER_host),
           100 * hit_rate(run, KV_TIER_disk), MS * run->ttft.p50, MS * run->ttft.p90,
           MS * run->ttft.p99, speedup(grid, run), seconds_of_round(grid, run),
           (double)run->replay.store.tiers[KV_TIER_disk].tier.written_bytes / MIB, run->digest,
           !has_cold               ? ""
           : run->n_different == 0 ? " same"
                                   : " DIFFERENT");
}

weft_status_t bench_kv_grid_print_text(const bench_kv_grid_t *grid)
{
    print_head(grid);
    for (uint32_t i = 0; i < grid->n_runs; i++) {
        print_run(grid, &grid->runs[i]);
    }
    return fflush(stdout) == 0 ? WEFT_OK : WEFT_ERR_IO;
}

/* ---- for programs ---------------------------------------------------------------------------- */

static void put_trace(weft_json_t *json, const bench_kv_grid_t *grid)
{
    const bench_kv_trace_t *trace = &grid->trace;
    weft_json_key(json, "trace");
    weft_json_begin_object(json);
    weft_json_put_u64(json, "conversations", trace->conversations);
    weft_json_put_u64(json, "turns", trace->turns);
    weft_json_put_u64(json, "system_len", trace->system_len);
    weft_json_put_u64(json, "input_len", trace->input_len);
    weft_json_put_u64(json, "output_len", trace->output_len);
    weft_json_put_u64(json, "concurrency", trace->concurrency);
    weft_json_put_f64(json, "think_time", trace->think_time);
    weft_json_put_u64(json, "seed", trace->seed);
    weft_json_put_u64(json, "rounds", grid->options->rounds);
    weft_json_end_object(json);
}

static void put_times(weft_json_t *json, const char *name, const bench_distribution_t *times)
{
    weft_json_key(json, name);
    weft_json_begin_object(json);
    weft_json_put_f64(json, "mean", MS * times->mean);
    weft_json_put_f64(json, "p50", MS * times->p50);
    weft_json_put_f64(json, "p90", MS * times->p90);
    weft_json_put_f64(json, "p99", MS * times->p99);
    weft_json_put_f64(json, "max", MS * times->max);
    weft_json_end_object(json);
}

static void put_tiers(weft_json_t *json, const bench_kv_run_t *run)
{
    weft_json_key(json, "hit_rate");
    weft_json_begin_object(json);
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        weft_json_put_f64(json, kv_tier_name(id), hit_rate(run, id));
    }
    weft_json_end_object(json);
    weft_json_key(json, "tiers");
    weft_json_begin_object(json);
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        const kv_store_tier_stats_t *stats = &run->replay.store.tiers[id];
        if (stats->is_present) {
            weft_json_key(json, kv_tier_name(id));
            weft_json_begin_object(json);
            weft_json_put_u64(json, "blocks", stats->tier.blocks);
            weft_json_put_u64(json, "capacity_blocks", stats->tier.capacity_blocks);
            weft_json_put_u64(json, "puts", stats->tier.puts);
            weft_json_put_u64(json, "puts_refused", stats->tier.puts_refused);
            weft_json_put_u64(json, "gets", stats->tier.gets);
            weft_json_put_u64(json, "gets_failed", stats->tier.gets_failed);
            weft_json_put_u64(json, "evictions", stats->tier.evictions);
            weft_json_put_u64(json, "written_bytes", stats->tier.written_bytes);
            weft_json_put_u64(json, "read_bytes", stats->tier.read_bytes);
            weft_json_end_object(json);
        }
    }
    weft_json_end_object(json);
}

static void put_run(weft_json_t *json, const bench_kv_grid_t *grid, const bench_kv_run_t *run)
{
    const bool has_cold = grid->runs[0].store->is_cold;
    weft_json_begin_object(json);
    weft_json_put_string(json, "store", run->store->name);
    weft_json_put_string(json, "policy", run->policy);
    weft_json_put_f64(json, "size", run->size);
    weft_json_put_u64(json, "bytes", run->bytes);
    weft_json_put_u64(json, "prompt_tokens", run->replay.prompt_tokens);
    put_tiers(json, run);
    put_times(json, "ttft_ms", &run->ttft);
    put_times(json, "e2e_ms", &run->e2e);
    weft_json_put_f64(json, "seconds", seconds_of_round(grid, run));
    weft_json_put_u64(json, "preemptions", run->replay.preemptions);
    weft_json_put_u64(json, "fetches", run->replay.store.fetches);
    weft_json_put_u64(json, "fetches_declined", run->replay.store.fetches_declined);
    weft_json_put_string(json, "digest", run->digest);
    if (has_cold) {
        weft_json_put_f64(json, "ttft_speedup", speedup(grid, run));
        weft_json_put_u64(json, "different_turns", run->n_different);
    }
    weft_json_end_object(json);
}

weft_status_t bench_kv_grid_print_json(const bench_kv_grid_t *grid)
{
    char cpu[256];
    weft_buffer_t out = {0};
    weft_json_t json;
    bench_machine_cpu(cpu, sizeof(cpu));
    weft_json_init(&json, &out);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "version", WEFT_VERSION);
    weft_json_put_string(&json, "model", grid->model->name);
    weft_json_put_string(&json, "cpu", cpu);
    weft_json_put_u64(&json, "threads", grid->threads);
    put_trace(&json, grid);
    weft_json_put_u64(&json, "block_tokens", grid->layout.block_tokens);
    weft_json_put_u64(&json, "block_bytes", grid->layout.block_bytes[0]);
    weft_json_put_u64(&json, "working_set_blocks", grid->working_set);
    weft_json_put_u64(&json, "device_blocks", grid->device_blocks);
    weft_json_key(&json, "runs");
    weft_json_begin_array(&json);
    for (uint32_t i = 0; i < grid->n_runs; i++) {
        put_run(&json, grid, &grid->runs[i]);
    }
    weft_json_end_array(&json);
    weft_json_end_object(&json);
    return bench_print_buffer(&out);
}
