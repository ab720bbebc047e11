/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/emu_fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace
{
constexpr size_t guard_bytes = 4096;
constexpr size_t stack_bytes = 64 << 10;
constexpr size_t slot_bytes = guard_bytes + stack_bytes;
constexpr size_t max_stacks = 16384; /* each takes two mappings, of which Linux allows 65530 */

uint8_t *slab;
size_t made;
std::vector<void *> idle;

void reserve_slab()
{
    void *memory = mmap(nullptr, slot_bytes * max_stacks, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("cuda_emu: no address space for stacks");
        abort();
    }
    slab = static_cast<uint8_t *>(memory);
}

void *make_stack()
{
    if (slab == nullptr) {
        reserve_slab();
    }
    uint8_t *stack = slab + made * slot_bytes + guard_bytes;
    if (made == max_stacks || mprotect(stack, stack_bytes, PROT_READ | PROT_WRITE) != 0) {
        fprintf(stderr, "cuda_emu: more than %zu threads wait at once\n", made);
        abort();
    }
    made++;
    return stack;
}
} // namespace

/* The six registers that a function must keep, then the return address. */
__asm__(".text\n"
        ".globl emu_fiber_switch\n"
        ".type emu_fiber_switch, @function\n"
        "emu_fiber_switch:\n"
        "    push %rbp\n"
        "    push %rbx\n"
        "    push %r12\n"
        "    push %r13\n"
        "    push %r14\n"
        "    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n"
        "    pop %r14\n"
        "    pop %r13\n"
        "    pop %r12\n"
        "    pop %rbx\n"
        "    pop %rbp\n"
        "    ret\n"
        ".size emu_fiber_switch, .-emu_fiber_switch\n");

void *emu_stack_take(void)
{
    if (idle.empty()) {
        return make_stack();
    }
    void *stack = idle.back();
    idle.pop_back();
    return stack;
}

void emu_stack_give(void *stack)
{
    idle.push_back(stack);
}

static size_t offset_in_slab(const void *address)
{
    return static_cast<size_t>(static_cast<const uint8_t *>(address) - slab);
}

bool emu_stack_holds(const void *address)
{
    return slab != nullptr && offset_in_slab(address) < made * slot_bytes;
}

bool emu_stack_guards(const void *address)
{
    return emu_stack_holds(address) && offset_in_slab(address) % slot_bytes < guard_bytes;
}

void *emu_fiber_prepare(void *stack, void (*entry)(void))
{
    /* Tops at different cache sets: with equal ones every switch would miss. */
    size_t index = offset_in_slab(stack) / slot_bytes;
    uint8_t *top = static_cast<uint8_t *>(stack) + stack_bytes - index % 16 * 192;
    void **words = reinterpret_cast<void **>(top) - 8;
    words[6] = reinterpret_cast<void *>(entry);
    words[7] = nullptr; /* where entry() would return to; also aligns its stack */
    return words;
}
