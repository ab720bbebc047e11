/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks that weft launch, mpirun or another has started. */
#include <stdio.h>
#include <unistd.h>

#include "cli/bench/bench_coll.h"
#include "launcher/launch_group.h"

#define JOIN_SECONDS 60

/* On the group's thread. Nothing of a measurement without all of its ranks is worth keeping. */
static void on_lost(void *user, uint32_t rank, const char *why)
{
    (void)user;
    fprintf(stderr, "weft: error: rank %u: %s\n", rank, why);
    _exit(1);
}

weft_status_t bench_coll_join(const bench_coll_options_t *options, const launch_place_t *place,
                              weft_diag_t *diag)
{
    const launch_fact_t facts[] = {
        {"op", options->op}, {"type", options->type}, {"device", options->device}};
    const launch_group_config_t config = {.place = *place,
                                          .secret_file = options->secret_file,
                                          .facts = facts,
                                          .n_facts = WEFT_ARRAY_LEN(facts),
                                          .join_timeout_s = JOIN_SECONDS,
                                          .lost_after_s = (uint32_t)options->timeout + 1,
                                          .on_lost = on_lost};
    launch_group_t *group = NULL;
    weft_status_t status = launch_group_join(&config, diag, &group);
    if (status >= 0) {
        const bench_coll_rank_t self = {
            .rank = place->rank,
            .local_rank = place->local_rank,
            .exchange = {.user = group, .all_gather = launch_group_all_gather}};
        status = bench_coll_run(options, &self, diag);
    }
    launch_group_leave(group);
    return status;
}
