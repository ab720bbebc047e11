/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/prefill_peers.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static prefill_peer_t *find(const prefill_peers_t *peers, const char *url)
{
    for (size_t i = 0; url[0] != '\0' && i < PREFILL_PEERS_MAX; i++) {
        if (strcmp(peers->peers[i].url, url) == 0) {
            return (prefill_peer_t *)&peers->peers[i];
        }
    }
    return NULL;
}

const prefill_peer_t *prefill_peers_find(const prefill_peers_t *peers, const char *url)
{
    return find(peers, url);
}

/* Too many are refused where they are asked for blocks. */
static uint32_t size_of(const json_t *info, const char *key)
{
    const json_int_t size = json_integer_value(json_object_get(info, key));
    return size > 0 && size <= UINT32_MAX ? (uint32_t)size : 1;
}

const prefill_peer_t *prefill_peers_learn(prefill_peers_t *peers, const char *url, const char *body,
                                          size_t length)
{
    json_t *json = json_loadb(body, length, 0, NULL);
    const char *host = json_string_value(json_object_get(json, "host"));
    const json_int_t port = json_integer_value(json_object_get(json, "port"));
    prefill_peer_t *peer = NULL;
    if (host != NULL && strlen(host) < sizeof(peer->host) && strlen(url) < sizeof(peer->url) &&
        port > 0 && port <= UINT16_MAX) {
        peer = find(peers, url);
        peer = peer != NULL ? peer : &peers->peers[peers->next++ % PREFILL_PEERS_MAX];
        snprintf(peer->url, sizeof(peer->url), "%s", url);
        snprintf(peer->host, sizeof(peer->host), "%s", host);
        peer->port = (uint16_t)port;
        peer->tp_size = size_of(json, "tp_size");
        peer->pp_size = size_of(json, "pp_size");
    }
    json_decref(json);
    return peer;
}

void prefill_peers_forget(prefill_peers_t *peers, const char *url)
{
    prefill_peer_t *peer = find(peers, url);
    if (peer != NULL) {
        *peer = (prefill_peer_t){0};
    }
}
