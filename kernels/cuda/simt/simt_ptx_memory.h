/* SPDX-License-Identifier: Apache-2.0 */
/* simt_ptx_memory: simt_memory.h, simt_async.h and simt_math.h as nvcc compiles them. */
#pragma once

SIMT_FN uint4 simt_load_16(const void *global)
{
    return *static_cast<const uint4 *>(global);
}

SIMT_FN uint4 simt_load_16_const(const void *global)
{
    return __ldg(static_cast<const uint4 *>(global));
}

SIMT_FN uint4 simt_load_16_once(const void *global)
{
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(global), "l"(SIMT_L2_EVICT_FIRST));
    return v;
}

SIMT_FN void simt_store_16(void *global, uint4 v)
{
    *static_cast<uint4 *>(global) = v;
}

SIMT_FN void simt_store_16_once(void *global, uint4 v)
{
    __stcs(static_cast<uint4 *>(global), v);
}

SIMT_FN uint2 simt_load_8_const(const void *global)
{
    return __ldg(static_cast<const uint2 *>(global));
}

SIMT_FN uint32_t simt_load_4_const(const void *global)
{
    return __ldg(static_cast<const uint32_t *>(global));
}

SIMT_FN void simt_prefetch_l2(const void *global)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

SIMT_FN void simt_fence_device(void)
{
    __threadfence();
}

SIMT_FN void simt_fence_system(void)
{
    __threadfence_system();
}

SIMT_FN uint32_t simt_load_acquire(const uint32_t *flag)
{
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
    return v;
}

SIMT_FN void simt_store_release(uint32_t *flag, uint32_t v)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(v) : "memory");
}

SIMT_FN void simt_spin(void)
{
    __nanosleep(20);
}

SIMT_FN uint64_t simt_clock_ns(void)
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

SIMT_FN uint32_t simt_atomic_add(uint32_t *p, uint32_t v)
{
    return atomicAdd(p, v);
}

SIMT_FN int32_t simt_atomic_add(int32_t *p, int32_t v)
{
    return atomicAdd(p, v);
}

SIMT_FN uint64_t simt_atomic_add(uint64_t *p, uint64_t v)
{
    return atomicAdd(reinterpret_cast<unsigned long long *>(p), (unsigned long long)v);
}

SIMT_FN float simt_atomic_add(float *p, float v)
{
    return atomicAdd(p, v);
}

SIMT_FN uint32_t simt_atomic_max(uint32_t *p, uint32_t v)
{
    return atomicMax(p, v);
}

SIMT_FN int32_t simt_atomic_max(int32_t *p, int32_t v)
{
    return atomicMax(p, v);
}

SIMT_FN uint64_t simt_atomic_max(uint64_t *p, uint64_t v)
{
    return atomicMax(reinterpret_cast<unsigned long long *>(p), (unsigned long long)v);
}

SIMT_FN uint32_t simt_atomic_min(uint32_t *p, uint32_t v)
{
    return atomicMin(p, v);
}

SIMT_FN uint32_t simt_atomic_or(uint32_t *p, uint32_t v)
{
    return atomicOr(p, v);
}

SIMT_FN uint32_t simt_atomic_exchange(uint32_t *p, uint32_t v)
{
    return atomicExch(p, v);
}

SIMT_FN uint32_t simt_atomic_cas(uint32_t *p, uint32_t expected, uint32_t v)
{
    return atomicCAS(p, expected, v);
}

template <int BYTES> SIMT_FN void simt_cp_async(void *shared, const void *global)
{
    if constexpr (BYTES == 16) {
        asm volatile(
            "cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(simt_shared_address(shared)),
            "l"(global)
            : "memory");
    } else {
        static_assert(BYTES == 4 || BYTES == 8);
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(simt_shared_address(shared)),
                     "l"(global), "n"(BYTES)
                     : "memory");
    }
}

template <int BYTES>
SIMT_FN void simt_cp_async_zfill(void *shared, const void *global, uint32_t valid)
{
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                         simt_shared_address(shared)),
                     "l"(global), "r"(valid)
                     : "memory");
    } else {
        static_assert(BYTES == 4 || BYTES == 8);
        asm volatile(
            "cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(simt_shared_address(shared)),
            "l"(global), "n"(BYTES), "r"(valid)
            : "memory");
    }
}

SIMT_FN void simt_cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> SIMT_FN void simt_cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

SIMT_FN float simt_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

SIMT_FN float simt_log2(float x)
{
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

SIMT_FN float simt_rcp(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

SIMT_FN float simt_rsqrt(float x)
{
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

SIMT_FN float simt_tanh(float x)
{
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

SIMT_FN uint32_t simt_pack_bf16(float lo, float hi)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}

SIMT_FN uint32_t simt_pack_f16(float lo, float hi)
{
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}

SIMT_FN uint16_t simt_pack_e4m3(float lo, float hi)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
}

SIMT_FN float2 simt_unpack_bf16(uint32_t pair)
{
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

SIMT_FN float2 simt_unpack_f16(uint32_t pair)
{
    __half2 h;
    memcpy(&h, &pair, sizeof(h));
    return __half22float2(h);
}

SIMT_FN float2 simt_unpack_e4m3(uint16_t pair)
{
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
}

SIMT_FN uint32_t simt_widen_e4m3(uint16_t pair)
{
    const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
    return (uint32_t)h.x | (uint32_t)h.y << 16;
}

SIMT_FN float2 simt_unpack_e5m2(uint16_t pair)
{
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E5M2)));
}

SIMT_FN uint32_t simt_fma_bf16(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

SIMT_FN uint32_t simt_fma_f16(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

SIMT_FN uint32_t simt_sub_f16(uint32_t a, uint32_t b)
{
    uint32_t d;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

SIMT_FN uint32_t simt_mul_f16(uint32_t a, uint32_t b)
{
    uint32_t d;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

/* sm_80 has no mul.bf16x2; a · b + (-0) is the same number. */
SIMT_FN uint32_t simt_mul_bf16(uint32_t a, uint32_t b)
{
    return simt_fma_bf16(a, b, 0x80008000u);
}

SIMT_FN uint32_t simt_float_bits(float v)
{
    return __float_as_uint(v);
}

SIMT_FN float simt_bits_float(uint32_t v)
{
    return __uint_as_float(v);
}

SIMT_FN uint32_t simt_byte_perm(uint32_t lo, uint32_t hi, uint32_t selector)
{
    return __byte_perm(lo, hi, selector);
}

template <uint32_t TABLE> SIMT_FN uint32_t simt_lop3(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return d;
}

SIMT_FN int simt_popcount(uint32_t v)
{
    return __popc(v);
}

SIMT_FN int simt_clz(uint32_t v)
{
    return __clz((int)v);
}

SIMT_FN int simt_lowest_bit(uint32_t v)
{
    return __ffs((int)v) - 1;
}

SIMT_FN uint32_t simt_mul_hi(uint32_t a, uint32_t b)
{
    return __umulhi(a, b);
}

SIMT_FN int32_t simt_dp4a(uint32_t a, uint32_t b, int32_t c)
{
    return __dp4a((int)a, (int)b, c);
}
