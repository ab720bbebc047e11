/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_remote_lines: the asking ends of proto/kv_remote.proto, one line to each peer that was named.
 *
 * A line is always there; whether somebody answers at its other end is for the caller to notice.
 *
 * Threads  one of its own, which owns the sockets; every call from one other thread. wake is called
 *          from the lines'
 */
#pragma once

#include "kvstore/remote/kv_remote_message.h"

#define KV_REMOTE_MAX_PEERS 32

typedef struct kv_remote_lines kv_remote_lines_t;

typedef struct kv_remote_lines_config {
    const char *peers;              /* "host:port,host:port" */
    const kv_remote_facts_t *facts; /* said in hellos; copied */
    void (*wake)(void *user);       /* news, or the time of wake_at */
    void *user;
} kv_remote_lines_config_t;

/* WEFT_ERR_INVALID: peers; diag says what about them. */
weft_status_t kv_remote_lines_check(const char *peers, weft_diag_t *diag);
weft_status_t kv_remote_lines_create(const kv_remote_lines_config_t *config, weft_diag_t *diag,
                                     kv_remote_lines_t **lines_out);
void kv_remote_lines_destroy(kv_remote_lines_t *lines); /* NULL is fine */
uint32_t kv_remote_lines_count(const kv_remote_lines_t *lines);
const char *kv_remote_lines_name(const kv_remote_lines_t *lines,
                                 uint32_t line); /* as it was given */

/* Forgets what is still on its way either direction, connects anew, and says hello. */
weft_status_t kv_remote_lines_greet(kv_remote_lines_t *lines, uint32_t line);
/* hashes [n ≤ KV_REMOTE_MAX_HASHES] are copied. */
weft_status_t kv_remote_lines_ask(kv_remote_lines_t *lines, uint32_t line, uint64_t number,
                                  const kv_hash_t *hashes, uint32_t n);

/* What came over a line. */
typedef struct kv_remote_news {
    struct kv_remote_news *next; /* the lines' */
    uint32_t line;
    uint64_t at_ns;               /* weft_clock_ns() when it came */
    kv_remote_message_t *message; /* NULL: something that is none */
} kv_remote_news_t;

kv_remote_news_t *kv_remote_lines_next(kv_remote_lines_t *lines); /* the caller's; NULL: none */
void kv_remote_news_free(kv_remote_news_t *news);                 /* NULL is fine */

/* wake is called at this time (weft_clock_ns()); the last call counts. UINT64_MAX: not. */
void kv_remote_lines_wake_at(kv_remote_lines_t *lines, uint64_t time_ns);
