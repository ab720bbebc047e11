/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_gate.h"

#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

weft_status_t kv_gate_open(kv_gate_t *gate)
{
    atomic_init(&gate->is_waiting, false);
    gate->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return gate->fd < 0 ? WEFT_ERR_IO : WEFT_OK;
}

void kv_gate_close(kv_gate_t *gate)
{
    if (gate->fd >= 0) {
        close(gate->fd);
    }
    gate->fd = -1;
}

void kv_gate_announce(kv_gate_t *gate)
{
    atomic_store(&gate->is_waiting, true);
}

void kv_gate_leave(kv_gate_t *gate)
{
    uint64_t count;
    if (!atomic_exchange(&gate->is_waiting, false)) { /* somebody wakes us, or has */
        const ssize_t n = read(gate->fd, &count, sizeof(count));
        (void)n; /* not written yet: a later wait returns at once, which does no harm */
    }
}

void kv_gate_wait(kv_gate_t *gate, int timeout_ms)
{
    struct pollfd entry = {.fd = gate->fd, .events = POLLIN};
    poll(&entry, 1, timeout_ms);
    kv_gate_leave(gate);
}

bool kv_gate_wake(kv_gate_t *gate)
{
    const uint64_t one = 1;
    if (!atomic_load(&gate->is_waiting) || !atomic_exchange(&gate->is_waiting, false)) {
        return false;
    }
    const ssize_t n = write(gate->fd, &one, sizeof(one));
    (void)n; /* fails only when it is readable anyway */
    return true;
}
