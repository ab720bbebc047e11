/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The functions that g++ -fsanitize=thread calls at every load and store of a kernel, in the place
 * of ThreadSanitizer's own, which is not linked.
 */
#include <cstddef>

#include "tests/cuda_emu/emu_shadow.h"

using emu::Access;

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
        read(address, bytes);                                                                      \
    }                                                                                              \
    extern "C" void __tsan_write##bytes(void *address)                                             \
    {                                                                                              \
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

/* Of the guard of a static variable in host code. */
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char *address, int)
{
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
