/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/rope_kv_write.h"

#include "kernels/cuda/attention/kv_bytes.h"
#include "kernels/cuda/attention/mla_attention.h"

enum { ROPE_THREADS = 256 };

/* T: of the cache; int8_t: codes. */
template <class T> constexpr bool rope_has_scales = false;
template <> constexpr bool rope_has_scales<int8_t> = true;

/* VEC elements, as wide an access as that allows. */
template <int VEC> SIMT_DEVICE void rope_load(const __nv_bfloat16 *from, float (&v)[VEC])
{
    if constexpr (VEC == 8) {
        const uint4 bits = simt_load_16(from);
        const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            const float2 pair = simt_unpack_bf16(pairs[i]);
            v[2 * i] = pair.x;
            v[2 * i + 1] = pair.y;
        }
    } else {
        static_assert(VEC == 1);
        v[0] = __bfloat162float(*from);
    }
}

SIMT_DEVICE void rope_store_one(__nv_bfloat16 *to, float v)
{
    *to = __float2bfloat16(v);
}

SIMT_DEVICE void rope_store_one(__half *to, float v)
{
    *to = __float2half(v);
}

SIMT_DEVICE void rope_store_one(float *to, float v)
{
    *to = v;
}

SIMT_DEVICE void rope_store_one(__nv_fp8_e4m3 *to, float v)
{
    *reinterpret_cast<uint8_t *>(to) = kv_f8_of(v);
}

SIMT_DEVICE uint32_t rope_pack(const __nv_bfloat16 *, float lo, float hi)
{
    return simt_pack_bf16(lo, hi);
}

SIMT_DEVICE uint32_t rope_pack(const __half *, float lo, float hi)
{
    return simt_pack_f16(lo, hi);
}

SIMT_DEVICE void rope_store_8(float *to, const float (&v)[8])
{
    reinterpret_cast<float4 *>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4 *>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

SIMT_DEVICE void rope_store_8(__nv_fp8_e4m3 *to, const float (&v)[8])
{
    *reinterpret_cast<uint2 *>(to) = make_uint2(
        (uint32_t)simt_pack_e4m3(v[0], v[1]) | (uint32_t)simt_pack_e4m3(v[2], v[3]) << 16,
        (uint32_t)simt_pack_e4m3(v[4], v[5]) | (uint32_t)simt_pack_e4m3(v[6], v[7]) << 16);
}

template <class T> SIMT_DEVICE void rope_store_8(T *to, const float (&v)[8])
{
    simt_store_16(to, make_uint4(rope_pack(to, v[0], v[1]), rope_pack(to, v[2], v[3]),
                                 rope_pack(to, v[4], v[5]), rope_pack(to, v[6], v[7])));
}

template <int VEC, class T> SIMT_DEVICE void rope_store(T *to, const float (&v)[VEC])
{
    if constexpr (VEC == 8) {
        rope_store_8(to, v);
    } else {
        rope_store_one(to, v[0]);
    }
}

/* The sequence that a row belongs to; rows == 0: none. The whole warp calls. */
SIMT_DEVICE k_seq_t rope_find_seq(const k_seq_t *seqs, uint32_t n_seqs, uint32_t row)
{
    for (uint32_t at = 0; at < n_seqs; at += SIMT_WARP) {
        const uint32_t index = at + (uint32_t)simt_lane();
        k_seq_t seq = {};
        if (index < n_seqs) {
            seq = seqs[index];
        }
        const uint32_t found = simt_ballot(row - seq.row < seq.rows);
        if (found != 0) {
            return seqs[at + (uint32_t)simt_lowest_bit(found)];
        }
    }
    return k_seq_t{};
}

/* Where elements of a row lie that are rotated together: VEC pairs. */
typedef struct rope_at {
    uint32_t first;  /* element of the head */
    uint32_t second; /* the other VEC elements */
    uint32_t pair;   /* first pair */
} rope_at_t;

template <int VEC> SIMT_DEVICE rope_at_t rope_unit(const k_rope_kv_write_args_t &p, uint32_t unit)
{
    const uint32_t first = p.interleaved ? 2 * VEC * unit : VEC * unit;
    return {first, p.interleaved ? first + VEC : first + p.rotary / 2, VEC * unit};
}

/* a, b: the elements at first and second. */
template <int VEC>
SIMT_DEVICE void rope_rotate(bool interleaved, const float2 *rotation, float (&a)[VEC],
                             float (&b)[VEC])
{
    float v[2 * VEC];
    SIMT_UNROLL
    for (int i = 0; i < VEC; i++) {
        v[interleaved ? i : 2 * i] = a[i];
        v[interleaved ? VEC + i : 2 * i + 1] = b[i];
    }
    SIMT_UNROLL
    for (int i = 0; i < VEC; i++) {
        const float2 r = rotation[i];
        const float x = v[2 * i];
        const float y = v[2 * i + 1];
        v[2 * i] = fmaf(x, r.x, -(y * r.y));
        v[2 * i + 1] = fmaf(y, r.x, x * r.y);
    }
    SIMT_UNROLL
    for (int i = 0; i < VEC; i++) {
        a[i] = v[interleaved ? i : 2 * i];
        b[i] = v[interleaved ? VEC + i : 2 * i + 1];
    }
}

/* The cache's places of one row. */
template <class T> struct rope_cache {
    char *token; /* of head 0 */
    size_t head_stride;
    size_t part_stride;
};

template <class T>
SIMT_DEVICE T *rope_cache_at(const rope_cache<T> &cache, uint32_t head, uint32_t part,
                             uint32_t element)
{
    return reinterpret_cast<T *>(cache.token + head * cache.head_stride +
                                 part * cache.part_stride) +
           element;
}

/* Heads of q, or of k (then the cache gets them too). */
template <int VEC, bool IS_K, class T>
SIMT_DEVICE void rope_heads(const k_rope_kv_write_args_t &p, __nv_bfloat16 *row, uint32_t heads,
                            const float2 *rotation, const rope_cache<T> &cache)
{
    const uint32_t units = p.rotary / 2 / VEC;
    for (uint32_t i = threadIdx.x; i < heads * units; i += ROPE_THREADS) {
        const uint32_t head = i / units;
        const rope_at_t at = rope_unit<VEC>(p, i % units);
        __nv_bfloat16 *x = row + (size_t)head * p.kv.head_dim;
        float a[VEC], b[VEC];
        rope_load<VEC>(x + at.first, a);
        rope_load<VEC>(x + at.second, b);
        if (p.interleaved) {
            rope_rotate<VEC>(true, rotation + at.pair, a, b);
        } else {
            rope_rotate<VEC>(false, rotation + at.pair, a, b);
        }
        rope_store<VEC>(x + at.first, a);
        rope_store<VEC>(x + at.second, b);
        if constexpr (IS_K) {
            rope_store<VEC>(rope_cache_at(cache, head, 0, at.first), a);
            rope_store<VEC>(rope_cache_at(cache, head, 0, at.second), b);
        }
    }
}

/* Elements [from, head_dim) of every head to part `part` of the cache as they are. */
template <int VEC, class T>
SIMT_DEVICE void rope_copy(const k_rope_kv_write_args_t &p, const __nv_bfloat16 *row, uint32_t from,
                           uint32_t part, const rope_cache<T> &cache)
{
    const uint32_t units = (p.kv.head_dim - from) / VEC;
    for (uint32_t i = threadIdx.x; i < p.kv.heads * units; i += ROPE_THREADS) {
        const uint32_t head = i / units;
        const uint32_t element = from + i % units * VEC;
        float v[VEC];
        rope_load<VEC>(row + (size_t)head * p.kv.head_dim + element, v);
        rope_store<VEC>(rope_cache_at(cache, head, part, element), v);
    }
}

/* ---- a cache of codes: a warp a head, since its elements share a scale ------------------------ */

enum { ROPE_EACH = K_MAX_HEAD_DIM / SIMT_WARP };

/* Element i of a head of k, rotated. */
SIMT_DEVICE float rope_rotated(const k_rope_kv_write_args_t &p, const __nv_bfloat16 *x,
                               const float2 *rotation, uint32_t i)
{
    if (i >= p.rotary) {
        return __bfloat162float(x[i]);
    }
    const uint32_t half = p.rotary / 2;
    const uint32_t pair = p.interleaved ? i / 2 : i % half;
    const bool is_first = p.interleaved ? i % 2 == 0 : i < half;
    const float a = __bfloat162float(x[p.interleaved ? pair * 2 : pair]);
    const float b = __bfloat162float(x[p.interleaved ? pair * 2 + 1 : pair + half]);
    const float2 r = rotation[pair];
    return is_first ? fmaf(a, r.x, -(b * r.y)) : fmaf(b, r.x, a * r.y);
}

/* The whole warp calls: v holds elements lane, lane + 32, … of K or V of a token. */
SIMT_DEVICE void rope_store_codes(const k_kv_view_t &kv, const float (&v)[ROPE_EACH], int8_t *codes,
                                  float *scale)
{
    float largest = 0;
    SIMT_UNROLL
    for (int i = 0; i < ROPE_EACH; i++) {
        largest = fmaxf(largest, kv_i8_size(v[i]));
    }
    const kv_i8_scale_t of = kv_i8_scale_of(simt_warp_max(largest));
    SIMT_UNROLL
    for (int i = 0; i < ROPE_EACH; i++) {
        const uint32_t at = (uint32_t)(i * SIMT_WARP + simt_lane());
        if (at < kv.head_dim) {
            codes[at] = kv_i8_of(v[i], of);
        }
    }
    if (simt_lane() == 0) {
        *scale = of.scale;
    }
}

/* One head's K, rotated in its row as well, and V. */
SIMT_DEVICE void rope_write_head(const k_rope_kv_write_args_t &p, __nv_bfloat16 *k,
                                 const __nv_bfloat16 *v, const float2 *rotation, int8_t *codes,
                                 float *scales)
{
    float key[ROPE_EACH] = {};
    float value[ROPE_EACH] = {};
    SIMT_UNROLL
    for (int i = 0; i < ROPE_EACH; i++) {
        const uint32_t at = (uint32_t)(i * SIMT_WARP + simt_lane());
        if (at < p.kv.head_dim) {
            key[i] = rope_rotated(p, k, rotation, at);
            value[i] = __bfloat162float(v[at]);
        }
    }
    simt_sync_warp(); /* all have read k */
    SIMT_UNROLL
    for (int i = 0; i < ROPE_EACH; i++) {
        const uint32_t at = (uint32_t)(i * SIMT_WARP + simt_lane());
        if (at < p.rotary) {
            k[at] = __float2bfloat16(key[i]);
        }
    }
    rope_store_codes(p.kv, key, codes, scales);
    rope_store_codes(p.kv, value, codes + p.kv.part_stride, scales + p.kv.block_tokens);
}

SIMT_DEVICE void rope_write_heads(const k_rope_kv_write_args_t &p, __nv_bfloat16 *k,
                                  const __nv_bfloat16 *v, const float2 *rotation, char *block,
                                  uint32_t token)
{
    for (uint32_t h = (uint32_t)simt_warp(); h < p.kv.heads; h += ROPE_THREADS / SIMT_WARP) {
        char *head = block + h * p.kv.head_stride;
        rope_write_head(p, k + (size_t)h * p.kv.head_dim, v + (size_t)h * p.kv.head_dim, rotation,
                        reinterpret_cast<int8_t *>(head + token * p.kv.token_stride),
                        reinterpret_cast<float *>(head + p.kv.scale_offset) + token);
    }
}

/* ---- a row ------------------------------------------------------------------------------------ */

/* Blocks share out a row. */
enum rope_part { ROPE_Q, ROPE_K, ROPE_V, ROPE_PARTS };

/* The step's inputs alone are read before simt_wait_previous(): nobody writes those in a step. */
template <int VEC, class T>
SIMT_DEVICE void rope_row(const k_rope_kv_write_args_t &p, const k_seq_t &seq, uint32_t row,
                          uint32_t part, float2 *rotation)
{
    const uint32_t position = seq.start + (row - seq.row);
    char *block = static_cast<char *>(p.kv.base) +
                  seq.block_table[position / p.kv.block_tokens] * p.kv.block_stride;
    const uint32_t token = position % p.kv.block_tokens;
    const rope_cache<T> cache = {
        block + token * p.kv.token_stride,
        p.kv.head_stride,
        p.kv.part_stride,
    };
    for (uint32_t i = threadIdx.x; i < p.rotary / 2; i += ROPE_THREADS) {
        const float angle = (float)position * p.inv_freq[i];
        rotation[i] = make_float2(cosf(angle) * p.mscale, sinf(angle) * p.mscale);
    }
    simt_wait_previous();
    simt_sync_block();
    __nv_bfloat16 *q = static_cast<__nv_bfloat16 *>(p.q) + row * p.q_stride;
    __nv_bfloat16 *k = static_cast<__nv_bfloat16 *>(p.k) + row * p.k_stride;
    const __nv_bfloat16 *v = static_cast<const __nv_bfloat16 *>(p.v) + row * p.v_stride;
    if (part == ROPE_Q) {
        rope_heads<VEC, false, T>(p, q, p.q_heads, rotation, cache);
    } else if constexpr (rope_has_scales<T>) {
        rope_write_heads(p, k, v, rotation, block, token); /* V's scales too */
    } else if (part == ROPE_K) {
        rope_heads<VEC, true, T>(p, k, p.kv.heads, rotation, cache);
        rope_copy<VEC>(p, k, p.rotary, 0, cache);
    } else {
        rope_copy<VEC>(p, v, 0, 1, cache);
    }
}

/* Block: row blockIdx.x, part blockIdx.y. */
template <int VEC, class T>
static SIMT_KERNEL(ROPE_THREADS, 4) rope_kernel(const k_rope_kv_write_args_t p)
{
    SIMT_SHARED(float2, rotation, [K_MAX_HEAD_DIM / 2]);
    simt_launch_next();
    const uint32_t row = blockIdx.x;
    const k_seq_t seq = rope_find_seq(p.seqs, p.n_seqs, row);
    if (seq.rows > 0) {
        rope_row<VEC, T>(p, seq, row, blockIdx.y, rotation);
    } else {
        simt_wait_previous();
    }
}

template <class T>
static cudaError_t launch_type(const k_rope_kv_write_args_t &args, simt_grid_t grid)
{
    const k_kv_view_t &kv = args.kv;
    const size_t elements =
        args.q_stride | args.k_stride | args.v_stride | kv.head_dim | args.rotary / 2;
    const size_t bytes = reinterpret_cast<uintptr_t>(args.q) | reinterpret_cast<uintptr_t>(args.k) |
                         reinterpret_cast<uintptr_t>(args.v) |
                         reinterpret_cast<uintptr_t>(kv.base) | kv.block_stride | kv.head_stride |
                         kv.token_stride | kv.part_stride;
    grid.grid.y = rope_has_scales<T> ? ROPE_V : ROPE_PARTS;
    return elements % 8 == 0 && bytes % 16 == 0 ? simt_launch((rope_kernel<8, T>), grid, args)
                                                : simt_launch((rope_kernel<1, T>), grid, args);
}

int k_cuda_rope_kv_write(const k_rope_kv_write_args_t *args, uint32_t rows, cudaStream_t stream)
{
    const simt_grid_t grid = {
        .grid = {rows},
        .block = {ROPE_THREADS},
        .shared_bytes = 0,
        .stream = stream,
        .overlaps_previous = true,
    };
    if (rows == 0) {
        return cudaSuccess;
    }
    switch (args->kv.dtype) {
    case K_BF16:
        return launch_type<__nv_bfloat16>(*args, grid);
    case K_F16:
        return launch_type<__half>(*args, grid);
    case K_F32:
        return launch_type<float>(*args, grid);
    case K_F8:
        return launch_type<__nv_fp8_e4m3>(*args, grid);
    case K_I8:
        return launch_type<int8_t>(*args, grid);
    default:
        return cudaErrorNotSupported;
    }
}

/* ---- latents --------------------------------------------------------------------------------- */

/* One pair of `x`, rotated, to `y`. */
SIMT_DEVICE float2 mla_rotate(const k_mla_write_args_t &p, const float2 *rotation, uint32_t pair,
                              const __nv_bfloat16 *x, __nv_bfloat16 *y)
{
    const uint32_t first = p.interleaved ? 2 * pair : pair;
    const uint32_t second = p.interleaved ? first + 1 : pair + p.rotary / 2;
    float a[1] = {__bfloat162float(x[first])};
    float b[1] = {__bfloat162float(x[second])};
    rope_rotate<1>(p.interleaved, rotation + pair, a, b);
    y[first] = __float2bfloat16(a[0]);
    y[second] = __float2bfloat16(b[0]);
    return make_float2(a[0], b[0]);
}

template <class T>
SIMT_DEVICE void mla_row(const k_mla_write_args_t &p, const k_seq_t &seq, uint32_t row,
                         float2 *rotation)
{
    const uint32_t position = seq.start + (row - seq.row);
    const uint32_t block = seq.block_table[position / p.kv.block_tokens];
    const uint32_t pairs = p.rotary / 2;
    T *cache = reinterpret_cast<T *>(static_cast<char *>(p.kv.base) + block * p.kv.block_stride +
                                     position % p.kv.block_tokens * p.kv.token_stride);
    for (uint32_t i = threadIdx.x; i < pairs; i += ROPE_THREADS) {
        const float angle = (float)position * p.inv_freq[i];
        rotation[i] = make_float2(cosf(angle) * p.mscale, sinf(angle) * p.mscale);
    }
    simt_sync_block();
    const __nv_bfloat16 *q = static_cast<const __nv_bfloat16 *>(p.q) + row * p.q_stride;
    __nv_bfloat16 *q_out = static_cast<__nv_bfloat16 *>(p.q_out) + row * p.q_out_stride;
    __nv_bfloat16 *c = static_cast<__nv_bfloat16 *>(p.c) + row * p.c_stride;
    for (uint32_t i = threadIdx.x; i < p.q_heads * pairs; i += ROPE_THREADS) {
        const size_t head = i / pairs;
        (void)mla_rotate(p, rotation, i % pairs, q + head * p.q_dim + (p.q_dim - p.rotary),
                         q_out + head * (p.latent + p.rotary) + p.latent);
    }
    for (uint32_t i = threadIdx.x; i < pairs; i += ROPE_THREADS) {
        const float2 turned = mla_rotate(p, rotation, i, c + p.latent, c + p.latent);
        rope_store_one(cache + p.latent + (p.interleaved ? 2 * i : i), turned.x);
        rope_store_one(cache + p.latent + (p.interleaved ? 2 * i + 1 : i + pairs), turned.y);
    }
    for (uint32_t i = threadIdx.x; i < p.latent; i += ROPE_THREADS) {
        rope_store_one(cache + i, __bfloat162float(c[i]));
    }
}

/* A block a row. */
template <class T> static SIMT_KERNEL(ROPE_THREADS, 4) mla_kernel(const k_mla_write_args_t p)
{
    SIMT_SHARED(float2, rotation, [K_MAX_LATENT / 2]);
    simt_wait_previous();
    simt_launch_next();
    const uint32_t row = blockIdx.x;
    const k_seq_t seq = rope_find_seq(p.seqs, p.n_seqs, row);
    if (seq.rows > 0) {
        mla_row<T>(p, seq, row, rotation);
    }
}

int k_cuda_mla_write(const k_mla_write_args_t *args, cudaStream_t stream)
{
    const simt_grid_t grid = {
        .grid = {args->rows},
        .block = {ROPE_THREADS},
        .shared_bytes = 0,
        .stream = stream,
        .overlaps_previous = true,
    };
    if (args->rows == 0) {
        return cudaSuccess;
    }
    switch (args->kv.dtype) {
    case K_BF16:
        return simt_launch(mla_kernel<__nv_bfloat16>, grid, *args);
    case K_F16:
        return simt_launch(mla_kernel<__half>, grid, *args);
    case K_F32:
        return simt_launch(mla_kernel<float>, grid, *args);
    case K_F8:
        return simt_launch(mla_kernel<__nv_fp8_e4m3>, grid, *args);
    default:
        return cudaErrorNotSupported;
    }
}
