/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/samples/wgmma.h"

#include "kernels/cuda/simt/simt.h"

constexpr int row_bytes = 128; /* of a swizzled tile */
constexpr int rows_a = 64;
constexpr int tile_a = rows_a * row_bytes;

constexpr bool is_mn(int kind)
{
    return kind == SAMPLE_BF16_MN || kind == SAMPLE_BF16_REGISTERS_MN ||
           kind == SAMPLE_F16_REGISTERS_MN;
}

constexpr bool is_8_bit(int kind)
{
    return kind == SAMPLE_E4M3_K || kind == SAMPLE_E4M3_REGISTERS;
}

constexpr bool has_a_in_registers(int kind)
{
    return kind == SAMPLE_BF16_REGISTERS || kind == SAMPLE_BF16_REGISTERS_MN ||
           kind == SAMPLE_F16_REGISTERS_MN || kind == SAMPLE_E4M3_REGISTERS;
}

constexpr int panels(int n)
{
    return (n + 63) / 64;
}

/* Bytes of b's tile for one line of K: n rows, or 64 rows in each panel of 64 columns. */
constexpr int tile_b(int kind, int n)
{
    return is_mn(kind) ? panels(n) * 64 * row_bytes : n * row_bytes;
}

#if SIMT_HOPPER
/* a's fragment for `step` (32 bytes of K) out of a swizzled tile, whose rows this warp's are. */
SIMT_DEVICE void load_a(uint32_t (&a)[4], const uint8_t *tile, int step)
{
    int lane = simt_lane();
    int row = simt_warp() % 4 * 16 + lane % 16;
    int chunk = step * 2 + lane / 16;
    simt_ldmatrix_x4(a, tile + row * row_bytes + (chunk ^ row % 8) * 16);
}

template <int N, int KIND>
SIMT_DEVICE void multiply_step(float (&d)[N / 2], const uint8_t *a, const uint8_t *b, int step,
                               bool adds)
{
    uint64_t b_desc = is_mn(KIND) ? simt_wgmma_desc_mn(b + step * 2048, 64 * row_bytes)
                                  : simt_wgmma_desc_k(b + step * 32);
    if constexpr (has_a_in_registers(KIND)) {
        uint32_t fragment[4];
        load_a(fragment, a, step);
        simt_wgmma_fence();
        if constexpr (KIND == SAMPLE_E4M3_REGISTERS) {
            simt_wgmma_e4m3<N>(d, fragment, b_desc, adds);
        } else if constexpr (KIND == SAMPLE_F16_REGISTERS_MN) {
            simt_wgmma_f16<N, is_mn(KIND)>(d, fragment, b_desc, adds);
        } else {
            simt_wgmma_bf16<N, is_mn(KIND)>(d, fragment, b_desc, adds);
        }
        simt_wgmma_commit();
        simt_wgmma_wait<0>();
        simt_wgmma_hold(d);
    } else if constexpr (KIND == SAMPLE_E4M3_K) {
        simt_wgmma_e4m3<N>(d, simt_wgmma_desc_k(a + step * 32), b_desc, adds);
    } else if constexpr (KIND == SAMPLE_F16_K) {
        simt_wgmma_f16<N>(d, simt_wgmma_desc_k(a + step * 32), b_desc, adds);
    } else {
        simt_wgmma_bf16<N, is_mn(KIND)>(d, simt_wgmma_desc_k(a + step * 32), b_desc, adds);
    }
}

/* d's fragment to rows of c from (row, column) on, inside m × n. */
template <int N>
SIMT_DEVICE void store_d(const float (&d)[N / 2], float *c, unsigned row, unsigned column,
                         unsigned m, unsigned n)
{
    int lane = simt_lane();
    SIMT_UNROLL
    for (int i = 0; i < N / 2; i++) {
        unsigned r = row + (unsigned)(simt_warp() % 4 * 16 + lane / 4 + i / 2 % 2 * 8);
        unsigned col = column + (unsigned)(i / 4 * 8 + 2 * (lane % 4) + i % 2);
        if (r < m && col < n) {
            c[(size_t)r * n + col] = d[i];
        }
    }
}
#endif

template <int N, int KIND>
static SIMT_KERNEL(128, 1) one_product(const SIMT_GRID_CONSTANT simt_tensor_map_t map_a,
                                       const SIMT_GRID_CONSTANT simt_tensor_map_t map_b, float *out)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(uint8_t, tiles);
    SIMT_SHARED(simt_mbarrier_t, full, [1]);
    constexpr int lines = is_8_bit(KIND) ? 1 : 2; /* of 128 bytes along K */
    constexpr int line_elements = SAMPLE_WGMMA_K / lines;
    uint8_t *a = tiles, *b = tiles + lines * tile_a;

    if (threadIdx.x == 0) {
        simt_mbarrier_init(full, 1);
        simt_mbarrier_fence_init();
    }
    simt_sync_block();
    if (threadIdx.x == 0) {
        simt_mbarrier_arrive_expect(full, lines * (tile_a + tile_b(KIND, N)));
        for (int line = 0; line < lines; line++) {
            int k = line * line_elements;
            simt_tma_load_2d(a + line * tile_a, &map_a, k, 0, full);
            uint8_t *tile = b + line * tile_b(KIND, N);
            for (int panel = 0; panel < (is_mn(KIND) ? panels(N) : 1); panel++) {
                simt_tma_load_2d(tile + panel * 64 * row_bytes, &map_b,
                                 is_mn(KIND) ? panel * 64 : k, is_mn(KIND) ? k : 0, full);
            }
        }
    }
    simt_mbarrier_wait(full, 0);

    float d[N / 2];
    simt_wgmma_fence();
    SIMT_UNROLL
    for (int step = 0; step < lines * 4; step++) {
        multiply_step<N, KIND>(d, a + step / 4 * tile_a, b + step / 4 * tile_b(KIND, N), step % 4,
                               step > 0);
    }
    simt_wgmma_commit();
    simt_wgmma_wait<0>();
    simt_wgmma_hold(d);
    store_d<N>(d, out, 0, 0, rows_a, N);
#endif
}

static cudaError_t encode(const void *data, uint32_t element_bytes, uint64_t columns, uint64_t rows,
                          uint32_t box_columns, uint32_t box_rows, simt_tensor_map_t *map_out)
{
    simt_tensor_t tensor = {};
    tensor.data = const_cast<void *>(data);
    tensor.element_bytes = element_bytes;
    tensor.rank = 2;
    tensor.dims[0] = columns;
    tensor.dims[1] = rows;
    tensor.strides[0] = columns * element_bytes;
    tensor.box[0] = box_columns;
    tensor.box[1] = box_rows;
    tensor.swizzle = SIMT_SWIZZLE_128;
    return simt_tensor_map_encode(&tensor, map_out);
}

template <int N, int KIND>
static cudaError_t launch_kind(const void *a, const void *b, float *d, cudaStream_t stream)
{
    constexpr uint32_t bytes = is_8_bit(KIND) ? 1 : 2;
    constexpr uint32_t line = 128 / bytes;
    simt_tensor_map_t map_a, map_b;
    cudaError_t error = encode(a, bytes, SAMPLE_WGMMA_K, rows_a, line, rows_a, &map_a);
    if (error == cudaSuccess) {
        error = is_mn(KIND) ? encode(b, bytes, N, SAMPLE_WGMMA_K, line, 64, &map_b)
                            : encode(b, bytes, SAMPLE_WGMMA_K, N, line, N, &map_b);
    }
    if (error != cudaSuccess) {
        return error;
    }
    size_t shared = (is_8_bit(KIND) ? 1 : 2) * (size_t)(tile_a + tile_b(KIND, N));
    return simt_launch(one_product<N, KIND>,
                       {.grid = {1}, .block = {128}, .shared_bytes = shared, .stream = stream},
                       map_a, map_b, d);
}

template <int N>
static cudaError_t launch_n(int kind, const void *a, const void *b, float *d, cudaStream_t stream)
{
    switch (kind) {
    case SAMPLE_BF16_K:
        return launch_kind<N, SAMPLE_BF16_K>(a, b, d, stream);
    case SAMPLE_BF16_MN:
        return launch_kind<N, SAMPLE_BF16_MN>(a, b, d, stream);
    case SAMPLE_BF16_REGISTERS:
        return launch_kind<N, SAMPLE_BF16_REGISTERS>(a, b, d, stream);
    case SAMPLE_BF16_REGISTERS_MN:
        return launch_kind<N, SAMPLE_BF16_REGISTERS_MN>(a, b, d, stream);
    case SAMPLE_F16_K:
        return launch_kind<N, SAMPLE_F16_K>(a, b, d, stream);
    case SAMPLE_F16_REGISTERS_MN:
        return launch_kind<N, SAMPLE_F16_REGISTERS_MN>(a, b, d, stream);
    case SAMPLE_E4M3_K:
        return launch_kind<N, SAMPLE_E4M3_K>(a, b, d, stream);
    default:
        return launch_kind<N, SAMPLE_E4M3_REGISTERS>(a, b, d, stream);
    }
}

int sample_wgmma(sample_wgmma_kind_t kind, int n, const void *a, const void *b, float *d,
                 cudaStream_t stream)
{
    switch (n) {
    case 8:
        return launch_n<8>(kind, a, b, d, stream);
    case 32:
        return launch_n<32>(kind, a, b, d, stream);
    case 64:
        return launch_n<64>(kind, a, b, d, stream);
    case 80:
        return launch_n<80>(kind, a, b, d, stream);
    case 96:
        return launch_n<96>(kind, a, b, d, stream);
    case 128:
        return launch_n<128>(kind, a, b, d, stream);
    case 192:
        return launch_n<192>(kind, a, b, d, stream);
    case 256:
        return launch_n<256>(kind, a, b, d, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

/* ---- the pipelined GEMM --------------------------------------------------------------------- */

constexpr int gemm_n = 128;
constexpr int gemm_k = 64;
constexpr int gemm_stages = 3;
constexpr int stage_bytes = tile_a + gemm_n * row_bytes;

static SIMT_KERNEL(256, 1) pipelined_gemm(const SIMT_GRID_CONSTANT simt_tensor_map_t map_a,
                                          const SIMT_GRID_CONSTANT simt_tensor_map_t map_b,
                                          float *c, unsigned m, unsigned n, unsigned k)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(uint8_t, tiles);
    SIMT_SHARED(simt_mbarrier_t, full, [gemm_stages]);
    SIMT_SHARED(simt_mbarrier_t, free, [gemm_stages]);
    unsigned row = blockIdx.y * rows_a, column = blockIdx.x * gemm_n;
    unsigned steps = (k + gemm_k - 1) / gemm_k;

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < gemm_stages; stage++) {
            simt_mbarrier_init(&full[stage], 1);
            simt_mbarrier_init(&free[stage], 128);
        }
        simt_mbarrier_fence_init();
    }
    simt_sync_block();
    if (threadIdx.x >= 128) {
        simt_registers_lower<40>();
        if (threadIdx.x == 128) {
            for (unsigned step = 0; step < steps; step++) {
                unsigned stage = step % gemm_stages, lap = step / gemm_stages;
                uint8_t *tile = tiles + stage * stage_bytes;
                simt_mbarrier_wait(&free[stage], (lap & 1) ^ 1);
                simt_mbarrier_arrive_expect(&full[stage], stage_bytes);
                simt_tma_load_2d(tile, &map_a, (int)(step * gemm_k), (int)row, &full[stage]);
                simt_tma_load_2d(tile + tile_a, &map_b, (int)(step * gemm_k), (int)column,
                                 &full[stage], SIMT_L2_EVICT_LAST);
            }
        }
        return;
    }
    simt_registers_raise<160>();
    float d[gemm_n / 2];
    for (unsigned step = 0; step < steps; step++) {
        unsigned stage = step % gemm_stages;
        const uint8_t *tile = tiles + stage * stage_bytes;
        simt_mbarrier_wait(&full[stage], step / gemm_stages & 1);
        simt_wgmma_fence();
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            simt_wgmma_bf16<gemm_n>(d, simt_wgmma_desc_k(tile + i * 32),
                                    simt_wgmma_desc_k(tile + tile_a + i * 32), step > 0 || i > 0);
        }
        simt_wgmma_commit();
        if (step > 0) {
            simt_wgmma_wait<1>();
            simt_mbarrier_arrive(&free[(step - 1) % gemm_stages]);
        }
    }
    simt_wgmma_wait<0>();
    simt_wgmma_hold(d);
    store_d<gemm_n>(d, c, row, column, m, n);
#endif
}

int sample_wgmma_gemm(const void *a, const void *b, float *c, unsigned m, unsigned n, unsigned k,
                      cudaStream_t stream)
{
    simt_tensor_map_t map_a, map_b;
    cudaError_t error = encode(a, 2, k, m, gemm_k, rows_a, &map_a);
    error = error == cudaSuccess ? encode(b, 2, k, n, gemm_k, gemm_n, &map_b) : error;
    if (error != cudaSuccess) {
        return error;
    }
    return simt_launch(pipelined_gemm,
                       {.grid = {(n + gemm_n - 1) / gemm_n, (m + rows_a - 1) / rows_a},
                        .block = {256},
                        .shared_bytes = gemm_stages * stage_bytes,
                        .stream = stream},
                       map_a, map_b, c, m, n, k);
}
