/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_ucx_priv: a port and a link of backend "ucx", for its files.
 *
 * A port is a UCP context with one worker; a link is an endpoint. Callbacks of UCX only count and
 * mark the link dirty; what follows from that happens in xfer_ucx_link_run, outside of them.
 */
#pragma once

#include "transport/ucx/ucx_library.h"
#include "transport/xfer/xfer_backend.h"

#ifdef WEFT_UCX_LIBRARY

/*
 * A link has so much under way at most, so that what is posted with a lower priority number need not
 * wait long, and UCX's own memory stays bounded. Large extents go in slices.
 */
#define UCX_SLICE_BYTES ((uint64_t)256 * 1024)
#define UCX_CREDITS     1024 /* a link's: one for each 4 KiB, by classes (xfer_ucx_op.c) */
#define UCX_RUNNING_MAX 64   /* ops of a link that have begun, besides those that overtook */
#define UCX_LETTERS     64   /* notifications of a link that are being sent */
#define UCX_NOTICES_MAX 1024 /* of a port: being sent by themselves */

/* xfer_op.words */
enum {
    UCX_OP_WORD,    /* what the guard was */
    UCX_OP_STAGE,   /* index of the table in xfer_ucx_op.c */
    UCX_OP_ISSUED,  /* 1: all of the stage was given to UCX */
    UCX_OP_PENDING, /* requests that UCX has not ended */
    UCX_OP_BEGUN,   /* 1: is in running */
    UCX_OP_OUTCOME, /* a weft_status_t below 0: ends so when nothing is pending */
};

typedef struct ucx_port ucx_port_t;
typedef struct ucx_link ucx_link_t;

/* A notification in NIXL's container, gathered from where its parts lie. */
typedef struct ucx_letter {
    ucp_dt_iov_t parts[4];
    uint64_t bytes;
    xfer_op_t *op;           /* whose it is; NULL: a notice's */
    struct ucx_letter *next; /* among the free ones */
} ucx_letter_t;

/* A notification of no op, until it is sent; it outlives its link. */
typedef struct ucx_notice {
    ucx_letter_t letter;
    ucx_port_t *port;
    char data[];
} ucx_notice_t;

/* Ops in the order of their priority, those of one priority in that of their posting. */
typedef struct ucx_ops {
    xfer_op_t *first;
    xfer_op_t *last;
    size_t n;
} ucx_ops_t;

struct ucx_port {
    xfer_port_t base;
    const ucx_functions_t *ucx;
    ucp_context_h context;
    ucp_worker_h worker;
    int event_fd;
    bool has_cuda; /* this UCX moves memory of GPUs by itself */
    ucp_err_handling_mode_t error_mode;
    ucx_link_t *links;
    size_t closing;        /* endpoints that UCX still has to let go */
    size_t notices;        /* not yet sent */
    weft_buffer_t opening; /* of every letter: up to the message's length */
};

struct ucx_link {
    xfer_link_t base;
    ucx_link_t *next;
    ucp_ep_h endpoint; /* NULL: closed */
    bool is_dirty;     /* xfer_ucx_link_run has something to do */
    bool is_up;        /* the peer has answered */
    bool is_lost;
    bool is_lost_told;
    bool is_full; /* in this run of the ops: none may issue more data */
    unsigned credits;
    ucx_ops_t waiting;
    ucx_ops_t running;
    ucx_letter_t letters[UCX_LETTERS];
    ucx_letter_t *free_letters;
    char peer[]; /* for the log */
};

static inline ucx_port_t *ucx_port_of(const ucx_link_t *link)
{
    return (ucx_port_t *)link->base.port;
}

/* ---- xfer_ucx_link.c ------------------------------------------------------------------------- */

weft_status_t xfer_ucx_connect(xfer_port_t *port, const char *peer, const void *address,
                               size_t bytes, xfer_link_t **link_out);
void xfer_ucx_disconnect(xfer_link_t *link);
weft_status_t xfer_ucx_import(xfer_link_t *link, const xfer_memory_t *memory, const void *blob,
                              size_t bytes, void **handle_out);
void xfer_ucx_release(xfer_port_t *port, void *handle);

/*
 * With force UCX gives up what is pending, and ends it as cancelled; it can do so only in error mode
 * peer. Without, what was sent still arrives.
 */
void xfer_ucx_link_close(ucx_link_t *link, bool force);

/* The peer is taken for gone; ops end when UCX has let go of their memory. */
void xfer_ucx_link_lose(ucx_link_t *link, ucs_status_t why);

/* ---- xfer_ucx_op.c --------------------------------------------------------------------------- */

void xfer_ucx_post(xfer_link_t *link, xfer_op_t *op);
void xfer_ucx_cancel(xfer_op_t *op);

/* Goes on with what is posted; true: something was done. May call on_link_lost as the last thing. */
bool xfer_ucx_link_run(ucx_link_t *link);

/*
 * What UCX said when it was given a request of op. True: it is pending, and xfer_ucx_op_ended is to
 * be called in the end.
 */
bool xfer_ucx_op_note_request(xfer_op_t *op, ucs_status_ptr_t request);
void xfer_ucx_op_ended(xfer_op_t *op, ucs_status_t status);

/* Ends every op now; nothing of them is pending. */
void xfer_ucx_link_end(ucx_link_t *link, weft_status_t status);

/* ---- xfer_ucx_notify.c ----------------------------------------------------------------------- */

weft_status_t xfer_ucx_notify_open(ucx_port_t *port, weft_diag_t *diag);
weft_status_t xfer_ucx_notify(xfer_link_t *link, const void *data, size_t bytes);

/* One notification of op; false: no letter is free, later. An error is op's outcome. */
bool xfer_ucx_send_notification(ucx_link_t *link, xfer_op_t *op);

#endif
