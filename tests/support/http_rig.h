/* SPDX-License-Identifier: Apache-2.0 */
/*
 * http_rig: a server on a thread of its own, and peers that write and read bytes. Everything
 * asserts.
 *
 * Its paths: /echo (and any other) answers with the body, /later the same from a timer, /stream?n=3
 * sends three pieces, /park keeps the exchange until the peer hangs up (?stream: after one piece),
 * /flood sends without end to it, /stop stops listening.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/http_server.h"
#include "tests/support/tally.h"

#define HTTP_RIG_MAX_BODY        ((size_t)1 << 20)
#define HTTP_RIG_MAX_CONNECTIONS 2048
#define HTTP_RIG_FLOOD_BYTES     ((size_t)16 << 20)

typedef struct http_rig {
    weft_loop_t *loop;
    weft_http_server_t *server;
    pthread_t thread;
    uint16_t port;
    tally_t parked;        /* exchanges of /park and /flood */
    tally_t hung_up;       /* peers that went before their answer was whole */
    atomic_size_t pending; /* of /flood; stored before parked, loaded after */
    char answer[1 << 18];  /* what http_rig_hear read, terminated */
} http_rig_t;

/* For a static one. */
#define HTTP_RIG_INIT {.parked = TALLY_INIT, .hung_up = TALLY_INIT}

weft_http_server_config_t http_rig_config(http_rig_t *rig);
void http_rig_start(http_rig_t *rig, const weft_http_server_config_t *config);
void http_rig_stop(http_rig_t *rig); /* and nothing is left allocated */

/* A connection. Its reads fail in the end instead of hanging the test. */
int http_rig_dial(const http_rig_t *rig);
/* What a peer that closed did not take is let go: what it said is for the reader to judge. */
void http_rig_send(int fd, const void *bytes, size_t length);
void http_rig_say(int fd, const char *text);
/* Reads into rig->answer until it ends with tail (NULL: until the peer closes). */
const char *http_rig_hear(http_rig_t *rig, int fd, const char *tail);

void http_rig_contains(const char *text, const char *part);
