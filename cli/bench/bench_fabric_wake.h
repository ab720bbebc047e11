/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric_wake: the floor of posting to a thread that sleeps: one write to an eventfd that another
 * thread waits for with epoll, and which does nothing but to wait again.
 */
#pragma once

#include "base/diag.h"
#include "cli/bench/bench_figures.h"

/* n samples of what the write takes, pause_ns apart. */
weft_status_t bench_fabric_wake(uint32_t n, uint64_t pause_ns, bench_figures_t *figures,
                                weft_diag_t *diag);
