/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_tcp_stream.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/crc32c.h"

/*
 * How much is read beyond the payload that is expected. Behind a large one just its trailer and the
 * next frame, so that no payload takes the way through the buffer; else a handful of small ones.
 */
#define LARGE_PAYLOAD ((size_t)16 * 1024)
#define LARGE_BEHIND  (sizeof(xfer_tcp_trailer_t) + sizeof(xfer_tcp_frame_t))
#define SMALL_BEHIND  ((size_t)8 * 1024)

weft_status_t xfer_tcp_stream_open(xfer_tcp_stream_t *stream, int fd, int epoll, void *watch)
{
    if (stream->out == NULL) {
        stream->out = weft_alloc(XFER_TCP_OUT_BYTES, "xfer_tcp.out");
    }
    if (stream->in == NULL) {
        stream->in = weft_alloc(XFER_TCP_IN_BYTES, "xfer_tcp.in");
    }
    stream->fd = fd;
    stream->epoll = epoll;
    stream->watch = watch;
    stream->events = EPOLLIN;
    stream->is_receiving = false;
    stream->is_drained = true;
    stream->out_first = stream->out_end = 0;
    stream->in_first = stream->in_end = 0;
    xfer_tcp_pieces_clear(&stream->send);
    xfer_tcp_pieces_clear(&stream->receive);
    struct epoll_event event = {.events = stream->events, .data.ptr = watch};
    if (stream->out == NULL || stream->in == NULL ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        xfer_tcp_stream_close(stream);
        return WEFT_ERR_NO_MEMORY;
    }
    return WEFT_OK;
}

void xfer_tcp_stream_close(xfer_tcp_stream_t *stream)
{
    if (stream->fd >= 0) {
        close(stream->fd);
    }
    stream->fd = -1;
}

void xfer_tcp_stream_fini(xfer_tcp_stream_t *stream)
{
    xfer_tcp_stream_close(stream);
    weft_free(stream->out);
    weft_free(stream->in);
    stream->out = stream->in = NULL;
}

bool xfer_tcp_stream_has_room(const xfer_tcp_stream_t *stream, size_t n)
{
    return stream->send.left == 0 &&
           XFER_TCP_OUT_BYTES - (stream->out_end - stream->out_first) >= n;
}

void xfer_tcp_stream_put(xfer_tcp_stream_t *stream, const void *bytes, size_t n)
{
    if (n == 0) {
        return;
    }
    if (XFER_TCP_OUT_BYTES - stream->out_end < n) {
        stream->out_end -= stream->out_first;
        memmove(stream->out, stream->out + stream->out_first, stream->out_end);
        stream->out_first = 0;
    }
    assert(XFER_TCP_OUT_BYTES - stream->out_end >= n);
    memcpy(stream->out + stream->out_end, bytes, n);
    stream->out_end += n;
}

void xfer_tcp_stream_put_frame(xfer_tcp_stream_t *stream, xfer_tcp_frame_t frame, const void *body)
{
    const uint32_t body_bytes = frame.body_bytes;
    xfer_tcp_wire_put_frame(&frame, body);
    xfer_tcp_stream_put(stream, &frame, sizeof(frame));
    xfer_tcp_stream_put(stream, body, body_bytes);
}

void xfer_tcp_stream_put_trailer(xfer_tcp_stream_t *stream, xfer_tcp_trailer_t trailer)
{
    xfer_tcp_wire_put_trailer(&trailer);
    xfer_tcp_stream_put(stream, &trailer, sizeof(trailer));
}

weft_status_t xfer_tcp_stream_send(xfer_tcp_stream_t *stream)
{
    xfer_tcp_pieces_t *pieces = &stream->send;
    const size_t before = stream->out_end - stream->out_first;
    const size_t total = before + pieces->left;
    uint32_t first = pieces->first;
    if (total == 0) {
        return WEFT_OK;
    }
    if (before > 0) {
        pieces->iov[--first] = (struct iovec){stream->out + stream->out_first, before};
    }
    const struct msghdr message = {.msg_iov = &pieces->iov[first],
                                   .msg_iovlen = pieces->end - first};
    const ssize_t n = sendmsg(stream->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
        return errno == EAGAIN || errno == EINTR ? WEFT_PENDING : WEFT_ERR_PEER_GONE;
    }
    const size_t of_buffer = (size_t)n < before ? (size_t)n : before;
    stream->out_first += of_buffer;
    if (stream->out_first == stream->out_end) {
        stream->out_first = stream->out_end = 0;
    }
    xfer_tcp_pieces_advance(pieces, (size_t)n - of_buffer,
                            stream->has_sums ? &stream->sent_sum : NULL);
    return (size_t)n == total ? WEFT_OK : WEFT_PENDING;
}

/* Room behind what was read and not yet understood: its rest may need all of the buffer. */
static struct iovec room_behind(xfer_tcp_stream_t *stream)
{
    if (stream->in_first > 0) {
        stream->in_end -= stream->in_first;
        memmove(stream->in, stream->in + stream->in_first, stream->in_end);
        stream->in_first = 0;
    }
    size_t n = XFER_TCP_IN_BYTES - stream->in_end;
    if (stream->receive.left > LARGE_PAYLOAD) {
        n = LARGE_BEHIND;
    } else if (stream->in_end < sizeof(xfer_tcp_frame_t)) {
        n = SMALL_BEHIND;
    }
    return (struct iovec){stream->in + stream->in_end, n};
}

weft_status_t xfer_tcp_stream_receive(xfer_tcp_stream_t *stream)
{
    xfer_tcp_pieces_t *pieces = &stream->receive;
    const struct iovec behind = room_behind(stream);
    const size_t expected = pieces->left;
    pieces->iov[pieces->end] = behind;
    struct msghdr message = {.msg_iov = &pieces->iov[pieces->first],
                             .msg_iovlen = pieces->end - pieces->first + 1};
    const ssize_t n = recvmsg(stream->fd, &message, MSG_DONTWAIT);
    if (n <= 0) {
        const bool is_later = n < 0 && (errno == EAGAIN || errno == EINTR);
        stream->is_drained = true;
        return is_later ? WEFT_PENDING : WEFT_ERR_PEER_GONE;
    }
    const size_t of_payload = (size_t)n < expected ? (size_t)n : expected;
    xfer_tcp_pieces_advance(pieces, of_payload, stream->has_sums ? &stream->received_sum : NULL);
    stream->in_end += (size_t)n - of_payload;
    stream->is_drained = (size_t)n < expected + behind.iov_len;
    return WEFT_OK;
}

const uint8_t *xfer_tcp_stream_peek(const xfer_tcp_stream_t *stream, size_t n)
{
    return stream->in_end - stream->in_first >= n ? stream->in + stream->in_first : NULL;
}

void xfer_tcp_stream_skip(xfer_tcp_stream_t *stream, size_t n)
{
    assert(stream->in_end - stream->in_first >= n);
    stream->in_first += n;
}

void xfer_tcp_stream_expect(xfer_tcp_stream_t *stream)
{
    stream->is_receiving = true;
    stream->received_sum = 0;
}

/* Payload that was read into the buffer goes where it belongs. */
static void take_buffered(xfer_tcp_stream_t *stream)
{
    xfer_tcp_pieces_t *pieces = &stream->receive;
    while (pieces->left > 0 && stream->in_first < stream->in_end) {
        const struct iovec *iov = &pieces->iov[pieces->first];
        const size_t there = stream->in_end - stream->in_first;
        const size_t n = there < iov->iov_len ? there : iov->iov_len;
        memcpy(iov->iov_base, stream->in + stream->in_first, n);
        stream->in_first += n;
        xfer_tcp_pieces_advance(pieces, n, stream->has_sums ? &stream->received_sum : NULL);
    }
}

static weft_status_t next_trailer(xfer_tcp_stream_t *stream, xfer_tcp_event_t *event)
{
    take_buffered(stream);
    const uint8_t *wire = xfer_tcp_stream_peek(stream, sizeof(event->trailer));
    if (stream->receive.left > 0 || wire == NULL) {
        return WEFT_PENDING;
    }
    const weft_status_t status = xfer_tcp_wire_get_trailer(wire, &event->trailer);
    if (status < 0) {
        return status;
    }
    xfer_tcp_stream_skip(stream, sizeof(event->trailer));
    stream->is_receiving = false;
    event->is_trailer = true;
    event->is_intact = !stream->has_sums || event->trailer.payload_sum == stream->received_sum;
    return WEFT_OK;
}

weft_status_t xfer_tcp_stream_next(xfer_tcp_stream_t *stream, xfer_tcp_event_t *event_out)
{
    if (stream->is_receiving) {
        return next_trailer(stream, event_out);
    }
    const uint8_t *wire = xfer_tcp_stream_peek(stream, sizeof(event_out->frame));
    if (wire == NULL) {
        return WEFT_PENDING;
    }
    weft_status_t status = xfer_tcp_wire_get_frame(wire, &event_out->frame);
    if (status < 0) {
        return status;
    }
    const size_t n = sizeof(event_out->frame) + event_out->frame.body_bytes;
    if (xfer_tcp_stream_peek(stream, n) == NULL) {
        return WEFT_PENDING;
    }
    event_out->is_trailer = false;
    event_out->body = wire + sizeof(event_out->frame);
    xfer_tcp_stream_skip(stream, n);
    return xfer_tcp_wire_check_body(&event_out->frame, event_out->body);
}

void xfer_tcp_stream_watch(xfer_tcp_stream_t *stream, bool wants_room)
{
    const uint32_t events = EPOLLIN | (wants_room ? EPOLLOUT : 0);
    if (stream->fd >= 0 && events != stream->events) {
        struct epoll_event event = {.events = events, .data.ptr = stream->watch};
        (void)epoll_ctl(stream->epoll, EPOLL_CTL_MOD, stream->fd, &event);
        stream->events = events;
    }
}
