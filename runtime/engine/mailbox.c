/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/mailbox.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

weft_status_t mailbox_init(mailbox_t *mailbox)
{
    atomic_init(&mailbox->newest, NULL);
    mailbox->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return mailbox->fd < 0 ? WEFT_ERR_IO : WEFT_OK;
}

void mailbox_fini(mailbox_t *mailbox)
{
    if (mailbox->fd > 0) {
        close(mailbox->fd);
        mailbox->fd = -1;
    }
}

void mailbox_wake(mailbox_t *mailbox)
{
    const uint64_t one = 1;
    /* EAGAIN is fine: the counter is at its top, so the reader is awake. */
    while (write(mailbox->fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

void mailbox_post(mailbox_t *mailbox, mailbox_item_t *item)
{
    mailbox_item_t *newest = atomic_load_explicit(&mailbox->newest, memory_order_relaxed);
    do {
        item->next = newest;
    } while (!atomic_compare_exchange_weak_explicit(&mailbox->newest, &newest, item,
                                                    memory_order_release, memory_order_relaxed));
    if (newest == NULL) {
        mailbox_wake(mailbox);
    }
}

mailbox_item_t *mailbox_take(mailbox_t *mailbox)
{
    uint64_t count;
    /* Cleared before the box is emptied: a post that finds it empty afterwards wakes again. */
    while (read(mailbox->fd, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
    mailbox_item_t *newest = atomic_exchange_explicit(&mailbox->newest, NULL, memory_order_acquire);
    mailbox_item_t *oldest = NULL;
    while (newest != NULL) {
        mailbox_item_t *older = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = older;
    }
    return oldest;
}

void mailbox_wait(mailbox_t *mailbox, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = mailbox->fd, .events = POLLIN};
    (void)poll(&poll_fd, 1, timeout_ms);
}
