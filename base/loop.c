/* SPDX-License-Identifier: Apache-2.0 */
#include "base/loop.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"

#define MAX_EVENTS  256
#define NOT_IN_HEAP SIZE_MAX

typedef struct call {
    weft_loop_fn fn;
    void *user;
} call_t;

typedef struct calls {
    call_t *items; /* [capacity] */
    size_t count;
    size_t capacity;
} calls_t;

struct weft_loop_watch {
    weft_loop_t *loop;
    int fd;
    weft_loop_fd_fn fn;
    void *user;
    weft_loop_watch_t *previous;
    weft_loop_watch_t *next;
};

struct weft_loop_timer {
    weft_loop_t *loop;
    uint64_t due_ns;
    size_t place; /* in the heap, or NOT_IN_HEAP */
    weft_loop_fn fn;
    void *user;
    weft_loop_timer_t *previous;
    weft_loop_timer_t *next;
};

struct weft_loop {
    int epoll_fd;
    int wake_fd;
    atomic_bool should_stop;
    pthread_mutex_t lock;
    calls_t posted;  /* guarded by lock */
    calls_t running; /* the loop's; swapped with posted, so that a post allocates only to grow */
    weft_loop_watch_t *watches;
    weft_loop_timer_t *timers;
    weft_loop_timer_t **heap; /* [heap_capacity] the earliest first; has room for every timer */
    size_t heap_count;
    size_t heap_capacity;
    size_t n_timers;
    struct epoll_event events[MAX_EVENTS]; /* of this round; unwatch() clears its own */
    int n_events;
};

static void wake(const weft_loop_t *loop)
{
    const uint64_t one = 1;
    /* Fails only when the counter is full, and then the loop wakes anyway. */
    ssize_t ignored = write(loop->wake_fd, &one, sizeof(one));
    (void)ignored;
}

static weft_status_t open_fds(weft_loop_t *loop)
{
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = loop};
    if (loop->epoll_fd < 0 || loop->wake_fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &event) != 0) {
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

weft_status_t weft_loop_create(weft_loop_t **loop_out)
{
    weft_loop_t *loop = weft_zalloc(sizeof(*loop), "loop");
    if (loop == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    pthread_mutex_init(&loop->lock, NULL);
    atomic_init(&loop->should_stop, false);
    const weft_status_t status = open_fds(loop);
    if (status < 0) {
        weft_loop_destroy(loop);
        return status;
    }
    *loop_out = loop;
    return WEFT_OK;
}

void weft_loop_destroy(weft_loop_t *loop)
{
    if (loop == NULL) {
        return;
    }
    while (loop->watches != NULL) {
        weft_loop_unwatch(loop->watches);
    }
    while (loop->timers != NULL) {
        weft_loop_timer_destroy(loop->timers);
    }
    if (loop->epoll_fd >= 0) {
        close(loop->epoll_fd);
    }
    if (loop->wake_fd >= 0) {
        close(loop->wake_fd);
    }
    weft_free(loop->posted.items);
    weft_free(loop->running.items);
    weft_free(loop->heap);
    pthread_mutex_destroy(&loop->lock);
    weft_free(loop);
}

void weft_loop_stop(weft_loop_t *loop)
{
    atomic_store(&loop->should_stop, true);
    wake(loop);
}

static weft_status_t calls_append(calls_t *calls, call_t call)
{
    if (calls->count == calls->capacity) {
        const size_t capacity = calls->capacity == 0 ? 64 : calls->capacity * 2;
        call_t *items = weft_realloc(calls->items, capacity * sizeof(*items), "loop.posts");
        if (items == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        calls->items = items;
        calls->capacity = capacity;
    }
    calls->items[calls->count++] = call;
    return WEFT_OK;
}

weft_status_t weft_loop_post(weft_loop_t *loop, weft_loop_fn fn, void *user)
{
    pthread_mutex_lock(&loop->lock);
    const bool was_empty = loop->posted.count == 0;
    const weft_status_t status = calls_append(&loop->posted, (call_t){fn, user});
    if (was_empty && status >= 0) {
        wake(loop); /* under the lock: after it the loop may be gone */
    }
    pthread_mutex_unlock(&loop->lock);
    return status;
}

static void run_posted(weft_loop_t *loop)
{
    uint64_t wakes;
    ssize_t ignored = read(loop->wake_fd, &wakes, sizeof(wakes)); /* before the posts are taken */
    (void)ignored;
    pthread_mutex_lock(&loop->lock);
    const calls_t calls = loop->posted;
    loop->posted = loop->running;
    pthread_mutex_unlock(&loop->lock);

    for (size_t i = 0; i < calls.count; i++) {
        calls.items[i].fn(calls.items[i].user);
    }
    loop->running = calls;
    loop->running.count = 0;
}

/* Timers: a binary heap by due time. */

static void heap_place(weft_loop_t *loop, size_t place, weft_loop_timer_t *timer)
{
    loop->heap[place] = timer;
    timer->place = place;
}

static void heap_move_up(weft_loop_t *loop, weft_loop_timer_t *timer)
{
    size_t place = timer->place;
    while (place > 0 && loop->heap[(place - 1) / 2]->due_ns > timer->due_ns) {
        heap_place(loop, place, loop->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    heap_place(loop, place, timer);
}

static void heap_move_down(weft_loop_t *loop, weft_loop_timer_t *timer)
{
    size_t place = timer->place;
    for (;;) {
        size_t child = 2 * place + 1;
        if (child >= loop->heap_count) {
            break;
        }
        if (child + 1 < loop->heap_count &&
            loop->heap[child + 1]->due_ns < loop->heap[child]->due_ns) {
            child++;
        }
        if (loop->heap[child]->due_ns >= timer->due_ns) {
            break;
        }
        heap_place(loop, place, loop->heap[child]);
        place = child;
    }
    heap_place(loop, place, timer);
}

weft_status_t weft_loop_timer_create(weft_loop_t *loop, weft_loop_fn fn, void *user,
                                     weft_loop_timer_t **timer_out)
{
    if (loop->n_timers == loop->heap_capacity) {
        const size_t capacity = loop->heap_capacity == 0 ? 16 : loop->heap_capacity * 2;
        weft_loop_timer_t **heap =
            weft_realloc(loop->heap, capacity * sizeof(weft_loop_timer_t *), "loop.heap");
        if (heap == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        loop->heap = heap;
        loop->heap_capacity = capacity;
    }
    weft_loop_timer_t *timer = weft_alloc(sizeof(*timer), "loop.timer");
    if (timer == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *timer = (weft_loop_timer_t){
        .loop = loop, .place = NOT_IN_HEAP, .fn = fn, .user = user, .next = loop->timers};
    if (timer->next != NULL) {
        timer->next->previous = timer;
    }
    loop->timers = timer;
    loop->n_timers++;
    *timer_out = timer;
    return WEFT_OK;
}

void weft_loop_timer_clear(weft_loop_timer_t *timer)
{
    weft_loop_t *loop = timer->loop;
    if (timer->place == NOT_IN_HEAP) {
        return;
    }
    weft_loop_timer_t *last = loop->heap[--loop->heap_count];
    if (last != timer) {
        heap_place(loop, timer->place, last);
        heap_move_up(loop, last);
        heap_move_down(loop, last);
    }
    timer->place = NOT_IN_HEAP;
}

void weft_loop_timer_set(weft_loop_timer_t *timer, uint64_t delay_ns)
{
    const uint64_t now = weft_clock_ns();
    weft_loop_timer_clear(timer);
    timer->due_ns = delay_ns > UINT64_MAX - now ? UINT64_MAX : now + delay_ns;
    heap_place(timer->loop, timer->loop->heap_count++, timer);
    heap_move_up(timer->loop, timer);
}

void weft_loop_timer_destroy(weft_loop_timer_t *timer)
{
    if (timer == NULL) {
        return;
    }
    weft_loop_timer_clear(timer);
    if (timer->previous != NULL) {
        timer->previous->next = timer->next;
    } else {
        timer->loop->timers = timer->next;
    }
    if (timer->next != NULL) {
        timer->next->previous = timer->previous;
    }
    timer->loop->n_timers--;
    weft_free(timer);
}

/* Those due at the start of the round only: one that sets itself to 0 starves nobody. */
static void run_timers(weft_loop_t *loop)
{
    const uint64_t now = weft_clock_ns();
    while (loop->heap_count > 0 && loop->heap[0]->due_ns <= now) {
        weft_loop_timer_t *timer = loop->heap[0];
        weft_loop_timer_clear(timer);
        timer->fn(timer->user);
    }
}

static int wait_ms(const weft_loop_t *loop)
{
    if (loop->heap_count == 0) {
        return -1;
    }
    const uint64_t now = weft_clock_ns();
    const uint64_t due = loop->heap[0]->due_ns;
    const uint64_t ms = due <= now ? 0 : (due - now + WEFT_NS_PER_MS - 1) / WEFT_NS_PER_MS;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

/* File descriptors. */

static uint32_t epoll_mask(uint32_t events)
{
    return ((events & WEFT_LOOP_READ) != 0 ? (uint32_t)EPOLLIN : 0) |
           ((events & WEFT_LOOP_WRITE) != 0 ? (uint32_t)EPOLLOUT : 0) | (uint32_t)EPOLLRDHUP;
}

static uint32_t loop_events(uint32_t mask)
{
    return ((mask & EPOLLIN) != 0 ? WEFT_LOOP_READ : 0) |
           ((mask & EPOLLOUT) != 0 ? WEFT_LOOP_WRITE : 0) |
           ((mask & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0 ? WEFT_LOOP_HANGUP : 0);
}

weft_status_t weft_loop_watch(weft_loop_t *loop, int fd, uint32_t events, weft_loop_fd_fn fn,
                              void *user, weft_loop_watch_t **watch_out)
{
    weft_loop_watch_t *watch = weft_alloc(sizeof(*watch), "loop.watch");
    if (watch == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *watch =
        (weft_loop_watch_t){.loop = loop, .fd = fd, .fn = fn, .user = user, .next = loop->watches};
    struct epoll_event event = {.events = epoll_mask(events), .data.ptr = watch};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        const int error = errno;
        weft_free(watch);
        return error == EEXIST                      ? WEFT_ERR_EXISTS
               : error == ENOMEM || error == ENOSPC ? WEFT_ERR_NO_MEMORY
                                                    : WEFT_ERR_INVALID;
    }
    if (watch->next != NULL) {
        watch->next->previous = watch;
    }
    loop->watches = watch;
    *watch_out = watch;
    return WEFT_OK;
}

void weft_loop_watch_events(weft_loop_watch_t *watch, uint32_t events)
{
    struct epoll_event event = {.events = epoll_mask(events), .data.ptr = watch};
    /* Cannot fail for a registered descriptor; one closed too early has no events any more. */
    (void)epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &event);
}

void weft_loop_unwatch(weft_loop_watch_t *watch)
{
    if (watch == NULL) {
        return;
    }
    weft_loop_t *loop = watch->loop;
    (void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    for (int i = 0; i < loop->n_events; i++) {
        if (loop->events[i].data.ptr == watch) {
            loop->events[i].data.ptr = NULL;
        }
    }
    if (watch->previous != NULL) {
        watch->previous->next = watch->next;
    } else {
        loop->watches = watch->next;
    }
    if (watch->next != NULL) {
        watch->next->previous = watch->previous;
    }
    weft_free(watch);
}

static void run_watches(weft_loop_t *loop)
{
    bool was_woken = false;
    for (int i = 0; i < loop->n_events; i++) {
        void *source = loop->events[i].data.ptr;
        const weft_loop_watch_t *watch = source;
        if (source == loop) {
            was_woken = true;
        } else if (watch != NULL) { /* NULL: unwatched in this round */
            watch->fn(watch->user, loop_events(loop->events[i].events));
        }
    }
    loop->n_events = 0;
    if (was_woken) {
        run_posted(loop);
    }
}

weft_status_t weft_loop_run(weft_loop_t *loop)
{
    while (!atomic_load(&loop->should_stop)) {
        loop->n_events = 0;
        const int n = epoll_wait(loop->epoll_fd, loop->events, MAX_EVENTS, wait_ms(loop));
        if (n < 0 && errno != EINTR) {
            return WEFT_ERR_IO;
        }
        loop->n_events = n < 0 ? 0 : n;
        run_watches(loop);
        run_timers(loop);
    }
    atomic_store(&loop->should_stop, false);
    return WEFT_OK;
}
