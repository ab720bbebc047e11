/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_offer_server.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/events/kv_gate.h"
#include "kvstore/remote/kv_remote_fabric.h"

#define WEFT_LOG_MODULE "kv-remote"
#include "base/log.h"

#define MAX_ROUTE_BYTES 255

struct kv_offer_server {
    kv_offer_t *offer;
    kv_remote_facts_t facts;
    xfer_agent_t *agent;
    weft_buffer_t metadata; /* of the agent */
    uint64_t incarnation;
    void *context;
    void *router;
    uint16_t port;
    kv_gate_t gate;
    atomic_bool is_stopping;
    bool has_thread;
    pthread_t thread;
    uint64_t hushed_until_ns; /* the thread's, so below */
    /* Where a lookup's answer is made. */
    kv_offer_place_t *places; /* [KV_REMOTE_MAX_HASHES], so below */
    uint32_t *shelves;
    uint32_t *blocks;
    uint64_t *epochs;
    /* Relaxed: counts for people. */
    _Atomic uint64_t welcomed;
    _Atomic uint64_t refused;
    _Atomic uint64_t lookups;
    _Atomic uint64_t found_blocks;
    _Atomic uint64_t garbage;
};

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* ---- answers --------------------------------------------------------------------------------- */

typedef struct caller {
    uint8_t route[MAX_ROUTE_BYTES];
    size_t route_bytes;
} caller_t;

static void answer(kv_offer_server_t *server, const caller_t *caller,
                   const kv_remote_message_t *message)
{
    (void)kv_remote_message_send(server->router, caller->route, caller->route_bytes, message);
}

static uint64_t address_of(const weft_mem_t *memory)
{
    return (uint64_t)(uintptr_t)memory->addr;
}

static void welcome(kv_offer_server_t *server, const caller_t *caller)
{
    Weft__Remote__Welcome body = WEFT__REMOTE__WELCOME__INIT;
    Weft__Remote__Shelf shelves[KV_REMOTE_MAX_SHELVES];
    Weft__Remote__Shelf *pointers[KV_REMOTE_MAX_SHELVES];
    const kv_offer_t *offer = server->offer;
    for (uint32_t i = 0; i < kv_offer_shelves(offer); i++) {
        const kv_offer_shelf_t *shelf = kv_offer_shelf(offer, i);
        weft__remote__shelf__init(&shelves[i]);
        shelves[i].addr = address_of(shelf->memory);
        shelves[i].block_bytes = shelf->block_bytes;
        shelves[i].blocks = shelf->n_blocks;
        shelves[i].words = address_of(kv_offer_words(offer, i));
        pointers[i] = &shelves[i];
    }
    body.incarnation = server->incarnation;
    body.agent.data = (uint8_t *)server->metadata.data;
    body.agent.len = server->metadata.length;
    body.n_shelves = kv_offer_shelves(offer);
    body.shelves = pointers;
    body.probe = address_of(kv_offer_probe(offer));
    body.probe_bytes = KV_OFFER_PROBE_BYTES;
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(WELCOME, welcome, &body);
    count(&server->welcomed, 1);
    answer(server, caller, &message);
}

static void refuse(kv_offer_server_t *server, const caller_t *caller, char *reason)
{
    Weft__Remote__Refuse body = WEFT__REMOTE__REFUSE__INIT;
    body.reason = reason;
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(REFUSE, refuse, &body);
    if (weft_clock_ns() >= server->hushed_until_ns) { /* a stranger may come again and again */
        weft_log_warn("a worker is refused our KV blocks: %s", reason);
        server->hushed_until_ns = weft_clock_ns() + WEFT_NS_PER_SECOND;
    }
    count(&server->refused, 1);
    answer(server, caller, &message);
}

static void greet(kv_offer_server_t *server, const caller_t *caller,
                  const Weft__Remote__Hello *hello)
{
    weft_diag_t diag = {0};
    if (kv_remote_facts_check(&server->facts, hello, &diag) < 0) {
        diag.text[KV_REMOTE_MAX_REASON_BYTES] = '\0';
        refuse(server, caller, diag.text);
    } else {
        welcome(server, caller);
    }
}

static void look_up(kv_offer_server_t *server, const caller_t *caller,
                    const Weft__Remote__Lookup *lookup)
{
    Weft__Remote__Found body = WEFT__REMOTE__FOUND__INIT;
    const uint32_t n = (uint32_t)(lookup->hashes.len / KV_HASH_BYTES);
    const uint32_t found = kv_offer_find(
        server->offer, (const kv_hash_t *)(const void *)lookup->hashes.data, n, server->places);
    for (uint32_t i = 0; i < found; i++) {
        server->shelves[i] = server->places[i].shelf;
        server->blocks[i] = server->places[i].block;
        server->epochs[i] = server->places[i].epoch;
    }
    body.number = lookup->number;
    body.incarnation = server->incarnation;
    body.n_shelves = body.n_blocks = body.n_epochs = found;
    body.shelves = server->shelves;
    body.blocks = server->blocks;
    body.epochs = server->epochs;
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(FOUND, found, &body);
    count(&server->lookups, 1);
    count(&server->found_blocks, found);
    answer(server, caller, &message);
}

static void take(kv_offer_server_t *server, const caller_t *caller, const void *bytes, size_t n)
{
    kv_remote_message_t *message = NULL;
    if (kv_remote_message_decode(bytes, n, &message) < 0) {
        count(&server->garbage, 1);
        return;
    }
    switch (message->body_case) {
    case WEFT__REMOTE__MESSAGE__BODY_HELLO:
        greet(server, caller, message->hello);
        break;
    case WEFT__REMOTE__MESSAGE__BODY_LOOKUP:
        look_up(server, caller, message->lookup);
        break;
    default:
        count(&server->garbage, 1);
    }
    kv_remote_message_free(message);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static bool has_more(void *socket)
{
    int more = 0;
    size_t size = sizeof(more);
    zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size);
    return more != 0;
}

/* A route and one message; false: there is none. */
static bool serve_one(kv_offer_server_t *server)
{
    caller_t caller;
    zmq_msg_t part;
    const int length = zmq_recv(server->router, caller.route, sizeof(caller.route), ZMQ_DONTWAIT);
    if (length < 0) {
        return false;
    }
    caller.route_bytes = (size_t)length; /* a ROUTER's are five bytes, a peer's own at most 255 */
    bool is_first = true;
    while (has_more(server->router)) {
        zmq_msg_init(&part);
        const bool is_there = zmq_msg_recv(&part, server->router, ZMQ_DONTWAIT) >= 0;
        if (is_there && is_first && !has_more(server->router)) {
            take(server, &caller, zmq_msg_data(&part), zmq_msg_size(&part));
        } else if (is_there && is_first) {
            count(&server->garbage, 1);
        }
        is_first = false;
        zmq_msg_close(&part);
    }
    return true;
}

static void *serve(void *user)
{
    kv_offer_server_t *server = user;
    zmq_pollitem_t items[] = {{.fd = server->gate.fd, .events = ZMQ_POLLIN},
                              {.socket = server->router, .events = ZMQ_POLLIN}};
    while (!atomic_load(&server->is_stopping)) {
        if (!serve_one(server)) {
            kv_gate_announce(&server->gate);
            if (!atomic_load(&server->is_stopping)) {
                zmq_poll(items, 2, -1);
            }
            kv_gate_leave(&server->gate);
        }
    }
    return NULL;
}

/* ---- starting -------------------------------------------------------------------------------- */

static weft_status_t register_all(kv_offer_server_t *server, weft_diag_t *diag)
{
    const kv_offer_t *offer = server->offer;
    weft_status_t status = kv_remote_register(server->agent, kv_offer_probe(offer), diag);
    for (uint32_t i = 0; status >= 0 && i < kv_offer_shelves(offer); i++) {
        status = kv_remote_register(server->agent, kv_offer_shelf(offer, i)->memory, diag);
        if (status >= 0) {
            status = kv_remote_register(server->agent, kv_offer_words(offer, i), diag);
        }
    }
    return status < 0 ? status : xfer_export(server->agent, NULL, 0, true, &server->metadata);
}

static weft_status_t open_router(kv_offer_server_t *server, const char *endpoint, weft_diag_t *diag)
{
    const int zero = 0;
    const int one = 1;
    const int64_t max_bytes = (int64_t)KV_REMOTE_MESSAGE_MAX;
    char bound[KV_REMOTE_MAX_ENDPOINT];
    unsigned port = 0;
    size_t length = sizeof(bound);
    server->context = zmq_ctx_new();
    server->router = server->context == NULL ? NULL : zmq_socket(server->context, ZMQ_ROUTER);
    if (server->router == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no socket: %s", zmq_strerror(errno));
    }
    zmq_setsockopt(server->router, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(server->router, ZMQ_IPV6, &one, sizeof(one));
    zmq_setsockopt(server->router, ZMQ_MAXMSGSIZE, &max_bytes, sizeof(max_bytes));
    if (zmq_bind(server->router, endpoint) != 0) {
        return weft_diag(diag, errno == EADDRINUSE ? WEFT_ERR_IN_USE : WEFT_ERR_IO,
                         "cannot listen at %s: %s", endpoint, zmq_strerror(errno));
    }
    zmq_getsockopt(server->router, ZMQ_LAST_ENDPOINT, bound, &length);
    const char *colon = strrchr(bound, ':');
    if (colon == NULL || sscanf(colon + 1, "%u", &port) != 1) {
        return WEFT_ERR_INTERNAL;
    }
    server->port = (uint16_t)port;
    return WEFT_OK;
}

static weft_status_t alloc_answer(kv_offer_server_t *server)
{
    const size_t n = KV_REMOTE_MAX_HASHES;
    server->places = weft_calloc(n, sizeof(*server->places), "kv_offer_server.places");
    server->shelves = weft_calloc(n, sizeof(*server->shelves), "kv_offer_server.answer");
    server->blocks = weft_calloc(n, sizeof(*server->blocks), "kv_offer_server.answer");
    server->epochs = weft_calloc(n, sizeof(*server->epochs), "kv_offer_server.answer");
    return server->places == NULL || server->shelves == NULL || server->blocks == NULL ||
                   server->epochs == NULL
               ? WEFT_ERR_NO_MEMORY
               : WEFT_OK;
}

static weft_status_t start(kv_offer_server_t *server, const kv_offer_server_config_t *config,
                           weft_diag_t *diag)
{
    char endpoint[KV_REMOTE_MAX_ENDPOINT];
    char host[KV_REMOTE_MAX_ENDPOINT];
    weft_status_t status = kv_remote_endpoint(config->listen, strlen(config->listen),
                                              config->port_offset, diag, endpoint, host);
    if (status >= 0) {
        status = alloc_answer(server);
    }
    if (status >= 0) {
        status = kv_gate_open(&server->gate);
    }
    if (status >= 0) {
        const kv_remote_fabric_t fabric = {
            .backends = config->backends, .params = config->params, .host = host};
        status = kv_remote_agent_open(&fabric, diag, &server->agent);
    }
    if (status >= 0) {
        status = register_all(server, diag);
    }
    if (status >= 0) {
        status = open_router(server, endpoint, diag);
    }
    if (status < 0) {
        return status;
    }
    if (pthread_create(&server->thread, NULL, serve, server) != 0) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no thread");
    }
    server->has_thread = true;
    pthread_setname_np(server->thread, "kv-offer");
    weft_log_info("KV blocks are offered at %s port=%u", endpoint, server->port);
    return WEFT_OK;
}

weft_status_t kv_offer_server_create(const kv_offer_server_config_t *config, weft_diag_t *diag,
                                     kv_offer_server_t **server_out)
{
    kv_offer_server_t *server = weft_zalloc(sizeof(*server), "kv_offer_server");
    if (server == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    server->offer = config->offer;
    server->facts = *config->facts;
    server->gate.fd = -1;
    weft_status_t status = getrandom(&server->incarnation, sizeof(server->incarnation), 0) ==
                                   sizeof(server->incarnation)
                               ? WEFT_OK
                               : WEFT_ERR_IO;
    if (status >= 0) {
        status = start(server, config, diag);
    }
    if (status < 0) {
        kv_offer_server_destroy(server);
        return status;
    }
    *server_out = server;
    return WEFT_OK;
}

void kv_offer_server_destroy(kv_offer_server_t *server)
{
    if (server == NULL) {
        return;
    }
    if (server->has_thread) {
        atomic_store(&server->is_stopping, true);
        kv_gate_wake(&server->gate);
        pthread_join(server->thread, NULL);
    }
    if (server->router != NULL) {
        zmq_close(server->router);
    }
    if (server->context != NULL) {
        zmq_ctx_term(server->context);
    }
    xfer_agent_destroy(server->agent);
    kv_gate_close(&server->gate);
    weft_buffer_free(&server->metadata);
    weft_free(server->places);
    weft_free(server->shelves);
    weft_free(server->blocks);
    weft_free(server->epochs);
    weft_free(server);
}

uint16_t kv_offer_server_port(const kv_offer_server_t *server)
{
    return server->port;
}

static uint64_t value_of(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

kv_offer_server_stats_t kv_offer_server_stats(const kv_offer_server_t *server)
{
    return (kv_offer_server_stats_t){
        .welcomed = value_of(&server->welcomed),
        .refused = value_of(&server->refused),
        .lookups = value_of(&server->lookups),
        .found_blocks = value_of(&server->found_blocks),
        .garbage = value_of(&server->garbage),
    };
}
