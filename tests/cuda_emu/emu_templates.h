/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_templates: the templates of the simt_ headers as g++ compiles them; what is not a template is
 * a function of the emulator's library. Include kernels/cuda/simt/simt.h instead.
 */
#pragma once

/* A kernel with its arguments, as a launch keeps it. */
template <class... P> struct emu_closure {
    void (*kernel)(P...);
    std::tuple<P...> arguments;

    /* As std::apply, but reads the arguments, which lie on the host's heap, without hooks. */
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void call(const emu_closure &closure,
                                                            std::index_sequence<I...>)
    {
        closure.kernel(std::get<I>(closure.arguments)...);
    }

    __attribute__((no_sanitize("thread"))) static void run(const void *closure)
    {
        call(*static_cast<const emu_closure *>(closure), std::index_sequence_for<P...>());
    }
};

template <class... P, class... A>
cudaError_t simt_launch_named(const char *text, void (*kernel)(P...), const simt_grid_t &at,
                              A... args)
{
    using closure_t = emu_closure<P...>;
    auto closure = std::make_shared<const closure_t>(
        closure_t{kernel, std::tuple<P...>(static_cast<P>(args)...)});
    return emu_enqueue({text, at.grid, at.block, at.shared_bytes, at.stream, at.overlaps_previous,
                        EMU_IS_CHECKED, closure_t::run, closure});
}

template <class T> T simt_shfl(T v, int lane, uint32_t mask)
{
    emu_shuffle_bytes(EMU_FROM_LANE, &v, sizeof(v), lane, mask);
    return v;
}

template <class T> T simt_shfl_xor(T v, int lane_bits, uint32_t mask)
{
    emu_shuffle_bytes(EMU_FROM_XOR, &v, sizeof(v), lane_bits, mask);
    return v;
}

template <class T> T simt_shfl_down(T v, int delta, uint32_t mask)
{
    emu_shuffle_bytes(EMU_FROM_DOWN, &v, sizeof(v), delta, mask);
    return v;
}

template <class T> T simt_shfl_up(T v, int delta, uint32_t mask)
{
    emu_shuffle_bytes(EMU_FROM_UP, &v, sizeof(v), delta, mask);
    return v;
}

template <int N, class T> void simt_shfl_xor_n(T (&v)[N], int lane_bits, uint32_t mask)
{
    emu_shuffle_bytes(EMU_FROM_XOR, v, sizeof(v), lane_bits, mask);
}

template <int N, class T> void simt_shfl_n(T (&v)[N], int lane, uint32_t mask)
{
    emu_shuffle_bytes(EMU_FROM_LANE, v, sizeof(v), lane, mask);
}

template <int N> void simt_warp_sum_n(float (&v)[N], int lanes)
{
    emu_butterfly(v, N, lanes, false);
}

template <int N> void simt_warp_max_n(float (&v)[N], int lanes)
{
    emu_butterfly(v, N, lanes, true);
}

template <int BYTES> void simt_cp_async(void *shared, const void *global)
{
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    emu_cp_async(shared, global, BYTES, BYTES);
}

template <int BYTES> void simt_cp_async_zfill(void *shared, const void *global, uint32_t valid)
{
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    emu_cp_async(shared, global, BYTES, valid);
}

template <int N> void simt_cp_async_wait(void)
{
    emu_cp_async_wait(N);
}

template <uint32_t TABLE> uint32_t simt_lop3(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d = 0;
    for (uint32_t row = 0; row < 8; row++) {
        if ((TABLE >> row & 1) != 0) {
            d |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
        }
    }
    return d;
}

template <int REGISTERS> void simt_registers_raise(void)
{
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0);
    emu_registers(REGISTERS);
}

template <int REGISTERS> void simt_registers_lower(void)
{
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0);
    emu_registers(REGISTERS);
}

template <int N> void simt_tma_store_wait_read(void)
{
    emu_tma_store_wait(N);
}

template <int N> void simt_tma_store_wait(void)
{
    emu_tma_store_wait(N);
}

template <int N> void simt_wgmma_wait(void)
{
    emu_wgmma_wait(N);
}

template <int N> void simt_wgmma_hold(float (&)[N])
{
}

template <int N, bool B_MN>
void simt_wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds)
{
    emu_wgmma({EMU_WGMMA_BF16, N, B_MN, adds, nullptr, a, b, d});
}

template <int N, bool B_MN>
void simt_wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool adds)
{
    emu_wgmma({EMU_WGMMA_BF16, N, B_MN, adds, a, 0, b, d});
}

template <int N, bool B_MN>
void simt_wgmma_f16(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds)
{
    emu_wgmma({EMU_WGMMA_F16, N, B_MN, adds, nullptr, a, b, d});
}

template <int N, bool B_MN>
void simt_wgmma_f16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool adds)
{
    emu_wgmma({EMU_WGMMA_F16, N, B_MN, adds, a, 0, b, d});
}

template <int N> void simt_wgmma_e4m3(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds)
{
    emu_wgmma({EMU_WGMMA_E4M3, N, false, adds, nullptr, a, b, d});
}

template <int N>
void simt_wgmma_e4m3(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool adds)
{
    emu_wgmma({EMU_WGMMA_E4M3, N, false, adds, a, 0, b, d});
}
