/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv_trace: conversations of several turns, replayed on one engine.
 *
 * The prompt of a turn is all that was said in its conversation, the engine's own tokens included,
 * and new ones; answers are greedy and go on to their length. What is said and when it is due comes
 * from the seed alone, so that every replay of one trace is the same load. A conversation that got
 * its answer goes to the end of the row: between two of its turns all others have theirs.
 *
 * Threads  one, besides the engine's
 * Times    seconds; latencies from when a turn is due, or, without think time, from when it is sent
 */
#pragma once

#include "cli/bench/bench_progress.h"
#include "cli/bench/bench_samples.h"
#include "runtime/engine/engine.h"

typedef struct bench_kv_trace {
    uint32_t conversations;
    uint32_t turns;
    uint32_t system_len; /* tokens, so below */
    uint32_t input_len;
    uint32_t output_len;
    uint32_t concurrency; /* turns in flight at most, ≥ 1 */
    uint32_t vocab;
    double think_time;
    uint64_t seed;
} bench_kv_trace_t;

/* What came of replays with one store; zeroed at first, replays add to it. */
typedef struct bench_kv_replay {
    bench_samples_t ttft;
    bench_samples_t e2e;
    double seconds;
    uint64_t prompt_tokens;
    uint64_t cached_tokens[KV_TIER_COUNT]; /* of them, by where they were found */
    uint64_t preemptions;
    kv_store_stats_t store; /* of the last replay, at its end */
    int32_t *outputs; /* [conversations][turns][output_len], of the last replay; the caller's */
} bench_kv_replay_t;

uint32_t bench_kv_trace_context(const bench_kv_trace_t *trace); /* tokens of a conversation */
size_t bench_kv_trace_outputs(const bench_kv_trace_t *trace);   /* tokens of all answers */

/* Blocks that hold all conversations at their ends, what they share counted once. */
uint64_t bench_kv_trace_blocks(const bench_kv_trace_t *trace, uint32_t block_tokens);

/* label: of the progress line. */
weft_status_t bench_kv_trace_replay(const bench_kv_trace_t *trace, engine_t *engine,
                                    const char *label, bench_progress_t *progress,
                                    weft_diag_t *diag, bench_kv_replay_t *replay);
