/* SPDX-License-Identifier: Apache-2.0 */
/* Transfers of the fabric: requests made once and posted again and again, a lane each. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "cli/bench/bench_fabric_contender.h"

#define SPINS    50 /* some 50 us */
#define SLEEP_MS 10
#define STUCK_NS (60 * WEFT_NS_PER_SECOND) /* without any end: something is broken */

typedef struct lane {
    xfer_list_t *local;
    xfer_list_t *peer;
    xfer_request_t *request;
    uint64_t posted_ns;
    bool is_posted;
} lane_t;

typedef struct transfers transfers_t;

/* One thread that posts, and what it found. */
typedef struct poster {
    transfers_t *transfers;
    lane_t *lanes; /* [pipeline] */
    uint64_t n;    /* transfers to make */
    bench_samples_t times;
    weft_status_t status;
    weft_diag_t diag;
} poster_t;

struct transfers {
    bench_fabric_contender_t base;
    const bench_fabric_rig_t *rig;
    bool is_driven; /* posters make the progress */
    lane_t *lanes;  /* [geometry.lanes] */
    poster_t *posters;
    uint32_t n_posters;
};

/* ---- making ---------------------------------------------------------------------------------- */

static weft_status_t create_request(const bench_fabric_rig_t *rig, lane_t *lane,
                                    const uint32_t *local_ids, const uint32_t *peer_ids,
                                    weft_diag_t *diag)
{
    const bench_fabric_options_t *options = rig->options;
    const bool is_scattered = rig->geometry.layout == BENCH_FABRIC_SCATTERED;
    const xfer_guard_t guard = {rig->target.guard_addr, BENCH_FABRIC_GUARD_WORD};
    const xfer_request_config_t config = {
        .direction = strcmp(options->op, "write") == 0 ? XFER_WRITE : XFER_READ,
        .local = lane->local,
        .peer = lane->peer,
        .local_ids = is_scattered ? local_ids : NULL,
        .peer_ids = is_scattered ? peer_ids : NULL,
        .n = rig->geometry.n_blocks,
        .notification = options->notify ? "done" : NULL,
        .notification_bytes = options->notify ? 4 : 0,
        .guard = options->guard ? &guard : NULL,
    };
    return xfer_request_create(rig->end.agent, &config, diag, &lane->request);
}

static weft_status_t create_lane(const bench_fabric_rig_t *rig, uint64_t number, uint32_t *ids,
                                 weft_diag_t *diag, lane_t *lane)
{
    const bench_fabric_geometry_t *geometry = &rig->geometry;
    const xfer_memory_t *memory = &rig->end.segment.memory;
    xfer_agent_t *agent = rig->end.agent;
    xfer_run_t local = bench_fabric_lane(geometry, memory->addr, number);
    xfer_run_t peer = bench_fabric_lane(geometry, rig->target.memory.addr, number);
    uint32_t *local_ids = ids;
    uint32_t *peer_ids = ids + geometry->n_blocks;
    local.device = memory->device;
    peer.device = rig->target.memory.device;
    weft_status_t status =
        xfer_list_create(agent, NULL, memory->space, &local, 1, diag, &lane->local);
    if (status >= 0) {
        status = xfer_list_create(agent, rig->peer, rig->target.memory.space, &peer, 1, diag,
                                  &lane->peer);
    }
    if (status >= 0) {
        status = bench_fabric_pick(geometry, BENCH_FABRIC_INITIATOR, number, local_ids);
    }
    if (status >= 0) {
        status = bench_fabric_pick(geometry, BENCH_FABRIC_TARGET, number, peer_ids);
    }
    return status < 0 ? status : create_request(rig, lane, local_ids, peer_ids, diag);
}

static void destroy_transfers(bench_fabric_contender_t *contender)
{
    transfers_t *transfers = (transfers_t *)contender;
    if (transfers == NULL) {
        return;
    }
    for (uint64_t i = 0; transfers->lanes != NULL && i < transfers->rig->geometry.lanes; i++) {
        xfer_request_destroy(transfers->lanes[i].request);
        xfer_list_destroy(transfers->lanes[i].local);
        xfer_list_destroy(transfers->lanes[i].peer);
    }
    for (uint32_t i = 0; transfers->posters != NULL && i < transfers->n_posters; i++) {
        bench_samples_fini(&transfers->posters[i].times);
    }
    weft_free(transfers->lanes);
    weft_free(transfers->posters);
    weft_free(transfers);
}

static weft_status_t create_lanes(transfers_t *transfers, weft_diag_t *diag)
{
    const bench_fabric_geometry_t *geometry = &transfers->rig->geometry;
    uint32_t *ids = weft_calloc(2 * geometry->n_blocks, sizeof(*ids), "bench_fabric.ids");
    weft_status_t status = ids == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    for (uint64_t i = 0; status >= 0 && i < geometry->lanes; i++) {
        status = create_lane(transfers->rig, i, ids, diag, &transfers->lanes[i]);
    }
    weft_free(ids);
    return status;
}

static weft_status_t create_transfers(const bench_fabric_rig_t *rig, weft_diag_t *diag,
                                      bench_fabric_contender_t **contender_out)
{
    const bench_fabric_options_t *options = rig->options;
    transfers_t *transfers = weft_zalloc(sizeof(*transfers), "bench_fabric.transfers");
    if (transfers == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    transfers->base.ops = &bench_fabric_transfers;
    transfers->rig = rig;
    transfers->is_driven = strcmp(options->progress, "caller") == 0;
    transfers->n_posters = options->posters;
    transfers->lanes = weft_calloc(rig->geometry.lanes, sizeof(lane_t), "bench_fabric.lanes");
    transfers->posters = weft_calloc(options->posters, sizeof(poster_t), "bench_fabric.posters");
    weft_status_t status = transfers->lanes == NULL || transfers->posters == NULL
                               ? WEFT_ERR_NO_MEMORY
                               : create_lanes(transfers, diag);
    if (status < 0) {
        destroy_transfers(&transfers->base);
        return status;
    }
    for (uint32_t i = 0; i < options->posters; i++) {
        transfers->posters[i].transfers = transfers;
        transfers->posters[i].lanes = transfers->lanes + (size_t)i * options->pipeline;
    }
    *contender_out = &transfers->base;
    return WEFT_OK;
}

/* ---- running --------------------------------------------------------------------------------- */

static weft_status_t post_lane(poster_t *poster, lane_t *lane)
{
    lane->posted_ns = weft_clock_ns();
    const weft_status_t status = xfer_post(lane->request);
    lane->is_posted = status >= 0;
    return status < 0 ? weft_diag(&poster->diag, status, "posting: %s", weft_strerror(status))
                      : WEFT_OK;
}

/* Whether the lane's transfer has ended. */
static bool take_lane(poster_t *poster, lane_t *lane)
{
    if (!lane->is_posted) {
        return false;
    }
    const weft_status_t status = xfer_poll(lane->request);
    if (status == WEFT_PENDING) {
        return false;
    }
    lane->is_posted = false;
    if (status < 0) {
        poster->status = weft_diag(&poster->diag, status, "a transfer: %s", weft_strerror(status));
        return true;
    }
    const double seconds = (double)(weft_clock_ns() - lane->posted_ns) / (double)WEFT_NS_PER_SECOND;
    poster->status = bench_samples_add(&poster->times, seconds);
    return true;
}

/* idle: rounds without anything done. One that waits for long sleeps, as a caller would. */
static void make_progress(const transfers_t *transfers, uint32_t *idle)
{
    if (!transfers->is_driven) {
        weft_cpu_relax();
    } else if (xfer_progress(transfers->rig->end.agent, *idle < SPINS ? 0 : SLEEP_MS)) {
        *idle = 0;
    } else {
        ++*idle;
    }
}

/* Looked at now and then only: a clock costs more than a poll. */
static bool is_stuck(uint64_t *tries, uint64_t since_ns)
{
    return ++*tries % 4096 == 0 && weft_clock_ns() - since_ns > STUCK_NS;
}

static void *run_poster(void *user)
{
    poster_t *poster = user;
    const uint32_t pipeline = poster->transfers->rig->options->pipeline;
    uint64_t posted = 0;
    uint64_t ended = 0;
    uint64_t tries = 0;
    uint32_t idle = 0;
    uint64_t since_ns = weft_clock_ns();
    poster->status = WEFT_OK;
    for (; posted < pipeline && posted < poster->n && poster->status >= 0; posted++) {
        poster->status = post_lane(poster, &poster->lanes[posted]);
    }
    while (poster->status >= 0 && ended < poster->n) {
        make_progress(poster->transfers, &idle);
        for (uint32_t i = 0; poster->status >= 0 && i < pipeline; i++) {
            if (!take_lane(poster, &poster->lanes[i])) {
                continue;
            }
            ended++;
            since_ns = pipeline == 1 ? poster->lanes[i].posted_ns : weft_clock_ns();
            if (poster->status >= 0 && posted < poster->n) {
                poster->status = post_lane(poster, &poster->lanes[i]);
                posted++;
            }
        }
        if (is_stuck(&tries, since_ns)) {
            poster->status = weft_diag(&poster->diag, WEFT_ERR_TIMEOUT, "a transfer does not end");
        }
    }
    return NULL;
}

static weft_status_t take_times(poster_t *poster, bench_samples_t *times, weft_diag_t *diag)
{
    weft_status_t status = poster->status;
    if (status < 0) {
        return weft_diag(diag, status, "%s", poster->diag.text);
    }
    for (size_t i = 0; status >= 0 && i < poster->times.n; i++) {
        status = bench_samples_add(times, poster->times.values[i]);
    }
    poster->times.n = 0;
    return status;
}

/* All but the first poster on threads of their own. */
static weft_status_t run_transfers(bench_fabric_contender_t *contender, uint64_t n,
                                   bench_samples_t *times, weft_diag_t *diag)
{
    transfers_t *transfers = (transfers_t *)contender;
    const uint32_t n_posters = transfers->n_posters;
    pthread_t threads[64];
    uint32_t n_started = 1;
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; i < n_posters; i++) {
        transfers->posters[i].n = n / n_posters + (i < n % n_posters);
    }
    for (; status >= 0 && n_started < n_posters; n_started++) {
        if (pthread_create(&threads[n_started], NULL, run_poster, &transfers->posters[n_started]) !=
            0) {
            status = weft_diag(diag, WEFT_ERR_NO_MEMORY, "no thread");
            break;
        }
    }
    if (status >= 0) {
        run_poster(&transfers->posters[0]);
    }
    for (uint32_t i = 1; i < n_started; i++) {
        pthread_join(threads[i], NULL);
    }
    for (uint32_t i = 0; status >= 0 && i < n_posters; i++) {
        status = take_times(&transfers->posters[i], times, diag);
    }
    return status;
}

xfer_request_stats_t bench_fabric_transfers_stats(const bench_fabric_contender_t *contender)
{
    return xfer_request_stats(((const transfers_t *)contender)->lanes[0].request);
}

const bench_fabric_contender_ops_t bench_fabric_transfers = {
    .name = "weft",
    .create = create_transfers,
    .destroy = destroy_transfers,
    .run = run_transfers,
};
