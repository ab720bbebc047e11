/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_sink.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"

#define NOBODY UINT64_MAX
/* What a pipe that polls as writable takes without blocking: PIPE_BUF of Linux. */
#define SURE_BYTES 4096

struct launch_sink {
    weft_loop_t *loop;
    int fd;
    launch_sink_events_t events;
    weft_loop_watch_t *watch; /* while something is pending */
    weft_buffer_t queue;
    size_t head;         /* of queue: written so far */
    uint64_t unfinished; /* owner of the line that stands open, or NOBODY */
    bool is_plain; /* a regular file or the like, which cannot be watched and never blocks long */
    bool is_socket;
    bool is_broken;
};

weft_status_t launch_sink_create(weft_loop_t *loop, int fd, const launch_sink_events_t *events,
                                 launch_sink_t **sink_out)
{
    launch_sink_t *sink = weft_zalloc(sizeof(*sink), "launch.sink");
    int type;
    socklen_t length = sizeof(type);
    if (sink == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    sink->loop = loop;
    sink->fd = fd;
    sink->events = *events;
    sink->unfinished = NOBODY;
    sink->is_socket = getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0;
    *sink_out = sink;
    return WEFT_OK;
}

void launch_sink_destroy(launch_sink_t *sink)
{
    if (sink != NULL) {
        weft_loop_unwatch(sink->watch);
        weft_buffer_free(&sink->queue);
        weft_free(sink);
    }
}

size_t launch_sink_pending(const launch_sink_t *sink)
{
    return sink->queue.length - sink->head;
}

static void unwatch(launch_sink_t *sink)
{
    weft_loop_unwatch(sink->watch);
    sink->watch = NULL;
}

static void drop_all(launch_sink_t *sink)
{
    weft_buffer_clear(&sink->queue);
    sink->head = 0;
    unwatch(sink);
}

static void break_off(launch_sink_t *sink, int error)
{
    sink->is_broken = true;
    drop_all(sink);
    sink->events.on_broken(sink->events.user, error);
}

/* Bytes written; 0: none now; -1: never again. */
static ssize_t write_some(launch_sink_t *sink, size_t n)
{
    const char *from = sink->queue.data + sink->head;
    const ssize_t written = sink->is_socket ? send(sink->fd, from, n, MSG_DONTWAIT | MSG_NOSIGNAL)
                                            : write(sink->fd, from, n);
    return written < 0 && (errno == EINTR || errno == EAGAIN) ? 0 : written;
}

static void advance(launch_sink_t *sink, size_t n)
{
    sink->head += n;
    if (sink->head == sink->queue.length) {
        drop_all(sink);
    } else if (sink->head > sink->queue.length / 2) {
        weft_buffer_drop_front(&sink->queue, sink->head);
        sink->head = 0;
    }
}

static void write_plain(launch_sink_t *sink)
{
    while (launch_sink_pending(sink) > 0) {
        const ssize_t n = write_some(sink, launch_sink_pending(sink));
        if (n < 0) {
            break_off(sink, errno);
            return;
        }
        advance(sink, (size_t)n);
    }
}

static void on_writable(void *user, uint32_t events)
{
    launch_sink_t *sink = user;
    const size_t pending = launch_sink_pending(sink);
    if ((events & (WEFT_LOOP_WRITE | WEFT_LOOP_HANGUP)) == 0) {
        return;
    }
    const ssize_t n = write_some(sink, pending < SURE_BYTES ? pending : SURE_BYTES);
    if (n < 0) {
        break_off(sink, errno);
    } else if (n > 0) {
        advance(sink, (size_t)n);
        sink->events.on_written(sink->events.user);
    }
}

/* Sees that what is pending will be written. */
static void wake(launch_sink_t *sink)
{
    if (sink->queue.is_failed) { /* lost for want of memory: as good as a reader that went */
        break_off(sink, ENOMEM);
    } else if (sink->watch != NULL || launch_sink_pending(sink) == 0) {
        return;
    } else if (sink->is_plain || weft_loop_watch(sink->loop, sink->fd, WEFT_LOOP_WRITE, on_writable,
                                                 sink, &sink->watch) < 0) {
        sink->is_plain = true; /* epoll takes no regular files */
        write_plain(sink);
    }
}

void launch_sink_end_line(launch_sink_t *sink)
{
    if (sink->unfinished != NOBODY && !sink->is_broken) {
        weft_buffer_append(&sink->queue, "\n", 1);
        wake(sink);
    }
    sink->unfinished = NOBODY;
}

void launch_sink_put(launch_sink_t *sink, uint64_t owner, const char *tag,
                     const launch_piece_t *piece)
{
    if (sink->is_broken) {
        return;
    }
    const bool is_taken_up = sink->unfinished == owner;
    if (!is_taken_up) {
        launch_sink_end_line(sink);
    }
    if (piece->begins_line || !is_taken_up) {
        weft_buffer_puts(&sink->queue, tag);
    }
    weft_buffer_append(&sink->queue, piece->bytes, piece->length);
    sink->unfinished = piece->ends_line ? NOBODY : owner;
    wake(sink);
}

void launch_sink_put_raw(launch_sink_t *sink, const char *bytes, size_t n)
{
    if (!sink->is_broken) {
        weft_buffer_append(&sink->queue, bytes, n);
        wake(sink);
    }
}
