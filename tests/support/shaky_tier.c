/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/shaky_tier.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/random.h"

enum { MAX_GETS = 16 };

typedef struct shaky_get {
    void *dst;
    void *tag;
    bool is_used;
} shaky_get_t;

typedef struct shaky {
    kv_tier_t tier; /* first */
    kv_tier_t *host;
    kv_tier_config_t config;
    test_random_t random;
    shaky_get_t gets[MAX_GETS];
    kv_tier_done_t held[MAX_GETS]; /* ends that are not reported yet */
    uint32_t n_held;
} shaky_t;

static bool one_in(shaky_t *shaky, uint32_t n)
{
    return test_random_below(&shaky->random, n) == 0;
}

static weft_status_t shaky_open(const kv_tier_config_t *config, weft_diag_t *diag,
                                kv_tier_t **tier_out)
{
    shaky_t *shaky = calloc(1, sizeof(*shaky));
    shaky->tier.ops = &shaky_tier;
    shaky->config = *config;
    shaky->random = (test_random_t){config->budget_bytes};
    assert_status(kv_tier_host.open(config, diag, &shaky->host), WEFT_OK);
    *tier_out = &shaky->tier;
    return WEFT_OK;
}

static void shaky_close(kv_tier_t *tier)
{
    kv_tier_host.close(((shaky_t *)tier)->host);
    free(tier);
}

static bool shaky_has(const kv_tier_t *tier, const kv_hash_t *hash)
{
    return kv_tier_host.has(((const shaky_t *)tier)->host, hash);
}

static void shaky_touch(kv_tier_t *tier, const kv_hash_t *hash)
{
    kv_tier_host.touch(((shaky_t *)tier)->host, hash);
}

static weft_status_t shaky_put(kv_tier_t *tier, const kv_name_t *name, const void *content)
{
    shaky_t *shaky = (shaky_t *)tier;
    if (one_in(shaky, 6)) {
        return one_in(shaky, 2) ? WEFT_ERR_QUEUE_FULL : WEFT_ERR_IO;
    }
    return kv_tier_host.put(shaky->host, name, content);
}

static void shaky_finish_puts(kv_tier_t *tier)
{
    kv_tier_host.finish_puts(((shaky_t *)tier)->host);
}

static weft_status_t shaky_get(kv_tier_t *tier, const kv_hash_t *hash, void *dst, void *tag)
{
    shaky_t *shaky = (shaky_t *)tier;
    uint32_t free = 0;
    while (free < MAX_GETS && shaky->gets[free].is_used) {
        free++;
    }
    if (free == MAX_GETS || (free > 0 && one_in(shaky, 5))) {
        return WEFT_ERR_QUEUE_FULL;
    }
    if (one_in(shaky, 8)) {
        return WEFT_ERR_NOT_FOUND; /* forgotten since it was asked */
    }
    shaky->gets[free] = (shaky_get_t){.dst = dst, .tag = tag, .is_used = true};
    const weft_status_t status = kv_tier_host.get(shaky->host, hash, dst, &shaky->gets[free]);
    shaky->gets[free].is_used = status >= 0;
    return status;
}

static kv_tier_done_t end_of(shaky_t *shaky, const kv_tier_done_t *done)
{
    shaky_get_t *get = done->tag;
    kv_tier_done_t end = *done;
    end.tag = get->tag;
    if (one_in(shaky, 8)) {
        memset(get->dst, 0xa5, shaky->config.block_bytes);
        end.status = WEFT_ERR_MALFORMED;
    }
    get->is_used = false;
    return end;
}

static uint32_t shaky_poll(kv_tier_t *tier, kv_tier_done_t *done, uint32_t max)
{
    shaky_t *shaky = (shaky_t *)tier;
    kv_tier_done_t ended;
    while (shaky->n_held < MAX_GETS && kv_tier_host.poll(shaky->host, &ended, 1) == 1) {
        shaky->held[shaky->n_held++] = end_of(shaky, &ended);
    }
    uint32_t n = 0;
    while (n < max && shaky->n_held > 0 && !one_in(shaky, 4)) {
        const uint32_t which = test_random_below(&shaky->random, shaky->n_held);
        done[n++] = shaky->held[which];
        shaky->held[which] = shaky->held[--shaky->n_held];
    }
    if (shaky->n_held > 0) {
        shaky->config.wake(shaky->config.wake_user);
    }
    return n;
}

static void shaky_clear(kv_tier_t *tier)
{
    kv_tier_host.clear(((shaky_t *)tier)->host);
}

static kv_tier_stats_t shaky_stats(const kv_tier_t *tier)
{
    const shaky_t *shaky = (const shaky_t *)tier;
    kv_tier_stats_t stats = kv_tier_host.stats(shaky->host);
    stats.in_flight += shaky->n_held;
    return stats;
}

const kv_tier_ops_t shaky_tier = {
    .id = KV_TIER_host,
    .open = shaky_open,
    .close = shaky_close,
    .has = shaky_has,
    .touch = shaky_touch,
    .put = shaky_put,
    .finish_puts = shaky_finish_puts,
    .get = shaky_get,
    .poll = shaky_poll,
    .clear = shaky_clear,
    .stats = shaky_stats,
};
