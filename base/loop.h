/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop: one thread's events: file descriptors, timers, and calls posted by other threads.
 *
 * Threads  everything but weft_loop_post and weft_loop_stop is for the loop's own thread
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

typedef struct weft_loop weft_loop_t;
typedef struct weft_loop_watch weft_loop_watch_t;
typedef struct weft_loop_timer weft_loop_timer_t;

#define WEFT_LOOP_READ   UINT32_C(1)
#define WEFT_LOOP_WRITE  UINT32_C(2)
#define WEFT_LOOP_HANGUP UINT32_C(4) /* the peer closed; reported even when not asked for */

typedef void (*weft_loop_fn)(void *user);
typedef void (*weft_loop_fd_fn)(void *user, uint32_t events);

weft_status_t weft_loop_create(weft_loop_t **loop_out);
/* NULL is fine; watches and timers go with it, posts that have not run are dropped. */
void weft_loop_destroy(weft_loop_t *loop);

/* Runs until stop. A stop before run counts. */
weft_status_t weft_loop_run(weft_loop_t *loop);
void weft_loop_stop(weft_loop_t *loop); /* any thread, and signal-safe */

/* The only door between loops: fn runs on the loop's thread, in the order of the posts. */
weft_status_t weft_loop_post(weft_loop_t *loop, weft_loop_fn fn, void *user);

/*
 * fd stays the caller's and is watched once only (WEFT_ERR_EXISTS: dup it). Level-triggered. A
 * watch may be removed from within any callback; it is not called again.
 */
weft_status_t weft_loop_watch(weft_loop_t *loop, int fd, uint32_t events, weft_loop_fd_fn fn,
                              void *user, weft_loop_watch_t **watch_out);
void weft_loop_watch_events(weft_loop_watch_t *watch, uint32_t events); /* what to wait for now */
void weft_loop_unwatch(weft_loop_watch_t *watch);                       /* NULL is fine */

/* Calls fn once, delay_ns from now; set again to move it; a timer is off after it fired. */
weft_status_t weft_loop_timer_create(weft_loop_t *loop, weft_loop_fn fn, void *user,
                                     weft_loop_timer_t **timer_out);
void weft_loop_timer_set(weft_loop_timer_t *timer, uint64_t delay_ns);
void weft_loop_timer_clear(weft_loop_timer_t *timer);
void weft_loop_timer_destroy(weft_loop_timer_t *timer); /* NULL is fine */
