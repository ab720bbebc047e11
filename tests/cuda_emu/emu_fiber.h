/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_fiber: stacks for the threads of a block and the switch between them. x86-64, System V.
 *
 * Threads  one OS thread at a time; whoever runs kernels holds the runtime's lock
 */
#pragma once

#include <cstddef>

/* Keeps the caller's registers on its stack and *save, goes on where `load` was kept. */
extern "C" void emu_fiber_switch(void **save, void *load);

/* A stack with a guard page below it; give returns it to the pool and may be called on itself if a
 * switch follows at once. */
void *emu_stack_take(void);
void emu_stack_give(void *stack);
/* Whether `address` lies in one of them, or in its guard page. */
bool emu_stack_holds(const void *address);
bool emu_stack_guards(const void *address);

/* What to load to run entry() on a fresh stack; it must never return. */
void *emu_fiber_prepare(void *stack, void (*entry)(void));
