/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote_message.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "base/alloc.h"

static void *take(void *user, size_t size)
{
    (void)user;
    return weft_alloc(size > 0 ? size : 1, "kv_remote.message");
}

static void give(void *user, void *memory)
{
    (void)user;
    weft_free(memory);
}

static ProtobufCAllocator allocator = {.alloc = take, .free = give};

/* ---- what can be ----------------------------------------------------------------------------- */

static bool is_short(const char *text, size_t most)
{
    return strlen(text) <= most;
}

/* What a stranger writes ends up in logs. */
static void make_printable(char *text)
{
    for (; *text != '\0'; text++) {
        *text = *text >= 0x20 && *text < 0x7f ? *text : '?';
    }
}

static bool is_sound_hello(const Weft__Remote__Hello *hello)
{
    bool is_sound = hello->n_facts <= KV_REMOTE_MAX_FACTS;
    for (size_t i = 0; is_sound && i < hello->n_facts; i++) {
        is_sound = is_short(hello->facts[i]->key, KV_REMOTE_MAX_FACT_BYTES) &&
                   is_short(hello->facts[i]->value, KV_REMOTE_MAX_FACT_BYTES);
        make_printable(hello->facts[i]->value);
    }
    return is_sound;
}

/* So that no sum of these overflows. */
#define MAX_SHELF_BLOCKS (UINT64_C(1) << 30)
#define MAX_BLOCK_BYTES  (UINT64_C(1) << 30)
#define MAX_ADDRESS      (UINT64_C(1) << 62)

static bool is_sound_shelf(const Weft__Remote__Shelf *shelf)
{
    return shelf->block_bytes > 0 && shelf->block_bytes <= MAX_BLOCK_BYTES && shelf->blocks > 0 &&
           shelf->blocks <= MAX_SHELF_BLOCKS && shelf->addr <= MAX_ADDRESS &&
           shelf->words <= MAX_ADDRESS && shelf->words % sizeof(uint64_t) == 0;
}

static bool is_sound_welcome(const Weft__Remote__Welcome *welcome)
{
    bool is_sound = welcome->n_shelves > 0 && welcome->n_shelves <= KV_REMOTE_MAX_SHELVES &&
                    welcome->agent.len > 0;
    for (size_t i = 0; is_sound && i < welcome->n_shelves; i++) {
        is_sound = is_sound_shelf(welcome->shelves[i]);
    }
    return is_sound;
}

static bool is_sound_found(const Weft__Remote__Found *found)
{
    return found->n_shelves <= KV_REMOTE_MAX_HASHES && found->n_shelves == found->n_blocks &&
           found->n_shelves == found->n_epochs;
}

static bool is_sound(const kv_remote_message_t *message)
{
    switch (message->body_case) {
    case WEFT__REMOTE__MESSAGE__BODY_HELLO:
        return is_sound_hello(message->hello);
    case WEFT__REMOTE__MESSAGE__BODY_WELCOME:
        return is_sound_welcome(message->welcome);
    case WEFT__REMOTE__MESSAGE__BODY_REFUSE:
        make_printable(message->refuse->reason);
        return is_short(message->refuse->reason, KV_REMOTE_MAX_REASON_BYTES);
    case WEFT__REMOTE__MESSAGE__BODY_LOOKUP:
        return message->lookup->hashes.len % KV_HASH_BYTES == 0 &&
               message->lookup->hashes.len <= (size_t)KV_REMOTE_MAX_HASHES * KV_HASH_BYTES;
    case WEFT__REMOTE__MESSAGE__BODY_FOUND:
        return is_sound_found(message->found);
    default:
        return false;
    }
}

/* ---- bytes ----------------------------------------------------------------------------------- */

weft_status_t kv_remote_message_decode(const void *bytes, size_t n,
                                       kv_remote_message_t **message_out)
{
    kv_remote_message_t *message =
        n > KV_REMOTE_MESSAGE_MAX ? NULL : weft__remote__message__unpack(&allocator, n, bytes);
    if (message == NULL || !is_sound(message)) {
        kv_remote_message_free(message);
        return WEFT_ERR_MALFORMED;
    }
    *message_out = message;
    return WEFT_OK;
}

void kv_remote_message_free(kv_remote_message_t *message)
{
    if (message != NULL) {
        weft__remote__message__free_unpacked(message, &allocator);
    }
}

weft_status_t kv_remote_message_send(void *socket, const void *route, size_t route_bytes,
                                     const kv_remote_message_t *message)
{
    zmq_msg_t part;
    if (zmq_msg_init_size(&part, weft__remote__message__get_packed_size(message)) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft__remote__message__pack(message, zmq_msg_data(&part));
    if ((route_bytes > 0 && zmq_send(socket, route, route_bytes, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) ||
        zmq_msg_send(&part, socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&part);
        return WEFT_ERR_PEER_GONE;
    }
    return WEFT_OK;
}

/* ---- facts ----------------------------------------------------------------------------------- */

static const char *value_of(const Weft__Remote__Hello *theirs, const char *key)
{
    for (size_t i = 0; i < theirs->n_facts; i++) {
        if (strcmp(theirs->facts[i]->key, key) == 0) {
            return theirs->facts[i]->value;
        }
    }
    return NULL;
}

weft_status_t kv_remote_facts_check(const kv_remote_facts_t *ours,
                                    const Weft__Remote__Hello *theirs, weft_diag_t *diag)
{
    if (theirs->protocol != KV_REMOTE_PROTOCOL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "protocol: %u there, %d here", theirs->protocol,
                         KV_REMOTE_PROTOCOL);
    }
    for (uint32_t i = 0; i < ours->n; i++) {
        const kv_remote_fact_t *fact = &ours->items[i];
        const char *value = value_of(theirs, fact->key);
        if (value == NULL || strcmp(value, fact->value) != 0) {
            return weft_diag(diag, WEFT_ERR_INVALID, "%s: %s there, %s here", fact->key,
                             value == NULL ? "not said" : value, fact->value);
        }
    }
    return WEFT_OK;
}

void kv_remote_facts_add(kv_remote_facts_t *facts, const char *key, const char *format, ...)
{
    assert(facts->n < KV_REMOTE_MAX_FACTS);
    kv_remote_fact_t *fact = &facts->items[facts->n++];
    va_list arguments;
    fact->key = key;
    va_start(arguments, format);
    vsnprintf(fact->value, sizeof(fact->value), format, arguments);
    va_end(arguments);
}

weft_status_t kv_remote_facts_send(const kv_remote_facts_t *facts, void *socket)
{
    Weft__Remote__Fact items[KV_REMOTE_MAX_FACTS];
    Weft__Remote__Fact *pointers[KV_REMOTE_MAX_FACTS];
    Weft__Remote__Hello hello = WEFT__REMOTE__HELLO__INIT;
    hello.protocol = KV_REMOTE_PROTOCOL;
    for (uint32_t i = 0; i < facts->n; i++) {
        weft__remote__fact__init(&items[i]);
        items[i].key = (char *)facts->items[i].key;
        items[i].value = (char *)facts->items[i].value;
        pointers[i] = &items[i];
    }
    hello.n_facts = facts->n;
    hello.facts = pointers;
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(HELLO, hello, &hello);
    return kv_remote_message_send(socket, NULL, 0, &message);
}
