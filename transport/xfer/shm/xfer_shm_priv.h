/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_shm_priv: the shm backend's parts, as they know each other.
 *
 *     xfer_shm.c         the table; the port and its turn: events, then a slice of copying
 *     xfer_shm_host.c    where a port listens, and whether an address is of this host
 *     xfer_shm_guest.c   our memory, and those who connected to use it
 *     xfer_shm_link.c    our way to a peer
 *     xfer_shm_import.c  a peer's memory: mapped, or reached through the kernel
 *     xfer_shm_move.c    an operation from its first guard to its notification
 *     xfer_shm_kernel.c  process_vm_readv and writev, of many pieces at once
 *     xfer_shm_vram.c    memory of GPUs: mapped, and copied by the device
 *     xfer_shm_copy.c    memcpy, past the caches for what they do not hold
 *     xfer_shm_conn.c    frames through a socket; xfer_shm_wire.c: what they look like
 */
#pragma once

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>

#include "transport/xfer/shm/xfer_shm_conn.h"
#include "transport/xfer/shm/xfer_shm_wire.h"
#include "transport/xfer/xfer_backend.h"
#include "transport/xfer/xfer_op_queue.h"
#include "transport/xfer/xfer_vram.h"

#define XFER_SHM_MAX_PIECES 1024 /* UIO_MAXIOV of process_vm_readv */
#define XFER_SHM_SLICE_NS   UINT64_C(100000)

typedef struct xfer_shm_link xfer_shm_link_t;
typedef struct xfer_shm_guest xfer_shm_guest_t;
typedef struct xfer_shm_import xfer_shm_import_t;

/* Memory of ours that peers may use. */
typedef struct xfer_shm_region {
    struct xfer_shm_region *next;
    uint64_t number;
    int fd; /* a dup, for peers to map; else -1 */
    uint64_t fd_offset;
    bool is_vram;
} xfer_shm_region_t;

typedef struct xfer_shm_port {
    xfer_port_t base;
    xfer_shm_watch_t listen_watch;
    xfer_shm_watch_t timer_watch;
    int epoll_fd; /* what the agent waits for: the ones below are in its set */
    int listen_fd;
    int timer_fd;      /* for what no descriptor tells: a full backlog, no free descriptors */
    bool is_listening; /* listen_fd is looked at */
    xfer_shm_address_t address;
    uint64_t regions_made;
    xfer_shm_region_t *regions;
    xfer_shm_guest_t *guests;
    size_t n_guests;
    xfer_shm_link_t *links;
    xfer_op_queue_t ready;         /* ops that can be moved on */
    xfer_vram_t *vram;             /* NULL: no memory of a GPU was mapped */
    xfer_shm_watch_t vram_watch;   /* its timer's */
    xfer_op_list_t flying;         /* ops that wait for their last batch */
    xfer_op_list_t roomless;       /* ops that wait until another batch may begin */
    xfer_shm_import_t *cold;       /* mapped, page tables not filled */
    xfer_shm_guest_t *dead_guests; /* closed, perhaps named by an event of this round */
    xfer_shm_link_t *dead_links;
    uint64_t looked_ns;    /* for events */
    uint64_t kernel_bytes; /* of one call; 0: none was made */
    struct iovec local[XFER_SHM_MAX_PIECES];
    struct iovec peer[XFER_SHM_MAX_PIECES];
    char room[XFER_SHM_MAX_FRAME + 1]; /* of the message that is looked at */
} xfer_shm_port_t;

typedef enum xfer_shm_link_state {
    XFER_SHM_CONNECTING, /* its backlog is full */
    XFER_SHM_OPEN,
    XFER_SHM_CLOSED,
} xfer_shm_link_state_t;

struct xfer_shm_link {
    xfer_link_t base;
    xfer_shm_conn_t conn;
    xfer_shm_link_t *next;
    xfer_shm_link_state_t state;
    xfer_shm_address_t address;
    uint64_t give_up_ns; /* while connecting */
    pid_t pid;           /* as the kernel says; 0: not seen from our pid namespace */
    xfer_shm_import_t *imports;
    xfer_op_list_t waiting; /* for the connection or a descriptor */
    xfer_op_list_t unsent;  /* all is done but for the notification; the socket is full */
};

typedef enum xfer_shm_import_state {
    XFER_SHM_ASKED,  /* for a descriptor, or not yet connected */
    XFER_SHM_MAPPED, /* at base */
    XFER_SHM_KERNEL, /* its address is good for process_vm_readv */
    XFER_SHM_LOST,   /* with status */
} xfer_shm_import_state_t;

struct xfer_shm_import {
    xfer_shm_port_t *port;
    xfer_shm_link_t *link; /* NULL: disconnected */
    xfer_shm_import_t *next;
    xfer_shm_import_t *next_cold;
    xfer_shm_key_t key;
    uint64_t addr; /* in the peer */
    uint64_t bytes;
    xfer_shm_import_state_t state;
    weft_status_t status;
    char *base; /* addr's byte, here */
    bool is_writable;
    bool is_vram;
    weft_mem_t vram; /* the mapping of a GPU's memory; addr NULL: none */
    char *mapping;   /* [mapping_bytes], whole pages around it */
    size_t mapping_bytes;
    bool is_cold;      /* in the port's list */
    size_t warm_bytes; /* of the mapping */
};

/* xfer_shm_host.c */

/* The host's part, and a new name. WEFT_ERR_UNSUPPORTED: this host does not say which it is. */
weft_status_t xfer_shm_host_address(xfer_shm_address_t *address_out);
bool xfer_shm_host_is_shared(const xfer_shm_address_t *ours, const xfer_shm_address_t *theirs);
socklen_t xfer_shm_host_name(const xfer_shm_address_t *address, struct sockaddr_un *name_out);
/* Who is at the other end. WEFT_ERR_DENIED: neither this user nor root. */
weft_status_t xfer_shm_host_check(int fd, pid_t *pid_out);

/* xfer_shm_guest.c */

weft_status_t xfer_shm_map(xfer_port_t *port, const xfer_memory_t *memory, weft_buffer_t *out,
                           void **handle_out);
void xfer_shm_unmap(xfer_port_t *port, void *handle);
void xfer_shm_accept(xfer_shm_port_t *port); /* whoever waits on listen_fd */
void xfer_shm_guest_close(xfer_shm_guest_t *guest);
void xfer_shm_guest_free_dead(xfer_shm_port_t *port);

/* xfer_shm_link.c */

weft_status_t xfer_shm_connect(xfer_port_t *port, const char *peer, const void *address,
                               size_t bytes, xfer_link_t **link_out);
void xfer_shm_disconnect(xfer_link_t *link);
weft_status_t xfer_shm_notify(xfer_link_t *link, const void *data, size_t bytes);
void xfer_shm_link_retry(xfer_shm_port_t *port); /* those that are connecting */
void xfer_shm_link_free_dead(xfer_shm_port_t *port);

/* xfer_shm_import.c */

weft_status_t xfer_shm_import(xfer_link_t *link, const xfer_memory_t *memory, const void *blob,
                              size_t bytes, void **handle_out);
void xfer_shm_release(xfer_port_t *port, void *handle);
void xfer_shm_import_detach(xfer_shm_link_t *link); /* which goes */
/* The link is open now. */
weft_status_t xfer_shm_import_begin(xfer_shm_import_t *import);
/* REGION came: fd (-1: none) stays the caller's. */
void xfer_shm_import_answer(xfer_shm_link_t *link, const xfer_shm_frame_t *frame, int fd);
void xfer_shm_import_gone(xfer_shm_link_t *link, uint64_t region);
/* Fills page tables until then; false: none is cold. */
bool xfer_shm_import_warm(xfer_shm_port_t *port, uint64_t until_ns);

/* xfer_shm_move.c */

void xfer_shm_post(xfer_link_t *link, xfer_op_t *op);
void xfer_shm_cancel(xfer_op_t *op);
/* Moves the first ones on until then; false: none is ready. */
bool xfer_shm_move(xfer_shm_port_t *port, uint64_t until_ns);
void xfer_shm_move_waiting(xfer_shm_link_t *link); /* what they wait for may have come */
void xfer_shm_move_unsent(xfer_shm_link_t *link);  /* the socket has room */
void xfer_shm_move_end_all(xfer_shm_link_t *link, weft_status_t status);

/* What the words of a posted op mean. */
enum {
    XFER_SHM_PLACE,
    XFER_SHM_PHASE,
    XFER_SHM_BATCH, /* the last one of the GPU that has pieces of it; 0: none */
    XFER_SHM_FATE   /* weft_status_t, how it ends once that has ended */
};
enum {
    XFER_SHM_AT_READY,
    XFER_SHM_AT_WAITING,
    XFER_SHM_AT_UNSENT,
    XFER_SHM_AT_FLYING,
    XFER_SHM_AT_ROOMLESS
};
void xfer_shm_move_put(xfer_op_t *op, uint64_t place); /* from where it is to there */

/* xfer_shm_vram.c */

weft_status_t xfer_shm_vram_open(xfer_shm_port_t *port, uint64_t device);
void xfer_shm_vram_close(xfer_shm_port_t *port);
/* The file's bytes to the end of import. WEFT_ERR_UNSUPPORTED: our GPU cannot map it. */
weft_status_t xfer_shm_vram_map(xfer_shm_import_t *import, int fd, uint64_t offset);
void xfer_shm_vram_unmap(xfer_shm_import_t *import);
/* Whether an extent has a GPU's memory on one side. */
bool xfer_shm_vram_has(const xfer_op_t *op, const xfer_extent_t *extent);
/* Begins with as many of the next extents as may be. OK: with all that have; PENDING: it goes on later,
 * from where it stands. */
weft_status_t xfer_shm_vram_move(xfer_shm_port_t *port, xfer_op_t *op, uint64_t until_ns);
/* OK: nothing of it is on its way; PENDING: it waits for that. */
weft_status_t xfer_shm_vram_land(xfer_shm_port_t *port, xfer_op_t *op);
bool xfer_shm_vram_progress(xfer_shm_port_t *port); /* true: some ops can be moved on */

/* xfer_shm_kernel.c */

/* Whether a byte at addr of this process can be read. WEFT_ERR_UNSUPPORTED: it must not be. */
weft_status_t xfer_shm_kernel_probe(pid_t pid, uint64_t addr);
weft_status_t xfer_shm_kernel_read_word(pid_t pid, uint64_t addr, uint64_t *word_out);
/* Moves as many of the next extents as one call takes; all of them lie in imports of that kind. */
weft_status_t xfer_shm_kernel_move(xfer_shm_port_t *port, pid_t pid, xfer_op_t *op);
