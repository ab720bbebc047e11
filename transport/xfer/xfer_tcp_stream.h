/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_tcp_stream: one connection: frames and payloads out of and into a socket that never blocks.
 *
 * Payloads go between the socket and the memory they belong to; only frames, and payload that came
 * with them by chance, pass through buffers. Sums are made of what one call has just sent or
 * received: the kernel's copy has brought it into the cache. Made before the copy they would cost
 * the way from memory.
 */
#pragma once

#include "transport/xfer/xfer_tcp_pieces.h"
#include "transport/xfer/xfer_tcp_wire.h"

typedef struct xfer_tcp_stream {
    int fd;            /* -1: closed */
    int epoll;         /* that watches fd */
    void *watch;       /* event data there */
    uint32_t events;   /* asked for there */
    bool has_sums;     /* of payloads */
    bool is_drained;   /* the last receive took all there was */
    bool is_receiving; /* a payload, then its trailer */
    uint32_t received_sum;
    uint32_t sent_sum; /* of the payload that is being, or was last, sent; set to 0 before */
    uint8_t *out;      /* [XFER_TCP_OUT_BYTES], what goes before `send` */
    size_t out_first;
    size_t out_end;
    uint8_t *in; /* [XFER_TCP_IN_BYTES] */
    size_t in_first;
    size_t in_end;
    xfer_tcp_pieces_t send;
    xfer_tcp_pieces_t receive;
} xfer_tcp_stream_t;

#define XFER_TCP_OUT_BYTES ((size_t)160 * 1024)
#define XFER_TCP_IN_BYTES  ((size_t)80 * 1024)

/* What came. */
typedef struct xfer_tcp_event {
    bool is_trailer;
    bool is_intact;         /* of a trailer: the payload is what was sent */
    xfer_tcp_frame_t frame; /* else */
    xfer_tcp_trailer_t trailer;
    const uint8_t *body; /* [frame.body_bytes], until the next call */
} xfer_tcp_event_t;

/* Zeroed memory with fd -1 is a closed stream. fd is taken over, also on failure. */
weft_status_t xfer_tcp_stream_open(xfer_tcp_stream_t *stream, int fd, int epoll, void *watch);
void xfer_tcp_stream_close(xfer_tcp_stream_t *stream); /* the buffers stay */
void xfer_tcp_stream_fini(xfer_tcp_stream_t *stream);

/* Nothing may be put behind a payload that is being sent; else there is room for n bytes. */
bool xfer_tcp_stream_has_room(const xfer_tcp_stream_t *stream, size_t n);
void xfer_tcp_stream_put(xfer_tcp_stream_t *stream, const void *bytes, size_t n);
/* frame.body_bytes of body; frame is in the machine's order. */
void xfer_tcp_stream_put_frame(xfer_tcp_stream_t *stream, xfer_tcp_frame_t frame, const void *body);
void xfer_tcp_stream_put_trailer(xfer_tcp_stream_t *stream, xfer_tcp_trailer_t trailer);

/* One try. OK: all is sent; PENDING: there is more; WEFT_ERR_PEER_GONE. */
weft_status_t xfer_tcp_stream_send(xfer_tcp_stream_t *stream);
/* One try. OK: something came; PENDING: nothing; WEFT_ERR_PEER_GONE. */
weft_status_t xfer_tcp_stream_receive(xfer_tcp_stream_t *stream);
/* Takes n bytes of what came, before there are frames; NULL: there are not as many. */
const uint8_t *xfer_tcp_stream_peek(const xfer_tcp_stream_t *stream, size_t n);
void xfer_tcp_stream_skip(xfer_tcp_stream_t *stream, size_t n);
/* OK: event_out; PENDING: receive more; WEFT_ERR_MALFORMED or WEFT_ERR_CORRUPT: close it. */
weft_status_t xfer_tcp_stream_next(xfer_tcp_stream_t *stream, xfer_tcp_event_t *event_out);
/* After the frame of a payload: `receive` says where it goes; its trailer is an event. */
void xfer_tcp_stream_expect(xfer_tcp_stream_t *stream);

/* Wakes the epoll when there is something to receive, and with wants_room when more can be sent. */
void xfer_tcp_stream_watch(xfer_tcp_stream_t *stream, bool wants_room);
