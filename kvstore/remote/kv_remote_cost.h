/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_remote_cost: are a peer's blocks worth reading, or is computing them as good?
 *
 *     reading    answer + latency + blocks × block_bytes × byte_ns
 *     computing  blocks × block_tokens × token_ns
 *
 * They are read only if computing takes KV_REMOTE_LEAST_GAIN times as long. All of it is measured: the
 * answer of a lookup at each one, the latency by a small read and byte_ns by one of some MiB when the
 * peer is met, and again by every block that is read; token_ns by the engine's steps that prefill. A
 * peer that was refused for what it cost is measured again after KV_REMOTE_STALE_NS, away from any
 * request. While nothing is known of token_ns, as before the first prefill, blocks are read.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define KV_REMOTE_LEAST_GAIN 2.0
#define KV_REMOTE_STALE_NS   (UINT64_C(10) * 1000000000)

/* Of one peer. */
typedef struct kv_remote_rates {
    double answer_ns;
    double latency_ns;
    double byte_ns;
} kv_remote_rates_t;

/* Of blocks, wherever they come from. */
typedef struct kv_remote_work {
    uint32_t n_blocks;
    double block_bytes;
    double block_compute_ns; /* 0: not known */
} kv_remote_work_t;

double kv_remote_read_ns(const kv_remote_rates_t *rates, const kv_remote_work_t *work);
bool kv_remote_is_worth(const kv_remote_rates_t *rates, const kv_remote_work_t *work);
/* How much sooner they are there: for the choice among peers. */
double kv_remote_gain_ns(const kv_remote_rates_t *rates, const kv_remote_work_t *work);

/* Joins a measurement with what is known (0: nothing). */
void kv_remote_rate_note(double *known, double now);
