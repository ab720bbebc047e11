/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_linear: the CUDA linear kernels on the card at hand.
 *
 *   bench_linear families          are mma.sync and wgmma the same sums, bit for bit?
 *   bench_linear check [PATH]      against a plain kernel in double; every row count the same bits
 *   bench_linear time [PATH] [DTYPE]   the 8B shape's matrices, beside the copy bandwidth and cuBLAS
 *   bench_linear tune [DTYPE [ROWS,…]]   every way to cut the kernels, µs of each
 *   bench_linear chain DTYPE...    one row through the matrices of layers, one behind the other
 *
 * PATH: auto, mma or wgmma. Ends with status 1 when anything is wrong. Weights rotate over copies
 * that L2 cannot hold; times are medians of graph replays.
 */
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/linear/cuda_linear.h"
#include "kernels/cuda/linear/cuda_linear_priv.h"
#include "kernels/cuda/simt/simt.h"

static int failures;

static void check_cuda(int error, const char *what, int line)
{
    if (error != cudaSuccess) {
        std::printf("line %d: %s: %s\n", line, what, cudaGetErrorString((cudaError_t)error));
        std::exit(2);
    }
}
#define CUDA(call) check_cuda(call, #call, __LINE__)

template <class T> static T *device_array(size_t n)
{
    void *p = nullptr;
    CUDA(cudaMalloc(&p, n * sizeof(T) + 256));
    return static_cast<T *>(p);
}

template <class T> static T *to_device(const std::vector<T> &host)
{
    T *p = device_array<T>(host.size());
    CUDA(cudaMemcpy(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

template <class T> static std::vector<T> to_host(const T *p, size_t n)
{
    std::vector<T> host(n);
    CUDA(cudaMemcpy(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
}

/* ---- random numbers -------------------------------------------------------------------------- */

static uint64_t state = 20261126;

static uint32_t random_u32()
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) * 2 + (uint32_t)(state >> 63);
}

static float random_float()
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (float)(random_u32() >> 8) * 0x1p-24f - 0.5f;
    }
    return sum;
}

static std::vector<uint16_t> random_bf16(size_t n)
{
    std::vector<uint16_t> v(n);
    for (uint16_t &e : v) {
        e = k_f32_to_bf16(random_float());
    }
    return v;
}

static SIMT_KERNEL(256, 1) fill_kernel(uint32_t *p, size_t words, uint32_t seed)
{
    const size_t step = (size_t)gridDim.x * 256;
    for (size_t i = blockIdx.x * 256 + threadIdx.x; i < words; i += step) {
        uint32_t h = (uint32_t)i * 2654435761u ^ seed;
        h = (h ^ h >> 15) * 0x85ebca6bu;
        h = (h ^ h >> 13) * 0xc2b2ae35u;
        h ^= h >> 16;
        const float a = (float)(h & 0xff) + (float)(h >> 8 & 0xff) - 255.0f;
        const float b = (float)(h >> 16 & 0xff) + (float)(h >> 24) - 255.0f;
        p[i] = simt_pack_bf16(a * 0.0004f, b * 0.0004f);
    }
}

static void fill(void *p, size_t bytes, uint32_t seed)
{
    CUDA(simt_launch(fill_kernel, {.grid = {1024}, .block = {256}}, static_cast<uint32_t *>(p),
                     bytes / 4, seed));
}

/* ---- families -------------------------------------------------------------------------------- */

/* a [64, 64], b [8, 64], c [64, 8]; steps of 16 columns by wgmma and by mma.sync. */
static SIMT_KERNEL(128, 1) families_kernel(const uint16_t *a, const uint16_t *b, const float *c,
                                           float *by_wgmma, float *by_mma, int steps)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(uint8_t, shared);
    uint16_t *tile_a = reinterpret_cast<uint16_t *>(shared);
    uint16_t *tile_b = reinterpret_cast<uint16_t *>(shared + 8192);
    for (uint32_t i = threadIdx.x; i < 72 * 64; i += 128) {
        const uint32_t row = i / 64 % 64, k = i % 64;
        const uint32_t at = row * 64 + ((k / 8) ^ row % 8) * 8 + k % 8;
        if (i < 64 * 64) {
            tile_a[at] = a[i];
        } else {
            tile_b[at] = b[i - 64 * 64];
        }
    }
    simt_fence_async_shared();
    simt_sync_block();
    const uint32_t g = (uint32_t)simt_lane() / 4, t = (uint32_t)simt_lane() % 4;
    const uint32_t row = (uint32_t)simt_warp() * 16 + g;
    float d[4], e[4];
    for (uint32_t i = 0; i < 4; i++) {
        d[i] = e[i] = c[(row + i / 2 * 8) * 8 + 2 * t + i % 2];
    }
    simt_wgmma_hold(d);
    simt_wgmma_fence();
    for (int j = 0; j < steps; j++) {
        simt_wgmma_bf16<8>(d, simt_wgmma_desc_k(shared + 32 * j),
                           simt_wgmma_desc_k(shared + 8192 + 32 * j));
    }
    simt_wgmma_commit();
    simt_wgmma_wait<0>();
    simt_wgmma_hold(d);
    for (int j = 0; j < steps; j++) {
        uint32_t fa[4], fb[2];
        for (uint32_t i = 0; i < 4; i++) {
            std::memcpy(&fa[i], &a[(row + i % 2 * 8) * 64 + j * 16 + i / 2 * 8 + 2 * t], 4);
        }
        for (uint32_t i = 0; i < 2; i++) {
            std::memcpy(&fb[i], &b[g * 64 + j * 16 + i * 8 + 2 * t], 4);
        }
        simt_mma_bf16(e, fa, fb);
    }
    for (uint32_t i = 0; i < 4; i++) {
        by_wgmma[(row + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
        by_mma[(row + i / 2 * 8) * 8 + 2 * t + i % 2] = e[i];
    }
#endif
}

static void families()
{
    float *by_wgmma = device_array<float>(512), *by_mma = device_array<float>(512);
    long unlike[2] = {}, total = 0;
    double worst[2] = {};
    for (int round = 0; round < 400; round++) {
        std::vector<uint16_t> a(64 * 64), b(8 * 64);
        std::vector<float> c(512);
        for (uint16_t &v : a) { /* exponents far apart, so that the order of sums would show */
            v = k_f32_to_bf16(random_float() * (float)std::exp2((double)(random_u32() % 24) - 12));
        }
        for (uint16_t &v : b) {
            v = k_f32_to_bf16(random_float());
        }
        for (float &v : c) {
            v = random_float() * (round % 3 == 0 ? 0 : 100);
        }
        uint16_t *da = to_device(a), *db = to_device(b);
        float *dc = to_device(c);
        for (int kind = 0; kind < 2; kind++) {
            const int steps = kind == 0 ? 1 : 4;
            CUDA(simt_launch(families_kernel, {.grid = {1}, .block = {128}, .shared_bytes = 9216},
                             da, db, dc, by_wgmma, by_mma, steps));
            const std::vector<float> w = to_host(by_wgmma, 512), m = to_host(by_mma, 512);
            for (int i = 0; i < 512; i++) {
                double exact = c[i];
                for (int k = 0; k < 16 * steps; k++) {
                    exact += (double)k_bf16_to_f32(a[i / 8 * 64 + k]) *
                             (double)k_bf16_to_f32(b[i % 8 * 64 + k]);
                }
                const double scale = std::fabs(exact) + 1;
                worst[0] = std::max(worst[0], std::fabs(w[i] - exact) / scale);
                worst[1] = std::max(worst[1], std::fabs(m[i] - exact) / scale);
                if (std::memcmp(&w[i], &m[i], 4) != 0 && unlike[kind]++ < 2) {
                    std::printf("  unlike: steps %d element %d wgmma %a mma %a exact %a\n", steps,
                                i, w[i], m[i], exact);
                }
            }
        }
        total += 512;
        CUDA(cudaFree(da));
        CUDA(cudaFree(db));
        CUDA(cudaFree(dc));
    }
    std::printf("families: %ld of %ld sums of K 16 unlike, %ld of K 64; worst error wgmma %.2g mma "
                "%.2g\n",
                unlike[0], total, unlike[1], worst[0], worst[1]);
    failures += !(worst[0] < 1e-3) || !(worst[1] < 1e-3);
}

/* ---- check ----------------------------------------------------------------------------------- */

static SIMT_KERNEL(128, 1) plain_kernel(const float *w, const uint16_t *x, double *y, uint32_t rows,
                                        uint32_t n, uint32_t k)
{
    const uint32_t o = blockIdx.x * 128 + threadIdx.x;
    if (o >= n) {
        return;
    }
    for (uint32_t r = blockIdx.y; r < rows; r += gridDim.y) {
        double sum = 0;
        for (uint32_t i = 0; i < k; i++) {
            sum += (double)w[(size_t)o * k + i] *
                   (double)simt_bits_float((uint32_t)x[(size_t)r * k + i] << 16);
        }
        y[(size_t)r * n + o] = sum;
    }
}

/* A source of random weights whose scales are small numbers. */
static std::vector<uint8_t> random_weights(k_dtype_t dtype, uint32_t rows, uint32_t columns)
{
    size_t row_bytes = 0;
    if (k_dtype_row_bytes(dtype, columns, &row_bytes) < 0) {
        std::exit(2);
    }
    std::vector<uint8_t> v(rows * row_bytes);
    const k_dtype_info_t *info = k_dtype_info(dtype);
    for (uint8_t &byte : v) {
        byte = (uint8_t)(random_u32() >> 11);
    }
    for (size_t at = 0; at < v.size(); at += info->block_bytes) {
        uint8_t *block = v.data() + at;
        const auto put = [&](int offset, float scale) {
            const uint16_t h = k_f32_to_f16(random_float() * scale);
            std::memcpy(block + offset, &h, 2);
        };
        switch (dtype) {
        case K_F32: {
            const float f = random_float() * 0.1f;
            std::memcpy(block, &f, 4);
            break;
        }
        case K_BF16: {
            const uint16_t h = k_f32_to_bf16(random_float() * 0.1f);
            std::memcpy(block, &h, 2);
            break;
        }
        case K_F16:
            put(0, 0.1f);
            break;
        case K_Q4_1:
            put(0, 0.01f);
            put(2, 0.1f);
            break;
        case K_Q4_K:
            put(0, 0.0003f);
            put(2, 0.0003f);
            break;
        case K_Q6_K:
            put(208, 0.0001f);
            break;
        case K_I4_32:
            put(0, 0.01f);
            block[2] &= 15;
            break;
        case K_MXFP4:
            block[0] = (uint8_t)(120 + block[0] % 4);
            break;
        case K_F8_32: {
            const float f = random_float() * 0.1f;
            for (int i = 4; i < 36; i++) {
                block[i] &= 0xbf; /* below 2 */
            }
            std::memcpy(block, &f, 4);
            break;
        }
        default:
            put(0, dtype == K_Q8_0 ? 0.001f : 0.01f);
        }
    }
    return v;
}

typedef struct shape {
    k_dtype_t dtype;
    uint32_t rows;
    uint32_t columns;
} shape_t;

static const char *out_name(k_cuda_out_t out)
{
    static const char *const names[] = {"bf16", "f32", "add", "swiglu"};
    return names[out];
}

typedef struct fixture {
    shape_t shape;
    k_cuda_weight_t w;
    std::vector<float> weights; /* rows × columns */
    std::vector<float> bias;
    float *bias_device;
    uint16_t *x;
    std::vector<double> sums; /* MAX_X × rows */
} fixture_t;

enum { MAX_X = 300 };

static fixture_t fixture_of(const shape_t &shape, bool is_gate_up)
{
    fixture_t f = {};
    const size_t n = shape.rows, k = shape.columns;
    f.shape = shape;
    const std::vector<uint8_t> source = random_weights(shape.dtype, shape.rows, shape.columns);
    f.weights.resize(n * k);
    k_dequantize(shape.dtype, source.data(), f.weights.data(), n * k);
    const size_t bytes = k_cuda_weight_bytes(shape.dtype, is_gate_up, shape.rows, shape.columns);
    uint8_t *packed = device_array<uint8_t>(bytes), *raw = to_device(source);
    f.w = {shape.dtype, is_gate_up, shape.rows, shape.columns, packed};
    CUDA(cudaMemset(packed, 0xff, bytes));
    CUDA(k_cuda_weight_clear(&f.w, nullptr));
    size_t row_bytes = 0;
    (void)k_dtype_row_bytes(shape.dtype, shape.columns, &row_bytes);
    const uint32_t half = shape.rows / 2; /* two ranges, the later one first */
    CUDA(k_cuda_weight_pack_rows(&f.w, raw + half * row_bytes, half, shape.rows - half, nullptr));
    CUDA(k_cuda_weight_pack_rows(&f.w, raw, 0, half, nullptr));
    f.bias.resize(n);
    for (float &b : f.bias) {
        b = random_float();
    }
    f.bias_device = to_device(f.bias);
    f.x = to_device(random_bf16(MAX_X * k));
    float *w = to_device(f.weights);
    double *y = device_array<double>(MAX_X * n);
    CUDA(simt_launch(plain_kernel, {.grid = {(shape.rows + 127) / 128, MAX_X}, .block = {128}}, w,
                     f.x, y, MAX_X, shape.rows, shape.columns));
    f.sums = to_host(y, MAX_X * n);
    CUDA(cudaFree(raw));
    CUDA(cudaFree(w));
    CUDA(cudaFree(y));
    return f;
}

static void fixture_free(fixture_t &f)
{
    CUDA(cudaFree(const_cast<void *>(f.w.data)));
    CUDA(cudaFree(f.bias_device));
    CUDA(cudaFree(f.x));
}

typedef struct result {
    std::vector<uint32_t> bits; /* of each element, [rows][stride] */
    size_t stride;
} result_t;

/* Rows [first, first + rows) of x through the kernel; y was `before`, which differs by element. */
static float before_of(uint32_t row, uint32_t o)
{
    return (float)((row * 7 + o) % 13) - 6.0f;
}

static result_t run(const fixture_t &f, k_cuda_out_t out, uint32_t first, uint32_t rows,
                    bool with_bias, k_cuda_linear_path_t path)
{
    const bool is_16 = out == K_CUDA_OUT_BF16 || out == K_CUDA_OUT_SWIGLU;
    const uint32_t n = out == K_CUDA_OUT_SWIGLU ? f.shape.rows / 2 : f.shape.rows;
    result_t r;
    r.stride = n + 6 + n % 2;
    std::vector<uint32_t> before(rows * r.stride, 0xffffffffu);
    for (uint32_t i = 0; i < rows && out == K_CUDA_OUT_ADD; i++) {
        for (uint32_t o = 0; o < n; o++) {
            const float v = before_of(first + i, o);
            std::memcpy(&before[i * r.stride + o], &v, 4);
        }
    }
    uint32_t *y = to_device(before);
    k_cuda_linear_t args = {};
    args.w = f.w;
    args.bias = with_bias ? f.bias_device : nullptr;
    args.x = f.x + (size_t)first * f.shape.columns;
    args.y = y;
    args.out = out;
    args.rows = rows;
    args.x_stride = f.shape.columns;
    args.y_stride = r.stride;
    args.path = path;
    CUDA(k_cuda_linear(&args, nullptr));
    CUDA(cudaDeviceSynchronize());
    if (is_16) {
        const std::vector<uint16_t> host =
            to_host(reinterpret_cast<uint16_t *>(y), rows * r.stride);
        r.bits.assign(host.begin(), host.end());
    } else {
        r.bits = to_host(y, rows * r.stride);
    }
    CUDA(cudaFree(y));
    return r;
}

static double silu(double x)
{
    return x / (1 + std::exp(-x));
}

/* Compares with the plain sums; prints the first unlike elements. */
static void check_values(const fixture_t &f, const result_t &r, k_cuda_out_t out, uint32_t first,
                         uint32_t rows, bool with_bias, const char *path)
{
    const bool is_16 = out == K_CUDA_OUT_BF16 || out == K_CUDA_OUT_SWIGLU;
    const uint32_t all = f.shape.rows, n = out == K_CUDA_OUT_SWIGLU ? all / 2 : all;
    long bad = 0;
    double error = 0, size = 0;
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t o = 0; o < r.stride; o++) {
            const uint32_t bits = r.bits[i * r.stride + o];
            if (o >= n) {
                bad += bits != (is_16 ? 0xffffu : 0xffffffffu); /* wrote past its row */
                continue;
            }
            const auto sum = [&](uint32_t row) {
                return f.sums[(size_t)(first + i) * all + row] + (with_bias ? f.bias[row] : 0.0f);
            };
            double want = sum(o);
            if (out == K_CUDA_OUT_SWIGLU) {
                want = silu(want) * sum(o + n);
            } else if (out == K_CUDA_OUT_ADD) {
                want += before_of(first + i, o);
            }
            float got;
            std::memcpy(&got, &bits, 4);
            got = is_16 ? k_bf16_to_f32((uint16_t)bits) : got;
            const double tolerance = (is_16 ? 0.006 : 0.0004) * (std::fabs(want) + 1);
            if (!(std::fabs(got - want) <= tolerance) && bad++ < 3) {
                std::printf("    row %u output %u: %g, expected %g\n", first + i, o, (double)got,
                            want);
            }
            error += (got - want) * (got - want);
            size += want * want;
        }
    }
    if (bad != 0 || !(std::sqrt(error / size) < 0.01)) {
        failures++;
        std::printf("  WRONG %s %s [%u, %u] %s rows %u bias %d: %ld elements, error %.3g\n", path,
                    k_dtype_info(f.shape.dtype)->name, all, f.shape.columns, out_name(out), rows,
                    with_bias, bad, std::sqrt(error / size));
    }
}

static void check_shape(const shape_t &shape, k_cuda_linear_path_t path, const char *path_name)
{
    static const uint32_t counts[] = {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257};
    for (int is_gate_up = 0; is_gate_up < 2; is_gate_up++) {
        fixture_t f = fixture_of(shape, is_gate_up != 0);
        const int first_out = is_gate_up ? K_CUDA_OUT_SWIGLU : K_CUDA_OUT_BF16;
        const int last_out = is_gate_up ? K_CUDA_OUT_SWIGLU : K_CUDA_OUT_ADD;
        for (int o = first_out; o <= last_out; o++) {
            const k_cuda_out_t out = (k_cuda_out_t)o;
            const result_t whole = run(f, out, 0, MAX_X, true, path);
            check_values(f, whole, out, 0, MAX_X, true, path_name);
            for (uint32_t rows : counts) {
                const uint32_t first = random_u32() % (MAX_X - rows + 1);
                const result_t part = run(f, out, first, rows, true, path);
                if (std::memcmp(part.bits.data(), &whole.bits[first * whole.stride],
                                part.bits.size() * 4) != 0) {
                    failures++;
                    std::printf("  UNLIKE the same rows of %d: rows %u..+%u %s %s [%u, %u]\n",
                                MAX_X, first, rows, path_name, out_name(out), shape.rows,
                                shape.columns);
                    check_values(f, part, out, first, rows, true, path_name);
                }
            }
            check_values(f, run(f, out, 5, 3, false, path), out, 5, 3, false, path_name);
        }
        /* embed: every row, bit for bit */
        std::vector<int32_t> ids(shape.rows);
        for (uint32_t i = 0; i < shape.rows; i++) {
            ids[i] = (int32_t)i;
        }
        int32_t *dids = to_device(ids);
        float *y = device_array<float>((size_t)shape.rows * shape.columns);
        CUDA(k_cuda_embed(&f.w, dids, 0, y, shape.rows, shape.columns, 1.0f, nullptr));
        const std::vector<float> rows = to_host(y, (size_t)shape.rows * shape.columns);
        if (std::memcmp(rows.data(), f.weights.data(), rows.size() * 4) != 0) {
            failures++;
            std::printf("  WRONG embed %s [%u, %u]\n", k_dtype_info(shape.dtype)->name, shape.rows,
                        shape.columns);
        }
        CUDA(cudaFree(dids));
        CUDA(cudaFree(y));
        fixture_free(f);
    }
}

static void check(k_cuda_linear_path_t path, const char *name)
{
    static const shape_t bf16[] = {
        {K_BF16, 64, 64},   {K_BF16, 128, 512},  {K_BF16, 576, 1536}, {K_BF16, 1000, 200},
        {K_BF16, 66, 1000}, {K_BF16, 4096, 256}, {K_BF16, 3072, 576}, {K_BF16, 6150, 72},
    };
    static const shape_t others[] = {
        {K_BF16, 50, 37},   {K_BF16, 576, 576},  {K_F16, 200, 320},   {K_F32, 100, 250},
        {K_Q8_0, 192, 576}, {K_Q4_0, 130, 96},   {K_Q4_1, 576, 576},  {K_Q4_1, 72, 1536},
        {K_Q4_K, 96, 768},  {K_Q6_K, 64, 512},   {K_I4_32, 320, 608}, {K_MXFP4, 96, 512},
        {K_F8_32, 96, 544}, {K_Q8_0, 40, 14336},
    };
    if (path != K_CUDA_LINEAR_MMA) {
        for (const shape_t &shape : bf16) {
            check_shape(shape, path, name);
        }
    }
    if (path != K_CUDA_LINEAR_WGMMA) {
        for (const shape_t &shape : others) {
            check_shape(shape, path, path == K_CUDA_LINEAR_MMA ? "mma" : "auto");
        }
    }
    std::printf("check %s: %s\n", name,
                failures == 0 ? "right, and the same for every row count" : "WRONG");
}

/* ---- time ------------------------------------------------------------------------------------ */

template <class F> static double graph_seconds(int launches, F &&launch)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    launch(0, stream);
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; i++) {
        launch(i, stream);
    }
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<double> seconds;
    for (int i = 0; i < 8; i++) {
        float ms = 0;
        CUDA(cudaEventRecord(begin, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaEventRecord(end, stream));
        CUDA(cudaStreamSynchronize(stream));
        CUDA(cudaEventElapsedTime(&ms, begin, end));
        if (i > 0) {
            seconds.push_back(ms * 1e-3 / launches);
        }
    }
    std::sort(seconds.begin(), seconds.end());
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(stream));
    return seconds[seconds.size() / 2];
}

static SIMT_KERNEL(512, 2) read_kernel(const uint8_t *p, size_t bytes, uint32_t *sink)
{
    uint32_t sum = 0;
    const size_t step = (size_t)gridDim.x * 512 * 16;
    size_t at = ((size_t)blockIdx.x * 512 + threadIdx.x) * 16;
    for (; at + 3 * step < bytes; at += 4 * step) {
        uint4 v[4];
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            v[i] = simt_load_16_once(p + at + i * step);
        }
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            sum += v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
        }
    }
    if (sum == 0x12345) {
        *sink = sum;
    }
}

static SIMT_KERNEL(512, 2) copy_kernel(const uint8_t *from, uint8_t *to, size_t bytes)
{
    const size_t step = (size_t)gridDim.x * 512 * 16;
    size_t at = ((size_t)blockIdx.x * 512 + threadIdx.x) * 16;
    for (; at + 3 * step < bytes; at += 4 * step) {
        uint4 v[4];
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            v[i] = simt_load_16_once(from + at + i * step);
        }
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            simt_store_16_once(to + at + i * step, v[i]);
        }
    }
}

/* cuBLAS by hand: opened at run time, so that the program starts without it. */
typedef struct cublas {
    void *handle;
    int (*set_stream)(void *, cudaStream_t);
    int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *,
                int, int, const void *, void *, int, int, int, int);
} cublas_t;

static cublas_t cublas_open()
{
    cublas_t blas = {};
    const char *given = std::getenv("CUBLAS");
    void *library = dlopen(given != nullptr ? given : "libcublas.so.13", RTLD_NOW);
    if (library == nullptr) {
        std::printf("no cuBLAS (CUBLAS=path to libcublas.so.13): %s\n", dlerror());
        return blas;
    }
    int (*create)(void **);
    *(void **)&create = dlsym(library, "cublasCreate_v2");
    *(void **)&blas.set_stream = dlsym(library, "cublasSetStream_v2");
    *(void **)&blas.gemm = dlsym(library, "cublasGemmEx");
    int (*workspace)(void *, void *, size_t);
    *(void **)&workspace = dlsym(library, "cublasSetWorkspace_v2");
    if (create(&blas.handle) != 0) {
        blas.handle = nullptr;
        return blas;
    }
    workspace(blas.handle, device_array<uint8_t>(64 << 20), 64 << 20);
    return blas;
}

static void cublas_linear(const cublas_t &blas, const void *w, const void *x, void *y, int m, int n,
                          int k, cudaStream_t stream)
{
    const float one = 1, zero = 0;
    blas.set_stream(blas.handle, stream);
    const int status = blas.gemm(blas.handle, 1, 0, n, m, k, &one, w, 14, k, x, 14, k, &zero, y, 14,
                                 n, 68, -1); /* T, N; CUDA_R_16BF; CUBLAS_COMPUTE_32F */
    if (status != 0) {
        std::printf("cublasGemmEx: %d\n", status);
        std::exit(2);
    }
}

typedef struct ceilings {
    double copy; /* bytes a second, read and written */
    double read;
    double flops;
} ceilings_t;

static ceilings_t measure_ceilings(const cublas_t &blas)
{
    ceilings_t c = {};
    const size_t bytes = (size_t)2 << 30;
    uint8_t *a = device_array<uint8_t>(bytes), *b = device_array<uint8_t>(bytes);
    fill(a, bytes, 1);
    fill(b, bytes, 2);
    c.copy = 2.0 * bytes / graph_seconds(4, [&](int, cudaStream_t s) {
                 CUDA(simt_launch(copy_kernel, {.grid = {264}, .block = {512}, .stream = s}, a, b,
                                  bytes));
             });
    c.read = (double)bytes / graph_seconds(4, [&](int, cudaStream_t s) {
                 CUDA(simt_launch(read_kernel, {.grid = {264 * 2}, .block = {512}, .stream = s}, a,
                                  bytes, reinterpret_cast<uint32_t *>(b)));
             });
    if (blas.handle != nullptr) {
        const int n = 8192;
        c.flops = 2.0 * n * n * n / graph_seconds(4, [&](int, cudaStream_t s) {
                      cublas_linear(blas, a, a + n * n * 2, b, n, n, n, s);
                  });
    }
    CUDA(cudaFree(a));
    CUDA(cudaFree(b));
    std::printf("ceilings: copy %.0f GB/s, read %.0f GB/s, cuBLAS 8192^3 bf16 %.0f TFLOP/s\n",
                c.copy * 1e-9, c.read * 1e-9, c.flops * 1e-12);
    return c;
}

typedef struct layer {
    const char *name;
    uint32_t n;
    uint32_t k;
    k_cuda_out_t out;
} layer_t;

static const layer_t layers[] = {
    {"qkv", 6144, 4096, K_CUDA_OUT_BF16},        {"o", 4096, 4096, K_CUDA_OUT_ADD},
    {"gate_up", 28672, 4096, K_CUDA_OUT_SWIGLU}, {"down", 4096, 14336, K_CUDA_OUT_ADD},
    {"head", 128256, 4096, K_CUDA_OUT_F32},
};

static void time_layers(k_cuda_linear_path_t path, const char *path_name, k_dtype_t dtype)
{
    static const uint32_t counts[] = {1, 8, 16, 64, 128, 512, 2048};
    const cublas_t blas = cublas_open();
    const ceilings_t c = measure_ceilings(blas);
    uint8_t *x = device_array<uint8_t>(2048 * 14336 * 2);
    uint8_t *y = device_array<uint8_t>((size_t)2048 * 28672 * 4);
    fill(x, 2048 * 14336 * 2, 3);
    fill(y, (size_t)2048 * 28672 * 4, 4);
    double total[7] = {}, total_blas[7] = {}, flops[7] = {}, bytes_all = 0;
    std::printf("%-8s %5s  %9s %7s %6s %7s  %9s %6s   path %s, %s\n", "layer", "rows", "us", "GB/s",
                "copy%", "TFLOP/s", "cuBLAS us", "ratio", path_name, k_dtype_info(dtype)->name);
    for (const layer_t &layer : layers) {
        const bool is_gate_up = layer.out == K_CUDA_OUT_SWIGLU;
        const size_t bytes = k_cuda_weight_bytes(dtype, is_gate_up, layer.n, layer.k);
        const int copies = (int)(((size_t)700 << 20) / bytes) + 1;
        uint8_t *w = device_array<uint8_t>(bytes * copies);
        fill(w, bytes * copies, 5);
        bytes_all += layer.n < 100000 ? (double)bytes : 0;
        for (int i = 0; i < 7; i++) {
            const uint32_t m = counts[i];
            if (m * (size_t)layer.n * 4 > (size_t)2048 * 28672 * 4) {
                continue;
            }
            k_cuda_linear_t args = {};
            args.w = {dtype, is_gate_up, layer.n, layer.k, nullptr};
            args.x = x;
            args.y = y;
            args.out = layer.out;
            args.rows = m;
            args.x_stride = layer.k;
            args.y_stride = is_gate_up ? layer.n / 2 : layer.n;
            args.path = path;
            const int launches = m >= 512 ? 8 : std::max(2 * copies, 16);
            const double t = graph_seconds(launches, [&](int j, cudaStream_t s) {
                args.w.data = w + bytes * (j % copies);
                CUDA(k_cuda_linear(&args, s));
            });
            double tb = 0;
            if (blas.handle != nullptr && dtype == K_BF16) {
                tb = graph_seconds(launches, [&](int j, cudaStream_t s) {
                    cublas_linear(blas, w + bytes * (j % copies), x, y, (int)m, (int)layer.n,
                                  (int)layer.k, s);
                });
            }
            const double work = 2.0 * m * layer.n * layer.k;
            std::printf("%-8s %5u  %9.2f %7.0f %5.1f%% %7.0f  %9.2f %6.2f\n", layer.name, m,
                        t * 1e6, bytes / t * 1e-9, 100 * bytes / t / c.copy, work / t * 1e-12,
                        tb * 1e6, tb / t);
            std::fflush(stdout);
            if (layer.n < 100000) {
                total[i] += t;
                total_blas[i] += tb;
                flops[i] += work;
            }
        }
        CUDA(cudaFree(w));
    }
    for (int i = 0; i < 7; i++) {
        std::printf(
            "all four %5u  %9.2f %7.0f %5.1f%% %7.0f (%.1f%% of cuBLAS' peak)  cuBLAS %.2f\n",
            counts[i], total[i] * 1e6, bytes_all / total[i] * 1e-9,
            100 * bytes_all / total[i] / c.copy, flops[i] / total[i] * 1e-12,
            c.flops == 0 ? 0 : 100 * flops[i] / total[i] / c.flops, total_blas[i] * 1e6);
    }
}

/* ---- tune ------------------------------------------------------------------------------------ */

/* A way to compute; at most as many rows. */
typedef struct variant {
    const char *name;
    uint32_t min_rows;
    uint32_t max_rows;
    int (*few)(const k_cuda_linear_t *, const linear_device_t *, cudaStream_t);
    int shape;
} variant_t;

static const variant_t variants[] = {{"mma", 1, 16, k_cuda_linear_mma, 0},
#define SHAPE(name, tokens, spans, shares)                                                         \
    {"w" #name, tokens / 4, tokens == 128 ? 8192 : 2 * tokens, nullptr, LINEAR_SCALED_##name},
                                     LINEAR_SCALED_SHAPES(SHAPE)
#undef SHAPE
};

/* One row of a table: the layer's or, of the sum, all four's. */
static void tune_rows(k_dtype_t dtype, uint32_t rows, const linear_device_t &device,
                      const uint8_t *w, const uint8_t *x, uint8_t *y)
{
    double total[16] = {}, bytes_all = 0, work = 0;
    for (const layer_t &layer : layers) {
        if (layer.n > 100000) {
            continue;
        }
        const bool is_gate_up = layer.out == K_CUDA_OUT_SWIGLU;
        const size_t bytes = k_cuda_weight_bytes(dtype, is_gate_up, layer.n, layer.k);
        const int copies = (int)(((size_t)500 << 20) / bytes);
        bytes_all += (double)bytes;
        work += 2.0 * rows * layer.n * layer.k;
        std::printf("  %-5s %4u %-8s", k_dtype_info(dtype)->name, rows, layer.name);
        for (int v = 0; v < (int)std::size(variants); v++) {
            k_cuda_linear_t args = {};
            args.w = {dtype, is_gate_up, layer.n, layer.k, nullptr};
            args.x = x;
            args.y = y;
            args.out = layer.out;
            args.rows = rows;
            args.x_stride = layer.k;
            args.y_stride = is_gate_up ? layer.n / 2 : layer.n;
            if (rows < variants[v].min_rows || rows > variants[v].max_rows) {
                continue;
            }
            const int launches = rows >= 512 ? 4 : std::min(std::max(copies, 8), 32);
            const double t = graph_seconds(launches, [&](int j, cudaStream_t s) {
                args.w.data = w + bytes * (j % copies);
                CUDA(
                    variants[v].few != nullptr
                        ? variants[v].few(&args, &device, s)
                        : k_cuda_linear_scaled(&args, (linear_scaled_shape_t)variants[v].shape, s));
            });
            total[v] += t;
            std::printf(" %s %.2f", variants[v].name, t * 1e6);
        }
        std::printf("\n");
    }
    std::printf("%-5s %4u all     ", k_dtype_info(dtype)->name, rows);
    for (int v = 0; v < (int)std::size(variants); v++) {
        if (total[v] > 0) {
            std::printf(" %s %.1f us %.2f TB/s %.0f TF;", variants[v].name, total[v] * 1e6,
                        bytes_all / total[v] * 1e-12, work / total[v] * 1e-12);
        }
    }
    std::printf("\n");
    std::fflush(stdout);
}

static void tune(k_dtype_t dtype, const char *counts)
{
    const size_t bytes = (size_t)520 << 20;
    cudaDeviceProp properties;
    CUDA(cudaGetDeviceProperties(&properties, 0));
    const linear_device_t device = {(uint32_t)properties.multiProcessorCount,
                                    (uint32_t)properties.sharedMemPerBlockOptin,
                                    properties.major == 9};
    uint8_t *w = device_array<uint8_t>(bytes);
    uint8_t *x = device_array<uint8_t>(2048 * 14336 * 2);
    uint8_t *y = device_array<uint8_t>((size_t)2048 * 28672 * 4);
    fill(w, bytes, 5);
    fill(x, 2048 * 14336 * 2, 3);
    fill(y, (size_t)2048 * 28672 * 4, 4);
    for (const char *at = counts; *at != 0;) {
        char *end = nullptr;
        tune_rows(dtype, (uint32_t)std::strtoul(at, &end, 10), device, w, x, y);
        at = *end == ',' ? end + 1 : "";
    }
}

/* ---- chain ----------------------------------------------------------------------------------- */

/* The products of layers one after the other, as a decode step of one row has them. */
static void chain(k_dtype_t dtype)
{
    const int n_layers = 6;
    double bytes_all = 0;
    uint8_t *w[n_layers][4];
    uint8_t *x = device_array<uint8_t>(14336 * 2);
    uint8_t *y = device_array<uint8_t>(28672 * 4);
    fill(x, 14336 * 2, 3);
    fill(y, 28672 * 4, 4);
    for (int i = 0; i < 4 * n_layers; i++) {
        const layer_t &layer = layers[i % 4];
        const size_t bytes =
            k_cuda_weight_bytes(dtype, layer.out == K_CUDA_OUT_SWIGLU, layer.n, layer.k);
        w[i / 4][i % 4] = device_array<uint8_t>(bytes);
        fill(w[i / 4][i % 4], bytes, 5);
        bytes_all += (double)bytes / n_layers;
    }
    const int launches = 4 * n_layers * 4;
    const double t = 4 * graph_seconds(launches, [&](int j, cudaStream_t s) {
                         const layer_t &layer = layers[j % 4];
                         k_cuda_linear_t args = {};
                         args.w = {dtype, layer.out == K_CUDA_OUT_SWIGLU, layer.n, layer.k,
                                   w[j / 4 % n_layers][j % 4]};
                         args.x = x;
                         args.y = y;
                         args.out = layer.out;
                         args.rows = 1;
                         args.x_stride = layer.k;
                         args.y_stride = layer.n;
                         CUDA(k_cuda_linear(&args, s));
                     });
    std::printf("%-8s a layer, one row: %.2f us, %.0f GB/s\n", k_dtype_info(dtype)->name, t * 1e6,
                bytes_all / t * 1e-9);
    for (int i = 0; i < 4 * n_layers; i++) {
        CUDA(cudaFree(w[i / 4][i % 4]));
    }
    CUDA(cudaFree(x));
    CUDA(cudaFree(y));
}

int main(int argc, char **argv)
{
    const std::string what = argc > 1 ? argv[1] : "";
    const std::string path_name = argc > 2 ? argv[2] : "auto";
    const k_cuda_linear_path_t path = path_name == "mma"     ? K_CUDA_LINEAR_MMA
                                      : path_name == "wgmma" ? K_CUDA_LINEAR_WGMMA
                                                             : K_CUDA_LINEAR_AUTO;
    cudaDeviceProp properties;
    CUDA(cudaGetDeviceProperties(&properties, 0));
    std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
    if (what == "families") {
        families();
    } else if (what == "check") {
        check(path, path_name.c_str());
    } else if (what == "chain") {
        for (int i = 2; i < argc; i++) {
            k_dtype_t dtype;
            if (k_dtype_from_name(argv[i], &dtype) < 0) {
                std::printf("no dtype %s\n", argv[i]);
                return 2;
            }
            chain(dtype);
        }
    } else if (what == "time" || what == "tune") {
        k_dtype_t dtype = what == "tune" ? K_Q4_0 : K_BF16;
        const int at = what == "tune" ? 2 : 3;
        if (argc > at && k_dtype_from_name(argv[at], &dtype) < 0) {
            std::printf("no dtype %s\n", argv[at]);
            return 2;
        }
        if (what == "tune") {
            tune(dtype, argc > 3 ? argv[3] : "1,4,8,16,32,64,128,512,2048");
        } else {
            time_layers(path, path_name.c_str(), dtype);
        }
    } else {
        std::printf(
            "bench_linear families | check [auto|mma|wgmma] | time [auto|mma|wgmma] [DTYPE] |\n"
            "             tune [DTYPE [ROWS,...]] | chain DTYPE...\n");
        return 2;
    }
    return failures != 0;
}
