/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How an agent sleeps, and is woken.
 *
 * No wake-up is lost: a poster first pushes its request and then looks at is_sleeping; a sleeper
 * first sets is_sleeping and then looks for requests. All four are sequentially consistent, so at
 * least one of the two sees what the other did. What is done under the lock instead (a backend was
 * given work) comes either before the ports are armed, which then tell of it, or after, when
 * is_sleeping is seen.
 */
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/xfer/xfer_stripe.h"

static weft_status_t watch(xfer_agent_t *agent, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(agent->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? WEFT_OK : WEFT_ERR_IO;
}

weft_status_t xfer_sleep_init(xfer_agent_t *agent)
{
    agent->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    agent->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (agent->epoll_fd < 0 || agent->wake_fd < 0) {
        return WEFT_ERR_IO;
    }
    return watch(agent, agent->wake_fd);
}

void xfer_sleep_fini(xfer_agent_t *agent)
{
    if (agent->epoll_fd >= 0) {
        close(agent->epoll_fd);
    }
    if (agent->wake_fd >= 0) {
        close(agent->wake_fd);
    }
}

void xfer_sleep_wake(xfer_agent_t *agent)
{
    /* The exchange lets one of many posters pay for the system call. */
    if (atomic_load(&agent->is_sleeping) && atomic_exchange(&agent->is_sleeping, false)) {
        const uint64_t one = 1;
        atomic_store_explicit(&agent->waker_cpu, sched_getcpu(), memory_order_relaxed);
        (void)!write(agent->wake_fd, &one, sizeof(one)); /* fails only when already readable */
    }
}

static void clear_wake(xfer_agent_t *agent)
{
    uint64_t count;
    (void)!read(agent->wake_fd, &count, sizeof(count)); /* another sleeper may have been first */
}

/* Every port will make its fd readable. A port whose fd cannot be watched keeps us awake. */
static bool arm_ways(xfer_agent_t *agent)
{
    for (size_t i = 0; i < agent->n_ways; i++) {
        xfer_way_t *way = &agent->ways[i];
        int fd = -1;
        if (!way->backend->arm(way->port, &fd)) {
            return false;
        }
        if (fd >= 0 && way->fd != fd) {
            if (watch(agent, fd) < 0) {
                return false;
            }
            way->fd = fd;
        }
    }
    return true;
}

/* timeout_ms becomes what may be slept. */
static bool begin_sleep(xfer_agent_t *agent, int *timeout_ms)
{
    xfer_agent_begin_round(agent);
    agent->sleepers++;
    atomic_store_explicit(&agent->waker_cpu, -1, memory_order_relaxed);
    atomic_store(&agent->is_sleeping, true);
    const bool is_idle = atomic_load(&agent->incoming) == NULL && agent->called == NULL &&
                         !agent->has_event && !atomic_load(&agent->is_stopping) && arm_ways(agent);
    *timeout_ms = xfer_stripe_sleep_ms(agent, *timeout_ms);
    xfer_agent_end_round(agent);
    return is_idle;
}

/* Agents without a thread may have several sleepers: who wakes leaves the sign for the others. */
static void end_sleep(xfer_agent_t *agent)
{
    pthread_mutex_lock(&agent->lock);
    agent->sleepers--;
    atomic_store(&agent->is_sleeping, agent->sleepers > 0);
    pthread_mutex_unlock(&agent->lock);
}

bool xfer_sleep_took_wakers_core(const xfer_agent_t *agent)
{
    const int cpu = atomic_load_explicit(&agent->waker_cpu, memory_order_relaxed);
    return cpu >= 0 && cpu == sched_getcpu();
}

void xfer_sleep(xfer_agent_t *agent, int timeout_ms)
{
    struct epoll_event events[XFER_MAX_WAYS + 1];
    if (begin_sleep(agent, &timeout_ms)) {
        const int n = epoll_wait(agent->epoll_fd, events, XFER_MAX_WAYS + 1, timeout_ms);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == agent->wake_fd) {
                clear_wake(agent);
            }
        }
    }
    end_sleep(agent);
}
