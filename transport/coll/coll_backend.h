/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_backend: a way for collectives, as a table of functions: one row of coll_backends.def each, in
 * the order of preference. What coll.h and coll_feed.h say of a function holds here; coll.c has
 * checked arguments and that the group has not failed.
 */
#pragma once

#include <stdatomic.h>

#include "transport/coll/coll_feed.h"

typedef struct coll_feed_ops {
    weft_status_t (*open)(coll_t *coll, size_t max_bytes, uint32_t depth, weft_diag_t *diag,
                          coll_feed_t **feed_out);
    void (*close)(coll_feed_t *feed);
    void *(*begin)(coll_feed_t *feed);
    weft_status_t (*send)(coll_feed_t *feed, size_t bytes);
    weft_status_t (*receive)(coll_feed_t *feed, int timeout_ms, const void **message_out,
                             size_t *bytes_out);
} coll_feed_ops_t;

typedef struct coll_backend {
    const char *name; /* as in --coll-backend */

    /*
     * Collective. Whether this rank could take part: WEFT_ERR_UNSUPPORTED with a diag line when not.
     * `auto` asks every rank and takes the first backend that all can use.
     */
    weft_status_t (*probe)(const coll_config_t *config, weft_diag_t *diag);
    weft_status_t (*open)(const coll_config_t *config, weft_diag_t *diag, coll_t **coll_out);
    void (*close)(coll_t *coll);
    void (*all_reduce)(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                       coll_dtype_t dtype);
    /* NULL: never. */
    bool (*all_reduce_norm)(coll_t *coll, weft_queue_t *queue, const coll_norm_t *norm);
    void (*reduce_scatter)(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                           coll_dtype_t dtype);
    void (*all_gather)(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t bytes);
    void (*broadcast)(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes, uint32_t root);
    void (*barrier)(coll_t *coll, weft_queue_t *queue);
    void (*send)(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data, size_t bytes);
    void (*receive)(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out, size_t bytes);
    const coll_feed_ops_t *feed; /* NULL: feeds go by a group of the hosts' memory beside it */

    /* Of backends whose operations run on a device; NULL: there is nothing to do. Any thread. */
    void (*look)(coll_t *coll);                 /* what failed there becomes the group's failure */
    void (*abort)(coll_t *coll, uint32_t rank); /* what waits there returns; it is `rank`'s fault */
} coll_backend_t;

/* The base of every backend's struct. */
struct coll {
    const coll_backend_t *backend;
    coll_config_t config;
    /* Status in the low half, rank in the high one; written once, by whoever is first. */
    atomic_uint_fast64_t failure;
    /* What feeds go by where the backend has none, made with the first; each one's failure is the
     * other's. */
    struct coll *_Atomic host;
    weft_device_t *host_device;
};

struct coll_feed {
    const coll_feed_ops_t *ops;
    coll_t *coll;
};

/* The first failure sticks; returns its status. */
weft_status_t coll_fail(coll_t *coll, weft_status_t status, uint32_t rank);
bool coll_has_failed(const coll_t *coll);
