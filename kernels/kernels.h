/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels: the table of ops that model graphs are written against. Their arguments, formulas and
 * shapes are in ops/, the streams that they are enqueued on in k_stream.h.
 *
 * An op is enqueued on a k_stream and returns nothing to the host: its arguments are copied, what
 * they point to stays valid until the stream is synced. All pointers are addresses of the stream's
 * device. The cpu stream runs an op before the call returns, on the stream's thread team; callers
 * must not count on it.
 *
 * Threads    a stream belongs to one thread
 * Strides    in elements, unless a name says _bytes; arrays of rows have `stride` elements a row
 * Activations  what one op hands to the next (`void *`) has elements of the backend's k_ops.act type:
 *            f32 on CPUs, bf16 on GPUs. The residual stream and logits are f32 everywhere (`float *`);
 *            where an array can be either, a dtype beside it says which
 * Decision 7 for one (op, dtype, ISA) every output row is computed by the same instructions in the
 *            same order whatever the number of rows and threads; K is summed in fixed chunks;
 *            attention walks tokens in chunks of K_ATTENTION_CHUNK, whatever the block size
 */
#pragma once

#include "kernels/dtypes.h"
#include "kernels/k_stream.h"
#include "kernels/k_weight.h"
#include "kernels/ops/op_attention.h"
#include "kernels/ops/op_experts.h"
#include "kernels/ops/op_lora.h"
#include "kernels/ops/op_rows.h"
#include "kernels/ops/op_sampling.h"
#include "kernels/ops/op_sequences.h"
#include "kernels/ops/op_slices.h"

typedef enum k_op_id {
#define OP(name) K_OP_##name,
#include "kernels/ops.def"
#undef OP
    K_OP_COUNT
} k_op_id_t;

/* An op that a backend has not (yet) is NULL: models that need it are refused at load. */
typedef struct k_ops {
    const char *name; /* as in --cpu-isa: "ref", "avx2", "avx512" …; or "cuda" */
    bool (*is_supported)(void);
    k_dtype_t act;               /* of activations between ops */
    uint32_t attention_features; /* K_ATTENTION_*: what its attention heeds */
    /* Whether to blocks of this type, tokens, head_dim, `latent` of it summed (0: plain); NULL: to any. */
    bool (*can_attend)(const k_kv_view_t *kv, uint32_t latent);

    /*
     * Bytes of a packed weight; 0: computes from the file's own bytes, nothing to pack; SIZE_MAX: the
     * backend has no such weight (a dtype without kernels, K_WEIGHT_GATE_UP where nothing is gained).
     */
    size_t (*weight_bytes)(k_dtype_t dtype, k_weight_form_t form, uint32_t rows, uint32_t columns);
    bool norms_in_linear; /* linear heeds args.norm; the same bits as rms_norm before it */
    bool has_f8_8x32;     /* weights of K_F8_8X32 have kernels of their own */
    bool packs_slices;    /* weight_pack takes parts with a stride: some columns of wider rows */
    /*
     * dst [weight_bytes()], zeroed, 128-byte aligned, on the stream's device; parts lie in host memory (the
     * mapped file) and may be read until the stream is synced. Runs on the stream's threads.
     */
    void (*weight_pack)(k_stream_t *stream, k_dtype_t dtype, k_weight_form_t form, uint32_t columns,
                        const k_weight_part_t *parts, uint32_t n_parts, void *dst);
    /* Scratch memory an op may need for at most `rows` rows of at most `width` elements (vocabulary
     * included). */
    size_t (*scratch_bytes)(uint32_t rows, uint32_t width, uint32_t threads);
    /* Device memory that nobody gives the backend: staging while weights are loaded, graphs. */
    size_t own_bytes;

#define OP(name) void (*name)(k_stream_t * stream, const k_##name##_args_t *args);
#include "kernels/ops.def"
#undef OP
} k_ops_t;

const char *k_op_name(k_op_id_t op);
bool k_ops_has(const k_ops_t *ops, k_op_id_t op);

/* The ops tables of the CPU, best first, NULL-terminated; check is_supported(). */
const k_ops_t *const *k_ops_all(void);
