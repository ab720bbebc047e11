/* SPDX-License-Identifier: Apache-2.0 */
/* Latent attention: which kernels a step takes. */
#include "kernels/cuda/attention/mla_attention.cuh"

#include "kernels/cuda/attention/attention_combine.cuh"

/* ---- host ----------------------------------------------------------------------------------- */

static int shared_bytes(int device)
{
    int bytes = 0;
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return bytes;
}

template <int PK, int PV, int MT, class T>
static cudaError_t launch_type(mla_params_t p, uint32_t items, cudaStream_t stream)
{
    typedef mla_shape<PK, PV, MT> shape;
    int device = 0, multiprocessors = 0;
    cudaGetDevice(&device);
    const int fit = (shared_bytes(device) - shape::fixed_bytes) / shape::tile_bytes;
    const int stages = fit < MMA_MAX_STAGES ? fit : MMA_MAX_STAGES;
    if (stages < 1) {
        return cudaErrorNotSupported;
    }
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const uint32_t room = (uint32_t)multiprocessors;
    p.all.tile_rows = shape::rows;
    return simt_launch((mla_attention_kernel<PK, PV, MT, T>),
                       {.grid = {room < items ? room : items},
                        .block = {MLA_THREADS},
                        .shared_bytes = (size_t)(stages * shape::tile_bytes + shape::fixed_bytes),
                        .stream = stream,
                        .overlaps_previous = true},
                       p, stages);
}

/* Sequences of `min` to `max` packed rows. */
template <int PK, int PV, int MT>
static cudaError_t launch_rows(mla_params_t p, uint32_t min, uint32_t max, uint32_t items,
                               cudaStream_t stream)
{
    p.all.min_packed = min;
    p.all.max_packed = max;
    switch (p.all.kv.dtype) {
    case K_BF16:
        return launch_type<PK, PV, MT, __nv_bfloat16>(p, items, stream);
    case K_F16:
        return launch_type<PK, PV, MT, __half>(p, items, stream);
    case K_F32:
        return launch_type<PK, PV, MT, float>(p, items, stream);
    case K_F8:
        return launch_type<PK, PV, MT, mla_byte>(p, items, stream);
    default:
        return cudaErrorNotSupported;
    }
}

template <int PK, int PV>
static cudaError_t launch_all(const mla_params_t &p, uint32_t max_packed, uint32_t segments,
                              cudaStream_t stream)
{
    const uint32_t items = p.all.n_seqs * p.all.kv.heads * segments;
    cudaError_t error = cudaSuccess;
    if (p.all.group <= 16) {
        error = launch_rows<PK, PV, 1>(p, 1, 16, items, stream);
    }
    if (error == cudaSuccess && max_packed > 16) {
        const bool is_one_tile = max_packed <= 32;
        error = launch_rows<PK, PV, 2>(p, 17, UINT32_MAX, is_one_tile ? items : UINT32_MAX, stream);
    }
    if (error == cudaSuccess && segments > 1 && p.all.units > 0) {
        attention_launch_t launch = {};
        launch.params = p.all;
        launch.stream = stream;
        error = attention_combine_launch<PV * 64>(launch);
    }
    return error;
}

bool k_cuda_mla_is_supported(k_dtype_t kv, uint32_t dim, uint32_t latent)
{
    typedef mla_shape<9, 8, 2> large;
    const bool has_type = kv == K_BF16 || kv == K_F16 || kv == K_F32 || kv == K_F8;
    int device = 0;
    if (dim > MLA_SMALL_DIM && (cudaGetDevice(&device) != cudaSuccess ||
                                shared_bytes(device) < large::fixed_bytes + large::tile_bytes)) {
        return false;
    }
    return has_type && dim % (kv == K_F8 ? 16 : 8) == 0 && dim <= MLA_MAX_DIM && latent % 2 == 0 &&
           latent <= MLA_MAX_LATENT && latent <= dim;
}

static bool is_possible(const k_mla_attention_args_t *args)
{
    const k_kv_view_t *kv = &args->kv;
    const uint32_t tokens = kv->block_tokens;
    const uintptr_t bytes = reinterpret_cast<uintptr_t>(kv->base) | kv->block_stride |
                            kv->token_stride | reinterpret_cast<uintptr_t>(args->q) |
                            args->q_stride * 2;
    return k_cuda_mla_is_supported(kv->dtype, 2 * kv->head_dim, args->latent) && bytes % 16 == 0 &&
           kv->heads == 1 && tokens >= 8 && tokens <= K_CUDA_ATTENTION_SEGMENT &&
           (tokens & (tokens - 1)) == 0 && args->scale > 0 && args->o_stride % 2 == 0;
}

/* The largest divisor of the heads that a tile of rows holds. */
static uint32_t group_of(uint32_t q_heads)
{
    uint32_t group = q_heads < MLA_MAX_GROUP ? q_heads : (uint32_t)MLA_MAX_GROUP;
    while (q_heads % group != 0) {
        group--;
    }
    return group;
}

static uint32_t units_in(size_t bytes, uint32_t q_heads, uint32_t latent)
{
    const size_t unit = (size_t)q_heads * (latent * sizeof(float) + sizeof(float2));
    return bytes < 256 ? 0 : (uint32_t)((bytes - 256) / unit);
}

static mla_params_t params_of(const k_mla_attention_args_t *args,
                              const k_cuda_attention_plan_t *plan)
{
    mla_params_t p = {};
    attention_params_t &all = p.all;
    p.dim = 2 * args->kv.head_dim;
    p.latent = args->latent;
    all.q = static_cast<const __nv_bfloat16 *>(args->q);
    all.o = static_cast<__nv_bfloat16 *>(args->o);
    all.q_stride = args->q_stride;
    all.o_stride = args->o_stride;
    all.q_heads = args->q_heads;
    all.o_dim = args->latent;
    all.group = group_of(args->q_heads);
    all.scale_log2 = args->scale * 1.44269504088896341f;
    all.window = UINT32_C(1) << 31;
    all.kv = args->kv;
    all.kv.heads = args->q_heads / all.group; /* groups, which read the same vectors */
    all.kv.head_stride = 0;
    while (UINT32_C(1) << all.block_shift < args->kv.block_tokens) {
        all.block_shift++;
    }
    all.seqs = args->seqs;
    all.n_seqs = args->n_seqs;
    all.units = units_in(plan->scratch_bytes, args->q_heads, args->latent);
    all.partial_o = static_cast<float *>(plan->scratch);
    all.partial_sum = reinterpret_cast<float2 *>(all.partial_o +
                                                 (size_t)all.units * args->q_heads * args->latent);
    return p;
}

int k_cuda_mla_attention(const k_mla_attention_args_t *args, const k_cuda_attention_plan_t *plan,
                         cudaStream_t stream)
{
    if (!is_possible(args)) {
        return cudaErrorNotSupported;
    }
    if (args->n_seqs == 0) {
        return cudaSuccess;
    }
    const mla_params_t p = params_of(args, plan);
    const uint32_t most = plan->max_rows > 0 ? plan->max_rows * p.all.group : UINT32_MAX;
    const uint32_t segments =
        args->max_tokens > 0
            ? (args->max_tokens + K_CUDA_ATTENTION_SEGMENT - 1) / K_CUDA_ATTENTION_SEGMENT
            : UINT32_C(1) << 16;
    return p.dim <= MLA_SMALL_DIM ? launch_all<2, 2>(p, most, segments, stream)
                                  : launch_all<9, 8>(p, most, segments, stream);
}
