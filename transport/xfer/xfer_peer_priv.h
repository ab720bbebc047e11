/* SPDX-License-Identifier: Apache-2.0 */
/* xfer_peer_priv: another agent, the ways to it and its memory. */
#pragma once

#include "transport/xfer/xfer_agent_priv.h"

/* A region of a peer, as one way names it. */
typedef struct xfer_peer_mapping {
    void *key; /* as its map said, key_bytes; NULL when there are none */
    size_t key_bytes;
    void *handle;   /* of import */
    uint64_t epoch; /* of the link that handle is good for; 0: none. Guarded by lock, as handle */
} xfer_peer_mapping_t;

typedef struct xfer_peer_region {
    xfer_range_t range;       /* first */
    xfer_peer_mapping_t at[]; /* [ways of the agent]; of those in range.ways */
} xfer_peer_region_t;

/* All is guarded by lock. */
struct xfer_route {
    xfer_peer_t *peer;
    xfer_way_t *way;
    void *address; /* NULL: the peer is not to be reached so */
    size_t address_bytes;
    xfer_link_t *link; /* NULL: not connected */
    uint64_t epoch;    /* counts links */
    bool is_lost;      /* link is to be closed */
    xfer_route_t *next_lost;
    bool is_refused;           /* connect said that it cannot */
    bool is_up;                /* the peer answered on this link */
    bool is_doubtful;          /* its last link was lost, and nothing has ended well since */
    uint64_t doubted_until_ns; /* as a rail: before, it is not tried again */
    bool is_tried;             /* it has had the one request that measures it */
    uint64_t in_flight;
    uint64_t heard_ns; /* when an op of it last ended */
    uint64_t posts;
    double bytes_per_second; /* 0: not measured */
};

struct xfer_peer {
    xfer_agent_t *agent;
    xfer_peer_t *next; /* in agent->peers, guarded by tables */
    atomic_uint references;
    atomic_bool is_forgotten;
    size_t last_way; /* that took a request; guarded by lock */
    double
        rails_bytes_per_second; /* of striped requests; 0: not measured. Guarded by lock, so below */
    uint32_t rails_left_out;    /* requests that could have been striped, as that did not help */
    uint32_t ways;              /* bit w: routes[w] has an address; guarded by both, so below */
    xfer_ranges_t regions;      /* of xfer_peer_region_t */
    char name[XFER_MAX_NAME + 1];
    xfer_route_t routes[]; /* [ways of the agent] */
};

void xfer_peer_acquire(xfer_peer_t *peer);
void xfer_peer_release(xfer_peer_t *peer); /* NULL is fine */
void xfer_peer_region_destroy(xfer_peer_region_t *region, size_t n_ways);

/*
 * All with lock held.
 */

/* Makes the link if there is none. WEFT_ERR_UNSUPPORTED: never; WEFT_ERR_PEER_GONE and others: not
 * now. */
weft_status_t xfer_route_open(xfer_route_t *route);
/* The handle of a region for the link, which is open. WEFT_ERR_UNSUPPORTED: not this region. */
weft_status_t xfer_route_import(xfer_route_t *route, xfer_peer_region_t *region, void **handle_out);
void xfer_route_close(xfer_route_t *route); /* its ops end as cancelled; no link is fine */
void xfer_route_close_lost(xfer_agent_t *agent);

/* For xfer_port_config_t. */
void xfer_route_is_up(void *user, xfer_link_t *link);
void xfer_route_is_lost(void *user, xfer_link_t *link);
