/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_op_queue.h"

#include "base/compiler.h"

void xfer_op_list_append(xfer_op_list_t *list, xfer_op_t *op)
{
    op->next = NULL;
    op->prev = list->last;
    if (op->prev != NULL) {
        op->prev->next = op;
    } else {
        list->first = op;
    }
    list->last = op;
}

void xfer_op_list_remove(xfer_op_list_t *list, xfer_op_t *op)
{
    if (op->prev != NULL) {
        op->prev->next = op->next;
    } else {
        list->first = op->next;
    }
    if (op->next != NULL) {
        op->next->prev = op->prev;
    } else {
        list->last = op->prev;
    }
    op->next = NULL;
    op->prev = NULL;
}

void xfer_op_queue_append(xfer_op_queue_t *queue, xfer_op_t *op)
{
    xfer_op_list_append(&queue->levels[op->priority], op);
    queue->taken[op->priority / 64] |= UINT64_C(1) << op->priority % 64;
}

void xfer_op_queue_remove(xfer_op_queue_t *queue, xfer_op_t *op)
{
    xfer_op_list_t *level = &queue->levels[op->priority];
    xfer_op_list_remove(level, op);
    if (level->first == NULL) {
        queue->taken[op->priority / 64] &= ~(UINT64_C(1) << op->priority % 64);
    }
}

xfer_op_t *xfer_op_queue_first(const xfer_op_queue_t *queue)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(queue->taken); i++) {
        if (queue->taken[i] != 0) {
            return queue->levels[i * 64 + weft_lowest_bit(queue->taken[i])].first;
        }
    }
    return NULL;
}

xfer_op_t *xfer_op_queue_find(const xfer_op_queue_t *queue, const xfer_link_t *link)
{
    for (size_t i = 0; i < XFER_OP_QUEUE_LEVELS; i++) {
        for (xfer_op_t *op = queue->levels[i].first; op != NULL; op = op->next) {
            if (op->link == link) {
                return op;
            }
        }
    }
    return NULL;
}
