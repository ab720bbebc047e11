/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/samples/mma.h"

#include "kernels/cuda/simt/simt.h"

/* Rows of both operands are 32 bytes, whatever the type: two chunks of 16. */
SIMT_DEVICE void load_operands(const uint8_t *a, const uint8_t *b, bool is_trans,
                               uint32_t (&a_out)[4], uint32_t (&b_out)[2])
{
    SIMT_SHARED(uint8_t, a_tile, [16 * 32]);
    SIMT_SHARED(uint8_t, b_tile, [8 * 32]);
    unsigned lane = (unsigned)simt_lane();
    simt_cp_async<16>(a_tile + lane * 16, a + lane * 16);
    simt_cp_async<8>(b_tile + lane * 8, b + lane * 8);
    simt_cp_async_commit();
    simt_cp_async_wait<0>();
    simt_sync_warp();
    simt_ldmatrix_x4(a_out, a_tile + lane % 16 * 32 + lane / 16 * 16);
    if (is_trans) {
        simt_ldmatrix_x2_trans(b_out, b_tile + lane % 16 * 16); /* 16 rows of 8 elements */
    } else {
        simt_ldmatrix_x2(b_out, b_tile + lane % 8 * 32 + lane / 8 % 2 * 16);
    }
}

template <class T> SIMT_DEVICE void store_d(const T (&d)[4], T *out)
{
    int g = simt_lane() / 4, t = simt_lane() % 4;
    for (int i = 0; i < 4; i++) {
        out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
    }
}

template <int KIND>
static SIMT_KERNEL(32, 1) one_mma(const uint8_t *a, const uint8_t *b, float *out)
{
    uint32_t fa[4], fb[2];
    float d[4] = {};
    load_operands(a, b, KIND == SAMPLE_MMA_BF16_TRANS, fa, fb);
    if constexpr (KIND == SAMPLE_MMA_F16) {
        simt_mma_f16(d, fa, fb);
    } else {
        simt_mma_bf16(d, fa, fb);
    }
    store_d(d, out);
}

static SIMT_KERNEL(32, 1) one_mma_s8(const uint8_t *a, const uint8_t *b, int32_t *out)
{
    uint32_t fa[4], fb[2];
    int32_t d[4] = {};
    load_operands(a, b, false, fa, fb);
    simt_mma_s8(d, fa, fb);
    store_d(d, out);
}

static SIMT_KERNEL(32, 1) one_mma_e4m3(const uint8_t *a, const uint8_t *b, float *out)
{
#if SIMT_HOPPER
    uint32_t fa[4], fb[2];
    float d[4] = {};
    load_operands(a, b, false, fa, fb);
    simt_mma_e4m3(d, fa, fb);
    store_d(d, out);
#endif
}

int sample_mma(sample_mma_kind_t kind, const void *a, const void *b, void *d, cudaStream_t stream)
{
    simt_grid_t at = {.grid = {1}, .block = {32}, .stream = stream};
    const uint8_t *x = static_cast<const uint8_t *>(a), *y = static_cast<const uint8_t *>(b);
    float *out = static_cast<float *>(d);
    switch (kind) {
    case SAMPLE_MMA_BF16:
        return simt_launch(one_mma<SAMPLE_MMA_BF16>, at, x, y, out);
    case SAMPLE_MMA_BF16_TRANS:
        return simt_launch(one_mma<SAMPLE_MMA_BF16_TRANS>, at, x, y, out);
    case SAMPLE_MMA_F16:
        return simt_launch(one_mma<SAMPLE_MMA_F16>, at, x, y, out);
    case SAMPLE_MMA_S8:
        return simt_launch(one_mma_s8, at, x, y, static_cast<int32_t *>(d));
    default:
        return simt_launch(one_mma_e4m3, at, x, y, out);
    }
}
