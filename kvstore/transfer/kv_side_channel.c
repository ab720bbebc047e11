/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "kv-transfer"
#include "kvstore/transfer/kv_side_channel.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "kvstore/transfer/kv_side_channel_priv.h"

/* ---- the thread ------------------------------------------------------------------------------ */

/* The oldest that waits joins those that are asked; NULL: none, or there are enough. */
static kv_side_ask_t *next_ask(kv_side_channel_t *channel)
{
    kv_side_ask_t *ask = NULL;
    pthread_mutex_lock(&channel->lock);
    if (channel->new_asks != NULL && channel->n_asks < KV_SIDE_CHANNEL_MAX_ASKS) {
        kv_side_ask_t **at = &channel->new_asks;
        while ((*at)->next != NULL) {
            at = &(*at)->next;
        }
        ask = *at;
        *at = NULL;
        ask->next = channel->asks;
        channel->asks = ask;
        channel->n_asks++;
    }
    pthread_mutex_unlock(&channel->lock);
    return ask;
}

static void begin_asks(kv_side_channel_t *channel)
{
    kv_side_ask_t *ask;
    while ((ask = next_ask(channel)) != NULL) {
        kv_side_ask_begin(channel, ask);
    }
}

static bool is_unwanted(kv_side_channel_t *channel, const kv_side_ask_t *ask)
{
    pthread_mutex_lock(&channel->lock);
    const bool is_so = ask->client == NULL;
    pthread_mutex_unlock(&channel->lock);
    return is_so;
}

/* The links change under the lock: a client that closes goes through them. */
static void drop_ask(kv_side_channel_t *channel, kv_side_ask_t **at)
{
    kv_side_ask_t *ask = *at;
    pthread_mutex_lock(&channel->lock);
    *at = ask->next;
    channel->n_asks--;
    pthread_mutex_unlock(&channel->lock);
    kv_side_ask_destroy(ask);
}

static void look_at_asks(kv_side_channel_t *channel)
{
    const uint64_t now = weft_clock_ns();
    kv_side_ask_t **at = &channel->asks;
    while (*at != NULL) {
        kv_side_ask_t *ask = *at;
        if (ask->state == KV_ASK_SENT) {
            kv_side_ask_look(channel, ask, now);
        }
        if (ask->state == KV_ASK_ENDED || is_unwanted(channel, ask)) {
            drop_ask(channel, at);
        } else {
            at = &ask->next;
        }
    }
}

/* Clients whose time has come are woken; when the next one's does. */
static uint64_t wake_clients(kv_side_channel_t *channel)
{
    const uint64_t now = weft_clock_ns();
    uint64_t next = UINT64_MAX;
    pthread_mutex_lock(&channel->wake_lock);
    pthread_mutex_lock(&channel->lock);
    for (kv_side_client_t *client = channel->clients; client != NULL; client = client->next) {
        if (client->wake_ns <= now) {
            client->wake_ns = UINT64_MAX;
            if (client->config.wake != NULL) {
                pthread_mutex_unlock(&channel->lock); /* wake_lock keeps the client */
                client->config.wake(client->config.user);
                pthread_mutex_lock(&channel->lock);
            }
        }
        next = client->wake_ns < next ? client->wake_ns : next;
    }
    pthread_mutex_unlock(&channel->lock);
    pthread_mutex_unlock(&channel->wake_lock);
    return next;
}

static int timeout_until(uint64_t time_ns)
{
    const uint64_t now = weft_clock_ns();
    if (time_ns == UINT64_MAX) {
        return -1;
    }
    if (time_ns <= now) {
        return 0;
    }
    const uint64_t ms = (time_ns - now) / WEFT_NS_PER_MS + 1;
    return ms > 60000 ? 60000 : (int)ms;
}

static bool has_news(kv_side_channel_t *channel)
{
    pthread_mutex_lock(&channel->lock);
    bool has = channel->is_stopping ||
               (channel->new_asks != NULL && channel->n_asks < KV_SIDE_CHANNEL_MAX_ASKS);
    const uint64_t now = weft_clock_ns();
    for (const kv_side_client_t *client = channel->clients; client != NULL; client = client->next) {
        has |= client->wake_ns <= now;
    }
    pthread_mutex_unlock(&channel->lock);
    return has;
}

static void wait(kv_side_channel_t *channel, uint64_t until_ns)
{
    zmq_pollitem_t items[2 + 2 * KV_SIDE_CHANNEL_MAX_ASKS];
    int n = 0;
    items[n++] = (zmq_pollitem_t){.fd = channel->gate.fd, .events = ZMQ_POLLIN};
    if (channel->router != NULL) {
        items[n++] = (zmq_pollitem_t){.socket = channel->router, .events = ZMQ_POLLIN};
    }
    for (const kv_side_ask_t *ask = channel->asks; ask != NULL; ask = ask->next) {
        const uint64_t end = ask->sent_ns + KV_SIDE_CHANNEL_TIMEOUT_NS;
        until_ns = end < until_ns ? end : until_ns;
        items[n++] = (zmq_pollitem_t){.socket = ask->socket, .events = ZMQ_POLLIN};
        if (ask->monitor != NULL) {
            items[n++] = (zmq_pollitem_t){.socket = ask->monitor, .events = ZMQ_POLLIN};
        }
    }
    kv_gate_announce(&channel->gate);
    if (!has_news(channel)) {
        zmq_poll(items, n, timeout_until(until_ns));
    }
    kv_gate_leave(&channel->gate);
}

static bool is_stopping(kv_side_channel_t *channel)
{
    pthread_mutex_lock(&channel->lock);
    const bool is_so = channel->is_stopping;
    pthread_mutex_unlock(&channel->lock);
    return is_so;
}

static void *serve(void *user)
{
    kv_side_channel_t *channel = user;
    while (!is_stopping(channel)) {
        /* One request at a time, so that no stranger keeps the thread from the rest. */
        const bool had_request = channel->router != NULL && kv_side_server_answer(channel);
        begin_asks(channel);
        look_at_asks(channel);
        const uint64_t next = wake_clients(channel);
        if (!had_request) {
            wait(channel, next);
        }
    }
    return NULL;
}

/* ---- the channel ----------------------------------------------------------------------------- */

static weft_status_t start(kv_side_channel_t *channel, const char *host, uint16_t port,
                           weft_diag_t *diag)
{
    channel->context = zmq_ctx_new();
    if (channel->context == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = kv_gate_open(&channel->gate);
    if (status >= 0 && host != NULL) {
        status = kv_side_server_open(channel, host, port, diag);
    }
    if (status < 0) {
        return status;
    }
    if (pthread_create(&channel->thread, NULL, serve, channel) != 0) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "side channel: no thread");
    }
    channel->has_thread = true;
    pthread_setname_np(channel->thread, "kv-side");
    return WEFT_OK;
}

weft_status_t kv_side_channel_create(const char *host, uint16_t port, weft_diag_t *diag,
                                     kv_side_channel_t **channel_out)
{
    kv_side_channel_t *channel = weft_zalloc(sizeof(*channel), "kv_side_channel");
    if (channel == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    channel->gate.fd = -1;
    pthread_mutex_init(&channel->lock, NULL);
    pthread_mutex_init(&channel->wake_lock, NULL);
    const weft_status_t status = start(channel, host, port, diag);
    if (status < 0) {
        kv_side_channel_destroy(channel);
        return status;
    }
    if (host != NULL) {
        weft_log_info("side channel on %s:%u", host, channel->port);
    }
    *channel_out = channel;
    return WEFT_OK;
}

static void destroy_asks(kv_side_ask_t *ask)
{
    while (ask != NULL) {
        kv_side_ask_t *next = ask->next;
        kv_side_ask_destroy(ask);
        ask = next;
    }
}

void kv_side_channel_destroy(kv_side_channel_t *channel)
{
    if (channel == NULL) {
        return;
    }
    if (channel->has_thread) {
        pthread_mutex_lock(&channel->lock);
        channel->is_stopping = true;
        pthread_mutex_unlock(&channel->lock);
        kv_gate_wake(&channel->gate);
        pthread_join(channel->thread, NULL);
    }
    destroy_asks(channel->asks);
    destroy_asks(channel->new_asks);
    if (channel->router != NULL) {
        zmq_close(channel->router);
    }
    if (channel->context != NULL) {
        zmq_ctx_term(channel->context);
    }
    kv_gate_close(&channel->gate);
    pthread_mutex_destroy(&channel->lock);
    pthread_mutex_destroy(&channel->wake_lock);
    weft_free(channel);
}

uint16_t kv_side_channel_port(const kv_side_channel_t *channel)
{
    return channel->port;
}

kv_side_channel_stats_t kv_side_channel_stats(const kv_side_channel_t *channel)
{
    return (kv_side_channel_stats_t){atomic_load_explicit(&channel->answered, memory_order_relaxed),
                                     atomic_load_explicit(&channel->refused, memory_order_relaxed)};
}

void kv_side_channel_deliver(kv_side_channel_t *channel, kv_side_ask_t *ask,
                             kv_side_answer_t *answer)
{
    pthread_mutex_lock(&channel->wake_lock);
    pthread_mutex_lock(&channel->lock);
    kv_side_client_t *client = ask->client;
    if (client != NULL) {
        answer->next = NULL;
        *client->answers_end = answer;
        client->answers_end = &answer->next;
        answer = NULL;
    }
    pthread_mutex_unlock(&channel->lock);
    if (client != NULL && client->config.wake != NULL) {
        client->config.wake(client->config.user);
    }
    pthread_mutex_unlock(&channel->wake_lock);
    kv_side_answer_free(answer);
}

/* ---- clients --------------------------------------------------------------------------------- */

weft_status_t kv_side_client_open(kv_side_channel_t *channel, const kv_side_client_config_t *config,
                                  kv_side_client_t **client_out)
{
    kv_side_client_t *client = weft_zalloc(sizeof(*client), "kv_side_channel.client");
    if (client == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    client->channel = channel;
    client->config = *config;
    client->wake_ns = UINT64_MAX;
    client->answers_end = &client->answers;
    pthread_mutex_lock(&channel->lock);
    client->next = channel->clients;
    channel->clients = client;
    pthread_mutex_unlock(&channel->lock);
    *client_out = client;
    return WEFT_OK;
}

static void forget_asks(kv_side_ask_t *ask, const kv_side_client_t *client)
{
    for (; ask != NULL; ask = ask->next) {
        if (ask->client == client) {
            ask->client = NULL;
        }
    }
}

void kv_side_client_close(kv_side_client_t *client)
{
    if (client == NULL) {
        return;
    }
    kv_side_channel_t *channel = client->channel;
    pthread_mutex_lock(&channel->wake_lock);
    pthread_mutex_lock(&channel->lock);
    kv_side_client_t **at = &channel->clients;
    while (*at != client) {
        at = &(*at)->next;
    }
    *at = client->next;
    forget_asks(channel->asks, client);
    forget_asks(channel->new_asks, client);
    pthread_mutex_unlock(&channel->lock);
    pthread_mutex_unlock(&channel->wake_lock);
    kv_gate_wake(&channel->gate);
    while (client->answers != NULL) {
        kv_side_answer_t *answer = client->answers;
        client->answers = answer->next;
        kv_side_answer_free(answer);
    }
    weft_free(client->payload);
    weft_free(client);
}

weft_status_t kv_side_client_serve(kv_side_client_t *client, kv_meta_request_t rank,
                                   const void *payload, size_t bytes)
{
    kv_side_channel_t *channel = client->channel;
    char *copy = weft_alloc(bytes + 1, "kv_side_channel.payload");
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    memcpy(copy, payload, bytes);
    pthread_mutex_lock(&channel->lock);
    weft_free(client->payload);
    client->payload = copy;
    client->bytes = bytes;
    client->rank = rank;
    client->is_serving = true;
    pthread_mutex_unlock(&channel->lock);
    return WEFT_OK;
}

void kv_side_client_wake_at(kv_side_client_t *client, uint64_t time_ns)
{
    kv_side_channel_t *channel = client->channel;
    pthread_mutex_lock(&channel->lock);
    const bool is_earlier = time_ns < client->wake_ns;
    client->wake_ns = time_ns;
    pthread_mutex_unlock(&channel->lock);
    if (is_earlier) { /* later: the thread wakes once for nothing */
        kv_gate_wake(&channel->gate);
    }
}

weft_status_t kv_side_client_ask(kv_side_client_t *client, const char *host, uint16_t port,
                                 kv_meta_request_t rank, uint64_t tag)
{
    kv_side_channel_t *channel = client->channel;
    kv_side_ask_t *ask = weft_zalloc(sizeof(*ask), "kv_side_channel.ask");
    if (ask == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = kv_side_endpoint(host, port, ask->endpoint);
    if (status < 0) {
        weft_free(ask);
        return status;
    }
    ask->client = client;
    ask->rank = rank;
    ask->tag = tag;
    pthread_mutex_lock(&channel->lock);
    ask->next = channel->new_asks;
    channel->new_asks = ask;
    pthread_mutex_unlock(&channel->lock);
    kv_gate_wake(&channel->gate);
    return WEFT_OK;
}

kv_side_answer_t *kv_side_client_next(kv_side_client_t *client)
{
    kv_side_channel_t *channel = client->channel;
    pthread_mutex_lock(&channel->lock);
    kv_side_answer_t *answer = client->answers;
    if (answer != NULL) {
        client->answers = answer->next;
        if (client->answers == NULL) {
            client->answers_end = &client->answers;
        }
    }
    pthread_mutex_unlock(&channel->lock);
    return answer;
}

void kv_side_answer_free(kv_side_answer_t *answer)
{
    if (answer != NULL) {
        weft_free(answer->payload);
        weft_free(answer);
    }
}
