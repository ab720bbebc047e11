/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds of progress: on the agent's thread, or in xfer_progress. */
#include <assert.h>
#include <signal.h>

#include "base/clock.h"
#include "transport/xfer/xfer_agent_priv.h"
#include "transport/xfer/xfer_peer_priv.h"
#include "transport/xfer/xfer_request_priv.h"
#include "transport/xfer/xfer_stripe.h"

/* The thread stays up so long with nothing to do: about what being woken costs both sides (10 µs of
 * the waker's, where the sleeper's core is a virtual one and idle, and 20 to 25 µs until it runs), so
 * that waiting costs at most twice of what the better of sleeping and waiting would have. Not on the
 * core of who woke it: the scheduler likes to put a woken thread there, even where others are idle, and
 * the waker would get no further meanwhile. */
#define AWAKE_NS UINT64_C(30000)

/* ---- the lock, and who has it next ----------------------------------------------------------- */

void xfer_agent_enter(xfer_agent_t *agent)
{
    atomic_fetch_add(&agent->waiters, 1);
    pthread_mutex_lock(&agent->lock);
    atomic_fetch_sub(&agent->waiters, 1);
}

void xfer_agent_leave_idle(xfer_agent_t *agent)
{
    pthread_cond_broadcast(&agent->let_in); /* costs nothing while nobody waits */
    pthread_mutex_unlock(&agent->lock);
}

void xfer_agent_leave(xfer_agent_t *agent)
{
    xfer_route_close_lost(agent);
    xfer_agent_leave_idle(agent);
    xfer_sleep_wake(agent);
}

void xfer_agent_wait_for_end(xfer_agent_t *agent)
{
    xfer_route_close_lost(agent);
    pthread_cond_broadcast(&agent->let_in);
    xfer_sleep_wake(agent);
    pthread_cond_wait(&agent->ended, &agent->lock);
}

/*
 * A mutex goes to whoever is quickest, which is who just gave it back: rounds in a row would shut
 * everybody else out. So a round steps back for one waiter, and no longer: waiters in a row must
 * not shut out progress either.
 */
void xfer_agent_begin_round(xfer_agent_t *agent)
{
    pthread_mutex_lock(&agent->lock);
    if (atomic_load(&agent->waiters) > 0) {
        pthread_cond_wait(&agent->let_in, &agent->lock);
    }
}

void xfer_agent_end_round(xfer_agent_t *agent)
{
    pthread_mutex_unlock(&agent->lock);
}

/* ---- a round --------------------------------------------------------------------------------- */

/* False: nobody waits for a callback. Called without the lock. */
static bool call_ended(xfer_agent_t *agent)
{
    xfer_agent_enter(agent);
    const bool had_event = agent->has_event;
    agent->has_event = false;
    const bool did_call = xfer_request_call_ended(agent);
    xfer_agent_leave(agent);
    if (had_event && agent->on_event != NULL) {
        agent->on_event(agent->user);
    }
    return had_event || did_call;
}

static bool run_round(xfer_agent_t *agent)
{
    xfer_agent_begin_round(agent);
    bool has_moved = xfer_request_start_incoming(agent);
    for (size_t i = 0; i < agent->n_ways; i++) {
        xfer_way_t *way = &agent->ways[i];
        has_moved |= way->backend->progress(way->port);
    }
    has_moved |= xfer_stripe_poll(agent);
    xfer_route_close_lost(agent);
    const bool has_calls = agent->has_event || agent->called != NULL;
    xfer_agent_end_round(agent);
    if (has_calls) {
        has_moved |= call_ended(agent);
    }
    return has_moved;
}

bool xfer_progress(xfer_agent_t *agent, int timeout_ms)
{
    assert(!agent->has_thread);
    if (run_round(agent)) {
        return true;
    }
    if (timeout_ms == 0) {
        return false;
    }
    xfer_sleep(agent, timeout_ms);
    return run_round(agent);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void *run_worker(void *argument)
{
    xfer_agent_t *agent = argument;
    uint64_t last_moved_ns = 0;
    while (!atomic_load(&agent->is_stopping)) {
        if (run_round(agent)) {
            last_moved_ns = weft_clock_ns();
        } else if (weft_clock_ns() - last_moved_ns < AWAKE_NS &&
                   !xfer_sleep_took_wakers_core(agent)) {
            weft_cpu_relax();
        } else {
            xfer_sleep(agent, -1);
        }
    }
    return NULL;
}

weft_status_t xfer_worker_start(xfer_agent_t *agent)
{
    /* Signals are for the threads that the program made. */
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    agent->is_running = pthread_create(&agent->thread, NULL, run_worker, agent) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!agent->is_running) {
        return WEFT_ERR_NO_MEMORY;
    }
    pthread_setname_np(agent->thread, "weft-xfer");
    return WEFT_OK;
}

void xfer_worker_stop(xfer_agent_t *agent)
{
    if (!agent->is_running) {
        return;
    }
    atomic_store(&agent->is_stopping, true);
    xfer_sleep_wake(agent);
    pthread_join(agent->thread, NULL);
    agent->is_running = false;
}
