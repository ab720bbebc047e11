/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/remote_pair.h"

#include "tests/support/reserved_port.h"

void remote_pair_reopen(store_rig_t *rig, const kv_remote_config_t *remote, size_t host_blocks)
{
    kv_store_destroy(rig->store);
    rig->config.remote = remote;
    rig->config.host_bytes = host_blocks * STORE_RIG_BLOCK_BYTES;
    store_rig_open(rig);
}

void remote_pair_open_owner(remote_pair_t *pair, size_t host_blocks)
{
    store_rig_init(&pair->owner, 0, 0);
    snprintf(pair->listen, sizeof(pair->listen), "127.0.0.1:%u", reserve_port());
    pair->owner_remote = (kv_remote_config_t){.listen = pair->listen, .backends = pair->backends};
    kv_remote_facts_add(&pair->owner_remote.facts, "shape", "a");
    remote_pair_reopen(&pair->owner, &pair->owner_remote, host_blocks);
}

void remote_pair_open_reader(remote_pair_t *pair, unsigned port, const char *shape,
                             uint64_t wait_ns)
{
    store_rig_init(&pair->reader, 0, 0);
    snprintf(pair->peers, sizeof(pair->peers), "127.0.0.1:%u", port);
    pair->reader_remote =
        (kv_remote_config_t){.peers = pair->peers, .backends = pair->backends, .wait_ns = wait_ns};
    kv_remote_facts_add(&pair->reader_remote.facts, "shape", "%s", shape);
    remote_pair_reopen(&pair->reader, &pair->reader_remote, 0);
}

void remote_pair_open(remote_pair_t *pair, const char *backend, size_t host_blocks)
{
    *pair = (remote_pair_t){0};
    snprintf(pair->backends, sizeof(pair->backends), "%s", backend);
    remote_pair_open_owner(pair, host_blocks);
    remote_pair_open_reader(pair, kv_store_offer_port(pair->owner.store), "a",
                            REMOTE_PAIR_PATIENCE_NS);
}

void remote_pair_open_shared(remote_pair_t *pair, const char *backend, store_rig_chain_t *chain)
{
    remote_pair_open(pair, backend, 0);
    remote_pair_share(pair, chain);
    remote_pair_meet(&pair->reader);
}

void remote_pair_close(remote_pair_t *pair)
{
    store_rig_fini(&pair->reader);
    store_rig_fini(&pair->owner);
}

void remote_pair_share(remote_pair_t *pair, store_rig_chain_t *chain)
{
    store_rig_chain(&pair->owner, chain, REMOTE_PAIR_BASE, REMOTE_PAIR_BLOCKS);
    store_rig_compute(&pair->owner, chain);
}

kv_tier_stats_t remote_pair_tier(const store_rig_t *reader)
{
    return kv_store_stats(reader->store).tiers[KV_TIER_remote].tier;
}

void remote_pair_meet(store_rig_t *reader)
{
    kv_store_poll(reader->store);
    while (remote_pair_tier(reader).peers == 0) {
        sem_wait(&reader->woken); /* ctest has the deadline */
        kv_store_poll(reader->store);
    }
}

void remote_pair_ask(store_rig_t *reader, const store_rig_chain_t *chain, uint32_t first)
{
    while (kv_store_ask(reader->store, &chain->chain, first) == WEFT_PENDING) {
        sem_wait(&reader->woken);
        kv_store_poll(reader->store);
    }
}

uint32_t remote_pair_read(store_rig_t *reader, store_rig_chain_t *chain, uint32_t first)
{
    uint32_t counts[KV_TIER_COUNT];
    store_rig_fetch(reader, chain, first, counts);
    return counts[KV_TIER_remote];
}

uint32_t remote_pair_fetch(store_rig_t *reader, store_rig_chain_t *chain)
{
    remote_pair_ask(reader, chain, 0);
    return remote_pair_read(reader, chain, 0);
}
