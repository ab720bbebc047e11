/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote_peers.h"

#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"

#define WEFT_LOG_MODULE "kv-remote"
#include "base/log.h"

#define GREETING_NS    (5 * WEFT_NS_PER_SECOND) /* then hello is said anew */
#define MEASURING_NS   (5 * WEFT_NS_PER_SECOND)
#define REFUSED_NS     (60 * WEFT_NS_PER_SECOND)
#define MIN_BACKOFF_NS WEFT_NS_PER_SECOND
#define MAX_BACKOFF_NS (60 * WEFT_NS_PER_SECOND)
#define MAX_LATE       2                     /* answers in a row */
#define RATE_BYTES     ((uint64_t)64 * 1024) /* smaller blocks say more of latency than of a rate */

/* Reads that measure: one that connects, a small one, a large one. */
enum { PROBE_CONNECT, PROBE_LATENCY, PROBE_RATE, PROBE_DONE };

typedef enum peer_state { AWAY, GREETED, MEASURED, READY, REFUSED } peer_state_t;

typedef struct peer {
    peer_state_t state;
    uint64_t generation;
    uint64_t next_ns; /* of its state: hello again, or given up */
    uint64_t backoff_ns;
    uint64_t incarnation;
    xfer_peer_t *known; /* NULL: not */
    uint32_t n_shelves;
    xfer_list_t *lists[KV_REMOTE_MAX_SHELVES];
    uint64_t words[KV_REMOTE_MAX_SHELVES];
    xfer_list_t *probe_list; /* pieces as scratch's: a word, and all of it */
    xfer_request_t *probe;
    int probe_step;
    uint64_t measured_ns; /* when its rates were last noted */
    uint32_t n_late;      /* in a row */
    kv_remote_rates_t rates;
} peer_t;

struct kv_remote_peers {
    kv_remote_peers_config_t config;
    kv_remote_lines_t *lines;
    xfer_list_t *scratch_list;
    uint64_t generations;
    uint64_t wake_ns;
    uint32_t n;
    peer_t peers[KV_REMOTE_MAX_PEERS];
};

static const char *name_of(const kv_remote_peers_t *peers, const peer_t *peer)
{
    return kv_remote_lines_name(peers->lines, (uint32_t)(peer - peers->peers));
}

/* ---- losing ---------------------------------------------------------------------------------- */

/* Requests that were made of the lists live on, and are ended by xfer_forget. */
static void forget(kv_remote_peers_t *peers, peer_t *peer)
{
    xfer_request_destroy(peer->probe);
    peer->probe = NULL;
    for (uint32_t i = 0; i < peer->n_shelves; i++) {
        xfer_list_destroy(peer->lists[i]);
        peer->lists[i] = NULL;
    }
    peer->n_shelves = 0;
    xfer_list_destroy(peer->probe_list);
    peer->probe_list = NULL;
    if (peer->known != NULL) {
        xfer_forget(peers->config.agent, peer->known);
        peer->known = NULL;
    }
}

static void lose(kv_remote_peers_t *peers, peer_t *peer, peer_state_t state, uint64_t next_ns)
{
    const bool was_ready = peer->state == READY;
    peer->state = state;
    peer->generation = ++peers->generations;
    peer->next_ns = next_ns;
    peer->n_late = 0;
    if (was_ready) {
        peers->config.on_lost(peers->config.user, (uint32_t)(peer - peers->peers));
    }
    forget(peers, peer);
}

static void fail(kv_remote_peers_t *peers, peer_t *peer, const char *why, uint64_t now_ns)
{
    if (peer->state == AWAY) {
        return;
    }
    peer->backoff_ns = peer->backoff_ns == 0                   ? MIN_BACKOFF_NS
                       : peer->backoff_ns * 2 > MAX_BACKOFF_NS ? MAX_BACKOFF_NS
                                                               : peer->backoff_ns * 2;
    weft_log_warn("peer=%s its KV blocks are not to be had: %s; next try in %llu s",
                  name_of(peers, peer), why,
                  (unsigned long long)(peer->backoff_ns / WEFT_NS_PER_SECOND));
    lose(peers, peer, AWAY, now_ns + peer->backoff_ns);
}

void kv_remote_peer_fail(kv_remote_peers_t *peers, uint32_t peer, const char *why, uint64_t now_ns)
{
    fail(peers, &peers->peers[peer], why, now_ns);
}

/* ---- measuring ------------------------------------------------------------------------------- */

static weft_status_t post_probe(kv_remote_peers_t *peers, peer_t *peer, int step)
{
    const uint32_t piece = step == PROBE_RATE ? 1 : 0;
    const xfer_request_config_t config = {.direction = XFER_READ,
                                          .local = peers->scratch_list,
                                          .peer = peer->probe_list,
                                          .local_ids = &piece,
                                          .peer_ids = &piece,
                                          .n = 1};
    weft_diag_t diag = {0};
    xfer_request_destroy(peer->probe);
    peer->probe = NULL;
    peer->probe_step = step;
    const weft_status_t status =
        xfer_request_create(peers->config.agent, &config, &diag, &peer->probe);
    return status < 0 ? status : xfer_post(peer->probe);
}

static void note_probe(peer_t *peer, uint64_t now_ns)
{
    const xfer_request_stats_t stats = xfer_request_stats(peer->probe);
    const double ns = (double)(stats.ended_ns - stats.started_ns);
    if (peer->probe_step == PROBE_LATENCY) {
        peer->rates.latency_ns = ns;
        peer->rates.answer_ns = peer->rates.answer_ns == 0 ? ns : peer->rates.answer_ns;
    } else if (peer->probe_step == PROBE_RATE) {
        peer->rates.byte_ns = ns / (double)stats.bytes;
        peer->measured_ns = now_ns;
    }
}

static void become_ready(const kv_remote_peers_t *peers, peer_t *peer)
{
    peer->state = READY;
    peer->next_ns = UINT64_MAX;
    weft_log_info("peer=%s its KV blocks can be read backend=%s latency_us=%.0f mib_per_s=%.0f",
                  name_of(peers, peer), xfer_request_stats(peer->probe).backend,
                  peer->rates.latency_ns / 1e3, 1e9 / peer->rates.byte_ns / (double)(1 << 20));
}

/* In state READY it is a measurement anew, which nobody waits for. */
static void poll_probe(kv_remote_peers_t *peers, peer_t *peer, uint64_t now_ns)
{
    weft_status_t status = peer->probe == NULL ? WEFT_PENDING : xfer_poll(peer->probe);
    if (status == WEFT_OK) {
        note_probe(peer, now_ns);
        if (peer->probe_step + 1 == PROBE_DONE) {
            if (peer->state == MEASURED) {
                become_ready(peers, peer);
            }
            xfer_request_destroy(peer->probe);
            peer->probe = NULL;
            return;
        }
        status = post_probe(peers, peer, peer->probe_step + 1);
    }
    if (status < 0) {
        fail(peers, peer, weft_strerror(status), now_ns);
    }
}

void kv_remote_peer_was_declined(kv_remote_peers_t *peers, uint32_t index, uint64_t now_ns)
{
    peer_t *peer = &peers->peers[index];
    if (peer->state != READY || peer->probe != NULL ||
        now_ns - peer->measured_ns < KV_REMOTE_STALE_NS) {
        return;
    }
    const weft_status_t status = post_probe(peers, peer, PROBE_LATENCY);
    if (status < 0) {
        fail(peers, peer, weft_strerror(status), now_ns);
    }
}

/* ---- meeting --------------------------------------------------------------------------------- */

static void greet(kv_remote_peers_t *peers, peer_t *peer, uint64_t now_ns)
{
    peer->state = GREETED;
    peer->next_ns = now_ns + GREETING_NS;
    (void)kv_remote_lines_greet(peers->lines, (uint32_t)(peer - peers->peers)); /* or later */
}

static weft_status_t make_list(kv_remote_peers_t *peers, xfer_peer_t *peer, const xfer_run_t *runs,
                               size_t n, weft_diag_t *diag, xfer_list_t **list_out)
{
    return xfer_list_create(peers->config.agent, peer, XFER_DRAM, runs, n, diag, list_out);
}

static weft_status_t add_shelf(kv_remote_peers_t *peers, peer_t *peer,
                               const Weft__Remote__Shelf *shelf, weft_diag_t *diag)
{
    const size_t bytes = peers->config.block_bytes;
    const uint32_t i = peer->n_shelves;
    if (shelf->block_bytes != bytes) {
        return weft_diag(diag, WEFT_ERR_INVALID, "block: %llu bytes there, %zu here",
                         (unsigned long long)shelf->block_bytes, bytes);
    }
    if (!xfer_peer_has(peer->known, XFER_DRAM, shelf->words, shelf->blocks * sizeof(uint64_t))) {
        return weft_diag(diag, WEFT_ERR_INVALID, "epochs that cannot be read");
    }
    const xfer_run_t run = {
        .addr = shelf->addr, .bytes = bytes, .stride = bytes, .count = shelf->blocks};
    const weft_status_t status = make_list(peers, peer->known, &run, 1, diag, &peer->lists[i]);
    peer->words[i] = shelf->words;
    peer->n_shelves += status >= 0;
    return status;
}

/* A word and everything, so that pieces have the numbers that scratch's have. */
static weft_status_t add_probe(kv_remote_peers_t *peers, xfer_peer_t *known, uint64_t addr,
                               weft_diag_t *diag, xfer_list_t **list_out)
{
    const xfer_run_t runs[] = {{.addr = addr, .bytes = sizeof(uint64_t), .count = 1},
                               {.addr = addr, .bytes = KV_OFFER_PROBE_BYTES, .count = 1}};
    return make_list(peers, known, runs, 2, diag, list_out);
}

static weft_status_t meet(kv_remote_peers_t *peers, peer_t *peer,
                          const Weft__Remote__Welcome *welcome, weft_diag_t *diag)
{
    weft_status_t status = xfer_import(peers->config.agent, welcome->agent.data, welcome->agent.len,
                                       diag, &peer->known);
    for (size_t i = 0; status >= 0 && i < welcome->n_shelves; i++) {
        status = add_shelf(peers, peer, welcome->shelves[i], diag);
    }
    if (status >= 0 && welcome->probe_bytes < KV_OFFER_PROBE_BYTES) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "nothing to measure by");
    }
    if (status >= 0) {
        status = add_probe(peers, peer->known, welcome->probe, diag, &peer->probe_list);
    }
    return status < 0 ? status : post_probe(peers, peer, PROBE_CONNECT);
}

static void take_welcome(kv_remote_peers_t *peers, peer_t *peer,
                         const Weft__Remote__Welcome *welcome, uint64_t now_ns)
{
    weft_diag_t diag = {0};
    if (peer->state != GREETED) {
        return; /* of a hello that was thought lost */
    }
    peer->state = MEASURED;
    peer->next_ns = now_ns + MEASURING_NS;
    peer->incarnation = welcome->incarnation;
    const weft_status_t status = meet(peers, peer, welcome, &diag);
    if (status < 0) {
        fail(peers, peer, diag.text[0] != '\0' ? diag.text : weft_strerror(status), now_ns);
    }
}

static void take_refusal(kv_remote_peers_t *peers, peer_t *peer, const char *reason,
                         uint64_t now_ns)
{
    if (peer->state == GREETED) {
        weft_log_warn("peer=%s does not fit, its KV blocks are not used: %s", name_of(peers, peer),
                      reason);
        lose(peers, peer, REFUSED, now_ns + REFUSED_NS);
    }
}

static void take_found(kv_remote_peers_t *peers, peer_t *peer, const kv_remote_news_t *news,
                       uint64_t now_ns)
{
    const Weft__Remote__Found *found = news->message->found;
    if (peer->state != READY) {
        return;
    }
    if (found->incarnation != peer->incarnation) {
        lose(peers, peer, AWAY, now_ns); /* it was started anew: nothing to wait for */
        return;
    }
    peer->n_late = 0;
    peers->config.on_found(peers->config.user, news->line, found, news->at_ns);
}

static void take_news(kv_remote_peers_t *peers, const kv_remote_news_t *news, uint64_t now_ns)
{
    peer_t *peer = &peers->peers[news->line];
    const int kind = news->message == NULL ? WEFT__REMOTE__MESSAGE__BODY__NOT_SET
                                           : (int)news->message->body_case;
    switch (kind) {
    case WEFT__REMOTE__MESSAGE__BODY_WELCOME:
        take_welcome(peers, peer, news->message->welcome, now_ns);
        break;
    case WEFT__REMOTE__MESSAGE__BODY_REFUSE:
        take_refusal(peers, peer, news->message->refuse->reason, now_ns);
        break;
    case WEFT__REMOTE__MESSAGE__BODY_FOUND:
        take_found(peers, peer, news, now_ns);
        break;
    default:
        fail(peers, peer, "what it says means nothing", now_ns);
    }
}

/* ---- what has been seen ---------------------------------------------------------------------- */

void kv_remote_peer_answered(kv_remote_peers_t *peers, uint32_t peer, uint64_t ns)
{
    kv_remote_rate_note(&peers->peers[peer].rates.answer_ns, (double)ns);
}

void kv_remote_peer_was_late(kv_remote_peers_t *peers, uint32_t peer, uint64_t now_ns)
{
    if (++peers->peers[peer].n_late >= MAX_LATE) {
        fail(peers, &peers->peers[peer], "it does not answer in time", now_ns);
    }
}

void kv_remote_peer_was_read(kv_remote_peers_t *peers, uint32_t index, uint64_t bytes, uint64_t ns)
{
    peer_t *peer = &peers->peers[index];
    peer->backoff_ns = 0;
    if (bytes >= RATE_BYTES) {
        kv_remote_rate_note(&peer->rates.byte_ns, (double)ns / (double)bytes);
        peer->measured_ns = weft_clock_ns();
    }
}

/* ---- the rest -------------------------------------------------------------------------------- */

weft_status_t kv_remote_peers_create(const kv_remote_peers_config_t *config, weft_diag_t *diag,
                                     kv_remote_peers_t **peers_out)
{
    kv_remote_peers_t *peers = weft_zalloc(sizeof(*peers), "kv_remote_peers");
    if (peers == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const kv_remote_lines_config_t lines = {.peers = config->peers,
                                            .facts = config->facts,
                                            .wake = config->wake,
                                            .user = config->wake_user};
    peers->config = *config;
    peers->wake_ns = UINT64_MAX;
    weft_status_t status = add_probe(peers, NULL, (uint64_t)(uintptr_t)config->scratch->addr, diag,
                                     &peers->scratch_list);
    if (status >= 0) {
        status = kv_remote_lines_create(&lines, diag, &peers->lines);
    }
    if (status < 0) {
        kv_remote_peers_destroy(peers);
        return status;
    }
    peers->n = kv_remote_lines_count(peers->lines);
    for (uint32_t i = 0; i < peers->n; i++) {
        peers->peers[i].generation = ++peers->generations;
        greet(peers, &peers->peers[i], weft_clock_ns());
    }
    *peers_out = peers;
    return WEFT_OK;
}

void kv_remote_peers_destroy(kv_remote_peers_t *peers)
{
    if (peers == NULL) {
        return;
    }
    kv_remote_lines_destroy(peers->lines);
    for (uint32_t i = 0; i < peers->n; i++) {
        forget(peers, &peers->peers[i]);
    }
    xfer_list_destroy(peers->scratch_list);
    weft_free(peers);
}

/* What its state waits for has not come. */
static void be_late(kv_remote_peers_t *peers, peer_t *peer, uint64_t now_ns)
{
    if (peer->state == MEASURED) {
        fail(peers, peer, "it cannot be measured", now_ns);
    } else {
        greet(peers, peer, now_ns);
    }
}

void kv_remote_peers_poll(kv_remote_peers_t *peers, uint64_t now_ns)
{
    kv_remote_news_t *news;
    while ((news = kv_remote_lines_next(peers->lines)) != NULL) {
        take_news(peers, news, now_ns);
        kv_remote_news_free(news);
    }
    for (uint32_t i = 0; i < peers->n; i++) {
        peer_t *peer = &peers->peers[i];
        poll_probe(peers, peer, now_ns);
        if (peer->next_ns <= now_ns) {
            be_late(peers, peer, now_ns);
        }
    }
}

void kv_remote_peers_plan_wake(kv_remote_peers_t *peers, uint64_t other_ns)
{
    uint64_t next = other_ns;
    for (uint32_t i = 0; i < peers->n; i++) {
        next = peers->peers[i].next_ns < next ? peers->peers[i].next_ns : next;
    }
    if (next != peers->wake_ns || next <= weft_clock_ns()) {
        peers->wake_ns = next;
        kv_remote_lines_wake_at(peers->lines, next);
    }
}

uint32_t kv_remote_peers_count(const kv_remote_peers_t *peers)
{
    return peers->n;
}

uint32_t kv_remote_peers_ready(const kv_remote_peers_t *peers)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < peers->n; i++) {
        n += peers->peers[i].state == READY;
    }
    return n;
}

bool kv_remote_peer_is_ready(const kv_remote_peers_t *peers, uint32_t peer)
{
    return peers->peers[peer].state == READY;
}

uint64_t kv_remote_peer_generation(const kv_remote_peers_t *peers, uint32_t peer)
{
    return peers->peers[peer].generation;
}

const kv_remote_rates_t *kv_remote_peer_rates(const kv_remote_peers_t *peers, uint32_t peer)
{
    return &peers->peers[peer].rates;
}

weft_status_t kv_remote_peer_ask(kv_remote_peers_t *peers, uint32_t peer, uint64_t number,
                                 const kv_hash_t *hashes, uint32_t n)
{
    return kv_remote_lines_ask(peers->lines, peer, number, hashes, n);
}

bool kv_remote_peer_find(const kv_remote_peers_t *peers, uint32_t index,
                         const kv_offer_place_t *place, const xfer_list_t **list_out,
                         xfer_guard_t *guard_out)
{
    const peer_t *peer = &peers->peers[index];
    if (peer->state != READY || place->shelf >= peer->n_shelves ||
        place->block >= xfer_list_pieces(peer->lists[place->shelf])) {
        return false;
    }
    *list_out = peer->lists[place->shelf];
    *guard_out = (xfer_guard_t){.addr = peer->words[place->shelf] + place->block * sizeof(uint64_t),
                                .expected = place->epoch};
    return true;
}
