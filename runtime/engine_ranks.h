/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_ranks: the ranks that run one model together, as the engine of each of them sees it. Rank 0
 * leads: it has the API, the scheduler and the first shard; the others follow the plans it feeds them.
 *
 * cli makes these from launcher's group and transport's collectives; runtime knows neither sockets
 * nor environments.
 */
#pragma once

#include "runtime/model_shard.h"
#include "transport/coll/coll.h"
#include "transport/coll/coll_feed.h"

typedef struct engine_ranks {
    model_shard_t shard;
    coll_t *world;     /* every rank of every stage */
    coll_feed_t *feed; /* of world: plans */
} engine_ranks_t;
