/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mailbox: an unbounded queue of items that bring their own link, with a descriptor that wakes its
 * reader. Posting never fails, allocates or locks, and makes a system call only when the box was
 * empty.
 *
 * Threads  any number post; one takes
 * Order    that of the posts
 */
#pragma once

#include <stdatomic.h>

#include "base/status.h"

typedef struct mailbox_item {
    struct mailbox_item *next;
} mailbox_item_t;

typedef struct mailbox {
    _Atomic(mailbox_item_t *) newest; /* released by post, acquired by take */
    int fd;                           /* an eventfd */
} mailbox_t;

weft_status_t mailbox_init(mailbox_t *mailbox);
void mailbox_fini(mailbox_t *mailbox); /* zeroed or half-made is fine; items stay their owners' */

/* What the item points to belongs to the reader from now on, until it takes it. */
void mailbox_post(mailbox_t *mailbox, mailbox_item_t *item);
void mailbox_wake(mailbox_t *mailbox); /* a wait returns, with nothing new in the box */

/* All items, oldest first; NULL: none. Clears what wakes. Reader only. */
mailbox_item_t *mailbox_take(mailbox_t *mailbox);

/* Until something was posted or woke it, or timeout_ms passed (-1: for ever). Reader only. */
void mailbox_wait(mailbox_t *mailbox, int timeout_ms);
