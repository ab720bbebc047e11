/* SPDX-License-Identifier: Apache-2.0 */
/* attention: which kernels a step takes. */
#include "kernels/cuda/attention/attention_combine.cuh"

/* ---- host ------------------------------------------------------------------------------------ */

size_t k_cuda_attention_scratch_bytes(uint32_t q_heads, uint32_t head_dim, uint32_t units)
{
    return (size_t)units * q_heads * (head_dim * sizeof(float) + sizeof(float2)) + 256;
}

static uint32_t units_in(size_t bytes, uint32_t q_heads, uint32_t head_dim)
{
    const size_t unit = (size_t)q_heads * (head_dim * sizeof(float) + sizeof(float2));
    return bytes < 256 ? 0 : (uint32_t)((bytes - 256) / unit);
}

bool k_cuda_attention_is_supported(k_dtype_t kv, uint32_t head_dim)
{
    const bool has_type = kv == K_BF16 || kv == K_F16 || kv == K_F32 || kv == K_F8 || kv == K_I8;
    return has_type && (head_dim == 16 || head_dim == 32 || head_dim == 64 || head_dim == 80 ||
                        head_dim == 96 || head_dim == 128 || head_dim == 192 || head_dim == 256);
}

static attention_params_t params_of(const k_attention_args_t *args,
                                    const k_cuda_attention_plan_t *plan)
{
    attention_params_t p = {};
    p.q = static_cast<const __nv_bfloat16 *>(args->q);
    p.o = static_cast<__nv_bfloat16 *>(args->o);
    p.q_stride = args->q_stride;
    p.o_stride = args->o_stride;
    p.q_heads = args->q_heads;
    p.group = args->q_heads / args->kv.heads;
    p.scale_log2 = args->scale * 1.44269504088896341f;
    p.window = args->window > 0 ? args->window : UINT32_C(1) << 31;
    p.sinks = args->sinks;
    p.inverse_scale = 1.0f / args->scale;
    if (args->softcap > 0) {
        p.cap_in_log2 = 2 * p.scale_log2 / args->softcap;
        p.cap_out = args->softcap / args->scale;
    }
    p.o_dim = args->kv.head_dim;
    p.kv = args->kv;
    while (UINT32_C(1) << p.block_shift < args->kv.block_tokens) {
        p.block_shift++;
    }
    p.seqs = args->seqs;
    p.n_seqs = args->n_seqs;
    p.units = units_in(plan->scratch_bytes, args->q_heads, args->kv.head_dim);
    p.partial_o = static_cast<float *>(plan->scratch);
    p.partial_sum = reinterpret_cast<float2 *>(p.partial_o +
                                               (size_t)p.units * args->q_heads * args->kv.head_dim);
    return p;
}

template <int D>
static cudaError_t launch_mma(attention_launch_t launch, uint32_t min, uint32_t max, uint32_t tile)
{
    launch.params.min_packed = min;
    launch.params.max_packed = max;
    launch.params.tile_rows = tile;
    return attention_mma_launch<D>(launch, tile == ATTENTION_MMA_SMALL_TILE);
}

/*
 * Items that leave most of a device's multiprocessors idle, one block each, of so many tokens at least
 * (an H200: 8 items of 1024 tokens 10.9 instead of 17.9 us, 32 of them 16.8 instead of 17.8, 8 of 256
 * tokens 8.2 instead of 7.7).
 */
#define SPREAD_ITEMS  16
#define SPREAD_TOKENS 512

/*
 * Takes scratch for the scores of attention_spread from the front, where that is to be used: all
 * sequences are of up to 16 packed rows, and there is room for the partial results of all beside.
 */
static bool take_spread(const k_attention_args_t *args, const k_cuda_attention_plan_t *plan,
                        uint32_t segments, attention_launch_t *launch,
                        k_cuda_attention_plan_t *rest_out)
{
    const size_t items = (size_t)args->n_seqs * args->kv.heads * segments;
    const uint64_t packed = (uint64_t)plan->max_rows * launch->params.group;
    const bool is_wanted = plan->path == K_CUDA_ATTENTION_SPREAD ||
                           (plan->path == K_CUDA_ATTENTION_AUTO && items <= SPREAD_ITEMS &&
                            args->max_tokens >= SPREAD_TOKENS);
    const bool is_possible = packed > 0 && packed <= ATTENTION_MMA_SMALL_TILE &&
                             attention_can_spread(args->kv.head_dim) &&
                             (args->kv.dtype == K_BF16 || args->kv.dtype == K_F16) &&
                             items * ATTENTION_SPREAD_BYTES < plan->scratch_bytes;
    if (!is_wanted || !is_possible) {
        return false;
    }
    const size_t taken = items * ATTENTION_SPREAD_BYTES;
    *rest_out = *plan;
    rest_out->scratch = static_cast<char *>(plan->scratch) + taken;
    rest_out->scratch_bytes = plan->scratch_bytes - taken;
    const uint32_t units = args->n_seqs * plan->max_rows * segments;
    if (segments > 1 &&
        units_in(rest_out->scratch_bytes, args->q_heads, args->kv.head_dim) < units) {
        return false;
    }
    launch->params.spread_scores = static_cast<float4 *>(plan->scratch);
    return true;
}

/* Sequences of up to 16, of up to 64 and of more packed rows, then the merge. */
template <int D>
static cudaError_t launch_all(attention_launch_t launch, uint32_t max_packed, uint32_t segments,
                              bool uses_hopper)
{
    cudaError_t error;
    launch.items = launch.params.n_seqs * launch.params.kv.heads * segments;
    error = launch_mma<D>(launch, 1, ATTENTION_MMA_SMALL_TILE, ATTENTION_MMA_SMALL_TILE);
    if (error == cudaSuccess && max_packed > ATTENTION_MMA_SMALL_TILE) {
        const uint32_t until = uses_hopper ? ATTENTION_SPLIT_PACKED : UINT32_MAX;
        launch.items = UINT32_MAX;
        error = launch_mma<D>(launch, ATTENTION_MMA_SMALL_TILE + 1, until, attention_mma_tile<D>);
    }
    if (error == cudaSuccess && segments > 1 && launch.params.units > 0) {
        error = attention_combine_launch<D>(launch);
    }
    if (error == cudaSuccess && uses_hopper && max_packed > ATTENTION_SPLIT_PACKED) {
        error = attention_hopper_launch(launch);
    }
    return error;
}

static bool is_possible(const k_attention_args_t *args)
{
    const k_kv_view_t *kv = &args->kv;
    const uint32_t tokens = kv->block_tokens;
    const bool is_aligned =
        (reinterpret_cast<uintptr_t>(kv->base) | kv->block_stride | kv->head_stride |
         kv->token_stride | kv->part_stride | kv->scale_offset) %
            16 ==
        0;
    return k_cuda_attention_is_supported(kv->dtype, kv->head_dim) && is_aligned && tokens >= 8 &&
           tokens <= K_CUDA_ATTENTION_SEGMENT && (tokens & (tokens - 1)) == 0 &&
           args->q_heads % kv->heads == 0 && args->scale > 0;
}

int k_cuda_attention(const k_attention_args_t *args, const k_cuda_attention_plan_t *plan,
                     cudaStream_t stream)
{
    if (!is_possible(args)) {
        return cudaErrorNotSupported;
    }
    if (args->n_seqs == 0) {
        return cudaSuccess;
    }
    const uint32_t segments =
        args->max_tokens > 0
            ? (args->max_tokens + K_CUDA_ATTENTION_SEGMENT - 1) / K_CUDA_ATTENTION_SEGMENT
            : UINT32_C(1) << 16;
    k_cuda_attention_plan_t rest;
    attention_launch_t launch = {};
    launch.params = params_of(args, plan);
    if (take_spread(args, plan, segments, &launch, &rest)) {
        float4 *scores = launch.params.spread_scores;
        launch.params = params_of(args, &rest);
        launch.params.spread_scores = scores;
    } else if (plan->path == K_CUDA_ATTENTION_SPREAD) {
        return cudaErrorNotSupported;
    }
    launch.kv = args->kv.dtype;
    launch.uses_hopper = plan->path != K_CUDA_ATTENTION_MMA && simt_is_hopper();
    launch.stream = stream;
    const bool can = launch.uses_hopper && attention_hopper_can(launch.params, args->kv.dtype);
    if (plan->path == K_CUDA_ATTENTION_HOPPER && !can) {
        return cudaErrorNotSupported;
    }
    const uint32_t most = plan->max_rows > 0 ? plan->max_rows * launch.params.group : UINT32_MAX;
    switch (args->kv.head_dim) {
    case 16:
        return launch_all<16>(launch, most, segments, can);
    case 32:
        return launch_all<32>(launch, most, segments, can);
    case 64:
        return launch_all<64>(launch, most, segments, can);
    case 80:
        return launch_all<80>(launch, most, segments, can);
    case 96:
        return launch_all<96>(launch, most, segments, can);
    case 128:
        return launch_all<128>(launch, most, segments, can);
    case 192:
        return launch_all<192>(launch, most, segments, can);
    default:
        return launch_all<256>(launch, most, segments, can);
    }
}
