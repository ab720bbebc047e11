/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_geometry.h"

#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "cli/bench/bench_random.h"

#define MAX_SIZES  1024
#define MAX_BLOCK  ((uint64_t)1 << 30)
#define PAGE_BYTES UINT64_C(4096)

/* ---- sizes ----------------------------------------------------------------------------------- */

/* first, first × step, ... and last, whatever step is. False: that was the last one. */
static bool next_step(uint64_t *value, uint64_t last, uint32_t step)
{
    if (*value >= last) {
        return false;
    }
    *value = *value > last / step ? last : *value * step;
    return true;
}

static weft_status_t check_steps(const bench_fabric_options_t *options, weft_diag_t *diag)
{
    if (options->block_step < 2 || options->total_step < 2) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--block-step and --total-step: 2 or more");
    }
    if (options->start_block_size == 0 || options->start_block_size % sizeof(uint64_t) != 0 ||
        options->max_block_size < options->start_block_size ||
        options->max_block_size % sizeof(uint64_t) != 0 || options->max_block_size > MAX_BLOCK) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--start-block-size, --max-block-size: a first and a last size, multiples "
                         "of 8, up to 1GiB");
    }
    if (options->start_total == 0 || options->max_total < options->start_total) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--start-total, --max-total: a first and a last");
    }
    return WEFT_OK;
}

/* All batches of one block size; how many, of which those that fit are written. */
static size_t add_batches(const bench_fabric_options_t *options, uint64_t block_bytes,
                          bench_fabric_size_t *sizes, size_t n)
{
    const bool is_counted = options->start_batch_size > 0;
    const uint64_t unit = is_counted ? 1 : block_bytes;
    uint64_t total = is_counted ? options->start_batch_size : options->start_total;
    uint64_t last = is_counted ? options->max_batch_size : options->max_total;
    last = last < total ? total : last;
    do {
        if (total >= unit && n < MAX_SIZES) {
            sizes[n++] = (bench_fabric_size_t){block_bytes, total / unit};
        }
    } while (next_step(&total, last, options->total_step));
    return n;
}

weft_status_t bench_fabric_sizes(const bench_fabric_options_t *options, weft_diag_t *diag,
                                 bench_fabric_size_t **sizes_out, size_t *n_out)
{
    const weft_status_t status = check_steps(options, diag);
    if (status < 0) {
        return status;
    }
    bench_fabric_size_t *sizes = weft_calloc(MAX_SIZES, sizeof(*sizes), "bench_fabric.sizes");
    if (sizes == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    size_t n = 0;
    uint64_t block_bytes = options->start_block_size;
    do {
        n = add_batches(options, block_bytes, sizes, n);
    } while (next_step(&block_bytes, options->max_block_size, options->block_step));
    if (n == 0 || n == MAX_SIZES) {
        weft_free(sizes);
        return weft_diag(diag, WEFT_ERR_INVALID,
                         n == 0 ? "no total holds a block" : "too many sizes: take larger steps");
    }
    *sizes_out = sizes;
    *n_out = n;
    return WEFT_OK;
}

/* ---- geometry -------------------------------------------------------------------------------- */

static weft_status_t parse_layout(const char *name, weft_diag_t *diag,
                                  bench_fabric_layout_t *layout_out)
{
    static const char *const names[] = {
        [BENCH_FABRIC_SCATTERED] = "scattered",
        [BENCH_FABRIC_DENSE] = "dense",
        [BENCH_FABRIC_STRIDED] = "strided",
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            *layout_out = (bench_fabric_layout_t)i;
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "--layout %s: scattered, dense or strided", name);
}

static uint64_t slot_bytes(const bench_fabric_geometry_t *geometry)
{
    return geometry->layout == BENCH_FABRIC_STRIDED ? 2 * geometry->block_bytes
                                                    : geometry->block_bytes;
}

static uint64_t lane_slots(const bench_fabric_geometry_t *geometry)
{
    return geometry->pool_bytes / slot_bytes(geometry) / geometry->lanes;
}

static weft_status_t check_fit(bench_fabric_geometry_t geometry, const bench_fabric_size_t *size,
                               weft_diag_t *diag)
{
    geometry.block_bytes = size->block_bytes;
    geometry.n_blocks = size->n_blocks;
    const uint64_t slots = lane_slots(&geometry);
    if (slots < size->n_blocks || slots > UINT32_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--pool-bytes %llu: %llu blocks of %llu bytes, %llu in flight, do not fit",
                         (unsigned long long)geometry.pool_bytes,
                         (unsigned long long)size->n_blocks, (unsigned long long)size->block_bytes,
                         (unsigned long long)geometry.lanes);
    }
    return WEFT_OK;
}

weft_status_t bench_fabric_geometry(const bench_fabric_options_t *options,
                                    const bench_fabric_size_t *sizes, size_t n, weft_diag_t *diag,
                                    bench_fabric_geometry_t *geometry_out)
{
    bench_fabric_geometry_t geometry = {.pool_bytes = options->pool_bytes,
                                        .seed = options->layout_seed};
    weft_status_t status = parse_layout(options->layout, diag, &geometry.layout);
    if (status >= 0 && (options->posters == 0 || options->posters > 64 || options->pipeline == 0 ||
                        options->pipeline > 1024)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--posters: 1 to 64, --pipeline: 1 to 1024");
    }
    geometry.lanes = (uint64_t)options->posters * options->pipeline;
    for (size_t i = 0; options->pool_bytes == 0 && i < n; i++) {
        const uint64_t bytes = 2 * sizes[i].block_bytes * sizes[i].n_blocks * geometry.lanes;
        geometry.pool_bytes = bytes > geometry.pool_bytes ? bytes : geometry.pool_bytes;
    }
    geometry.pool_bytes = (geometry.pool_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    for (size_t i = 0; status >= 0 && i < n; i++) {
        status = check_fit(geometry, &sizes[i], diag);
    }
    if (status >= 0) {
        *geometry_out = geometry;
    }
    return status;
}

xfer_run_t bench_fabric_lane(const bench_fabric_geometry_t *geometry, uint64_t base, uint64_t lane)
{
    const uint64_t slots = lane_slots(geometry);
    const uint64_t stride = slot_bytes(geometry);
    return (xfer_run_t){
        .addr = base + lane * slots * stride,
        .bytes = geometry->block_bytes,
        .stride = stride,
        .count = geometry->layout == BENCH_FABRIC_SCATTERED ? slots : geometry->n_blocks,
    };
}

weft_status_t bench_fabric_pick(const bench_fabric_geometry_t *geometry, bench_fabric_side_t side,
                                uint64_t lane, uint32_t *ids_out)
{
    if (geometry->layout != BENCH_FABRIC_SCATTERED) {
        for (uint64_t i = 0; i < geometry->n_blocks; i++) {
            ids_out[i] = (uint32_t)i;
        }
        return WEFT_OK;
    }
    const uint64_t slots = lane_slots(geometry);
    uint32_t *all = weft_calloc(slots, sizeof(*all), "bench_fabric.slots");
    if (all == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    bench_random_t random = {.state = geometry->seed + 2 * lane + (uint64_t)side};
    for (uint64_t i = 0; i < slots; i++) {
        all[i] = (uint32_t)i;
    }
    for (uint64_t i = 0; i < geometry->n_blocks; i++) {
        const uint64_t j = i + bench_random_next(&random) % (slots - i);
        ids_out[i] = all[j];
        all[j] = all[i];
    }
    weft_free(all);
    return WEFT_OK;
}
