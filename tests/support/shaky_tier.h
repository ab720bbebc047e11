/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shaky_tier: the host tier with bad manners, all of them allowed: it refuses puts and gets, forgets
 * blocks, fails reads after having spoilt their bytes, and reports ends late and out of order.
 */
#pragma once

#include "kvstore/tiers/kv_tier.h"

extern const kv_tier_ops_t shaky_tier;
