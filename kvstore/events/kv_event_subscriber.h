/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_event_subscriber: reads a publisher's stream, ours or vLLM's, and asks again for what it missed.
 *
 * With a replay endpoint it begins with a replay, so that it knows the state before the first live
 * batch; a missing number is asked for before what came after it is handed out; and a publisher
 * that was gone and is back, or numbers from the beginning again, is read from the beginning. One
 * that restarted unseen and is already ahead of the old one's numbers can only be told with a
 * replay endpoint.
 *
 * Threads  one at a time
 */
#pragma once

#include "kvstore/events/kv_event_codec.h"

typedef struct kv_event_subscriber kv_event_subscriber_t;

typedef struct kv_event_subscriber_config {
    const char *endpoint;        /* connected; one with a '*' is bound */
    const char *replay_endpoint; /* NULL: missed batches stay missed */
    const char *topic;           /* what topics begin with; NULL: any */
    uint64_t from;               /* first batch asked for */
} kv_event_subscriber_config_t;

/* A batch, in order. Valid until the next call. */
typedef struct kv_event_news {
    uint64_t sequence;
    bool is_replayed;
    bool is_restart; /* all that came before is void */
    uint64_t missed; /* batches right before this one that cannot be had; not with one that begins
                        with AllBlocksCleared, which stands for all before it */
    kv_event_text_t topic;
    const kv_event_batch_t *batch;
} kv_event_news_t;

/* WEFT_ERR_INVALID: diag says which endpoint is none. Nothing is waited for. */
weft_status_t kv_event_subscriber_create(const kv_event_subscriber_config_t *config,
                                         weft_diag_t *diag, kv_event_subscriber_t **subscriber_out);
void kv_event_subscriber_destroy(kv_event_subscriber_t *subscriber); /* NULL is fine */

/*
 * Waits for up to timeout_ms (-1: for ever). WEFT_ERR_TIMEOUT; WEFT_ERR_CANCELLED: a signal came;
 * WEFT_ERR_MALFORMED: a message that is none, in diag, after which the next call goes on.
 */
weft_status_t kv_event_subscriber_next(kv_event_subscriber_t *subscriber, int timeout_ms,
                                       weft_diag_t *diag, kv_event_news_t *news_out);

bool kv_event_subscriber_is_connected(const kv_event_subscriber_t *subscriber);   /* as of next */
uint64_t kv_event_subscriber_replays(const kv_event_subscriber_t *subscriber);    /* asked for */
uint64_t kv_event_subscriber_unanswered(const kv_event_subscriber_t *subscriber); /* of them */
