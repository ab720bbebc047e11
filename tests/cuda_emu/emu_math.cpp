/* SPDX-License-Identifier: Apache-2.0 */
/* simt_math.h, exactly where the device approximates. */
#include <bit>
#include <vector>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_numbers.h"

namespace emu
{

static std::vector<float> make_table(number_t type)
{
    std::vector<float> table(type == NUMBER_F16 ? 65536 : 256);
    for (uint32_t code = 0; code < table.size(); code++) {
        __half_raw raw;
        raw.x = static_cast<unsigned short>(code);
        if (type != NUMBER_F16) {
            raw = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(code),
                                          type == NUMBER_E4M3 ? __NV_E4M3 : __NV_E5M2);
        }
        table[code] = __half2float(__half(raw));
    }
    return table;
}

const float *number_table(number_t type)
{
    static const std::vector<float> f16 = make_table(NUMBER_F16);
    static const std::vector<float> e4m3 = make_table(NUMBER_E4M3);
    static const std::vector<float> e5m2 = make_table(NUMBER_E5M2);
    return type == NUMBER_F16 ? f16.data() : type == NUMBER_E4M3 ? e4m3.data() : e5m2.data();
}

template <class T> static uint32_t pack(T lo, T hi)
{
    uint16_t codes[2];
    memcpy(&codes[0], &lo, sizeof(lo));
    memcpy(&codes[1], &hi, sizeof(hi));
    return codes[0] | static_cast<uint32_t>(codes[1]) << 16;
}

template <class F> static uint32_t for_f16(uint32_t a, uint32_t b, uint32_t c, F f)
{
    float2 x = simt_unpack_f16(a), y = simt_unpack_f16(b), z = simt_unpack_f16(c);
    return pack(__double2half(f(x.x, y.x, z.x)), __double2half(f(x.y, y.y, z.y)));
}

template <class F> static uint32_t for_bf16(uint32_t a, uint32_t b, uint32_t c, F f)
{
    float2 x = simt_unpack_bf16(a), y = simt_unpack_bf16(b), z = simt_unpack_bf16(c);
    return pack(__double2bfloat16(f(x.x, y.x, z.x)), __double2bfloat16(f(x.y, y.y, z.y)));
}

} // namespace emu

using namespace emu;

float simt_exp2(float x)
{
    return exp2f(x);
}

float simt_log2(float x)
{
    return log2f(x);
}

float simt_rcp(float x)
{
    return 1.0f / x;
}

float simt_rsqrt(float x)
{
    return 1.0f / sqrtf(x);
}

float simt_tanh(float x)
{
    return tanhf(x);
}

uint32_t simt_pack_bf16(float lo, float hi)
{
    return pack(__float2bfloat16_rn(lo), __float2bfloat16_rn(hi));
}

uint32_t simt_pack_f16(float lo, float hi)
{
    return pack(__float2half_rn(lo), __float2half_rn(hi));
}

uint16_t simt_pack_e4m3(float lo, float hi)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
}

float2 simt_unpack_bf16(uint32_t pair)
{
    return make_float2(bf16_value(static_cast<uint16_t>(pair)),
                       bf16_value(static_cast<uint16_t>(pair >> 16)));
}

float2 simt_unpack_f16(uint32_t pair)
{
    const float *table = number_table(NUMBER_F16);
    return make_float2(table[pair & 0xffff], table[pair >> 16]);
}

float2 simt_unpack_e4m3(uint16_t pair)
{
    const float *table = number_table(NUMBER_E4M3);
    return make_float2(table[pair & 0xff], table[pair >> 8]);
}

uint32_t simt_widen_e4m3(uint16_t pair)
{
    const float2 v = simt_unpack_e4m3(pair);
    return simt_pack_f16(v.x, v.y);
}

float2 simt_unpack_e5m2(uint16_t pair)
{
    const float *table = number_table(NUMBER_E5M2);
    return make_float2(table[pair & 0xff], table[pair >> 8]);
}

/* Products of 11-bit (8-bit) significands are exact in f64; one rounding follows. */
uint32_t simt_fma_bf16(uint32_t a, uint32_t b, uint32_t c)
{
    return for_bf16(a, b, c, [](double x, double y, double z) { return fma(x, y, z); });
}

uint32_t simt_fma_f16(uint32_t a, uint32_t b, uint32_t c)
{
    return for_f16(a, b, c, [](double x, double y, double z) { return fma(x, y, z); });
}

uint32_t simt_sub_f16(uint32_t a, uint32_t b)
{
    return for_f16(a, b, 0, [](double x, double y, double) { return x - y; });
}

uint32_t simt_mul_f16(uint32_t a, uint32_t b)
{
    return for_f16(a, b, 0, [](double x, double y, double) { return x * y; });
}

uint32_t simt_mul_bf16(uint32_t a, uint32_t b)
{
    return for_bf16(a, b, 0, [](double x, double y, double) { return x * y; });
}

uint32_t simt_float_bits(float v)
{
    return std::bit_cast<uint32_t>(v);
}

float simt_bits_float(uint32_t v)
{
    return std::bit_cast<float>(v);
}

uint32_t simt_byte_perm(uint32_t lo, uint32_t hi, uint32_t selector)
{
    uint64_t bytes = static_cast<uint64_t>(hi) << 32 | lo;
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t which = selector >> 4 * i & 7;
        v |= static_cast<uint32_t>(bytes >> 8 * which & 0xff) << 8 * i;
    }
    return v;
}

int simt_popcount(uint32_t v)
{
    return std::popcount(v);
}

int simt_clz(uint32_t v)
{
    return std::countl_zero(v);
}

int simt_lowest_bit(uint32_t v)
{
    return v == 0 ? -1 : std::countr_zero(v);
}

uint32_t simt_mul_hi(uint32_t a, uint32_t b)
{
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

int32_t simt_dp4a(uint32_t a, uint32_t b, int32_t c)
{
    for (int i = 0; i < 4; i++) {
        c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    }
    return c;
}
