/* SPDX-License-Identifier: Apache-2.0 */
/* The runs of a grid, one after the other, on one engine each. */
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/bench/bench_folder.h"
#include "cli/bench/bench_kv_grid.h"

static engine_options_t engine_of(const bench_kv_grid_t *grid, const bench_kv_run_t *run,
                                  const engine_options_t *engine, const char *folder)
{
    const uint32_t concurrency = grid->trace.concurrency;
    engine_options_t options = *engine;
    options.enable_prefix_caching = !run->store->is_cold;
    options.num_gpu_blocks = grid->device_blocks;
    options.max_num_seqs = concurrency < engine->max_num_seqs ? concurrency : engine->max_num_seqs;
    options.max_num_queued_reqs = concurrency; /* a client bounds itself */
    options.max_model_len =
        engine->max_model_len > 0 ? engine->max_model_len : bench_kv_trace_context(&grid->trace);
    options.kv_host_bytes = run->store->has_host ? run->bytes : 0;
    options.kv_disk_bytes = run->store->has_disk ? run->bytes : 0;
    options.kv_disk_path = folder;
    options.kv_disk_admission = run->policy == NULL ? "reuse" : run->policy;
    return options;
}

static weft_status_t finish_run(const bench_kv_grid_t *grid, bench_kv_run_t *run)
{
    const bench_kv_trace_t *trace = &grid->trace;
    const size_t answer_bytes = trace->output_len * sizeof(int32_t);
    const int32_t *expected = grid->runs[0].replay.outputs;
    uint8_t digest[EVP_MAX_MD_SIZE];
    if (EVP_Digest(run->replay.outputs, bench_kv_trace_outputs(trace) * sizeof(int32_t), digest,
                   NULL, EVP_sha256(), NULL) != 1) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < (sizeof(run->digest) - 1) / 2; i++) {
        snprintf(run->digest + 2 * i, 3, "%02x", digest[i]);
    }
    for (size_t i = 0; i < (size_t)trace->conversations * trace->turns; i++) {
        run->n_different += memcmp(run->replay.outputs + i * trace->output_len,
                                   expected + i * trace->output_len, answer_bytes) != 0;
    }
    run->ttft = bench_samples_distribute(&run->replay.ttft);
    run->e2e = bench_samples_distribute(&run->replay.e2e);
    return WEFT_OK;
}

static void write_label(const bench_kv_run_t *run, char *label, size_t size)
{
    char size_text[32] = "";
    if (run->size > 0) {
        snprintf(size_text, sizeof(size_text), " of %g working sets", run->size);
    }
    snprintf(label, size, "%s%s%s%s", run->store->name, run->policy == NULL ? "" : " ",
             run->policy == NULL ? "" : run->policy, size_text);
}

static weft_status_t run_in_folder(bench_kv_grid_t *grid, bench_kv_run_t *run,
                                   const engine_options_t *engine, const model_source_t *source,
                                   const char *folder, weft_diag_t *diag)
{
    const engine_options_t options = engine_of(grid, run, engine, folder);
    char label[64];
    bench_progress_t progress = {0};
    engine_t *created = NULL;
    write_label(run, label, sizeof(label));
    weft_status_t status = engine_create(&options, source, NULL, NULL, diag, &created);
    if (status >= 0) {
        status = bench_kv_trace_replay(&grid->trace, created, label, &progress, diag, &run->replay);
    }
    bench_progress_end(&progress);
    engine_destroy(created);
    return status < 0 ? status : finish_run(grid, run);
}

static weft_status_t run_once(bench_kv_grid_t *grid, bench_kv_run_t *run,
                              const engine_options_t *engine, const model_source_t *source,
                              weft_diag_t *diag)
{
    char folder[BENCH_FOLDER_BYTES] = "";
    weft_status_t status = WEFT_OK;
    if (run->replay.outputs == NULL) {
        run->replay.outputs =
            weft_calloc(bench_kv_trace_outputs(&grid->trace), sizeof(int32_t), "bench_kv.outputs");
        status = run->replay.outputs == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    if (status >= 0 && run->store->has_disk) {
        status = bench_folder_create(grid->options->disk_path, diag, folder);
    }
    if (status >= 0) {
        status = run_in_folder(grid, run, engine, source, folder, diag);
    }
    bench_folder_remove(folder);
    return status;
}

/* One after the other and again, so that what else the machine does meets all of them. */
static weft_status_t run_all(bench_kv_grid_t *grid, const engine_options_t *engine,
                             const model_source_t *source, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    for (uint32_t round = 0; status >= 0 && round < grid->options->rounds; round++) {
        for (uint32_t i = 0; status >= 0 && i < grid->n_runs; i++) {
            status = run_once(grid, &grid->runs[i], engine, source, diag);
        }
    }
    return status;
}

static weft_status_t check_tokens(const bench_kv_grid_t *grid, weft_diag_t *diag)
{
    for (uint32_t i = 0; grid->options->check && i < grid->n_runs; i++) {
        const bench_kv_run_t *run = &grid->runs[i];
        if (run->n_different > 0) {
            return weft_diag(diag, WEFT_ERR_INTERNAL,
                             "%s of size %g: %llu turns have other tokens than the cold run",
                             run->store->name, run->size, (unsigned long long)run->n_different);
        }
    }
    return WEFT_OK;
}

static void free_runs(bench_kv_grid_t *grid)
{
    for (uint32_t i = 0; i < grid->n_runs; i++) {
        bench_samples_fini(&grid->runs[i].replay.ttft);
        bench_samples_fini(&grid->runs[i].replay.e2e);
        weft_free(grid->runs[i].replay.outputs);
    }
}

weft_status_t bench_kv_runs(const bench_kv_options_t *options, const engine_options_t *engine,
                            weft_diag_t *diag)
{
    static bench_kv_grid_t grid;
    model_source_t *source = NULL;
    grid.n_runs = 0;
    weft_status_t status = bench_kv_grid_check(options, diag);
    if (status >= 0) {
        status = model_source_open(options->model, diag, &source);
    }
    if (status >= 0) {
        status = bench_kv_grid_init(&grid, options, engine, model_source_config(source), diag);
    }
    if (status >= 0) {
        status = run_all(&grid, engine, source, diag);
    }
    if (status >= 0) {
        status = options->json ? bench_kv_grid_print_json(&grid) : bench_kv_grid_print_text(&grid);
    }
    if (status >= 0) {
        status = check_tokens(&grid, diag);
    }
    free_runs(&grid);
    model_source_close(source);
    return status;
}
