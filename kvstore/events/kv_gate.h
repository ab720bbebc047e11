/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_gate: one thread waits, another wakes it, and only then makes a system call.
 *
 * The waiter announces itself, looks once more whether there is nothing to do, and then waits on
 * fd. The other makes its change with a sequentially consistent store and calls wake: it either
 * sees the announcement, or its change is seen by the second look.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

#include "base/status.h"

typedef struct kv_gate {
    int fd; /* an eventfd; readable: go */
    atomic_bool is_waiting;
} kv_gate_t;

weft_status_t kv_gate_open(kv_gate_t *gate);
void kv_gate_close(kv_gate_t *gate);

void kv_gate_announce(kv_gate_t *gate);
void kv_gate_wait(kv_gate_t *gate, int timeout_ms); /* -1: for ever */
void kv_gate_leave(kv_gate_t *gate); /* after a wait on fd elsewhere, or none: all is as before */
bool kv_gate_wake(kv_gate_t *gate);  /* any thread; whether there was somebody to wake */
