/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer: moves bytes between registered memory of this process and registered memory of peers.
 *
 * An agent has a name, regions of memory that peers may read and write, and peers it has heard of.
 * What a peer must know to reach an agent is one blob (xfer_export), carried by whatever channel
 * the two have; its form is that of NIXL, so that NIXL's agents are peers too. A list describes
 * pieces of memory once, by runs of equal pieces, and costs nothing to use again. A request pairs
 * pieces of two lists; it is posted, polled, cancelled and posted again, and nothing is allocated
 * by posting it. Bytes travel by a backend (shm, ucx, tcp, ...), chosen by what both ends have,
 * what the memory is, and how fast it was.
 *
 *     xfer_agent_create → xfer_register … → xfer_export → (the blob goes to the peer)
 *     xfer_import(its blob) → xfer_list_create ×2 → xfer_request_create → xfer_post → xfer_poll
 *
 * Order    A notification is seen by the peer after the data of its request. Nothing else is
 *          ordered: neither two requests, nor two notifications
 * Threads  Any, at the same time; an object must not be destroyed while another call uses it.
 *          Callbacks run on the agent's thread, or in xfer_progress without one
 * Waiting  An agent with a thread sleeps while there is nothing to do
 * Errors   What fails for the peer alone is WEFT_ERR_PEER_GONE; other peers' requests go on
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/diag.h"
#include "base/status.h"

typedef struct xfer_agent xfer_agent_t;
typedef struct xfer_region xfer_region_t;   /* memory of this agent that peers may use */
typedef struct xfer_peer xfer_peer_t;       /* another agent, as it told us of itself */
typedef struct xfer_list xfer_list_t;       /* pieces of memory of one side */
typedef struct xfer_request xfer_request_t; /* a transfer that can be posted, again and again */
typedef struct xfer_batch xfer_batch_t;     /* requests with one end */

#define XFER_MAX_NAME         255                 /* bytes of an agent's name */
#define XFER_MAX_NOTIFICATION ((size_t)64 * 1024) /* bytes */

/* Kinds of memory; the numbers are NIXL's, on the wire. */
typedef enum xfer_space {
    XFER_DRAM = 0,
    XFER_VRAM = 1, /* device says which GPU; only one of them in an agent */
    XFER_FILE = 4, /* device is the file descriptor, addresses are offsets */
} xfer_space_t;

typedef struct xfer_agent_config {
    const char *name;     /* unlike any other's that its peers will meet; NULL: a random one */
    const char *backends; /* "shm,tcp": only these; NULL: every one that can be had */
    const char *params;   /* "tcp.host=10.0.0.7,ucx.error_mode=none"; NULL. See docs/fabric.md */
    bool has_thread;      /* the agent makes progress by itself; else by xfer_progress alone */
    /* A notification came or a request ended; from the thread that makes progress. May be NULL. */
    void (*on_event)(void *user);
    void *user;
} xfer_agent_config_t;

/* WEFT_ERR_NOT_FOUND: an unknown backend was named; WEFT_ERR_UNSUPPORTED: a named one is not to be
 * had here. Backends that nobody named and that cannot be had are left out. */
weft_status_t xfer_agent_create(const xfer_agent_config_t *config, weft_diag_t *diag,
                                xfer_agent_t **agent_out);
/* Requests, lists, batches must be destroyed before; regions and peers go with it. NULL is fine. */
void xfer_agent_destroy(xfer_agent_t *agent);
const char *xfer_agent_name(const xfer_agent_t *agent);

/*
 * For agents without a thread: does what can be done without waiting; true: something was.
 * timeout_ms > 0: first waits so long at most for something to do; -1: for ever.
 */
bool xfer_progress(xfer_agent_t *agent, int timeout_ms);

/* ---- memory ---------------------------------------------------------------------------------- */

typedef struct xfer_memory {
    xfer_space_t space;
    uint64_t addr;
    uint64_t bytes;
    uint64_t device;
    int fd; /* of the memfd that is mapped at addr, or of a GPU's allocation (see weft_mem_t), else
               -1: peers on this host may map it too; kept by a dup */
    uint64_t fd_offset;
} xfer_memory_t;

/* The memory stays the caller's and must live until deregistered. WEFT_ERR_UNSUPPORTED: no backend
 * takes this space. WEFT_ERR_EXISTS: it overlaps what is registered. */
weft_status_t xfer_register(xfer_agent_t *agent, const xfer_memory_t *memory, weft_diag_t *diag,
                            xfer_region_t **region_out);
/* Afterwards no peer reads or writes it, where the backend can see to that (XFER_CAP_REVOKE); peers
 * are not told. WEFT_ERR_IN_USE: a list of ours refers to it, or a request made of one. */
weft_status_t xfer_deregister(xfer_agent_t *agent, xfer_region_t *region);

/* ---- who knows whom -------------------------------------------------------------------------- */

/*
 * Appends what peers need to know: of the n regions, or of all for NULL; with_connection: how to
 * reach us too (needed once by each peer).
 */
weft_status_t xfer_export(xfer_agent_t *agent, xfer_region_t *const *regions, size_t n,
                          bool with_connection, weft_buffer_t *out);

/*
 * Learns of a peer, or more of one that is known. Does not wait: connections are made when needed.
 * WEFT_ERR_MALFORMED: not a blob. WEFT_ERR_INVALID: our own. WEFT_ERR_UNSUPPORTED: no backend in
 * common. WEFT_ERR_EXISTS: another agent of that name is known, or a region changed: forget first.
 * A part that only other backends understand is skipped.
 */
weft_status_t xfer_import(xfer_agent_t *agent, const void *blob, size_t bytes, weft_diag_t *diag,
                          xfer_peer_t **peer_out);
/*
 * The agent as a peer of its own: requests then move bytes between its own regions. Asked again it
 * also has the regions registered since. WEFT_ERR_EXISTS: a region that it has was deregistered, and
 * another is in its place: forget first.
 */
weft_status_t xfer_import_self(xfer_agent_t *agent, weft_diag_t *diag, xfer_peer_t **peer_out);
xfer_peer_t *xfer_find_peer(xfer_agent_t *agent, const char *name); /* NULL: not known */
const char *xfer_peer_name(const xfer_peer_t *peer);
bool xfer_peer_has(xfer_peer_t *peer, xfer_space_t space, uint64_t addr, uint64_t bytes);

/*
 * Its requests end as cancelled and cannot be posted again, also after a new import of that name;
 * its lists are only good to be destroyed. The pointer is dead.
 */
void xfer_forget(xfer_agent_t *agent, xfer_peer_t *peer);

weft_status_t xfer_connect(xfer_peer_t *peer); /* begins to, ahead of the first use */
/* OK: reached, as far as is known; PENDING: not yet tried or trying; WEFT_ERR_PEER_GONE. */
weft_status_t xfer_peer_status(xfer_peer_t *peer);

/* ---- lists ----------------------------------------------------------------------------------- */

/* count pieces of `bytes`, the first at addr, each `stride` after the one before. */
typedef struct xfer_run {
    uint64_t addr;
    uint64_t bytes;
    uint64_t device;
    uint64_t stride; /* ignored for one piece */
    uint64_t count;  /* ≥ 1 */
} xfer_run_t;

/*
 * Pieces of our own memory (peer NULL) or of a peer's, numbered through all runs. runs [n] are
 * copied; neighbours that continue each other become one. WEFT_ERR_NOT_FOUND: a piece is not
 * within one registered (imported) region; diag says which.
 */
weft_status_t xfer_list_create(xfer_agent_t *agent, xfer_peer_t *peer, xfer_space_t space,
                               const xfer_run_t *runs, size_t n, weft_diag_t *diag,
                               xfer_list_t **list_out);
void xfer_list_destroy(xfer_list_t *list); /* requests made of it live on; NULL is fine */
uint64_t xfer_list_pieces(const xfer_list_t *list);

/* ---- transfers ------------------------------------------------------------------------------- */

typedef enum xfer_direction {
    XFER_READ, /* from the peer */
    XFER_WRITE
} xfer_direction_t;

/*
 * A word (aligned, in registered DRAM of the peer) that says whether the pieces still hold what
 * they should. It is read before the data and, ordered after them, again; both times it has to be
 * expected. The owner changes it before it uses the pieces for anything else.
 */
typedef struct xfer_guard {
    uint64_t addr;
    uint64_t expected;
} xfer_guard_t;

typedef struct xfer_request_config {
    xfer_direction_t direction;
    const xfer_list_t *local;
    const xfer_list_t *peer;
    /* [n] numbers of pieces, pairwise of one size; NULL: 0, 1, 2, ... */
    const uint32_t *local_ids;
    const uint32_t *peer_ids;
    size_t n; /* 0 without ids: all pieces of both lists; but with a notification: only that */
    const void *notification; /* copied; NULL: none */
    size_t notification_bytes;
    const xfer_guard_t *guard; /* of reads; copied; NULL: none */
    uint8_t priority;          /* lower goes first, also before what has begun */
    const char *backend;       /* this one or none; NULL: the best */
    /* On the agent's thread, after poll says so; may post, not destroy. Not made any more once the
       request is destroyed. May be NULL. */
    void (*on_end)(void *user, xfer_request_t *request);
    void *user;
} xfer_request_config_t;

/* Pairs are merged where they touch on both sides. WEFT_ERR_INVALID: sizes differ, or an id is too
 * large. WEFT_ERR_UNSUPPORTED: no backend of both ends takes all pieces. */
weft_status_t xfer_request_create(xfer_agent_t *agent, const xfer_request_config_t *config,
                                  weft_diag_t *diag, xfer_request_t **request_out);
/* One that runs is cancelled and waited for. NULL is fine. */
void xfer_request_destroy(xfer_request_t *request);

/*
 * Starts it; never waits, allocates nothing. OK: it will end. WEFT_ERR_IN_USE: it runs already.
 * WEFT_ERR_NOT_FOUND: the peer was forgotten since.
 */
weft_status_t xfer_post(xfer_request_t *request);

/*
 * WEFT_PENDING while it runs. WEFT_OK: all data are there, the notification is on its way.
 * WEFT_ERR_STALE: the guard; WEFT_ERR_CORRUPT: sums differ after all tries; WEFT_ERR_NOT_FOUND: the
 * peer took the memory back; WEFT_ERR_CANCELLED; WEFT_ERR_PEER_GONE. After an error local memory of a read holds anything.
 * WEFT_ERR_INVALID: was never posted.
 */
weft_status_t xfer_poll(const xfer_request_t *request);

/* It ends soon, as cancelled unless it was done; until then memory is still used. */
void xfer_cancel(xfer_request_t *request);

/* Of the last posting. */
typedef struct xfer_request_stats {
    const char *backend;
    uint64_t posted_ns;  /* weft_clock_ns(), so below */
    uint64_t started_ns; /* taken from the queue */
    uint64_t ended_ns;   /* 0: runs */
    uint64_t bytes;
    uint64_t pieces;
    uint64_t extents; /* what they were merged to */
    uint64_t resumed; /* times that it went on after the connection was lost */
} xfer_request_stats_t;

xfer_request_stats_t xfer_request_stats(const xfer_request_t *request);

/*
 * How long a posting would take with its way for itself, at the speed that its peer was last read or
 * written at by the way that would be taken now. WEFT_ERR_NOT_FOUND: not known, no request of a MiB
 * or more went that way yet; WEFT_ERR_PEER_GONE: there is no way.
 */
weft_status_t xfer_estimate(const xfer_request_t *request, uint64_t *ns_out);

/* requests [n] are borrowed; posted together, polled as one: the first error, once all have ended. */
weft_status_t xfer_batch_create(xfer_request_t *const *requests, size_t n,
                                xfer_batch_t **batch_out);
void xfer_batch_destroy(xfer_batch_t *batch); /* NULL is fine */
weft_status_t xfer_batch_post(xfer_batch_t *batch);
weft_status_t xfer_batch_poll(const xfer_batch_t *batch);

/* ---- notifications --------------------------------------------------------------------------- */

typedef struct xfer_notification {
    struct xfer_notification *next; /* the agent's */
    const char *peer;               /* the name it gave itself; it need not be known here */
    const void *data;
    size_t bytes;
} xfer_notification_t;

/* Lost with the peer. WEFT_ERR_TOO_LARGE; WEFT_ERR_PEER_GONE; WEFT_ERR_QUEUE_FULL. */
weft_status_t xfer_notify(xfer_peer_t *peer, const void *data, size_t bytes);

xfer_notification_t *xfer_next_notification(xfer_agent_t *agent); /* the caller's; NULL: none */
void xfer_notification_free(xfer_notification_t *notification);   /* NULL is fine */

/* ---- what was moved -------------------------------------------------------------------------- */

/* Of one backend, since start. Bytes that peers read from or wrote to us are not seen where
 * the backend is one-sided. */
typedef struct xfer_backend_stats {
    const char *backend;
    uint64_t requests; /* that ended, any status */
    uint64_t failed;
    uint64_t read_bytes;
    uint64_t written_bytes;
    uint64_t resumed;
    uint64_t checksum_errors;
    uint64_t notifications_sent;
    uint64_t notifications_received;
    double bytes_per_second; /* lately, of requests that had enough; 0: not known */
} xfer_backend_stats_t;

/* How many there are, of which the first max are written. */
size_t xfer_agent_stats(xfer_agent_t *agent, xfer_backend_stats_t *stats_out, size_t max);
