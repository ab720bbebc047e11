/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_remote_message: the bytes of proto/kv_remote.proto, read with distrust.
 */
#pragma once

#include <stddef.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/status.h"
#include "generated/kv_remote.pb-c.h"
#include "kvstore/hash/kv_hash.h"

typedef Weft__Remote__Message kv_remote_message_t;

#define KV_REMOTE_PROTOCOL         1
#define KV_REMOTE_MESSAGE_MAX      ((size_t)1 << 20) /* bytes; larger ones end the connection */
#define KV_REMOTE_MAX_FACTS        32
#define KV_REMOTE_MAX_FACT_BYTES   512
#define KV_REMOTE_MAX_REASON_BYTES 512
#define KV_REMOTE_MAX_SHELVES      4
#define KV_REMOTE_MAX_HASHES       4096 /* in a lookup */

/* A message of the kind CASE (HELLO, LOOKUP, …) with its body. */
#define KV_REMOTE_MESSAGE(kind_case, member, where)                                                \
    {PROTOBUF_C_MESSAGE_INIT(&weft__remote__message__descriptor),                                  \
     .body_case = WEFT__REMOTE__MESSAGE__BODY_##kind_case, .member = (where)}

/*
 * WEFT_ERR_MALFORMED: no message, or one that cannot be: more than the limits above, lists of one
 * Found that differ in length, a Lookup of parts of hashes. message_out is freed by
 * kv_remote_message_free.
 */
weft_status_t kv_remote_message_decode(const void *bytes, size_t n,
                                       kv_remote_message_t **message_out);
void kv_remote_message_free(kv_remote_message_t *message); /* NULL is fine */

/*
 * Sends without waiting: what the peer's queue has no room for is dropped, as it is for one that is
 * gone. route [route_bytes]: on a ROUTER; else none.
 */
weft_status_t kv_remote_message_send(void *socket, const void *route, size_t route_bytes,
                                     const kv_remote_message_t *message);

/*
 * What blocks of two workers must have alike to be the same, one by one, so that a difference has a
 * name: model, layout, KV dtype, how they are hashed.
 */
typedef struct kv_remote_fact {
    const char *key; /* a literal */
    char value[80];
} kv_remote_fact_t;

typedef struct kv_remote_facts {
    kv_remote_fact_t items[KV_REMOTE_MAX_FACTS];
    uint32_t n;
} kv_remote_facts_t;

void kv_remote_facts_add(kv_remote_facts_t *facts, const char *key, const char *format, ...)
    WEFT_PRINTF(3, 4);
/* WEFT_ERR_INVALID: diag names the first of ours that they have otherwise, or not. */
weft_status_t kv_remote_facts_check(const kv_remote_facts_t *ours,
                                    const Weft__Remote__Hello *theirs, weft_diag_t *diag);
/* Sends them as a Hello. */
weft_status_t kv_remote_facts_send(const kv_remote_facts_t *facts, void *socket);
