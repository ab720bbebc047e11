/* SPDX-License-Identifier: Apache-2.0 */
/* simt_memory.h: wide accesses, order between blocks, atomics. */
#include <ctime>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_shadow.h"

using namespace emu;

template <class T> static T load(const void *global, const char *who)
{
    if (reinterpret_cast<uintptr_t>(global) % sizeof(T) != 0) {
        fail(cudaErrorMisalignedAddress, "%s(%p): not aligned", who, global);
    }
    shadow_access(global, sizeof(T), Access::read, who);
    T v;
    memcpy(&v, global, sizeof(v));
    return v;
}

template <class T> static void store(void *global, T v, const char *who)
{
    if (reinterpret_cast<uintptr_t>(global) % sizeof(T) != 0) {
        fail(cudaErrorMisalignedAddress, "%s(%p): not aligned", who, global);
    }
    shadow_access(global, sizeof(T), Access::write, who);
    memcpy(global, &v, sizeof(v));
}

uint4 simt_load_16(const void *global)
{
    return load<uint4>(global, "simt_load_16");
}

uint4 simt_load_16_const(const void *global)
{
    return load<uint4>(global, "simt_load_16_const");
}

uint4 simt_load_16_once(const void *global)
{
    return load<uint4>(global, "simt_load_16_once");
}

void simt_store_16(void *global, uint4 v)
{
    store(global, v, "simt_store_16");
}

void simt_store_16_once(void *global, uint4 v)
{
    store(global, v, "simt_store_16_once");
}

uint2 simt_load_8_const(const void *global)
{
    return load<uint2>(global, "simt_load_8_const");
}

uint32_t simt_load_4_const(const void *global)
{
    return load<uint32_t>(global, "simt_load_4_const");
}

void simt_prefetch_l2(const void *)
{
}

/* ---- order ---------------------------------------------------------------------------------- */

void simt_fence_device(void)
{
    shadow_fence_device();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void simt_fence_system(void)
{
    shadow_fence_device();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

uint32_t simt_load_acquire(const uint32_t *flag)
{
    shadow_access(flag, sizeof(*flag), Access::atomic, "simt_load_acquire");
    uint32_t v = __atomic_load_n(flag, __ATOMIC_ACQUIRE);
    shadow_acquire_global(flag);
    return v;
}

void simt_store_release(uint32_t *flag, uint32_t v)
{
    shadow_access(flag, sizeof(*flag), Access::atomic, "simt_store_release");
    shadow_release_global(flag, false);
    __atomic_store_n(flag, v, __ATOMIC_RELEASE);
}

void simt_spin(void)
{
    spin_here();
}

uint64_t simt_clock_ns(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return static_cast<uint64_t>(at.tv_sec) * 1000000000u + static_cast<uint64_t>(at.tv_nsec);
}

/* ---- atomics: also against other processes, whose memory this may be ------------------------- */

/* f(old) is what is stored. */
template <class T, class F> static T update(T *p, const char *who, F f)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    using bits_t = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) {
        fail(cudaErrorMisalignedAddress, "%s(%p): not aligned", who, static_cast<void *>(p));
    }
    shadow_access(p, sizeof(T), Access::atomic, who);
    shadow_release_global(p, true);
    bits_t *cell = reinterpret_cast<bits_t *>(p);
    bits_t old_bits = __atomic_load_n(cell, __ATOMIC_RELAXED);
    bits_t new_bits;
    T old;
    do {
        memcpy(&old, &old_bits, sizeof(old));
        T next = f(old);
        memcpy(&new_bits, &next, sizeof(next));
    } while (!__atomic_compare_exchange_n(cell, &old_bits, new_bits, false, __ATOMIC_SEQ_CST,
                                          __ATOMIC_RELAXED));
    shadow_acquire_global(p);
    return old;
}

uint32_t simt_atomic_add(uint32_t *p, uint32_t v)
{
    return update(p, "simt_atomic_add", [v](uint32_t old) { return old + v; });
}

int32_t simt_atomic_add(int32_t *p, int32_t v)
{
    return update(p, "simt_atomic_add", [v](int32_t old) {
        return static_cast<int32_t>(static_cast<uint32_t>(old) + static_cast<uint32_t>(v));
    });
}

uint64_t simt_atomic_add(uint64_t *p, uint64_t v)
{
    return update(p, "simt_atomic_add", [v](uint64_t old) { return old + v; });
}

float simt_atomic_add(float *p, float v)
{
    return update(p, "simt_atomic_add", [v](float old) { return old + v; });
}

uint32_t simt_atomic_max(uint32_t *p, uint32_t v)
{
    return update(p, "simt_atomic_max", [v](uint32_t old) { return old > v ? old : v; });
}

int32_t simt_atomic_max(int32_t *p, int32_t v)
{
    return update(p, "simt_atomic_max", [v](int32_t old) { return old > v ? old : v; });
}

uint64_t simt_atomic_max(uint64_t *p, uint64_t v)
{
    return update(p, "simt_atomic_max", [v](uint64_t old) { return old > v ? old : v; });
}

uint32_t simt_atomic_min(uint32_t *p, uint32_t v)
{
    return update(p, "simt_atomic_min", [v](uint32_t old) { return old < v ? old : v; });
}

uint32_t simt_atomic_or(uint32_t *p, uint32_t v)
{
    return update(p, "simt_atomic_or", [v](uint32_t old) { return old | v; });
}

uint32_t simt_atomic_exchange(uint32_t *p, uint32_t v)
{
    return update(p, "simt_atomic_exchange", [v](uint32_t) { return v; });
}

uint32_t simt_atomic_cas(uint32_t *p, uint32_t expected, uint32_t v)
{
    return update(p, "simt_atomic_cas",
                  [expected, v](uint32_t old) { return old == expected ? v : old; });
}
