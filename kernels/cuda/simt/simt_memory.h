/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_memory: global memory: wide accesses with hints, order, atomics. Part of simt.h.
 *
 * Addresses of a 16-byte access are multiples of 16.
 */
#pragma once

/* Any lane may read again soon: kept in L1 and L2. The memory may be written by this kernel. */
SIMT_FN uint4 simt_load_16(const void *global);
/* Memory that no one writes while the kernel runs (weights, tables). */
SIMT_FN uint4 simt_load_16_const(const void *global);
/* The same, read once: leaves L1 alone, and L2 evicts it first. */
SIMT_FN uint4 simt_load_16_once(const void *global);
SIMT_FN void simt_store_16(void *global, uint4 v);
/* Not read again soon: L2 evicts it first. */
SIMT_FN void simt_store_16_once(void *global, uint4 v);
/* 4 and 8 bytes of constant memory. */
SIMT_FN uint2 simt_load_8_const(const void *global);
SIMT_FN uint32_t simt_load_4_const(const void *global);

/* Brings the 128-byte line towards L2; any address is harmless. */
SIMT_FN void simt_prefetch_l2(const void *global);

/* ---- order --------------------------------------------------------------------------------- */

/* This thread's earlier writes are seen before its later ones: by the device; by every GPU and the
 * host. */
SIMT_FN void simt_fence_device(void);
SIMT_FN void simt_fence_system(void);

/* A flag that another block, GPU or the host writes or reads; release: all earlier writes of this
 * thread are seen by whoever acquires the value. Scope: the whole system. */
SIMT_FN uint32_t simt_load_acquire(const uint32_t *flag);
SIMT_FN void simt_store_release(uint32_t *flag, uint32_t v);
/* For loops that wait for a flag: the condition is tried again after it. */
SIMT_FN void simt_spin(void);
/* A clock that only goes forward, for how long such a loop has waited; steps of a microsecond. */
SIMT_FN uint64_t simt_clock_ns(void);

/* ---- atomics: relaxed, of the device; return the old value ---------------------------------- */

SIMT_FN uint32_t simt_atomic_add(uint32_t *p, uint32_t v);
SIMT_FN int32_t simt_atomic_add(int32_t *p, int32_t v);
SIMT_FN uint64_t simt_atomic_add(uint64_t *p, uint64_t v);
/* Not deterministic: the order of the sum changes from run to run. */
SIMT_FN float simt_atomic_add(float *p, float v);
SIMT_FN uint32_t simt_atomic_max(uint32_t *p, uint32_t v);
SIMT_FN int32_t simt_atomic_max(int32_t *p, int32_t v);
SIMT_FN uint64_t simt_atomic_max(uint64_t *p, uint64_t v);
SIMT_FN uint32_t simt_atomic_min(uint32_t *p, uint32_t v);
SIMT_FN uint32_t simt_atomic_or(uint32_t *p, uint32_t v);
SIMT_FN uint32_t simt_atomic_exchange(uint32_t *p, uint32_t v);
SIMT_FN uint32_t simt_atomic_cas(uint32_t *p, uint32_t expected, uint32_t v);
