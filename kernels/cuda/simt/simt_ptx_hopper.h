/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_ptx_hopper: simt_mbarrier.h and simt_tma.h as nvcc compiles them. On older devices the
 * names are declared only, so that a use outside SIMT_HOPPER does not compile.
 */
#pragma once

#if SIMT_HOPPER

SIMT_FN void simt_mbarrier_init(simt_mbarrier_t *barrier, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(simt_shared_address(barrier)),
                 "r"(count)
                 : "memory");
}

SIMT_FN void simt_mbarrier_fence_init(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    simt_fence_async_shared();
}

SIMT_FN void simt_mbarrier_arrive(simt_mbarrier_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(simt_shared_address(barrier))
                 : "memory");
}

SIMT_FN void simt_mbarrier_expect(simt_mbarrier_t *barrier, uint32_t bytes)
{
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(
                     simt_shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

SIMT_FN void simt_mbarrier_arrive_expect(simt_mbarrier_t *barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     simt_shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

SIMT_FN void simt_cp_async_arrive(simt_mbarrier_t *barrier)
{
    asm volatile(
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(simt_shared_address(barrier))
        : "memory");
}

SIMT_FN bool simt_mbarrier_try(simt_mbarrier_t *barrier, uint32_t parity)
{
    uint32_t is_done;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(is_done)
                 : "r"(simt_shared_address(barrier)), "r"(parity)
                 : "memory");
    return is_done != 0;
}

SIMT_FN void simt_mbarrier_wait(simt_mbarrier_t *barrier, uint32_t parity)
{
    while (!simt_mbarrier_try(barrier, parity)) {
    }
}

SIMT_FN void simt_fence_async_shared(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

SIMT_FN bool simt_elect(void)
{
    uint32_t is_elected;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(is_elected));
    return is_elected != 0;
}

template <int REGISTERS> SIMT_FN void simt_registers_raise(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> SIMT_FN void simt_registers_lower(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

SIMT_FN void simt_tma_load(void *shared, const void *global, uint32_t bytes,
                           simt_mbarrier_t *barrier, uint64_t l2)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(simt_shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(simt_shared_address(barrier)), "l"(l2)
                 : "memory");
}

/* One box; `at` names its coordinates, which are the operands from %4 on. */
#define SIMT_PTX_LOAD(rank, at, ...)                                                               \
    asm volatile(                                                                                  \
        "cp.async.bulk.tensor." rank ".shared::cluster.global.mbarrier::complete_tx::bytes"        \
        ".L2::cache_hint [%0], [%1, {" at "}], [%2], %3;" ::"r"(simt_shared_address(shared)),      \
        "l"(map), "r"(simt_shared_address(barrier)), "l"(l2), __VA_ARGS__                          \
        : "memory")

SIMT_FN void simt_tma_load_2d(void *shared, const simt_tensor_map_t *map, int x, int y,
                              simt_mbarrier_t *barrier, uint64_t l2)
{
    SIMT_PTX_LOAD("2d", "%4, %5", "r"(x), "r"(y));
}

SIMT_FN void simt_tma_load_3d(void *shared, const simt_tensor_map_t *map, int x, int y, int z,
                              simt_mbarrier_t *barrier, uint64_t l2)
{
    SIMT_PTX_LOAD("3d", "%4, %5, %6", "r"(x), "r"(y), "r"(z));
}

SIMT_FN void simt_tma_load_4d(void *shared, const simt_tensor_map_t *map, int x, int y, int z,
                              int w, simt_mbarrier_t *barrier, uint64_t l2)
{
    SIMT_PTX_LOAD("4d", "%4, %5, %6, %7", "r"(x), "r"(y), "r"(z), "r"(w));
}

SIMT_FN void simt_tma_load_5d(void *shared, const simt_tensor_map_t *map, int x, int y, int z,
                              int w, int v, simt_mbarrier_t *barrier, uint64_t l2)
{
    SIMT_PTX_LOAD("5d", "%4, %5, %6, %7, %8", "r"(x), "r"(y), "r"(z), "r"(w), "r"(v));
}
#undef SIMT_PTX_LOAD

SIMT_FN void simt_tma_prefetch_map(const simt_tensor_map_t *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

SIMT_FN void simt_tma_prefetch_l2(const void *global, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

SIMT_FN void simt_tma_store(void *global, const void *shared, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
                 "r"(simt_shared_address(shared)), "r"(bytes)
                 : "memory");
}

SIMT_FN void simt_tma_store_2d(const simt_tensor_map_t *map, int x, int y, const void *shared)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
        "r"(simt_shared_address(shared)), "r"(x), "r"(y)
        : "memory");
}

SIMT_FN void simt_tma_store_3d(const simt_tensor_map_t *map, int x, int y, int z,
                               const void *shared)
{
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], "
                 "[%1];" ::"l"(map),
                 "r"(simt_shared_address(shared)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

SIMT_FN void simt_tma_store_commit(void)
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

template <int N> SIMT_FN void simt_tma_store_wait_read(void)
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

template <int N> SIMT_FN void simt_tma_store_wait(void)
{
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

#endif /* SIMT_HOPPER */
