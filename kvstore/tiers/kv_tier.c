/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/tiers/kv_tier.h"

static const struct {
    const char *name;
    const char *medium;
} tiers[KV_TIER_COUNT] = {
#define TIER(name, medium) [KV_TIER_##name] = {#name, medium},
#include "kvstore/tiers/kv_tiers.def"
#undef TIER
};

const char *kv_tier_name(kv_tier_id_t id)
{
    return tiers[id].name;
}

const char *kv_tier_medium(kv_tier_id_t id)
{
    return tiers[id].medium;
}
