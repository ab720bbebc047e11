/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_shared: memory of one block. Part of simt.h.
 *
 *   SIMT_SHARED(float, sums, [8][32]);    an array (or with `[1]` a single value), 128-byte aligned
 *   SIMT_DYN_SHARED(uint8_t, tiles);      a pointer to the launch's shared_bytes, 1024-byte aligned
 *
 * Both begin with undefined contents (the emulation: NaNs). At most one SIMT_DYN_SHARED a kernel;
 * carve it with pointer arithmetic. A tile that TMA or wgmma swizzles lies at a multiple of 1024.
 */
#pragma once

#ifdef __CUDACC__
#define SIMT_SHARED(type, name, dims) __shared__ __align__(128) type name dims
#define SIMT_DYN_SHARED(type, name)                                                                \
    extern __shared__ __align__(1024) unsigned char simt_dynamic_shared[];                         \
    type *name = reinterpret_cast<type *>(simt_dynamic_shared)
#else
#define SIMT_SHARED(type, name, dims)                                                              \
    static char name##_tag;                                                                        \
    typedef type name##_array dims;                                                                \
    name##_array &name =                                                                           \
        *static_cast<name##_array *>(emu_shared_slot(&name##_tag, sizeof(name##_array), #name))
#define SIMT_DYN_SHARED(type, name) type *name = static_cast<type *>(emu_shared_dynamic())
#endif

/* The address of shared memory as instructions and descriptors count it: a 32-bit offset. */
SIMT_FN uint32_t simt_shared_address(const void *shared);

/* Bytes that a block of every GPU since sm_80 may have in all; of sm_86, sm_89 and sm_120 no more. */
#define SIMT_LEAST_SHARED_BYTES (99 << 10)
