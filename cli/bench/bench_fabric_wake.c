/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_wake.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

typedef struct sleeper {
    int epoll;
    int event;
    atomic_bool is_stopping;
    pthread_t thread;
} sleeper_t;

static void *sleep_and_wake(void *argument)
{
    sleeper_t *sleeper = argument;
    while (!atomic_load(&sleeper->is_stopping)) {
        struct epoll_event event;
        uint64_t count;
        if (epoll_wait(sleeper->epoll, &event, 1, -1) == 1) {
            (void)!read(sleeper->event, &count, sizeof(count));
        }
    }
    return NULL;
}

static void wake(const sleeper_t *sleeper)
{
    const uint64_t one = 1;
    (void)!write(sleeper->event, &one, sizeof(one)); /* fails only when already readable */
}

static weft_status_t start(sleeper_t *sleeper, weft_diag_t *diag)
{
    struct epoll_event event = {.events = EPOLLIN};
    sleeper->epoll = epoll_create1(EPOLL_CLOEXEC);
    sleeper->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (sleeper->epoll < 0 || sleeper->event < 0 ||
        epoll_ctl(sleeper->epoll, EPOLL_CTL_ADD, sleeper->event, &event) != 0 ||
        pthread_create(&sleeper->thread, NULL, sleep_and_wake, sleeper) != 0) {
        return weft_diag(diag, WEFT_ERR_IO, "a thread to be woken: %s", strerror(errno));
    }
    return WEFT_OK;
}

static void stop(sleeper_t *sleeper)
{
    atomic_store(&sleeper->is_stopping, true);
    wake(sleeper);
    pthread_join(sleeper->thread, NULL);
}

static weft_status_t measure(const sleeper_t *sleeper, uint32_t n, uint64_t pause_ns,
                             bench_figures_t *figures)
{
    const struct timespec pause = {(time_t)(pause_ns / WEFT_NS_PER_SECOND),
                                   (long)(pause_ns % WEFT_NS_PER_SECOND)};
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; status >= 0 && i < n; i++) {
        nanosleep(&pause, NULL);
        const uint64_t start_ns = weft_clock_ns();
        wake(sleeper);
        status =
            bench_figures_note(figures, "wake a sleeping thread, nothing else", "s",
                               (double)(weft_clock_ns() - start_ns) / (double)WEFT_NS_PER_SECOND);
    }
    return status;
}

weft_status_t bench_fabric_wake(uint32_t n, uint64_t pause_ns, bench_figures_t *figures,
                                weft_diag_t *diag)
{
    sleeper_t sleeper = {.epoll = -1, .event = -1};
    weft_status_t status = start(&sleeper, diag);
    if (status >= 0) {
        status = measure(&sleeper, n, pause_ns, figures);
        stop(&sleeper);
    }
    if (sleeper.epoll >= 0) {
        close(sleeper.epoll);
    }
    if (sleeper.event >= 0) {
        close(sleeper.event);
    }
    return status;
}
