/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_follower: a rank that does what rank 0 says: it has its shard of the model and of every KV
 * block, mirrors the leader's slots from its plans, and computes each step with it.
 *
 * Every rank samples the same tokens, so nothing goes back.
 */
#pragma once

#include "runtime/engine/engine.h"

/*
 * Loads this rank's part, meets the others and follows until the leader stops: WEFT_OK. When the
 * group is lost it forms again, with what is loaded kept, ranks->restarts times.
 * WEFT_ERR_PEER_GONE, _TIMEOUT: the group is lost for good; diag says whose fault. Another error:
 * this rank cannot go on; the others have been told. The options are those of the leader.
 */
weft_status_t engine_follow(const engine_options_t *options, const model_source_t *source,
                            const engine_ranks_t *ranks, weft_diag_t *diag);
