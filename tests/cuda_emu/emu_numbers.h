/* SPDX-License-Identifier: Apache-2.0 */
/* emu_numbers: 16- and 8-bit codes to f32, by tables made once. Internal to the emulator. */
#pragma once

#include <cstdint>
#include <cstring>

namespace emu
{

typedef enum number { NUMBER_BF16, NUMBER_F16, NUMBER_E4M3, NUMBER_E5M2 } number_t;

/* Entry of each code: 65536 of F16, 256 of E4M3 and E5M2; of BF16 there is none. */
const float *number_table(number_t type);

inline float bf16_value(uint16_t code)
{
    uint32_t bits = static_cast<uint32_t>(code) << 16;
    float v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

inline float value_16(number_t type, uint16_t code)
{
    return type == NUMBER_BF16 ? bf16_value(code) : number_table(NUMBER_F16)[code];
}

} // namespace emu
