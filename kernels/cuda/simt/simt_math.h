/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_math: arithmetic with a name of its own. Part of simt.h.
 *
 * The approximate functions are within 2 ulp or so; the emulation computes them exactly, so results
 * agree within a tolerance only. fmaf, fmaxf, expf, sqrtf, tanhf and the like are those of C.
 */
#pragma once

SIMT_FN float simt_exp2(float x); /* 2^x; -inf gives 0 */
SIMT_FN float simt_log2(float x);
SIMT_FN float simt_rcp(float x);
SIMT_FN float simt_rsqrt(float x);
SIMT_FN float simt_tanh(float x); /* absolute error 2^-11 */

/* Two f32 as a register of two 16-bit (8-bit) ones, rounded to nearest even; lo in the low half. */
SIMT_FN uint32_t simt_pack_bf16(float lo, float hi);
SIMT_FN uint32_t simt_pack_f16(float lo, float hi);
SIMT_FN uint16_t simt_pack_e4m3(float lo, float hi); /* saturates at ±448 */
SIMT_FN float2 simt_unpack_bf16(uint32_t pair);
SIMT_FN float2 simt_unpack_f16(uint32_t pair);
SIMT_FN float2 simt_unpack_e4m3(uint16_t pair);
SIMT_FN float2 simt_unpack_e5m2(uint16_t pair);
SIMT_FN uint32_t simt_widen_e4m3(uint16_t pair); /* to two f16, exact; in software before sm_89 */

/* Packed arithmetic on such registers; fma rounds once. */
SIMT_FN uint32_t simt_fma_bf16(uint32_t a, uint32_t b, uint32_t c);
SIMT_FN uint32_t simt_fma_f16(uint32_t a, uint32_t b, uint32_t c);
SIMT_FN uint32_t simt_sub_f16(uint32_t a, uint32_t b);
SIMT_FN uint32_t simt_mul_f16(uint32_t a, uint32_t b);
SIMT_FN uint32_t simt_mul_bf16(uint32_t a, uint32_t b);

/* Bits. */
SIMT_FN uint32_t simt_float_bits(float v);
SIMT_FN float simt_bits_float(uint32_t v);
/* Byte i of the result is byte (selector >> 4i) & 7 of the 8 bytes hi:lo. */
SIMT_FN uint32_t simt_byte_perm(uint32_t lo, uint32_t hi, uint32_t selector);
/* TABLE: f(0xF0, 0xCC, 0xAA), as for lop3. */
template <uint32_t TABLE> SIMT_FN uint32_t simt_lop3(uint32_t a, uint32_t b, uint32_t c);
SIMT_FN int simt_popcount(uint32_t v);
SIMT_FN int simt_clz(uint32_t v);        /* 32 for 0 */
SIMT_FN int simt_lowest_bit(uint32_t v); /* -1 for 0 */
SIMT_FN uint32_t simt_mul_hi(uint32_t a, uint32_t b);
/* c + the dot product of four signed bytes. */
SIMT_FN int32_t simt_dp4a(uint32_t a, uint32_t b, int32_t c);
