/* SPDX-License-Identifier: Apache-2.0 */
/* xfer_exchange_priv: sockets that do not block, for both ends of an exchange. */
#pragma once

#include <netdb.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/diag.h"

#define XFER_FRAME_HEAD sizeof(uint64_t)

/* flags: of getaddrinfo. freeaddrinfo is the caller's. */
weft_status_t xfer_exchange_resolve(const char *host, uint16_t port, int flags, weft_diag_t *diag,
                                    struct addrinfo **list_out);
weft_status_t xfer_exchange_connect_to(const struct addrinfo *address, uint64_t deadline_ns,
                                       int *fd_out);

int xfer_exchange_left_ms(uint64_t deadline_ns); /* for poll */
weft_status_t xfer_exchange_wait_for(int fd, short events, uint64_t deadline_ns);

/* Appends what the socket has now. PENDING: nothing for the moment. */
weft_status_t xfer_exchange_read_some(int fd, weft_buffer_t *in);
/* Drops what could be sent. OK: that was all of it. */
weft_status_t xfer_exchange_write_some(int fd, weft_buffer_t *out);
