/* SPDX-License-Identifier: Apache-2.0 */
/* simt_mma.h: the last lane gathers both fragments and multiplies for the warp. */
#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_meeting.h"
#include "tests/cuda_emu/emu_numbers.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

namespace emu
{
namespace
{

struct Product {
    void *d;
    const uint32_t *a;
    const uint32_t *b;
};

const Product &product_of(const Meeting &meeting, int lane)
{
    return *static_cast<const Product *>(meeting.arguments[lane]);
}

uint8_t byte_of(const uint32_t *registers, int index)
{
    return static_cast<uint8_t>(registers[index / 4] >> 8 * (index % 4));
}

uint16_t half_of(const uint32_t *registers, int index)
{
    return static_cast<uint16_t>(registers[index / 2] >> 16 * (index % 2));
}

/* d[row][column] += Σk a[row][k] · b[k][column], k from 0 up. */
template <class T, int K>
__attribute__((target_clones("default", "avx2"))) void multiply(T (&d)[16][8], const T (&a)[16][K],
                                                                const T (&b)[K][8])
{
    for (int row = 0; row < 16; row++) {
        T sum[8];
        memcpy(sum, d[row], sizeof(sum));
        for (int k = 0; k < K; k++) {
            for (int column = 0; column < 8; column++) {
                sum[column] += a[row][k] * b[k][column];
            }
        }
        memcpy(d[row], sum, sizeof(sum));
    }
}

/* The matrices as they lie in the lanes' registers, see simt_mma.h. */
template <class T, int K, class Element> void product(Meeting &meeting, Element element)
{
    constexpr int per_register = K / 8; /* 2 of 16 bits, 4 of 8 */
    T a[16][K], b[K][8], d[16][8];
    for (int lane = 0; lane < warp_size; lane++) {
        const Product &mine = product_of(meeting, lane);
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++) {
            for (int i = 0; i < per_register; i++) {
                int column = t * per_register + i + r / 2 * (K / 2);
                a[g + r % 2 * 8][column] = element(mine.a, r * per_register + i);
            }
            memcpy(&d[g + r / 2 * 8][2 * t + r % 2], static_cast<T *>(mine.d) + r, sizeof(T));
        }
        for (int r = 0; r < 2; r++) {
            for (int i = 0; i < per_register; i++) {
                b[t * per_register + i + r * (K / 2)][g] = element(mine.b, r * per_register + i);
            }
        }
    }
    multiply<T, K>(d, a, b);
    for (int lane = 0; lane < warp_size; lane++) {
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++) {
            static_cast<T *>(product_of(meeting, lane).d)[r] = d[g + r / 2 * 8][2 * t + r % 2];
        }
    }
}

void product_bf16(Meeting &meeting)
{
    product<float, 16>(meeting, [](const uint32_t *registers, int i) {
        return bf16_value(half_of(registers, i));
    });
}

void product_f16(Meeting &meeting)
{
    const float *table = number_table(NUMBER_F16);
    product<float, 16>(meeting, [table](const uint32_t *registers, int i) {
        return table[half_of(registers, i)];
    });
}

void product_e4m3(Meeting &meeting)
{
    const float *table = number_table(NUMBER_E4M3);
    product<float, 32>(meeting, [table](const uint32_t *registers, int i) {
        return table[byte_of(registers, i)];
    });
}

void product_s8(Meeting &meeting)
{
    product<int32_t, 32>(meeting, [](const uint32_t *registers, int i) {
        return static_cast<int32_t>(static_cast<int8_t>(byte_of(registers, i)));
    });
}

/* ---- ldmatrix ------------------------------------------------------------------------------- */

struct Load {
    uint32_t *registers;
    const void *row;
    int matrices;
    bool is_transposed;
    const char *who;
};

void load_matrices(Meeting &meeting)
{
    const Load &first = *static_cast<Load *>(meeting.arguments[0]);
    for (int matrix = 0; matrix < first.matrices; matrix++) {
        uint16_t m[8][8];
        for (int row = 0; row < 8; row++) {
            memcpy(m[row], static_cast<Load *>(meeting.arguments[matrix * 8 + row])->row, 16);
        }
        for (int lane = 0; lane < warp_size; lane++) {
            int row = lane / 4, column = 2 * (lane % 4);
            uint16_t lo = first.is_transposed ? m[column][row] : m[row][column];
            uint16_t hi = first.is_transposed ? m[column + 1][row] : m[row][column + 1];
            static_cast<Load *>(meeting.arguments[lane])->registers[matrix] =
                lo | static_cast<uint32_t>(hi) << 16;
        }
    }
}

void load(const char *who, uint32_t *registers, int matrices, bool is_transposed, const void *row)
{
    if (now->linear % warp_size < 8 * matrices) {
        shared_offset(row, 16, who);
        if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
            fail(cudaErrorMisalignedAddress, "%s: a row not at a multiple of 16", who);
        }
        shadow_access(row, 16, Access::read, who);
    }
    Load mine = {registers, row, matrices, is_transposed, who};
    meet_lanes(who, 0, all_lanes, &mine, load_matrices);
}

} // namespace
} // namespace emu

using namespace emu;

void simt_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    Product mine = {d, a, b};
    meet_lanes("simt_mma_bf16", 0, all_lanes, &mine, product_bf16);
}

void simt_mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    Product mine = {d, a, b};
    meet_lanes("simt_mma_f16", 0, all_lanes, &mine, product_f16);
}

void simt_mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    Product mine = {d, a, b};
    meet_lanes("simt_mma_s8", 0, all_lanes, &mine, product_s8);
}

void simt_mma_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    Product mine = {d, a, b};
    meet_lanes("simt_mma_e4m3", 0, all_lanes, &mine, product_e4m3);
}

void simt_ldmatrix_x1(uint32_t (&r)[1], const void *shared_row)
{
    load("simt_ldmatrix_x1", r, 1, false, shared_row);
}

void simt_ldmatrix_x2(uint32_t (&r)[2], const void *shared_row)
{
    load("simt_ldmatrix_x2", r, 2, false, shared_row);
}

void simt_ldmatrix_x4(uint32_t (&r)[4], const void *shared_row)
{
    load("simt_ldmatrix_x4", r, 4, false, shared_row);
}

void simt_ldmatrix_x1_trans(uint32_t (&r)[1], const void *shared_row)
{
    load("simt_ldmatrix_x1_trans", r, 1, true, shared_row);
}

void simt_ldmatrix_x2_trans(uint32_t (&r)[2], const void *shared_row)
{
    load("simt_ldmatrix_x2_trans", r, 2, true, shared_row);
}

void simt_ldmatrix_x4_trans(uint32_t (&r)[4], const void *shared_row)
{
    load("simt_ldmatrix_x4_trans", r, 4, true, shared_row);
}
