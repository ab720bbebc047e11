/* SPDX-License-Identifier: Apache-2.0 */
/* Ops become launches; what a launch itself refuses is noted as the device's failure. */
#include "kernels/cuda/cuda_ops.h"

#include <cuda_runtime_api.h>

#include "base/device_cuda.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/mla_attention.h"
#include "kernels/cuda/cuda_loader.h"
#include "kernels/cuda/cuda_recode.h"
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/linear/cuda_groups.h"
#include "kernels/cuda/linear/cuda_linear.h"
#include "kernels/cuda/rope_kv_write.h"

/* Of partial results of sequences that are split: all of a step's at the sizes that want it, e.g.
 * 64 sequences of 32k tokens with 32 heads of 128. */
#define ATTENTION_SCRATCH_BYTES ((size_t)64 << 20)
/* Rows of logits of one launch: bounds their scratch, which wide layers of long steps would also
 * be given; what a row gets does not depend on it. */
#define LOGITS_ROWS 64

static cudaStream_t stream_of(const k_stream_t *stream)
{
    return weft_device_cuda_stream(stream->queue);
}

static void note(const k_stream_t *stream, int error, const char *kernel)
{
    (void)weft_device_cuda_note(stream->device, error, kernel);
}

static k_cuda_launch_t launch_of(const k_stream_t *stream)
{
    return (k_cuda_launch_t){
        .stream = stream_of(stream),
        .scratch = stream->scratch.addr,
        .scratch_bytes = stream->scratch.bytes,
        .multiprocessors = stream->multiprocessors,
    };
}

#define OP(name)                                                                                   \
    static void launch_##name(k_stream_t *stream, const k_##name##_args_t *args)                   \
    {                                                                                              \
        const k_cuda_launch_t at = launch_of(stream);                                              \
        note(stream, k_cuda_##name(&at, args), "kernel " #name);                                   \
    }
#include "kernels/cuda/k_cuda_ops.def"
#undef OP

/* ---- logits -------------------------------------------------------------------------------- */

/* How many of n rows from `first` on one launch takes. */
static uint32_t turn(uint32_t first, uint32_t n)
{
    return n - first < LOGITS_ROWS ? n - first : LOGITS_ROWS;
}

static void launch_logprobs(k_stream_t *stream, const k_logprobs_args_t *args)
{
    const k_cuda_launch_t at = launch_of(stream);
    for (uint32_t i = 0; i < args->rows; i += turn(i, args->rows)) {
        k_logprobs_args_t some = *args;
        some.logits += i * args->logits_stride;
        some.targets += i;
        some.n_top += i;
        some.out += i;
        some.rows = turn(i, args->rows);
        note(stream, k_cuda_logprobs(&at, &some), "kernel logprobs");
    }
}

static void launch_sample(k_stream_t *stream, const k_sample_args_t *args)
{
    const k_cuda_launch_t at = launch_of(stream);
    for (uint32_t i = 0; i < args->rows; i += turn(i, args->rows)) {
        k_sample_args_t some = *args;
        some.logits += i * args->logits_stride;
        some.params += i;
        some.out += i;
        some.rows = turn(i, args->rows);
        note(stream, k_cuda_sample(&at, &some), "kernel sample");
    }
}

/* ---- products ------------------------------------------------------------------------------ */

static k_cuda_weight_t weight_of(const k_weight_t *weight)
{
    return (k_cuda_weight_t){
        .dtype = cuda_recode_type(weight->dtype),
        .is_gate_up = weight->form == K_WEIGHT_GATE_UP,
        .rows = weight->rows,
        .columns = weight->columns,
        .data = weight->data,
    };
}

static k_cuda_out_t out_of(const k_linear_args_t *args)
{
    switch (args->out) {
    case K_OUT_ADD:
        return K_CUDA_OUT_ADD;
    case K_OUT_SWIGLU:
        return K_CUDA_OUT_SWIGLU;
    case K_OUT_STORE:
        break;
    }
    return args->y_dtype == K_F32 ? K_CUDA_OUT_F32 : K_CUDA_OUT_BF16;
}

static void launch_linear(k_stream_t *stream, const k_linear_args_t *args)
{
    const k_cuda_linear_t linear = {
        .w = weight_of(args->w),
        .bias = args->bias,
        .x = args->x,
        .y = args->y,
        .out = out_of(args),
        .rows = args->rows,
        .x_stride = args->x_stride,
        .y_stride = args->y_stride,
    };
    note(stream, k_cuda_linear(&linear, stream_of(stream)), "kernel linear");
}

static void launch_expert_linear(k_stream_t *stream, const k_expert_linear_args_t *args)
{
    const k_cuda_groups_t groups = {
        .bias = args->bias,
        .offsets = args->offsets,
        .rows = args->slots,
        .all_n = args->all_experts,
        .x = args->x,
        .row_of = args->row_of_slot,
        .gathered = args->gathered,
        .y = args->y,
        .x_stride = args->x_stride,
        .y_stride = args->y_stride,
    };
    const int error = k_cuda_groups_of(args->experts, args->n_experts, &groups, stream_of(stream));
    note(stream, error, "kernel expert_linear");
}

static void launch_head_linear(k_stream_t *stream, const k_head_linear_args_t *args)
{
    const k_cuda_groups_t groups = {
        .rows = args->rows,
        .x_step = args->x_dim,
        .y_step = args->y_dim,
        .x = args->x,
        .y = args->y,
        .x_stride = args->x_stride,
        .y_stride = args->y_stride,
    };
    const int error = k_cuda_groups_of(args->heads, args->n_heads, &groups, stream_of(stream));
    note(stream, error, "kernel head_linear");
}

static void launch_embed(k_stream_t *stream, const k_embed_args_t *args)
{
    const k_cuda_weight_t table = weight_of(args->table);
    const int error = k_cuda_embed(&table, args->ids, args->first_id, args->y, args->rows,
                                   args->y_stride, args->scale, stream_of(stream));
    note(stream, error, "kernel embed");
}

static size_t weight_bytes(k_dtype_t dtype, k_weight_form_t form, uint32_t rows, uint32_t columns)
{
    return k_cuda_weight_bytes(cuda_recode_type(dtype), form == K_WEIGHT_GATE_UP, rows, columns);
}

static void weight_pack(k_stream_t *stream, k_dtype_t dtype, k_weight_form_t form, uint32_t columns,
                        const k_weight_part_t *parts, uint32_t n_parts, void *dst)
{
    k_weight_t weight = {.dtype = dtype, .form = form, .columns = columns, .data = dst};
    for (uint32_t i = 0; i < n_parts; i++) {
        weight.rows += parts[i].rows;
    }
    if (stream->loader == NULL && cuda_loader_create(stream->device, &stream->loader) < 0) {
        note(stream, cudaErrorMemoryAllocation, "loading weights");
        return;
    }
    const k_cuda_weight_t packed = weight_of(&weight);
    cuda_loader_post(stream->loader, &packed, dtype, parts, n_parts);
}

/* ---- attention ----------------------------------------------------------------------------- */

static void launch_attention(k_stream_t *stream, const k_attention_args_t *args)
{
    const k_cuda_attention_plan_t plan = {
        .max_rows = args->max_rows,
        .scratch = stream->scratch.addr,
        .scratch_bytes = stream->scratch.bytes,
    };
    note(stream, k_cuda_attention(args, &plan, stream_of(stream)), "kernel attention");
}

static void launch_mla_attention(k_stream_t *stream, const k_mla_attention_args_t *args)
{
    const k_cuda_attention_plan_t plan = {
        .max_rows = args->max_rows,
        .scratch = stream->scratch.addr,
        .scratch_bytes = stream->scratch.bytes,
    };
    note(stream, k_cuda_mla_attention(args, &plan, stream_of(stream)), "kernel mla_attention");
}

static void launch_mla_write(k_stream_t *stream, const k_mla_write_args_t *args)
{
    note(stream, k_cuda_mla_write(args, stream_of(stream)), "kernel mla_write");
}

static bool can_attend(const k_kv_view_t *kv, uint32_t latent)
{
    const uint32_t tokens = kv->block_tokens;
    const bool has_kernel = latent > 0
                                ? k_cuda_mla_is_supported(kv->dtype, 2 * kv->head_dim, latent)
                                : k_cuda_attention_is_supported(kv->dtype, kv->head_dim);
    return has_kernel && tokens >= 8 && tokens <= K_CUDA_ATTENTION_SEGMENT &&
           (tokens & (tokens - 1)) == 0;
}

static void launch_rope_kv_write(k_stream_t *stream, const k_rope_kv_write_args_t *args)
{
    note(stream, k_cuda_rope_kv_write(args, args->rows, stream_of(stream)), "kernel rope_kv_write");
}

/* ---- the table ----------------------------------------------------------------------------- */

/* A device "cuda" would not have opened otherwise. */
static bool is_supported(void)
{
    return true;
}

static size_t scratch_bytes(uint32_t rows, uint32_t width, uint32_t threads)
{
    (void)threads;
    const size_t sampling = k_cuda_sample_scratch_bytes(turn(0, rows), width);
    const size_t slices = k_cuda_slices_scratch_bytes(rows, width);
    const size_t logits = sampling > slices ? sampling : slices;
    return logits > ATTENTION_SCRATCH_BYTES ? logits : ATTENTION_SCRATCH_BYTES;
}

/* A graph of a step of 32 layers is some 300 launches; what it takes was not measured. */
#define GRAPHS_BYTES ((size_t)128 << 20)

const k_ops_t k_ops_cuda = {
    .name = "cuda",
    .own_bytes = CUDA_LOADER_BYTES > GRAPHS_BYTES ? CUDA_LOADER_BYTES : GRAPHS_BYTES,
    .is_supported = is_supported,
    .act = K_BF16,
    .attention_features = K_ATTENTION_SOFTCAP | K_ATTENTION_SINKS,
    .can_attend = can_attend,
    .weight_bytes = weight_bytes,
    .weight_pack = weight_pack,
    .has_f8_8x32 = true,
    .packs_slices = true,
    .scratch_bytes = scratch_bytes,
    .embed = launch_embed,
    .linear = launch_linear,
    .expert_linear = launch_expert_linear,
    .head_linear = launch_head_linear,
    .rope_kv_write = launch_rope_kv_write,
    .attention = launch_attention,
    .mla_write = launch_mla_write,
    .mla_attention = launch_mla_attention,
    .logprobs = launch_logprobs,
    .sample = launch_sample,
#define OP(name) .name = launch_##name,
#include "kernels/cuda/k_cuda_ops.def"
#undef OP
};
