/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv_parts: the pieces of the KV store, measured one by one: a function and a row of
 * bench_kv_parts.def each. A function makes what it measures, notes its figures and leaves nothing;
 * one that was not asked for notes none. They are called by turns, so that what else the machine
 * does meets all of them.
 */
#pragma once

#include "cli/bench/bench_figures.h"
#include "cli/bench/bench_kv.h"
#include "kvstore/hash/kv_hash.h"

typedef struct bench_kv_bench {
    const bench_kv_options_t *options;
    uint32_t block_tokens;
    uint64_t seed;
    weft_device_t *device;
    bool is_warming;         /* figures are dropped */
    bench_figures_t figures; /* one sample a repetition */
} bench_kv_bench_t;

typedef weft_status_t (*bench_kv_part_fn)(bench_kv_bench_t *bench, weft_diag_t *diag);

#define PART(name) weft_status_t bench_kv_part_##name(bench_kv_bench_t *bench, weft_diag_t *diag);
#include "cli/bench/bench_kv_parts.def"
#undef PART

/* name and unit: literals. Units are SI ones: s, B/s, blocks/s. */
weft_status_t bench_kv_note(bench_kv_bench_t *bench, const char *name, const char *unit,
                            double value);
/* count of them in ns. */
weft_status_t bench_kv_note_rate(bench_kv_bench_t *bench, const char *name, const char *unit,
                                 uint64_t count, uint64_t ns);

/* Hashes first, first + 1 … [n] of an endless row of random ones. */
void bench_kv_hashes(const bench_kv_bench_t *bench, uint64_t first, uint32_t n, kv_hash_t *hashes);

/* Visits 0 … n - 1 in an order that no cache foresees; n ≤ 2^28. */
uint32_t bench_kv_shuffled(uint32_t i, uint32_t n);
