/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The functions that g++ -fsanitize=thread calls at every load and store of a kernel, in the place
 * of ThreadSanitizer's own, which is not linked.
 */
#include <cstddef>
#include <cstdint>

#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_shadow.h"

using emu::Access;

/* A GPU takes an access of n bytes at multiples of n only. */
static void check_aligned(void *address, size_t bytes)
{
    if (emu::now != nullptr && reinterpret_cast<uintptr_t>(address) % bytes != 0) {
        emu::fail(cudaErrorMisalignedAddress, "%zu bytes at %p: not aligned", bytes, address);
    }
}

static void read(void *address, size_t bytes)
{
    emu::shadow_access(address, bytes, Access::read, "a load");
}

static void write(void *address, size_t bytes)
{
    emu::shadow_access(address, bytes, Access::write, "a store");
}

#define HOOKS(bytes)                                                                               \
    extern "C" void __tsan_read##bytes(void *address)                                              \
    {                                                                                              \
        check_aligned(address, bytes);                                                             \
        read(address, bytes);                                                                      \
    }                                                                                              \
    extern "C" void __tsan_write##bytes(void *address)                                             \
    {                                                                                              \
        check_aligned(address, bytes);                                                             \
        write(address, bytes);                                                                     \
    }                                                                                              \
    extern "C" void __tsan_unaligned_read##bytes(void *address)                                    \
    {                                                                                              \
        read(address, bytes);                                                                      \
    }                                                                                              \
    extern "C" void __tsan_unaligned_write##bytes(void *address)                                   \
    {                                                                                              \
        write(address, bytes);                                                                     \
    }

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" void __tsan_read_range(void *address, size_t bytes)
{
    read(address, bytes);
}

extern "C" void __tsan_write_range(void *address, size_t bytes)
{
    write(address, bytes);
}

extern "C" void __tsan_init(void)
{
}

extern "C" void __tsan_func_entry(void *)
{
}

extern "C" void __tsan_func_exit(void)
{
}

extern "C" void __tsan_vptr_read(void *)
{
}

extern "C" void __tsan_vptr_update(void *, void *)
{
}

/* Of host code in a .cu file: the guards of static variables, the counts of shared pointers. */
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char *address, int)
{
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}

extern "C" unsigned __tsan_atomic32_fetch_add(volatile unsigned *address, unsigned v, int)
{
    return __atomic_fetch_add(address, v, __ATOMIC_ACQ_REL);
}

extern "C" unsigned __tsan_atomic32_fetch_sub(volatile unsigned *address, unsigned v, int)
{
    return __atomic_fetch_sub(address, v, __ATOMIC_ACQ_REL);
}

extern "C" unsigned __tsan_atomic32_load(const volatile unsigned *address, int)
{
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
