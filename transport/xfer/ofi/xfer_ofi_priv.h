/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_ofi_priv: a port and a link of the ofi backend, for its files.
 *
 *     xfer_ofi.c           the table; the port and its turn
 *     xfer_ofi_endpoint.c  libfabric's objects, opened and closed; memory
 *     xfer_ofi_link.c      the way to a peer: an endpoint of its own
 *     xfer_ofi_move.c      an operation, from its first guard to its notification
 *     xfer_ofi_letter.c    messages out; what comes in
 *     xfer_ofi_wire.c      what they look like; xfer_ofi_library.c: where libfabric comes from
 *
 * A link has an endpoint and a queue to itself, since closing those is libfabric's only way to say
 * that memory is left alone from now on. What comes in arrives at the port's endpoint.
 */
#pragma once

#include "transport/xfer/ofi/xfer_ofi_library.h"
#include "transport/xfer/ofi/xfer_ofi_wire.h"
#include "transport/xfer/xfer_backend.h"
#include "transport/xfer/xfer_op_queue.h"

#ifdef WEFT_HAS_OFI

#define OFI_MOVES     256 /* reads and writes of a link that are under way */
#define OFI_LETTERS   8   /* messages of a link that are */
#define OFI_ANSWERS   16  /* messages of a port that are */
#define OFI_RECEIVES  16
#define OFI_MAX_PEERS 256                 /* to whom sums were told */
#define OFI_MAX_BYTES ((uint64_t)1 << 20) /* of one read or write; the unit of a sum */

typedef struct ofi_port ofi_port_t;
typedef struct ofi_link ofi_link_t;

typedef enum ofi_slot_kind {
    OFI_MOVE,    /* a piece of an op */
    OFI_WORD,    /* an op's guard */
    OFI_LETTER,  /* a message of a link */
    OFI_ANSWER,  /* a message of the port */
    OFI_RECEIVE, /* room for one that comes */
} ofi_slot_kind_t;

/* Something that was given to libfabric, and is its until a completion names it. */
typedef struct ofi_slot {
    struct fi_context2 context; /* libfabric's */
    ofi_slot_kind_t kind;
    ofi_link_t *link; /* of MOVE, WORD, LETTER */
    xfer_op_t *op;    /* of MOVE, WORD */
    char *room;       /* of messages, [XFER_OFI_MAX_MESSAGE]; of others the word's 8 bytes */
    size_t bytes;     /* of an unsent message */
    struct ofi_slot *next;
} ofi_slot_t;

/* An endpoint and the queue of its completions. Zeroed but for wait_fd, -1, it is closed. */
typedef struct ofi_door {
    struct fid_ep *ep;
    struct fid_cq *cq;
    int wait_fd; /* in the port's epoll set; -1: this provider has to be asked */
} ofi_door_t;

/* Slots with registered room for each. */
typedef struct ofi_slots {
    ofi_slot_t *slots; /* [n] */
    size_t n;
    char *rooms;
    struct fid_mr *mr; /* NULL: the provider wants none */
    ofi_slot_t *free;
} ofi_slots_t;

typedef struct ofi_region {
    struct ofi_region *next;
    uint32_t number;
    uint64_t addr;
    uint64_t bytes;
    struct fid_mr *mr;
} ofi_region_t;

typedef struct ofi_import {
    xfer_ofi_key_t key;
    uint64_t addr;
} ofi_import_t;

typedef struct ofi_peer {
    uint16_t bytes;
    char address[XFER_OFI_MAX_ADDRESS];
    fi_addr_t handle;
} ofi_peer_t;

struct ofi_port {
    xfer_port_t base;
    const xfer_ofi_functions_t *ofi;
    struct fi_info *info;
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    struct fid_av *av;
    ofi_door_t door; /* where peers reach us */
    int epoll_fd;    /* what the agent waits for: the timer and every door */
    int timer_fd;
    bool has_sums;
    bool is_ticking;      /* the timer is set */
    uint64_t patience_ns; /* for a link on which nothing moves though there is something to do */
    xfer_ofi_address_t address;
    char provider_address[XFER_OFI_MAX_ADDRESS];
    uint64_t keys_made;
    uint32_t regions_made;
    uint64_t tags_made;
    ofi_region_t *regions;
    ofi_slots_t answers;
    ofi_slots_t receives;
    ofi_peer_t peers[OFI_MAX_PEERS];
    size_t n_peers;
    size_t next_peer; /* whose place is taken next */
    ofi_link_t *links;
    ofi_link_t *dead; /* disconnected, perhaps from within its own turn */
};

struct ofi_link {
    xfer_link_t base;
    ofi_link_t *next;
    ofi_door_t door; /* closed: lost */
    fi_addr_t peer;
    uint8_t token[16]; /* the peer's */
    bool is_up;        /* something of it was heard */
    bool has_failed;   /* is to be lost as soon as nobody looks at it */
    bool is_stuck;     /* its ready ops wait for a completion, or the timer */
    size_t flight;     /* slots that libfabric has */
    uint64_t asked_ns; /* when sums were asked for again */
    uint64_t stuck_ns; /* since when nothing is under way though it should; 0: not so */
    ofi_slots_t moves;
    ofi_slots_t letters;
    ofi_slot_t *unsent; /* letters, oldest first */
    ofi_slot_t *last_unsent;
    xfer_op_queue_t ready; /* ops that have something to give to libfabric */
    xfer_op_list_t busy;   /* that wait for completions or sums */
};

static inline ofi_port_t *ofi_port_of(const ofi_link_t *link)
{
    return (ofi_port_t *)link->base.port;
}

/* xfer_ofi_endpoint.c: results are libfabric's, 0 or a negative errno */

weft_status_t ofi_objects_open(ofi_port_t *port, const char *provider, const char *host,
                               weft_diag_t *diag);
void ofi_objects_close(ofi_port_t *port); /* half-opened is fine */
int ofi_door_open(ofi_port_t *port, size_t completions, ofi_door_t *door_out);
void ofi_door_close(const ofi_port_t *port, ofi_door_t *door); /* closed is fine */
int ofi_memory_open(ofi_port_t *port, void *addr, size_t bytes, uint64_t access,
                    struct fid_mr **mr_out);
weft_status_t ofi_slots_open(ofi_port_t *port, ofi_slots_t *slots, size_t n, size_t room_bytes);
void ofi_slots_close(ofi_slots_t *slots);
ofi_slot_t *ofi_slot_take(ofi_slots_t *slots); /* NULL: all are under way */
void ofi_slot_give(ofi_slots_t *slots, ofi_slot_t *slot);
void *ofi_slots_desc(const ofi_slots_t *slots);

/* xfer_ofi_link.c */

weft_status_t ofi_connect(xfer_port_t *port, const char *peer, const void *address, size_t bytes,
                          xfer_link_t **link_out);
void ofi_disconnect(xfer_link_t *link);
void ofi_link_up(ofi_link_t *link);
void ofi_link_lose_failed(ofi_port_t *port); /* those that have */
void ofi_link_free_dead(ofi_port_t *port);

/* xfer_ofi_move.c */

void ofi_post(xfer_link_t *link, xfer_op_t *op);
void ofi_cancel(xfer_op_t *op);
bool ofi_move(ofi_link_t *link); /* gives libfabric what it takes */
void ofi_move_completed(ofi_slot_t *slot);
void ofi_move_sums(ofi_port_t *port, uint64_t tag, const void *sums, size_t n);
void ofi_move_ask_again(ofi_link_t *link);
void ofi_move_end_all(ofi_link_t *link, weft_status_t status);
/* How many pieces an ASK is about; pieces_out [XFER_OFI_MAX_PIECES]. */
size_t ofi_move_window(const xfer_op_t *op, xfer_extent_t *pieces_out);

/* xfer_ofi_letter.c */

weft_status_t ofi_notify(xfer_link_t *link, const void *data, size_t bytes);
/* WEFT_ERR_QUEUE_FULL: all letters are under way. */
weft_status_t ofi_letter_note(ofi_link_t *link, const void *data, size_t bytes);
weft_status_t ofi_letter_ask(ofi_link_t *link, const xfer_op_t *op, uint64_t tag);
void ofi_letter_send_unsent(ofi_link_t *link);
void ofi_letter_received(ofi_port_t *port, const ofi_slot_t *slot, size_t bytes);
void ofi_letter_post_receives(ofi_port_t *port); /* those that are free */

#endif
