/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_tcp_priv: what the files of the tcp backend share.
 *
 *     xfer_tcp.c        the table and the port: regions, events, time
 *     xfer_tcp_hosts.c  addresses of this machine, the listening socket
 *     xfer_tcp_link.c   the asking side: connecting, being cut, giving up
 *     xfer_tcp_ask.c    its operations, asked for by slices
 *     xfer_tcp_slice.c  one slice
 *     xfer_tcp_note.c   its notifications
 *     xfer_tcp_stage.c  host memory that a GPU's takes its way through
 *     xfer_tcp_guest.c  the answering side: who comes in, sessions
 *     xfer_tcp_serve.c  its answers
 */
#pragma once

#include "base/clock.h"
#include "transport/xfer/tcp/xfer_tcp_stage.h"
#include "transport/xfer/tcp/xfer_tcp_stream.h"
#include "transport/xfer/xfer_backend.h"

#define XFER_TCP_NEVER UINT64_MAX

typedef struct xfer_tcp_port xfer_tcp_port_t;
typedef struct xfer_tcp_link xfer_tcp_link_t;
typedef struct xfer_tcp_guest xfer_tcp_guest_t;

/* What an event of the port's epoll is about; the first member of each. */
typedef enum xfer_tcp_watch {
    XFER_TCP_WATCH_LISTENER,
    XFER_TCP_WATCH_TIMER,
    XFER_TCP_WATCH_LINK,
    XFER_TCP_WATCH_GUEST,
    XFER_TCP_WATCH_VRAM,
} xfer_tcp_watch_t;

/* ---- port ------------------------------------------------------------------------------------ */

typedef struct xfer_tcp_region {
    uint32_t number; /* grows; never used again */
    uint64_t addr;
    uint64_t bytes;
    bool is_vram;
} xfer_tcp_region_t;

/* A region of the peer. */
typedef struct xfer_tcp_import {
    uint32_t number;
    uint64_t addr;
    uint64_t bytes;
} xfer_tcp_import_t;

/* What a peer's link is here, so that nothing is told twice: lives on between connections. */
typedef struct xfer_tcp_session {
    struct xfer_tcp_session *next;
    uint8_t id[16];
    uint64_t attempt;        /* of its last connection */
    uint64_t sequence;       /* of the last notification told */
    xfer_tcp_guest_t *guest; /* NULL: between connections */
    uint64_t ends_at;        /* then */
} xfer_tcp_session_t;

typedef struct xfer_tcp_settings {
    const char *host; /* NULL: any */
    uint16_t port;    /* 0: any */
    bool has_sums;
    uint64_t patience_ns;  /* without any progress, then a peer is gone */
    uint32_t silence_ms;   /* without an answer from its kernel, then a connection is cut */
    uint32_t window_bytes; /* asked for and not yet here, of one link and priority */
    uint32_t slice_bytes;
} xfer_tcp_settings_t;

struct xfer_tcp_port {
    xfer_port_t base;
    xfer_tcp_watch_t listener_watch;
    xfer_tcp_watch_t timer_watch;
    xfer_tcp_settings_t settings;
    int epoll;
    int timer;
    int listener;
    uint16_t number; /* listened on */
    uint16_t n_hosts;
    xfer_tcp_host_t hosts[XFER_TCP_MAX_HOSTS];
    uint8_t token[XFER_TCP_TOKEN_BYTES];
    uint8_t machine[16];

    xfer_vram_t *vram; /* NULL: no memory of a GPU was mapped */
    xfer_tcp_watch_t vram_watch;
    xfer_tcp_region_t **regions; /* [n_regions], by number */
    size_t n_regions;
    size_t max_regions;
    uint32_t next_region;

    xfer_tcp_link_t *links;
    xfer_tcp_link_t *dirty; /* to look at in the next progress, without an event */
    xfer_tcp_guest_t *guests;
    unsigned n_strangers; /* guests that have not said who they are */
    xfer_tcp_session_t *sessions;
    size_t n_sessions;

    bool is_in_progress;
    xfer_tcp_link_t *dead_links; /* closed meanwhile; events may still name them */
    xfer_tcp_guest_t *dead_guests;
    uint64_t turn_ends;    /* progress returns soon after */
    uint64_t tick_at;      /* a deadline, or earlier */
    uint64_t timer_at;     /* what the timer is set to */
    uint64_t deaf_until;   /* no descriptor for a caller; 0: listens */
    uint64_t hushed_until; /* complaints about strangers are held back */
    uint64_t n_hushed;
    uint8_t *scratch; /* [XFER_TCP_SCRATCH_BYTES], what nobody wants is read to */
    uint8_t *zeros;   /* [XFER_TCP_SCRATCH_BYTES], sent for memory that is no longer registered */
};

#define XFER_TCP_SCRATCH_BYTES ((size_t)64 * 1024)

/* A deadline moved to an earlier time. */
void xfer_tcp_wake_at(xfer_tcp_port_t *port, uint64_t at);
bool xfer_tcp_turn_is_over(const xfer_tcp_port_t *port);
/* NULL: [offset, +bytes) is not, or no longer, in a region of that number. *is_vram_io becomes true for
 * a GPU's memory; without it such is not found. */
void *xfer_tcp_find_memory(const xfer_tcp_port_t *port, const xfer_tcp_piece_t *piece,
                           bool *is_vram_io);
/* Closed ones are freed when nothing can name them any more. */
void xfer_tcp_bury_link(xfer_tcp_port_t *port, xfer_tcp_link_t *link);
void xfer_tcp_bury_guest(xfer_tcp_port_t *port, xfer_tcp_guest_t *guest);
/* One line a second at most. */
void xfer_tcp_complain(xfer_tcp_port_t *port, const char *format, ...) WEFT_PRINTF(2, 3);

/* ---- hosts ----------------------------------------------------------------------------------- */

/* Fills in listener, number, hosts and machine. */
weft_status_t xfer_tcp_listen(xfer_tcp_port_t *port, weft_diag_t *diag);
/* Non-blocking, with the options that both ends set. Negative: errno says why. */
int xfer_tcp_connect_to(const xfer_tcp_host_t *host, uint16_t port_number, uint32_t silence_ms);
void xfer_tcp_set_options(int fd, uint32_t silence_ms);
const char *xfer_tcp_host_text(const xfer_tcp_host_t *host, char text[64]);

/* ---- the asking side ------------------------------------------------------------------------- */

/* Where the words of an operation are; see xfer_tcp_ask.c. */
enum {
    XFER_TCP_OP_FLYING, /* its slices in use */
    XFER_TCP_OP_STATUS, /* how it ends when it is let go (weft_status_t); 0 while all is well */
    XFER_TCP_OP_NOTE,   /* its notification, a pointer */
    XFER_TCP_OP_PLACE,  /* xfer_tcp_place_t */
    XFER_TCP_OP_LIMIT,  /* of a cancelled write: when the connection is cut for it */
    XFER_TCP_OP_BATCH,  /* of the GPU that has to end before it does; 0: none */
};

typedef enum xfer_tcp_place {
    XFER_TCP_ISSUING, /* there is more to ask for; by priority */
    XFER_TCP_WAITING, /* all is asked for */
    XFER_TCP_LANDING, /* all came; the GPU has not yet taken it */
    XFER_TCP_NOTING,  /* its notification waits to be sent */
    XFER_TCP_ENDED,   /* ends in the next progress */
    XFER_TCP_N_PLACES
} xfer_tcp_place_t;

typedef struct xfer_tcp_ops {
    xfer_op_t *head;
    xfer_op_t *tail;
} xfer_tcp_ops_t;

typedef enum xfer_tcp_slice_state {
    XFER_TCP_FREE,
    XFER_TCP_DUE,     /* to be asked for, again */
    XFER_TCP_SENDING, /* a write whose payload is being sent */
    XFER_TCP_ASKED,
} xfer_tcp_slice_state_t;

typedef struct xfer_tcp_slice {
    xfer_op_t *op;   /* NULL: nobody waits for it any more */
    size_t position; /* its first extent, */
    uint64_t offset; /* of which so many bytes come before */
    uint32_t n_extents;
    uint32_t bytes;
    uint8_t state;
    uint8_t priority;
    uint8_t tries;
    bool is_write;
    bool has_to_cancel;
    unsigned slot; /* where its bytes to be written are, or will be; 0: in place */
} xfer_tcp_slice_t;

typedef struct xfer_tcp_note {
    struct xfer_tcp_note *next;
    xfer_op_t *op; /* ends when it is sent; NULL: none, or it has */
    uint64_t sequence;
    size_t bytes;
    size_t capacity;
    uint8_t data[];
} xfer_tcp_note_t;

typedef struct xfer_tcp_notes {
    xfer_tcp_note_t *head;   /* not yet confirmed */
    xfer_tcp_note_t **tail;  /* where the next one goes */
    xfer_tcp_note_t *unsent; /* the first that is to be sent on this connection */
    xfer_tcp_note_t *free;   /* kept, so that posting allocates nothing */
    size_t n;
    size_t n_free;
    size_t bytes;
    uint64_t sequence; /* of the last one */
} xfer_tcp_notes_t;

typedef enum xfer_tcp_link_state {
    XFER_TCP_RESTING, /* until rests_until, then the hosts are tried again */
    XFER_TCP_CONNECTING,
    XFER_TCP_GREETING, /* connected; the welcome has not come */
    XFER_TCP_UP,
    XFER_TCP_GONE,
} xfer_tcp_link_state_t;

struct xfer_tcp_link {
    xfer_tcp_watch_t watch;
    xfer_link_t base;
    xfer_tcp_link_t *next;
    xfer_tcp_link_t **link_to_this;
    xfer_tcp_link_t *next_dirty;
    bool is_dirty;
    bool is_lost_told; /* on_link_lost was, or need not be, called */
    bool is_closed;    /* freed at the end of progress */
    char *peer;

    xfer_tcp_link_state_t state;
    uint16_t port_number;
    uint16_t n_hosts;
    uint16_t host;      /* tried now */
    uint16_t n_tried;   /* of this round */
    uint16_t n_refused; /* of this round */
    uint16_t n_silent;  /* of this round */
    int good_host;      /* where the peer was; -1: not yet known */
    xfer_tcp_host_t hosts[XFER_TCP_MAX_HOSTS];
    uint8_t token[XFER_TCP_TOKEN_BYTES];
    uint8_t session[16];
    uint64_t attempt;
    bool was_up;
    bool is_good_refused; /* in this round */
    uint64_t rests_until;
    uint64_t backoff_ns;
    uint64_t attempt_ends;
    uint64_t refused_since; /* by all that answer; 0: not */
    uint64_t alive_at;      /* when there was progress, or nothing to do */
    uint64_t cut_at;        /* the last time */
    unsigned n_barren_cuts; /* one soon after the other, and nothing was done between */

    xfer_tcp_stream_t stream;
    xfer_tcp_stage_t stage;
    unsigned received_slot; /* of the payload that is being received; 0: in place */
    xfer_tcp_ops_t ops[XFER_TCP_N_PLACES];
    xfer_tcp_slice_t slices[XFER_TCP_MAX_SLICES];
    unsigned n_flying;  /* slices not free */
    unsigned n_due;     /* of them */
    unsigned n_cancels; /* to be sent */
    int sending;        /* a slice; -1: none */
    int receiving;
    bool is_refusal; /* without a payload */
    xfer_tcp_notes_t notes;
};

/* The next slice of op, of max bytes at most. */
void xfer_tcp_slice_cut(xfer_op_t *op, uint32_t max, xfer_tcp_slice_t *slice);
void xfer_tcp_slice_find(const xfer_tcp_slice_t *slice, xfer_tcp_pieces_t *pieces); /* our side */
bool xfer_tcp_slice_is_vram(const xfer_tcp_slice_t *slice); /* so is our side */
/* Begins to load a slice that is to be written, if it has to be and has not. */
void xfer_tcp_slice_load(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice);
/* Its frame, and the payload of a write; the stream has room for XFER_TCP_ASK_BYTES. */
void xfer_tcp_slice_ask(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice);
#define XFER_TCP_ASK_BYTES                                                                         \
    (sizeof(xfer_tcp_frame_t) + sizeof(xfer_tcp_guard_t) +                                         \
     XFER_TCP_MAX_PIECES * sizeof(xfer_tcp_piece_t))

xfer_tcp_link_t *xfer_tcp_link_of(xfer_link_t *base);
weft_status_t xfer_tcp_link_connect(xfer_port_t *port, const char *peer, const void *address,
                                    size_t bytes, xfer_link_t **link_out);
void xfer_tcp_link_disconnect(xfer_link_t *base);
void xfer_tcp_link_free(xfer_tcp_link_t *link);
xfer_tcp_port_t *xfer_tcp_link_port(const xfer_tcp_link_t *link);
bool xfer_tcp_link_is_busy(const xfer_tcp_link_t *link);
void xfer_tcp_link_dirty(xfer_tcp_link_t *link);
/* Before there is something to do: if there was nothing, the patience begins. */
void xfer_tcp_link_begin(xfer_tcp_link_t *link);
/* Sends and receives for a while; what the socket said it can do. */
void xfer_tcp_link_turn(xfer_tcp_link_t *link, bool can_receive, bool can_send);
uint64_t xfer_tcp_link_deadline(const xfer_tcp_link_t *link);
void xfer_tcp_link_tick(xfer_tcp_link_t *link, uint64_t now);
/* The connection is not to be trusted, or gone; another one is made. */
void xfer_tcp_link_cut(xfer_tcp_link_t *link, const char *why);

void xfer_tcp_ask_post(xfer_link_t *base, xfer_op_t *op);
void xfer_tcp_ask_cancel(xfer_op_t *op);
void xfer_tcp_ask_end_due(xfer_tcp_link_t *link);
/* Puts what can be asked for now into the stream. False: there is no room for more. */
bool xfer_tcp_ask_fill(xfer_tcp_link_t *link);
weft_status_t xfer_tcp_ask_frame(xfer_tcp_link_t *link, const xfer_tcp_event_t *event);
weft_status_t xfer_tcp_ask_trailer(xfer_tcp_link_t *link, const xfer_tcp_event_t *event);
void xfer_tcp_ask_cut(xfer_tcp_link_t *link);
void xfer_tcp_ask_landed(xfer_tcp_link_t *link); /* the GPU has done something */
void xfer_tcp_ask_fail(xfer_tcp_link_t *link, weft_status_t status); /* ends all */
uint64_t xfer_tcp_ask_limit(const xfer_tcp_link_t *link);            /* of cancelled writes */
/* Its note is sent or dropped. */
void xfer_tcp_ask_end_noted(xfer_tcp_link_t *link, xfer_op_t *op, weft_status_t status);

weft_status_t xfer_tcp_note_send(xfer_link_t *base, const void *data, size_t bytes);
xfer_tcp_note_t *xfer_tcp_note_take(xfer_tcp_notes_t *notes, const void *data, size_t bytes);
void xfer_tcp_note_give(xfer_tcp_notes_t *notes, xfer_tcp_note_t *note);
void xfer_tcp_note_queue(xfer_tcp_notes_t *notes, xfer_tcp_note_t *note);
void xfer_tcp_note_withdraw(xfer_tcp_notes_t *notes, xfer_tcp_note_t *note); /* not sent yet */
bool xfer_tcp_note_fill(xfer_tcp_link_t *link);
void xfer_tcp_note_end_sent(xfer_tcp_link_t *link);
/* On a new connection, or when told: all up to sequence came. False: there is no such one. */
bool xfer_tcp_note_confirm(xfer_tcp_notes_t *notes, uint64_t sequence);
void xfer_tcp_note_rewind(xfer_tcp_notes_t *notes);
void xfer_tcp_note_clear(xfer_tcp_notes_t *notes); /* also the free ones */

/* ---- the answering side ---------------------------------------------------------------------- */

typedef enum xfer_tcp_request_state {
    XFER_TCP_NO_REQUEST,
    XFER_TCP_QUEUED,
    XFER_TCP_ANSWERING,
} xfer_tcp_request_state_t;

/* A slice that a guest wants to read. */
typedef struct xfer_tcp_request {
    uint8_t state;
    uint8_t priority;
    bool has_guard;
    bool is_cancelled;
    uint64_t arrival;
    uint32_t bytes;
    uint32_t n_pieces;
    uint32_t max_pieces;
    xfer_tcp_piece_t *pieces; /* [max_pieces], kept */
    xfer_tcp_guard_t guard;
    unsigned slot; /* where its bytes are, or will be; 0: in place */
} xfer_tcp_request_t;

struct xfer_tcp_guest {
    xfer_tcp_watch_t watch;
    xfer_tcp_port_t *port;
    xfer_tcp_guest_t *next;
    xfer_tcp_guest_t **link_to_this;
    xfer_tcp_stream_t stream;
    xfer_tcp_stage_t stage;
    unsigned received_slot;      /* of the payload that is being received; 0: in place */
    xfer_tcp_session_t *session; /* NULL: it has not said hello */
    uint64_t deadline;           /* for that */
    uint32_t keep_ms;
    bool is_closed; /* freed at the end of progress */
    char agent[256];

    xfer_tcp_request_t requests[XFER_TCP_MAX_SLICES];
    unsigned n_queued;
    uint64_t arrivals;
    int answering; /* a request whose payload is being sent; -1: none */
    weft_status_t answer_status;

    uint32_t written;             /* the slice that is being received, */
    weft_status_t written_status; /* how that goes */
    struct {
        uint8_t slice;
        int8_t status;
        uint64_t batch;          /* of the GPU, that has to end before */
    } acks[XFER_TCP_MAX_SLICES]; /* [n_acks], of writes, to be sent */
    unsigned n_acks;
    bool has_to_confirm; /* notifications */
};

void xfer_tcp_guest_accept(xfer_tcp_port_t *port);
void xfer_tcp_guest_turn(xfer_tcp_guest_t *guest, bool can_receive);
void xfer_tcp_guest_close(xfer_tcp_guest_t *guest);
void xfer_tcp_guest_free(xfer_tcp_guest_t *guest);
void xfer_tcp_session_free_all(xfer_tcp_port_t *port);

weft_status_t xfer_tcp_serve_frame(xfer_tcp_guest_t *guest, const xfer_tcp_event_t *event);
weft_status_t xfer_tcp_serve_trailer(xfer_tcp_guest_t *guest, const xfer_tcp_event_t *event);
/* Puts answers into the stream. False: there is no room for more. */
bool xfer_tcp_serve_fill(xfer_tcp_guest_t *guest);
/* The region is no longer to be touched. */
void xfer_tcp_serve_unmap(xfer_tcp_guest_t *guest, const xfer_tcp_region_t *region);
