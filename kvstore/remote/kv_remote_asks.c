/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote_asks.h"

#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/kv_index.h"

#define MAX_ASKS  64
#define MAX_KNOWN 8192               /* blocks */
#define KNOWN_FOR WEFT_NS_PER_SECOND /* an answer, before the same is asked anew */

/* Who answered best so far. */
typedef struct best {
    uint32_t peer;
    uint32_t n; /* 0: nobody */
    double gain_ns;
    kv_offer_place_t *places; /* [n] */
} best_t;

/* A question; free while hashes is NULL and until_ns is over. */
typedef struct ask {
    uint64_t number;
    kv_hash_t last; /* of the chain asked for: names all of it */
    uint32_t n;
    kv_hash_t *hashes; /* [n]; NULL: decided */
    double block_compute_ns;
    uint64_t asked_ns;
    uint64_t until_ns; /* answers are waited for; decided: the answer counts */
    uint32_t waiting;  /* bit p: peer p has not answered */
    bool was_declined;
    uint32_t declined_peer;
    best_t best;
} ask_t;

typedef struct known {
    uint32_t peer;
    uint64_t generation; /* of the peer */
    kv_offer_place_t place;
} known_t;

struct kv_remote_asks {
    kv_remote_asks_config_t config;
    ask_t asks[MAX_ASKS];
    uint64_t numbers;
    kv_index_t *index; /* hash to known */
    known_t *known;    /* [MAX_KNOWN], a circle */
    uint32_t next_known;
    kv_remote_asks_stats_t stats;
};

weft_status_t kv_remote_asks_create(const kv_remote_asks_config_t *config,
                                    kv_remote_asks_t **asks_out)
{
    kv_remote_asks_t *asks = weft_zalloc(sizeof(*asks), "kv_remote_asks");
    if (asks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    asks->config = *config;
    asks->known = weft_calloc(MAX_KNOWN, sizeof(*asks->known), "kv_remote_asks.known");
    const weft_status_t status =
        asks->known == NULL ? WEFT_ERR_NO_MEMORY : kv_index_create(MAX_KNOWN, &asks->index);
    if (status < 0) {
        kv_remote_asks_destroy(asks);
        return status;
    }
    *asks_out = asks;
    return WEFT_OK;
}

static void free_ask(ask_t *ask)
{
    weft_free(ask->hashes);
    weft_free(ask->best.places);
    *ask = (ask_t){0};
}

void kv_remote_asks_destroy(kv_remote_asks_t *asks)
{
    if (asks == NULL) {
        return;
    }
    for (uint32_t i = 0; i < MAX_ASKS; i++) {
        free_ask(&asks->asks[i]);
    }
    kv_index_destroy(asks->index);
    weft_free(asks->known);
    weft_free(asks);
}

/* ---- what is known --------------------------------------------------------------------------- */

static void learn(kv_remote_asks_t *asks, const kv_hash_t *hash, uint32_t peer,
                  const kv_offer_place_t *place)
{
    const kv_block_id_t before = kv_index_find(asks->index, hash);
    const kv_block_id_t slot = asks->next_known;
    if (before != KV_BLOCK_NONE) {
        kv_index_remove(asks->index, before);
    }
    kv_index_remove(asks->index, slot);
    (void)kv_index_insert(asks->index, hash, slot);
    asks->known[slot] =
        (known_t){peer, kv_remote_peer_generation(asks->config.peers, peer), *place};
    asks->next_known = (slot + 1) % MAX_KNOWN;
}

bool kv_remote_asks_find(const kv_remote_asks_t *asks, const kv_hash_t *hash, uint32_t *peer_out,
                         kv_offer_place_t *place_out)
{
    const kv_block_id_t slot = kv_index_find(asks->index, hash);
    if (slot == KV_BLOCK_NONE) {
        return false;
    }
    const known_t *known = &asks->known[slot];
    *peer_out = known->peer;
    *place_out = known->place;
    return known->generation == kv_remote_peer_generation(asks->config.peers, known->peer);
}

void kv_remote_asks_forget(kv_remote_asks_t *asks, const kv_hash_t *hash)
{
    const kv_block_id_t slot = kv_index_find(asks->index, hash);
    if (slot != KV_BLOCK_NONE) {
        kv_index_remove(asks->index, slot);
    }
}

void kv_remote_asks_clear(kv_remote_asks_t *asks)
{
    kv_index_clear(asks->index);
    for (uint32_t i = 0; i < MAX_ASKS; i++) {
        free_ask(&asks->asks[i]);
    }
}

/* ---- deciding -------------------------------------------------------------------------------- */

static kv_remote_work_t work_of(const kv_remote_asks_t *asks, const ask_t *ask, uint32_t n)
{
    return (kv_remote_work_t){.n_blocks = n,
                              .block_bytes = (double)asks->config.block_bytes,
                              .block_compute_ns = ask->block_compute_ns};
}

static void decline(kv_remote_asks_t *asks, uint32_t peer, uint64_t now_ns)
{
    asks->stats.declined++;
    kv_remote_peer_was_declined(asks->config.peers, peer, now_ns);
}

static void decide(kv_remote_asks_t *asks, ask_t *ask, uint64_t now_ns)
{
    const best_t *best = &ask->best;
    for (uint32_t i = 0; i < best->n; i++) {
        learn(asks, &ask->hashes[i], best->peer, &best->places[i]);
    }
    for (uint32_t i = best->n; i < ask->n; i++) {
        kv_remote_asks_forget(asks, &ask->hashes[i]);
    }
    weft_free(ask->hashes);
    weft_free(ask->best.places);
    ask->hashes = NULL;
    ask->until_ns = now_ns + KNOWN_FOR;
    if (best->n == 0 && ask->was_declined) {
        decline(asks, ask->declined_peer, now_ns);
    }
    ask->best = (best_t){0};
}

static bool copy_places(best_t *best, const Weft__Remote__Found *found)
{
    const size_t n = found->n_blocks;
    kv_offer_place_t *places = weft_calloc(n, sizeof(*places), "kv_remote_asks.places");
    if (places == NULL) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        places[i] = (kv_offer_place_t){found->shelves[i], found->blocks[i], found->epochs[i]};
    }
    weft_free(best->places);
    best->places = places;
    best->n = (uint32_t)n;
    return true;
}

static void weigh(kv_remote_asks_t *asks, ask_t *ask, uint32_t peer,
                  const Weft__Remote__Found *found)
{
    const kv_remote_rates_t *rates = kv_remote_peer_rates(asks->config.peers, peer);
    const kv_remote_work_t work = work_of(asks, ask, (uint32_t)found->n_blocks);
    const double gain = kv_remote_gain_ns(rates, &work);
    if (!kv_remote_is_worth(rates, &work)) {
        ask->was_declined = true;
        ask->declined_peer = peer;
    } else if ((ask->best.n == 0 || gain > ask->best.gain_ns) && copy_places(&ask->best, found)) {
        ask->best.peer = peer;
        ask->best.gain_ns = gain;
    }
}

void kv_remote_asks_found(kv_remote_asks_t *asks, uint32_t peer, const Weft__Remote__Found *found,
                          uint64_t at_ns)
{
    ask_t *ask = NULL;
    for (uint32_t i = 0; i < MAX_ASKS && ask == NULL; i++) {
        ask = asks->asks[i].number == found->number ? &asks->asks[i] : NULL;
    }
    if (ask == NULL || ask->hashes == NULL || (ask->waiting >> peer & 1) == 0 ||
        found->n_blocks > ask->n) {
        return;
    }
    ask->waiting &= ~(UINT32_C(1) << peer);
    kv_remote_peer_answered(asks->config.peers, peer, at_ns - ask->asked_ns);
    if (found->n_blocks > 0) {
        weigh(asks, ask, peer, found);
    }
    if (ask->waiting == 0 || ask->best.n == ask->n) {
        decide(asks, ask, weft_clock_ns());
    }
}

void kv_remote_asks_lost(kv_remote_asks_t *asks, uint32_t peer)
{
    for (uint32_t i = 0; i < MAX_ASKS; i++) {
        ask_t *ask = &asks->asks[i];
        if (ask->hashes == NULL) {
            continue;
        }
        ask->waiting &= ~(UINT32_C(1) << peer);
        if (ask->best.n > 0 && ask->best.peer == peer) {
            ask->best.n = 0;
        }
        if (ask->waiting == 0) {
            decide(asks, ask, weft_clock_ns());
        }
    }
}

/* ---- asking ---------------------------------------------------------------------------------- */

static ask_t *find_ask(kv_remote_asks_t *asks, const kv_hash_t *last, uint32_t n)
{
    for (uint32_t i = 0; i < MAX_ASKS; i++) {
        ask_t *ask = &asks->asks[i];
        if (ask->number != 0 && ask->n == n && memcmp(&ask->last, last, sizeof(*last)) == 0) {
            return ask;
        }
    }
    return NULL;
}

/* A free one, or else the decided one that is over first. */
static ask_t *take_ask(kv_remote_asks_t *asks)
{
    ask_t *taken = NULL;
    for (uint32_t i = 0; i < MAX_ASKS; i++) {
        ask_t *ask = &asks->asks[i];
        if (ask->hashes == NULL && (taken == NULL || ask->until_ns < taken->until_ns)) {
            taken = ask;
        }
    }
    return taken;
}

/* The peers that it is worth to ask: if they had all. */
static uint32_t candidates(kv_remote_asks_t *asks, const ask_t *ask, uint64_t now_ns)
{
    const kv_remote_work_t all = work_of(asks, ask, ask->n);
    uint32_t chosen = 0;
    uint32_t dear = KV_REMOTE_MAX_PEERS;
    for (uint32_t p = 0; p < kv_remote_peers_count(asks->config.peers); p++) {
        if (!kv_remote_peer_is_ready(asks->config.peers, p)) {
            continue;
        }
        if (kv_remote_is_worth(kv_remote_peer_rates(asks->config.peers, p), &all)) {
            chosen |= UINT32_C(1) << p;
        } else {
            dear = p;
        }
    }
    if (chosen == 0 && dear < KV_REMOTE_MAX_PEERS) {
        decline(asks, dear, now_ns);
    }
    return chosen;
}

static void send(kv_remote_asks_t *asks, ask_t *ask, uint32_t chosen)
{
    for (uint32_t p = 0; p < kv_remote_peers_count(asks->config.peers); p++) {
        if ((chosen >> p & 1) != 0 &&
            kv_remote_peer_ask(asks->config.peers, p, ask->number, ask->hashes, ask->n) >= 0) {
            ask->waiting |= UINT32_C(1) << p;
        }
    }
}

static weft_status_t begin(kv_remote_asks_t *asks, const kv_hash_t *hashes, uint32_t n,
                           double block_compute_ns, uint64_t now_ns)
{
    ask_t *ask = take_ask(asks);
    if (ask == NULL) {
        return WEFT_OK; /* too many wait: this one goes without */
    }
    *ask = (ask_t){.number = ++asks->numbers,
                   .last = hashes[n - 1],
                   .n = n,
                   .block_compute_ns = block_compute_ns,
                   .asked_ns = now_ns,
                   .until_ns = now_ns + KNOWN_FOR};
    const uint32_t chosen = candidates(asks, ask, now_ns);
    ask->hashes = chosen == 0 ? NULL : weft_alloc(n * sizeof(*hashes), "kv_remote_asks.hashes");
    if (ask->hashes == NULL) {
        return WEFT_OK;
    }
    memcpy(ask->hashes, hashes, n * sizeof(*hashes));
    ask->until_ns = now_ns + asks->config.wait_ns;
    send(asks, ask, chosen);
    if (ask->waiting == 0) {
        decide(asks, ask, now_ns);
        return WEFT_OK;
    }
    asks->stats.lookups++;
    return WEFT_PENDING;
}

weft_status_t kv_remote_asks_ask(kv_remote_asks_t *asks, const kv_hash_t *hashes, uint32_t n,
                                 double block_compute_ns, uint64_t now_ns)
{
    n = n > KV_REMOTE_MAX_HASHES ? KV_REMOTE_MAX_HASHES : n;
    if (kv_remote_peers_ready(asks->config.peers) == 0) {
        return WEFT_OK;
    }
    ask_t *ask = find_ask(asks, &hashes[n - 1], n);
    if (ask != NULL && ask->hashes != NULL) {
        return WEFT_PENDING; /* poll ends it in time */
    }
    if (ask != NULL && ask->until_ns > now_ns) {
        return WEFT_OK;
    }
    if (ask != NULL) {
        free_ask(ask);
    }
    return begin(asks, hashes, n, block_compute_ns, now_ns);
}

void kv_remote_asks_poll(kv_remote_asks_t *asks, uint64_t now_ns)
{
    for (uint32_t i = 0; i < MAX_ASKS; i++) {
        ask_t *ask = &asks->asks[i];
        if (ask->hashes == NULL || ask->until_ns > now_ns) {
            continue;
        }
        const uint32_t late = ask->waiting;
        asks->stats.late++;
        decide(asks, ask, now_ns);
        for (uint32_t p = 0; p < kv_remote_peers_count(asks->config.peers); p++) {
            if ((late >> p & 1) != 0) {
                kv_remote_peer_was_late(asks->config.peers, p, now_ns);
            }
        }
    }
}

uint64_t kv_remote_asks_next_ns(const kv_remote_asks_t *asks)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < MAX_ASKS; i++) {
        if (asks->asks[i].hashes != NULL && asks->asks[i].until_ns < next) {
            next = asks->asks[i].until_ns;
        }
    }
    return next;
}

kv_remote_asks_stats_t kv_remote_asks_stats(const kv_remote_asks_t *asks)
{
    return asks->stats;
}
