/* SPDX-License-Identifier: Apache-2.0 */
/* bench_machine: what a measurement was made on. */
#pragma once

#include <stddef.h>

/* The processor's name, from /proc; "" when it has none. */
void bench_machine_cpu(char *name, size_t size);
