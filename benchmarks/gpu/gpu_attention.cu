/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_attention: paged attention on a real GPU: is it right, are its bits the same however a row is
 * computed, how fast is it. Under a minute.
 *
 *   gpu_attention [--path=auto|mma|hopper] [--only=bits,check,decode,spread,prefill,rope,copy]
 *                 [--copy-gbs=N] [--matmul-tflops=N] [--block=TOKENS] [--type=bf16|fp8|int8]
 *
 * --type: of the cache that is measured, and, other than bf16, the only one that is checked.
 *
 * The ceilings are measured (copy) or given (matmul: what cuBLAS reaches on this card; without it no
 * share of it is printed). Exit code 1: a check failed.
 */
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/kv_blocks.h"
#include "kernels/cuda/rope_kv_write.h"
#include "kernels/cuda/simt/simt.h"

#define CHECK(call)                                                                                \
    do {                                                                                           \
        const int check_error = (int)(call);                                                       \
        if (check_error != 0) {                                                                    \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call,                                   \
                   cudaGetErrorString((cudaError_t)check_error));                                  \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

static struct {
    k_cuda_attention_path_t path = K_CUDA_ATTENTION_AUTO;
    std::string only = "bits,check,decode,prefill,rope,copy";
    double copy_gbs = 0;
    double matmul_tflops = 0;
    uint32_t block = 16;
    k_dtype_t type = K_BF16;
} options;

static int failures;
static cudaStream_t stream;

template <class T> static T *device_alloc(size_t n)
{
    void *p = nullptr;
    CHECK(cudaMalloc(&p, n * sizeof(T)));
    return static_cast<T *>(p);
}

template <class T> static T *device_copy(const std::vector<T> &from)
{
    T *p = device_alloc<T>(from.size());
    CHECK(cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

/* ---- random data and the plain reference ------------------------------------------------------ */

SIMT_DEVICE float hash_to_float(uint64_t i, uint32_t seed)
{
    uint64_t x = i * UINT64_C(0x9E3779B97F4A7C15) + seed * UINT64_C(0xD1B54A32D192ED03);
    x ^= x >> 31;
    x *= UINT64_C(0xBF58476D1CE4E5B9);
    x ^= x >> 29;
    x *= UINT64_C(0x94D049BB133111EB);
    x ^= x >> 32;
    return (float)((double)(uint32_t)x / 4294967296.0 * 3.4 - 1.7); /* variance about 1 */
}

template <class T> SIMT_DEVICE T from_float(float v)
{
    return (T)v;
}

template <class T>
static SIMT_KERNEL(256, 4) fill_kernel(T *to, uint64_t n, float scale, uint32_t seed)
{
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull) {
        to[i] = from_float<T>(hash_to_float(i, seed) * scale);
    }
}

template <class T> static void fill(T *to, uint64_t n, float scale, uint32_t seed)
{
    CHECK(simt_launch(fill_kernel<T>, {.grid = {2048}, .block = {256}, .stream = stream}, to, n,
                      scale, seed));
}

/* Element d of K or V of a token; head: where its head begins in the token's block. */
template <class T>
SIMT_DEVICE float kv_value(const k_kv_view_t &kv, const char *head, uint32_t token, uint32_t part,
                           uint32_t d)
{
    const T *at = (const T *)(head + token * kv.token_stride + part * kv.part_stride);
    const float *scales = (const float *)(head + kv.scale_offset);
    return kv.dtype == K_I8 ? (float)at[d] * scales[part * kv.block_tokens + token] : (float)at[d];
}

/* A warp a (row, head): one pass, plain online softmax in f32, nothing rounded on the way. */
template <class T> static SIMT_KERNEL(128, 4) reference_kernel(const k_attention_args_t p, float *o)
{
    const uint32_t head = blockIdx.y;
    const uint32_t index = blockIdx.x * 4 + (uint32_t)simt_warp();
    const k_seq_t seq = p.seqs[0];
    if (index >= seq.rows) {
        return;
    }
    const uint32_t dim = p.kv.head_dim;
    const uint32_t position = seq.start + index;
    const __nv_bfloat16 *q =
        (const __nv_bfloat16 *)p.q + (seq.row + index) * p.q_stride + head * dim;
    float mine[8], sum[8] = {};
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t d = i * 32 + (uint32_t)simt_lane();
        mine[i] = d < dim ? (float)q[d] : 0.0f;
    }
    float max = -INFINITY, total = 0;
    const uint32_t low = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
    for (uint32_t t = low; t <= position; t++) {
        const char *at = (const char *)p.kv.base +
                         seq.block_table[t / p.kv.block_tokens] * p.kv.block_stride +
                         head / (p.q_heads / p.kv.heads) * p.kv.head_stride;
        const uint32_t token = t % p.kv.block_tokens;
        float dot = 0;
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t d = i * 32 + (uint32_t)simt_lane();
            dot += d < dim ? mine[i] * kv_value<T>(p.kv, at, token, 0, d) : 0.0f;
        }
        const float score = simt_warp_sum(dot) * p.scale;
        const float now = fmaxf(max, score);
        const float old = expf(max - now), weight = expf(score - now);
        max = now;
        total = total * old + weight;
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t d = i * 32 + (uint32_t)simt_lane();
            sum[i] = sum[i] * old + (d < dim ? weight * kv_value<T>(p.kv, at, token, 1, d) : 0.0f);
        }
    }
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t d = i * 32 + (uint32_t)simt_lane();
        if (d < dim) {
            o[(index * (size_t)p.q_heads + head) * dim + d] = sum[i] / total;
        }
    }
}

/* ---- do wgmma and mma.sync agree bit for bit? -------------------------------------------------- */

enum { BITS_N = 128, BITS_K = 64 };

/*
 * d [64, 128] = a [64, 64] · b, both ways: b K-major as in q · Kᵀ with a in shared memory, and
 * MN-major as in weights · V with a in registers. One warp group.
 */
static SIMT_KERNEL(128, 1) bits_kernel(const __nv_bfloat16 *a, const __nv_bfloat16 *b,
                                       const float *c, float *d_mma, float *d_wgmma, bool is_values)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(uint8_t, base);
    uint8_t *sa = base;            /* [64][128 bytes] */
    uint8_t *sb = base + 64 * 128; /* K: [128][128 bytes]; V: [2 panels][64][128 bytes] */
    auto at = [](int rows, int row, int unit) {
        return (unit / 8 * rows + row) * 128 + ((unit % 8) ^ (row % 8)) * 16;
    };
    for (int i = (int)threadIdx.x; i < 64 * 8; i += 128) {
        *(uint4 *)(sa + at(64, i / 8, i % 8)) = ((const uint4 *)a)[i];
    }
    for (int i = (int)threadIdx.x; i < 1024; i += 128) {
        const int rows = is_values ? 64 : 128, units = is_values ? 16 : 8;
        *(uint4 *)(sb + at(rows, i / units, i % units)) = ((const uint4 *)b)[i];
    }
    simt_fence_async_shared();
    simt_sync_block();
    const int lane = simt_lane(), row = simt_warp() * 16;
    float d[64], w[64];
    for (int i = 0; i < 64; i++) {
        const int r = row + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        d[i] = w[i] = c[r * BITS_N + column];
    }
    uint32_t fragment[4][4];
    SIMT_UNROLL
    for (int step = 0; step < 4; step++) {
        simt_ldmatrix_x4(fragment[step], sa + at(64, row + lane % 16, step * 2 + lane / 16));
        SIMT_UNROLL
        for (int n = 0; n < 16; n++) {
            uint32_t two[2];
            if (is_values) {
                simt_ldmatrix_x2_trans(two, sb + at(64, step * 16 + lane % 16, n));
            } else {
                simt_ldmatrix_x2(two, sb + at(128, n * 8 + lane % 8, step * 2 + lane / 8 % 2));
            }
            float part[4] = {d[n * 4], d[n * 4 + 1], d[n * 4 + 2], d[n * 4 + 3]};
            simt_mma_bf16(part, fragment[step], two);
            for (int i = 0; i < 4; i++) {
                d[n * 4 + i] = part[i];
            }
        }
    }
    simt_wgmma_hold(w);
    simt_wgmma_fence();
    if (is_values) {
        SIMT_UNROLL
        for (int step = 0; step < 4; step++) {
            simt_wgmma_bf16<128, true>(w, fragment[step],
                                       simt_wgmma_desc_mn(sb + step * 2048, 64 * 128));
        }
    } else {
        SIMT_UNROLL
        for (int step = 0; step < 4; step++) {
            simt_wgmma_bf16<128>(w, simt_wgmma_desc_k(sa + step * 32),
                                 simt_wgmma_desc_k(sb + step * 32));
        }
    }
    simt_wgmma_commit();
    simt_wgmma_wait<0>();
    simt_wgmma_hold(w);
    for (int i = 0; i < 64; i++) {
        const int r = row + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        d_mma[r * BITS_N + column] = d[i];
        d_wgmma[r * BITS_N + column] = w[i];
    }
#else
    (void)a, (void)b, (void)c, (void)d_mma, (void)d_wgmma, (void)is_values;
#endif
}

static void check_bits(void)
{
    if (!simt_is_hopper()) {
        printf("bits: not Hopper, nothing to compare\n");
        return;
    }
    const int n = 64 * BITS_N;
    __nv_bfloat16 *a = device_alloc<__nv_bfloat16>(64 * BITS_K);
    __nv_bfloat16 *b = device_alloc<__nv_bfloat16>(BITS_K * BITS_N);
    float *c = device_alloc<float>(n), *mma = device_alloc<float>(n),
          *wgmma = device_alloc<float>(n);
    for (int is_values = 0; is_values < 2; is_values++) {
        int unequal = 0, far = 0;
        double worst = 0;
        for (uint32_t seed = 1; seed <= 50; seed++) {
            const float scale = seed % 3 == 0 ? 100.0f : 1.0f;
            fill(a, 64 * BITS_K, 1.0f, seed);
            fill(b, BITS_K * BITS_N, scale, seed + 100);
            fill(c, n, seed % 2 == 0 ? 0.0f : 1.0f, seed + 200);
            CHECK(simt_launch(
                bits_kernel,
                {.grid = {1}, .block = {128}, .shared_bytes = 32 << 10, .stream = stream}, a, b, c,
                mma, wgmma, is_values != 0));
            std::vector<float> x(n), y(n);
            CHECK(cudaMemcpyAsync(x.data(), mma, n * 4, cudaMemcpyDeviceToHost, stream));
            CHECK(cudaMemcpyAsync(y.data(), wgmma, n * 4, cudaMemcpyDeviceToHost, stream));
            CHECK(cudaStreamSynchronize(stream));
            for (int i = 0; i < n; i++) {
                const double diff = fabs((double)x[i] - y[i]);
                unequal += memcmp(&x[i], &y[i], 4) != 0;
                far += !(diff < 1e-2 * scale);
                worst = diff > worst ? diff : worst;
            }
        }
        printf("bits: wgmma and mma.sync, %s: %d of %d differ, %d far off, largest %g\n",
               is_values ? "weights · V" : "q · Kᵀ", unequal, n * 50, far, worst);
        failures += unequal > 0;
    }
    cudaFree(a), cudaFree(b), cudaFree(c), cudaFree(mma), cudaFree(wgmma);
}

/* ---- one sequence, computed in many ways ------------------------------------------------------- */

typedef struct shape {
    k_dtype_t type;
    uint32_t dim, q_heads, kv_heads, tokens, block_tokens, window;
    int order; /* 0 BHLNC, 1 BLHNC, 2 LBHNC, of 2 layers, the second one used */
} shape_t;

typedef struct scene {
    shape_t shape;
    k_kv_view_t kv;
    void *pool;
    __nv_bfloat16 *q, *o;
    uint32_t *table;
    void *scratch;
    size_t scratch_bytes;
    k_seq_t *seqs;
} scene_t;

static size_t element_bytes(k_dtype_t type)
{
    return type == K_F32 ? 4 : type == K_F8 || type == K_I8 ? 1 : 2;
}

static const char *type_name(k_dtype_t type)
{
    return type == K_BF16  ? "bf16"
           : type == K_F16 ? "f16"
           : type == K_F8  ? "fp8"
           : type == K_I8  ? "int8"
                           : "f32";
}

static void scene_init(scene_t *s, const shape_t &shape, uint32_t seed)
{
    const uint32_t layers = 2;
    const uint32_t needed = (shape.tokens + shape.block_tokens - 1) / shape.block_tokens;
    const uint32_t blocks = needed + 5;
    *s = {};
    s->shape = shape;
    k_kv_view_t *kv = &s->kv;
    kv->dtype = shape.type;
    kv->block_tokens = shape.block_tokens;
    kv->heads = shape.kv_heads;
    kv->head_dim = shape.dim;
    kv->part_stride = shape.dim * element_bytes(shape.type);
    kv->token_stride = 2 * kv->part_stride;
    size_t head = kv->token_stride * shape.block_tokens;
    if (shape.type == K_I8) {
        kv->scale_offset = head;
        head += 2 * shape.block_tokens * sizeof(float);
    }
    const size_t layer = shape.order == 0   ? head
                         : shape.order == 1 ? head * shape.kv_heads
                                            : head * shape.kv_heads * blocks;
    kv->head_stride = shape.order == 0 ? head * layers : head;
    kv->block_stride = shape.order == 2 ? head * shape.kv_heads : head * shape.kv_heads * layers;
    const size_t bytes = head * shape.kv_heads * layers * blocks;
    s->pool = device_alloc<char>(bytes);
    CHECK(cudaMemset(s->pool, 0xff, bytes)); /* NaN wherever nothing was written */
    kv->base = (char *)s->pool + layer;
    std::vector<uint32_t> table(blocks);
    for (uint32_t i = 0; i < blocks; i++) {
        table[i] = i;
    }
    srand(seed);
    for (uint32_t i = blocks; i-- > 1;) {
        std::swap(table[i], table[(uint32_t)rand() % (i + 1)]);
    }
    s->table = device_copy(table);
    const size_t n = (size_t)shape.tokens * shape.q_heads * shape.dim;
    s->q = device_alloc<__nv_bfloat16>(n);
    s->o = device_alloc<__nv_bfloat16>(n);
    fill(s->q, n, 2.0f, seed);
    s->seqs = device_alloc<k_seq_t>(shape.tokens + 64);
    s->scratch_bytes = k_cuda_attention_scratch_bytes(shape.q_heads, shape.dim, 3 * shape.tokens);
    s->scratch = device_alloc<char>(s->scratch_bytes);
}

static void scene_fini(scene_t *s)
{
    cudaFree(s->pool), cudaFree(s->q), cudaFree(s->o), cudaFree(s->table);
    cudaFree(s->scratch), cudaFree(s->seqs);
}

/* The same keys and values for every layout: element i of token t depends on those alone. */
template <class T>
static SIMT_KERNEL(256, 4)
    write_kv_kernel(k_kv_view_t kv, const uint32_t *table, uint32_t tokens, uint32_t seed)
{
    const uint32_t t = blockIdx.x;
    for (uint32_t i = threadIdx.x; i < kv.heads * 2 * kv.head_dim; i += 256) {
        const uint32_t part = i / kv.head_dim % 2, token = t % kv.block_tokens;
        char *head = (char *)kv.base + table[t / kv.block_tokens] * kv.block_stride +
                     i / (2 * kv.head_dim) * kv.head_stride;
        T *at = (T *)(head + token * kv.token_stride + part * kv.part_stride);
        const float v = hash_to_float(t * (uint64_t)kv.heads * 2 * kv.head_dim + i, seed);
        if (kv.dtype == K_I8) { /* a scale for each token and part, that of 1.7 in the middle */
            const float some = hash_to_float(t * 2ull + part, seed + 1);
            ((float *)(head + kv.scale_offset))[part * kv.block_tokens + token] =
                (1.7f + 0.5f * some) / 127;
            at[i % kv.head_dim] = from_float<T>(rintf(v * 127 / 1.7f));
        } else {
            at[i % kv.head_dim] = from_float<T>(v);
        }
    }
}

/* run(pointer to the type of a cache's elements) */
template <class F> static void with_type(k_dtype_t type, F run)
{
    switch (type) {
    case K_BF16:
        return run((__nv_bfloat16 *)nullptr);
    case K_F16:
        return run((__half *)nullptr);
    case K_F8:
        return run((__nv_fp8_e4m3 *)nullptr);
    case K_I8:
        return run((int8_t *)nullptr);
    default:
        return run((float *)nullptr);
    }
}

static void scene_write(scene_t *s, uint32_t seed)
{
    const simt_grid_t grid = {.grid = {s->shape.tokens}, .block = {256}, .stream = stream};
    with_type(s->shape.type, [&](auto *of) {
        CHECK(simt_launch(write_kv_kernel<std::remove_pointer_t<decltype(of)>>, grid, s->kv,
                          s->table, s->shape.tokens, seed));
    });
}

static k_attention_args_t scene_args(const scene_t *s)
{
    k_attention_args_t args = {};
    args.q = s->q;
    args.o = s->o;
    args.q_stride = args.o_stride = (size_t)s->shape.q_heads * s->shape.dim;
    args.q_heads = s->shape.q_heads;
    args.scale = 1.0f / sqrtf((float)s->shape.dim);
    args.window = s->shape.window;
    args.kv = s->kv;
    args.seqs = s->seqs;
    args.max_tokens = s->shape.tokens;
    return args;
}

typedef struct way {
    const char *name;
    uint32_t rows; /* of every sequence: rows of the scene, cut so; 0: all in one */
    bool is_batch; /* the pieces are sequences of one launch; else a launch each */
    bool has_scratch;
    bool knows_rows; /* the launcher is told the most rows of a sequence */
    k_cuda_attention_path_t path;
} way_t;

static std::vector<uint16_t> scene_run(const scene_t *s, const way_t &way)
{
    const uint32_t tokens = s->shape.tokens, rows = way.rows > 0 ? way.rows : tokens;
    const size_t n = (size_t)tokens * s->shape.q_heads * s->shape.dim;
    std::vector<k_seq_t> seqs;
    for (uint32_t row = 0; row < tokens; row += rows) {
        seqs.push_back({row, std::min(rows, tokens - row), row, 0, s->table, nullptr});
        if (way.is_batch && row % 3 == 1) {
            seqs.push_back({}); /* padding */
        }
    }
    k_attention_args_t args = scene_args(s);
    k_seq_t *list = device_copy(seqs);
    const k_cuda_attention_plan_t plan = {way.knows_rows ? rows : 0, s->scratch,
                                          way.has_scratch ? s->scratch_bytes : 0, way.path};
    CHECK(cudaMemset(s->o, 0xff, n * 2));
    args.seqs = list;
    args.n_seqs = way.is_batch ? (uint32_t)seqs.size() : 1;
    for (size_t i = 0; i < (way.is_batch ? 1 : seqs.size()); i++, args.seqs++) {
        CHECK(k_cuda_attention(&args, &plan, stream));
    }
    CHECK(cudaStreamSynchronize(stream));
    std::vector<uint16_t> o(n);
    CHECK(cudaMemcpy(o.data(), s->o, n * 2, cudaMemcpyDeviceToHost));
    cudaFree(list);
    return o;
}

static std::vector<float> scene_reference(const scene_t *s)
{
    const size_t n = (size_t)s->shape.tokens * s->shape.q_heads * s->shape.dim;
    k_attention_args_t args = scene_args(s);
    const k_seq_t seq = {0, s->shape.tokens, 0, 0, s->table, nullptr};
    CHECK(cudaMemcpy(s->seqs, &seq, sizeof(seq), cudaMemcpyHostToDevice));
    float *o = device_alloc<float>(n);
    const simt_grid_t grid = {
        .grid = {(s->shape.tokens + 3) / 4, s->shape.q_heads}, .block = {128}, .stream = stream};
    with_type(s->shape.type, [&](auto *of) {
        CHECK(simt_launch(reference_kernel<std::remove_pointer_t<decltype(of)>>, grid, args, o));
    });
    std::vector<float> host(n);
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaMemcpy(host.data(), o, n * 4, cudaMemcpyDeviceToHost));
    cudaFree(o);
    return host;
}

static float bf16_to_float(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float v;
    memcpy(&v, &wide, 4);
    return v;
}

static void print_where(const shape_t &shape, size_t i)
{
    const size_t row = i / (shape.q_heads * shape.dim), rest = i % (shape.q_heads * shape.dim);
    printf("row %zu head %zu dim %zu", row, rest / shape.dim, rest % shape.dim);
}

/* |o − reference| / |reference|, and where it is worst. */
static bool is_close(const shape_t &shape, const char *name, const std::vector<uint16_t> &o,
                     const std::vector<float> &reference)
{
    double error = 0, norm = 0, worst = 0;
    size_t nans = 0, at = 0, first_bad = SIZE_MAX, bad_rows = 0, last_bad_row = SIZE_MAX;
    for (size_t i = 0; i < o.size(); i++) {
        const double v = bf16_to_float(o[i]), diff = fabs(v - reference[i]);
        const bool is_bad = !(diff < 0.05);
        nans += v != v;
        error += v != v ? 0 : diff * diff;
        norm += (double)reference[i] * reference[i];
        if (diff > worst) {
            worst = diff, at = i;
        }
        if (is_bad) {
            const size_t row = i / (shape.q_heads * shape.dim);
            first_bad = std::min(first_bad, i);
            bad_rows += row != last_bad_row;
            last_bad_row = row;
        }
    }
    const double relative = sqrt(error / norm);
    const bool ok = nans == 0 && relative < 1e-2 && first_bad == SIZE_MAX;
    if (!ok) {
        printf("  %s: WRONG: relative %.3g, %zu NaN, worst %.3g at ", name, relative, nans, worst);
        print_where(shape, at);
        printf(", first bad ");
        print_where(shape, first_bad == SIZE_MAX ? at : first_bad);
        printf(" (got %g, want %g), bad rows %zu\n",
               bf16_to_float(o[first_bad == SIZE_MAX ? at : first_bad]),
               reference[first_bad == SIZE_MAX ? at : first_bad], bad_rows);
    }
    return ok;
}

static bool has_same_bits(const shape_t &shape, const char *name, const std::vector<uint16_t> &o,
                          const std::vector<uint16_t> &base)
{
    size_t different = 0, first = 0;
    for (size_t i = o.size(); i-- > 0;) {
        if (o[i] != base[i]) {
            different++, first = i;
        }
    }
    if (different > 0) {
        printf("  %s: BITS differ from decode in %zu of %zu, first at ", name, different, o.size());
        print_where(shape, first);
        printf(": %g, %g\n", bf16_to_float(o[first]), bf16_to_float(base[first]));
    }
    return different == 0;
}

static const way_t ways[] = {
    {"decode", 1, true, true, true, K_CUDA_ATTENTION_MMA},
    {"decode unsplit", 1, true, false, false, K_CUDA_ATTENTION_MMA},
    {"decode of the device", 1, true, true, true, K_CUDA_ATTENTION_AUTO},
    {"verify 3 of the device", 3, true, false, false, K_CUDA_ATTENTION_AUTO},
    {"verify 4", 4, true, true, true, K_CUDA_ATTENTION_MMA},
    {"verify 11", 11, true, true, false, K_CUDA_ATTENTION_MMA},
    {"prefill mma", 0, false, true, true, K_CUDA_ATTENTION_MMA},
    {"chunks of 333 mma", 333, false, true, true, K_CUDA_ATTENTION_MMA},
    {"prefill", 0, false, true, true, K_CUDA_ATTENTION_AUTO},
    {"chunks of 333", 333, false, true, true, K_CUDA_ATTENTION_AUTO},
    {"batch of 170", 170, true, true, false, K_CUDA_ATTENTION_AUTO},
};

static void check_shape(const shape_t &shape, std::vector<uint16_t> *across)
{
    static const char *const orders[] = {"BHLNC", "BLHNC", "LBHNC"};
    scene_t s;
    scene_init(&s, shape, 7);
    scene_write(&s, 11);
    const std::vector<float> reference = scene_reference(&s);
    int wrong = 0;
    std::vector<uint16_t> base;
    for (const way_t &way : ways) {
        if (options.path == K_CUDA_ATTENTION_MMA && way.path != options.path) {
            continue;
        }
        const std::vector<uint16_t> o = scene_run(&s, way);
        wrong += !is_close(shape, way.name, o, reference);
        if (base.empty()) {
            base = o;
        }
        wrong += !has_same_bits(shape, way.name, o, base);
    }
    if (!across->empty()) {
        wrong += !has_same_bits(shape, "other layout", base, *across);
    }
    *across = base;
    printf("check: %s dim %u heads %u/%u tokens %u block %u window %u %s: %s\n",
           type_name(shape.type), shape.dim, shape.q_heads, shape.kv_heads, shape.tokens,
           shape.block_tokens, shape.window, orders[shape.order], wrong == 0 ? "ok" : "FAILED");
    fflush(stdout);
    failures += wrong > 0;
    scene_fini(&s);
}

/* Caches of bytes: all head dims, each layout, a window, groups of all sizes. */
static void check_bytes(k_dtype_t type)
{
    std::vector<uint16_t> across;
    for (uint32_t dim : {64u, 80u, 96u, 128u, 192u, 256u}) {
        across.clear();
        check_shape({type, dim, 8, 2, 1500, 16, 0, 0}, &across);
    }
    for (int order = 0; order < 3; order++) {
        const uint32_t block[] = {8, 32, 256};
        across.resize(order == 0 ? 0 : across.size());
        check_shape({type, 128, 8, 2, 1300, block[order], 0, order}, &across);
    }
    across.clear();
    check_shape({type, 64, 9, 3, 1300, 16, 300, 0}, &across);
    across.clear();
    check_shape({type, 128, 32, 1, 700, 16, 0, 0}, &across);
    across.clear();
    check_shape({type, 32, 4, 4, 700, 16, 0, 0}, &across);
}

static void check_shapes(void)
{
    std::vector<uint16_t> across;
    if (options.type != K_BF16) {
        return check_bytes(options.type);
    }
    for (uint32_t dim : {64u, 80u, 96u, 128u, 192u, 256u}) {
        across.clear();
        check_shape({K_BF16, dim, 8, 2, 2500, 16, 0, 0}, &across);
    }
    for (int order = 0; order < 3; order++) {
        const uint32_t block[] = {8, 32, 128};
        across.resize(order == 0 ? 0 : across.size());
        check_shape({K_BF16, 128, 8, 2, 2300, block[order], 0, order}, &across);
    }
    for (uint32_t window : {1u, 300u, 1500u}) {
        across.clear();
        check_shape({K_BF16, 128, 8, 2, 2300, 16, window, 0}, &across);
    }
    across.clear();
    check_shape({K_F16, 128, 8, 2, 1500, 16, 0, 0}, &across);
    across.clear();
    check_shape({K_F32, 128, 8, 2, 1500, 16, 0, 0}, &across);
    across.clear();
    check_shape({K_F16, 64, 9, 3, 1500, 16, 0, 0}, &across);
    across.clear();
    check_shape({K_BF16, 128, 7, 1, 1500, 16, 0, 0}, &across);
    across.clear();
    check_shape({K_BF16, 64, 6, 6, 1100, 64, 0, 0}, &across);
    across.clear();
    check_shape({K_BF16, 128, 32, 1, 700, 16, 0, 0}, &across);
    across.clear();
    check_shape({K_BF16, 128, 32, 8, 8192, 16, 0, 0}, &across);
}

/* ---- speed ------------------------------------------------------------------------------------ */

/* Microseconds of one run(i), median of groups of `each` runs. */
template <class F> static double median_us(int groups, int each, F run)
{
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<float> times;
    int index = 0;
    for (int i = 0; i < each; i++) {
        run(index++);
    }
    for (int g = 0; g < groups; g++) {
        CHECK(cudaEventRecord(begin, stream));
        for (int i = 0; i < each; i++) {
            run(index++);
        }
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaEventSynchronize(end));
        float ms = 0;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    return times[times.size() / 2] * 1e3 / each;
}

/* A pool of blocks of the Llama-3-8B shape with one layer a block: block-major. */
static const uint32_t Q_HEADS = 32, KV_HEADS = 8, DIM = 128;

typedef struct pool {
    char *memory;
    uint32_t blocks;
    k_kv_view_t kv;
} pool_t;

static pool_t pool;
static size_t block_bytes;

/* K and V of a token of a head, with their scales. */
static size_t token_bytes(void)
{
    return 2 * (DIM * element_bytes(options.type) + k_kv_scale_bytes(options.type));
}

static void pool_init(void)
{
    if (pool.memory != nullptr) {
        return;
    }
    const size_t element = element_bytes(options.type);
    block_bytes = KV_HEADS * options.block * token_bytes();
    size_t free_bytes = 0, all = 0;
    CHECK(cudaMemGetInfo(&free_bytes, &all));
    const size_t bytes = std::min(free_bytes / 2, (size_t)10 << 30);
    pool.blocks = (uint32_t)(bytes / block_bytes);
    pool.memory = device_alloc<char>(pool.blocks * block_bytes);
    fill((__nv_bfloat16 *)pool.memory, pool.blocks * block_bytes / 2, 1.0f, 5);
    pool.kv = {};
    pool.kv.base = pool.memory;
    pool.kv.dtype = options.type;
    pool.kv.block_tokens = options.block;
    pool.kv.heads = KV_HEADS;
    pool.kv.head_dim = DIM;
    pool.kv.block_stride = block_bytes;
    pool.kv.head_stride = options.block * token_bytes();
    pool.kv.token_stride = 2 * DIM * element;
    pool.kv.part_stride = DIM * element;
    pool.kv.scale_offset = options.type == K_I8 ? options.block * pool.kv.token_stride : 0;
}

typedef struct load {
    k_attention_args_t args;
    std::vector<k_seq_t *> sets; /* sequences over different blocks, to rotate */
    std::vector<void *> owned;
} load_t;

/* `batch` sequences of `tokens` tokens, whose last `rows` are this step's. */
static load_t load_make(uint32_t batch, uint32_t tokens, uint32_t rows)
{
    load_t load = {};
    const uint32_t each = (tokens + options.block - 1) / options.block;
    const uint32_t needed = each * batch;
    const uint32_t sets = std::min(pool.blocks / needed,
                                   1 + (uint32_t)(((size_t)400 << 20) / (needed * block_bytes)));
    std::vector<uint32_t> ids(pool.blocks);
    for (uint32_t i = 0; i < pool.blocks; i++) {
        ids[i] = i;
    }
    for (uint32_t i = pool.blocks; i-- > 1;) {
        std::swap(ids[i], ids[((uint32_t)rand() * 32768u + (uint32_t)rand()) % (i + 1)]);
    }
    uint32_t *table = device_copy(ids);
    load.owned.push_back(table);
    for (uint32_t set = 0; set < sets; set++) {
        std::vector<k_seq_t> seqs(batch);
        for (uint32_t i = 0; i < batch; i++) {
            seqs[i] = {i * rows, rows, tokens - rows, 0, table + (set * batch + i) * each, nullptr};
        }
        load.sets.push_back(device_copy(seqs));
        load.owned.push_back(load.sets.back());
    }
    const size_t n = (size_t)batch * rows * Q_HEADS * DIM;
    __nv_bfloat16 *q = device_alloc<__nv_bfloat16>(n), *o = device_alloc<__nv_bfloat16>(n);
    fill(q, n, 1.0f, 3);
    load.owned.push_back(q);
    load.owned.push_back(o);
    load.args = {};
    load.args.q = q;
    load.args.o = o;
    load.args.q_stride = load.args.o_stride = Q_HEADS * DIM;
    load.args.q_heads = Q_HEADS;
    load.args.scale = 0.08838834764f;
    load.args.kv = pool.kv;
    load.args.n_seqs = batch;
    load.args.max_tokens = tokens;
    return load;
}

static void load_free(load_t *load)
{
    for (void *p : load->owned) {
        cudaFree(p);
    }
}

static double time_load(const load_t &load, uint32_t rows, int groups, int each)
{
    const size_t bytes = k_cuda_attention_scratch_bytes(Q_HEADS, DIM, 2048);
    const k_cuda_attention_plan_t plan = {rows, device_alloc<char>(bytes), bytes, options.path};
    const double us = median_us(groups, each, [&](int i) {
        k_attention_args_t args = load.args;
        args.seqs = load.sets[(size_t)i % load.sets.size()];
        CHECK(k_cuda_attention(&args, &plan, stream));
    });
    cudaFree(plan.scratch);
    return us;
}

static void bench_copy(void)
{
    pool_init();
    const size_t half = std::min((size_t)4 << 30, pool.blocks * block_bytes / 2);
    const double us = median_us(5, 2, [&](int i) {
        (void)i;
        CHECK(cudaMemcpyAsync(pool.memory, pool.memory + half, half, cudaMemcpyDeviceToDevice,
                              stream));
    });
    printf("copy: %.0f GB/s read and written, device to device\n", 2e-3 * (double)half / us);
    if (options.copy_gbs == 0) {
        options.copy_gbs = 2e-3 * (double)half / us;
    }
}

static void bench_decode(void)
{
    printf("decode (8B shape, %s, blocks of %u, ceiling %.0f GB/s)\n", type_name(options.type),
           options.block, options.copy_gbs);
    for (uint32_t batch : {1u, 16u, 64u}) {
        for (uint32_t tokens : {1024u, 8192u, 32768u}) {
            const double bytes = (double)batch * tokens * KV_HEADS * (double)token_bytes() +
                                 2.0 * batch * Q_HEADS * DIM * 2;
            if (bytes > (double)pool.blocks * block_bytes) {
                continue;
            }
            load_t load = load_make(batch, tokens, 1);
            const double us = time_load(load, 1, 7, bytes > 1e9 ? 3 : 20);
            printf("  batch %2u x %5u: %8.1f us %6.0f GB/s %5.1f%%\n", batch, tokens, us,
                   bytes * 1e-3 / us, bytes * 1e-1 / us / options.copy_gbs);
            fflush(stdout);
            load_free(&load);
        }
    }
}

/* How many sequences are too few for one block an item. */
static void bench_spread(void)
{
    const k_cuda_attention_path_t before = options.path;
    printf("decode, one block an item and spread, us\n");
    for (uint32_t batch : {1u, 2u, 4u, 8u, 16u}) {
        for (uint32_t tokens : {256u, 1024u, 4096u}) {
            if (batch * tokens > 8192) {
                continue; /* no scratch for so many scores */
            }
            load_t load = load_make(batch, tokens, 1);
            options.path = K_CUDA_ATTENTION_HOPPER;
            const double one = time_load(load, 1, 5, 20);
            options.path = K_CUDA_ATTENTION_SPREAD;
            const double spread = time_load(load, 1, 5, 20);
            printf("  batch %2u x %5u: %6.2f %6.2f\n", batch, tokens, one, spread);
            load_free(&load);
        }
    }
    options.path = before;
}

static void bench_prefill(void)
{
    printf("prefill (8B shape, %s, causal, blocks of %u)\n", type_name(options.type),
           options.block);
    for (uint32_t tokens : {512u, 2048u, 8192u, 16384u}) {
        load_t load = load_make(1, tokens, tokens);
        const double us = time_load(load, tokens, 7, 3);
        const double flops = 4.0 * Q_HEADS * DIM * ((double)tokens * (tokens + 1) / 2);
        printf("  %5u rows: %8.1f us %6.1f TFLOP/s", tokens, us, flops * 1e-6 / us);
        if (options.matmul_tflops > 0) {
            printf(" %5.1f%% of %.0f", flops * 1e-4 / us / options.matmul_tflops,
                   options.matmul_tflops);
        }
        printf("\n");
        fflush(stdout);
        load_free(&load);
    }
    load_t load = load_make(64, 8192, 4);
    const double us = time_load(load, 4, 5, 3);
    printf("verify: batch 64 x 8192, 4 rows each: %.1f us\n", us);
    load_free(&load);
}

/* ---- RoPE ------------------------------------------------------------------------------------- */

static void bench_rope(void)
{
    const std::vector<float> frequencies(DIM / 2, 0.01f);
    float *inv_freq = device_copy(frequencies);
    for (uint32_t rows : {1u, 64u, 8192u}) {
        load_t load =
            load_make(rows == 64 ? 64 : 1, rows == 64 ? 1024 : 8192, rows == 64 ? 1 : rows);
        const size_t width = (Q_HEADS + 2 * KV_HEADS) * DIM;
        __nv_bfloat16 *qkv = device_alloc<__nv_bfloat16>(rows * width);
        fill(qkv, rows * width, 1.0f, 9);
        k_rope_kv_write_args_t args = {};
        args.q = qkv;
        args.k = qkv + Q_HEADS * DIM;
        args.v = qkv + (Q_HEADS + KV_HEADS) * DIM;
        args.q_stride = args.k_stride = args.v_stride = width;
        args.q_heads = Q_HEADS;
        args.rotary = DIM;
        args.inv_freq = inv_freq;
        args.mscale = 1;
        args.kv = pool.kv;
        args.seqs = load.sets[0];
        args.n_seqs = load.args.n_seqs;
        const double us =
            median_us(7, 20, [&](int) { CHECK(k_cuda_rope_kv_write(&args, rows, stream)); });
        const double bytes = rows * (((Q_HEADS + KV_HEADS) * 2.0 + KV_HEADS) * DIM * 2 +
                                     (double)(KV_HEADS * token_bytes()));
        printf("rope + kv write: %5u rows %8.2f us %6.0f GB/s\n", rows, us, bytes * 1e-3 / us);
        cudaFree(qkv);
        load_free(&load);
    }
    cudaFree(inv_freq);
}

static void bench_extents(void)
{
    const uint32_t n = std::min(65536u / options.block, pool.blocks / 2); /* 256 MiB of a layer */
    std::vector<k_cuda_extent_t> extents(n);
    for (uint32_t i = 0; i < n; i++) {
        extents[i] = {(uint64_t)(uintptr_t)(pool.memory + (pool.blocks - 1 - i) * block_bytes),
                      (uint64_t)(uintptr_t)(pool.memory + (i * 7919ull % n) * block_bytes),
                      block_bytes};
    }
    k_cuda_extent_t *list = device_copy(extents);
    const double us =
        median_us(5, 5, [&](int) { CHECK(k_cuda_copy_extents(list, n, block_bytes, stream)); });
    const double gbs = 2e-3 * (double)n * block_bytes / us;
    printf("gather: %u extents of %zu bytes: %.0f GB/s read and written, %.1f%% of a copy\n", n,
           block_bytes, gbs, 100 * gbs / options.copy_gbs);
    cudaFree(list);
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const std::string arg = argv[i];
        const std::string value = arg.substr(std::min(arg.size(), arg.find('=') + 1));
        if (arg.rfind("--path=", 0) == 0) {
            options.path = value == "mma"      ? K_CUDA_ATTENTION_MMA
                           : value == "hopper" ? K_CUDA_ATTENTION_HOPPER
                                               : K_CUDA_ATTENTION_AUTO;
        } else if (arg.rfind("--only=", 0) == 0) {
            options.only = value;
        } else if (arg.rfind("--copy-gbs=", 0) == 0) {
            options.copy_gbs = atof(value.c_str());
        } else if (arg.rfind("--block=", 0) == 0) {
            options.block = (uint32_t)atoi(value.c_str());
        } else if (arg.rfind("--type=", 0) == 0) {
            options.type = value == "fp8" ? K_F8 : value == "int8" ? K_I8 : K_BF16;
        } else if (arg.rfind("--matmul-tflops=", 0) == 0) {
            options.matmul_tflops = atof(value.c_str());
        } else {
            printf("%s: not known\n", argv[i]);
            exit(2);
        }
    }
}

static bool is_wanted(const char *name)
{
    return ("," + options.only + ",").find(std::string(",") + name + ",") != std::string::npos;
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    CHECK(cudaStreamCreate(&stream));
    printf("%s, %d multiprocessors, sm_%d%d, L2 %d MiB\n", device.name, device.multiProcessorCount,
           device.major, device.minor, device.l2CacheSize >> 20);
    if (is_wanted("bits")) {
        check_bits();
    }
    if (is_wanted("check")) {
        check_shapes();
    }
    if (is_wanted("copy") || is_wanted("decode") || is_wanted("spread") || is_wanted("prefill") ||
        is_wanted("rope")) {
        bench_copy();
    }
    if (is_wanted("decode")) {
        bench_decode();
    }
    if (is_wanted("spread")) {
        bench_spread();
    }
    if (is_wanted("prefill")) {
        bench_prefill();
    }
    if (is_wanted("rope")) {
        bench_rope();
    }
    if (is_wanted("copy")) {
        bench_extents();
    }
    printf("%s\n", failures == 0 ? "all checks passed" : "CHECKS FAILED");
    return failures == 0 ? 0 : 1;
}
