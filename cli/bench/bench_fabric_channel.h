/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric_channel: what initiator and target tell each other besides what is measured. The
 * initiator asks, the target answers, over a Unix or TCP socket.
 *
 * On the wire a message is a head of 72 bytes, little-endian: u32 type, u32 n, 8 × u64 words; then
 * n bytes. Both halves are of one version of weft: the first message says which.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/diag.h"

#define BENCH_FABRIC_WORDS     8
#define BENCH_FABRIC_MAX_BYTES ((size_t)64 << 20)

typedef enum bench_fabric_message_type {
    BENCH_FABRIC_HELLO = 1, /* bytes of the pool; the version → DONE: space, addr, bytes, device,
                               address of the guard, pid, memfd; its agent's blob */
    BENCH_FABRIC_PEER,      /* blob of the initiator */
    BENCH_FABRIC_FILL,      /* salt */
    BENCH_FABRIC_CLEAR,     /* layout, pool, block, blocks, lanes, seed */
    BENCH_FABRIC_COMPARE,   /* the same, salt → DONE: wrong words */
    BENCH_FABRIC_FORGET,    /* the notifications that came so far */
    BENCH_FABRIC_AWAIT,     /* one → DONE: weft_clock_ns() when it came */
    BENCH_FABRIC_USAGE,     /* → DONE: processor time of the process, ns */
    BENCH_FABRIC_DONE,
    BENCH_FABRIC_FAILED, /* status; text */
} bench_fabric_message_type_t;

typedef struct bench_fabric_message {
    uint32_t type;
    uint64_t words[BENCH_FABRIC_WORDS];
    weft_buffer_t bytes; /* the receiver's to free, or to receive into again */
} bench_fabric_message_t;

/* Waits at where ("HOST:PORT") for one to connect; says on standard error that it does. */
weft_status_t bench_fabric_channel_listen(const char *where, weft_diag_t *diag, int *fd_out);
weft_status_t bench_fabric_channel_connect(const char *where, weft_diag_t *diag, int *fd_out);
/* The address of our end of a TCP socket, by which the other side reaches us; "" for another. */
void bench_fabric_channel_host(int fd, char *host, size_t size);

/* words [8] or NULL: zeros. */
weft_status_t bench_fabric_channel_send(int fd, bench_fabric_message_type_t type,
                                        const uint64_t *words, const void *bytes, size_t n);
/* timeout_ms -1: for ever. WEFT_ERR_PEER_GONE: the other process is. */
weft_status_t bench_fabric_channel_receive(int fd, int timeout_ms, bench_fabric_message_t *message);
/* Sends, and receives the answer; what FAILED says becomes diag. */
weft_status_t bench_fabric_channel_ask(int fd, bench_fabric_message_type_t type,
                                       const uint64_t *words, const void *bytes, size_t n,
                                       weft_diag_t *diag, bench_fabric_message_t *answer);
