/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_backend: a way for bytes, as a table of functions. The agent (xfer.h) is above it: it knows
 * names, regions and lists, and hands a backend operations whose pieces are found and merged.
 *
 * Threads  An agent calls one function of a backend at a time, so state needs no lock; no function
 *          waits for a peer. A backend that has threads of its own keeps them to itself
 * Ends     Whatever was posted ends exactly once, through xfer_op_end, from within post, progress,
 *          cancel or disconnect; its memory is not touched afterwards
 */
#pragma once

#include "transport/xfer/xfer.h"

typedef struct xfer_backend xfer_backend_t;
typedef struct xfer_port xfer_port_t; /* a backend as one agent has it open */
typedef struct xfer_link xfer_link_t; /* a port's way to one peer */
typedef struct xfer_op xfer_op_t;

#define XFER_CAP_DRAM   UINT32_C(1)
#define XFER_CAP_VRAM   UINT32_C(2)
#define XFER_CAP_FILE   UINT32_C(4)
#define XFER_CAP_GUARD  UINT32_C(8)
#define XFER_CAP_NOTIFY UINT32_C(16)
#define XFER_CAP_HOSTS  UINT32_C(32)  /* reaches other hosts */
#define XFER_CAP_RESUME UINT32_C(64)  /* goes on after a lost connection */
#define XFER_CAP_SUMS   UINT32_C(128) /* damaged bytes are noticed */
#define XFER_CAP_NAMED  UINT32_C(256) /* opened only by agents that name it */
#define XFER_CAP_REVOKE                                                                            \
    UINT32_C(512) /* peers' ops on memory that was unmapped fail; without it they
                                         may go on as long as the process has it mapped */

#define XFER_CAP_RAIL                                                                              \
    UINT32_C(                                                                                      \
        1024) /* one of several ways that a large request may take at once: each has a wire of
                      its own, or is told so by who names it */

/* A contiguous piece of both sides. */
typedef struct xfer_extent {
    uint64_t local;
    uint64_t peer;
    uint64_t bytes;
    uint32_t local_region; /* index into xfer_op.local_handles */
    uint32_t peer_region;  /* index into xfer_op.peer_handles */
} xfer_extent_t;

struct xfer_op {
    /* The agent's; constant while posted. */
    xfer_direction_t direction;
    const xfer_extent_t *extents; /* [n_extents] */
    size_t n_extents;
    uint64_t bytes;             /* of all */
    void *const *local_handles; /* from map, of the regions that extents name */
    void *const *peer_handles;  /* from import */
    const void *notification;   /* NULL: none. Leaves after the data, without the poster's help */
    size_t notification_bytes;
    bool has_guard;
    xfer_guard_t guard;
    void *guard_handle; /* from import */
    uint8_t priority;
    void (*end)(xfer_op_t *op, weft_status_t status); /* for xfer_op_end */

    /* The backend's, from post to end. */
    xfer_link_t *link;
    xfer_op_t *next;
    xfer_op_t *prev;
    size_t position;   /* extents done, or what it likes */
    uint64_t offset;   /* bytes of the next extent done, or what it likes */
    uint64_t words[6]; /* what it likes */
    uint64_t resumed;  /* counted by the backend */
};

/* A post has come to its end. op may be posted again from within, and is, by another way, where this one
 * found out late that it cannot: WEFT_ERR_UNSUPPORTED. */
void xfer_op_end(xfer_op_t *op, weft_status_t status);

typedef struct xfer_port_config {
    const char *agent; /* its name, sent with notifications; outlives the port */
    /* The value of "<backend>.<key>" of the agent's params, or NULL. To be asked in open: keys that
       nobody asked for then are refused. */
    const char *(*param)(void *user, const char *key);
    /* data is copied. From within progress. */
    void (*on_notification)(void *user, const char *peer, const void *data, size_t bytes);
    /* The peer answered; as often as it does. Need not be called where that is not to be seen. */
    void (*on_link_up)(void *user, xfer_link_t *link);
    /* For good: ops on it have ended. It is disconnected soon, from outside. */
    void (*on_link_lost)(void *user, xfer_link_t *link);
    void (*on_checksum_error)(void *user);
    void *user;
} xfer_port_config_t;

struct xfer_backend {
    const char *name;      /* as in xfer_agent_config_t.backends */
    const char *wire_name; /* as in blobs: "UCX" is NIXL's, ours begin with "WEFT_" */
    uint32_t caps;         /* XFER_CAP_*; the conformance test exercises each one */

    /* WEFT_ERR_UNSUPPORTED with diag: cannot be had here. */
    weft_status_t (*open)(const xfer_port_config_t *config, weft_diag_t *diag,
                          xfer_port_t **port_out);
    void (*close)(xfer_port_t *port); /* links are closed and regions unmapped before */

    /* How peers reach the port, appended, one byte at least; distrusted by their connect. */
    weft_status_t (*address)(xfer_port_t *port, weft_buffer_t *out);
    /*
     * Never waits: connecting goes on in progress, ops may be posted meanwhile.
     * WEFT_ERR_UNSUPPORTED: this backend cannot reach that peer (another host); try the next.
     */
    weft_status_t (*connect)(xfer_port_t *port, const char *peer, const void *address, size_t bytes,
                             xfer_link_t **link_out);
    /* Its ops end as cancelled before this returns. */
    void (*disconnect)(xfer_link_t *link);

    /*
     * Peers may use memory from now on; what they have to know of it is appended to out.
     * WEFT_ERR_UNSUPPORTED: not this memory.
     */
    weft_status_t (*map)(xfer_port_t *port, const xfer_memory_t *memory, weft_buffer_t *out,
                         void **handle_out);
    void (*unmap)(xfer_port_t *port, void *handle); /* and no longer; no op of ours uses it */
    /* A region of the peer, with what its map said; fd is -1. May be asked before connected. */
    weft_status_t (*import)(xfer_link_t *link, const xfer_memory_t *memory, const void *blob,
                            size_t bytes, void **handle_out);
    /* No op uses it. Handles outlive their link: they are released after disconnect, or earlier. */
    void (*release)(xfer_port_t *port, void *handle);

    void (*post)(xfer_link_t *link, xfer_op_t *op);
    void (*cancel)(xfer_op_t *op); /* ends soon */
    /* Copied or sent before it returns. WEFT_ERR_QUEUE_FULL: later. */
    weft_status_t (*notify)(xfer_link_t *link, const void *data, size_t bytes);

    /* Does what can be done without waiting, some 100 µs of it at most; true: something was. */
    bool (*progress)(xfer_port_t *port);
    /*
     * Before sleep: the port's fd becomes readable when progress has something to do.
     * False: it has already. The fd stays the same while the port is open.
     */
    bool (*arm)(xfer_port_t *port, int *fd_out);
};

/* The base of every port's and link's struct. */
struct xfer_port {
    const xfer_backend_t *backend;
    xfer_port_config_t config;
};

struct xfer_link {
    xfer_port_t *port;
    void *user; /* the agent's: its peer */
};

#define BACKEND(name) extern const xfer_backend_t xfer_backend_##name;
#include "transport/xfer/xfer_backends.def"
#undef BACKEND

/* Rows in the order of preference, NULL behind the last. */
extern const xfer_backend_t *const xfer_backends[];
