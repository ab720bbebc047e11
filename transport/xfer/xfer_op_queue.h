/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_op_queue: posted operations in the order of their priorities, in that of their posting
 * within one; xfer_op_list: in that of their coming alone. Both chain the operations themselves, so
 * nothing is allocated.
 *
 * Zeroed memory is empty. Not shared between threads; an op is in one of them at most.
 */
#pragma once

#include "transport/xfer/xfer_backend.h"

typedef struct xfer_op_list {
    xfer_op_t *first;
    xfer_op_t *last;
} xfer_op_list_t;

void xfer_op_list_append(xfer_op_list_t *list, xfer_op_t *op);
void xfer_op_list_remove(xfer_op_list_t *list, xfer_op_t *op);

#define XFER_OP_QUEUE_LEVELS 256

typedef struct xfer_op_queue {
    xfer_op_list_t levels[XFER_OP_QUEUE_LEVELS];
    uint64_t taken[XFER_OP_QUEUE_LEVELS / 64]; /* a bit for each level that has ops */
} xfer_op_queue_t;

void xfer_op_queue_append(xfer_op_queue_t *queue, xfer_op_t *op);
void xfer_op_queue_remove(xfer_op_queue_t *queue, xfer_op_t *op);
xfer_op_t *xfer_op_queue_first(const xfer_op_queue_t *queue); /* NULL: empty */
/* The first one of this link. */
xfer_op_t *xfer_op_queue_find(const xfer_op_queue_t *queue, const xfer_link_t *link);
