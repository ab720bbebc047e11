/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_fork: fork, for tests. An assertion that fails in the child, or a fault there, ends it: cmocka
 * would have it go on with the parent's tests, which fork in their turn.
 */
#pragma once

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static inline pid_t test_fork(void)
{
    const pid_t pid = fork();
    if (pid == 0) {
        const int faults[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGSYS};
        setenv("CMOCKA_TEST_ABORT", "1", 1);
        for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
            signal(faults[i], SIG_DFL);
        }
    }
    return pid;
}
