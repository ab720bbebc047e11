/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_ranks: the ranks that run one model together, as the engine of each of them sees it. Rank 0
 * leads: it has the API, the scheduler and the first shard; the others follow the plans it feeds them
 * (engine_follower.h).
 *
 * cli makes these from launcher's group and transport's collectives; runtime knows neither sockets
 * nor environments. The engine asks for links when its device is open, again when a group that was
 * lost may form once more, and makes the feed of plans itself: its size is the plans'.
 *
 * Failure  whoever learns that a rank is lost calls coll_abort on all of these, from any thread;
 *          the engine looks at their state after each step and ten times a second when it is idle
 */
#pragma once

#include "runtime/model/model_shard.h"
#include "transport/coll/coll.h"

/* What joins the ranks as long as none of them is lost. */
typedef struct engine_links {
    coll_t *world;  /* every rank of every stage, in host memory */
    coll_t *stages; /* the same in the device's; NULL: one stage, or the device is the host */
    coll_t *tensor; /* of the tensor ranks of this stage, in the device's memory; NULL: one */
    /*
     * Among the ranks of world, for start-up and whenever files are read: waits as long as loading a
     * model may take. One thread at a time.
     */
    coll_exchange_t exchange;
} engine_links_t;

typedef struct engine_ranks {
    model_shard_t shard; /* tensor, world: NULL, the links have them */
    /* Of a --device that names none: ranks of one host share out its GPUs, this one's counts on from
     * the first again where there are more ranks. */
    uint32_t device_index;
    uint32_t restarts; /* times that a lost group may form again */
    void *user;
    /*
     * The ranks meet. Called by one thread at a time, not always the same one; blocks. Each call but
     * the first is preceded by part, or by one that failed, which leaves nothing to part.
     */
    weft_status_t (*form)(void *user, weft_device_t *device, weft_diag_t *diag,
                          engine_links_t *links_out);
    void (*part)(void *user); /* destroys the links; this rank is going, or about to form again */
    /*
     * A form under way ends soon, any that follows at once, with WEFT_ERR_CANCELLED. Any thread. Not
     * called without restarts.
     */
    void (*cancel)(void *user);
    /*
     * A collective failed for suspect's sake, which may itself have ended for the sake of another: the
     * rank that was lost first, if that is known or is within a moment, which this waits. NULL is fine.
     */
    uint32_t (*find_cause)(void *user, uint32_t suspect);
    /* This rank cannot go on: the others hear it at once. Any thread. NULL is fine. */
    void (*fail)(void *user, const char *why);
} engine_ranks_t;
