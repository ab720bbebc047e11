/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/serve_ranks.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "cli/serve_facts.h"
#include "cli/serve_local.h"
#include "cli/serve_signals.h"
#include "launcher/launch_group.h"
#include "runtime/engine/engine_follower.h"
#include "runtime/engine/engine_share.h"

#define WEFT_LOG_MODULE "ranks"
#include "base/log.h"

#define CAUSE_NS      (500 * WEFT_NS_PER_MS) /* that a collective's failure waits for the group's word */
#define PORT_TRIES    100
#define PORT_PAUSE_NS 50000000
#define DEVICE_BYTES  16 /* of a device's name */
#define LOCAL_GRACE_S 10 /* from the leader's stop to the last rank's end */

struct serve_ranks {
    serve_ranks_config_t config;
    weft_device_t *host;
    launch_place_t place;
    serve_local_t *local; /* NULL: others start the ranks */
    serve_facts_t facts;
    engine_ranks_t engine;
    atomic_bool is_cancelled;
    bool has_formed; /* once */

    pthread_mutex_t lock;
    pthread_cond_t has_lost;
    /* guarded by lock; what a loss, a failure and the end all reach for */
    launch_group_t *group;
    coll_t *world;  /* of the host's memory */
    coll_t *device; /* the same ranks, of the device's memory; NULL: the device is the host */
    coll_t *tensor; /* NULL: one rank a stage; device or world itself where there is one stage */
    bool is_forming;
    uint32_t lost;     /* COLL_NO_RANK: none */
    weft_diag_t ended; /* how a rank of local ended before all had met; "": none */
};

/* ---- what the engine asks for ---------------------------------------------------------------- */

static void abort_colls(serve_ranks_t *ranks)
{
    coll_t *const groups[] = {ranks->world, ranks->device, ranks->tensor};
    for (size_t i = 0; ranks->lost != COLL_NO_RANK && i < WEFT_ARRAY_LEN(groups); i++) {
        if (groups[i] != NULL) {
            coll_abort(groups[i], ranks->lost);
        }
    }
}

/* On the group's thread, perhaps before the group has been returned. */
static void on_lost(void *user, uint32_t rank, const char *why)
{
    serve_ranks_t *ranks = user;
    (void)why; /* logged by the group */
    pthread_mutex_lock(&ranks->lock);
    ranks->lost = rank;
    abort_colls(ranks);
    pthread_cond_broadcast(&ranks->has_lost);
    pthread_mutex_unlock(&ranks->lock);
}

/*
 * A survivor that ends says goodbye to the group, and one that was killed does not: the group's word
 * counts, where it comes.
 */
static uint32_t find_cause(void *user, uint32_t suspect)
{
    serve_ranks_t *ranks = user;
    const uint64_t until_ns = weft_clock_ns() + CAUSE_NS;
    const struct timespec until = {.tv_sec = (time_t)(until_ns / WEFT_NS_PER_SECOND),
                                   .tv_nsec = (long)(until_ns % WEFT_NS_PER_SECOND)};
    int error = 0;
    pthread_mutex_lock(&ranks->lock);
    while (ranks->lost == COLL_NO_RANK && error == 0) {
        error = pthread_cond_timedwait(&ranks->has_lost, &ranks->lock, &until);
    }
    const uint32_t cause = ranks->lost != COLL_NO_RANK ? ranks->lost : suspect;
    pthread_mutex_unlock(&ranks->lock);
    return cause;
}

static weft_status_t join(serve_ranks_t *ranks, weft_diag_t *diag)
{
    const launch_options_t *options = ranks->config.launch;
    const launch_group_config_t config = {
        .place = ranks->place,
        .secret_file = options->secret_file,
        .facts = ranks->facts.facts,
        .n_facts = ranks->facts.n,
        .join_timeout_s = options->join_timeout,
        .lost_after_s = options->coll_timeout,
        .is_cancelled = &ranks->is_cancelled,
        .on_lost = on_lost,
        .user = ranks,
    };
    launch_group_t *group = NULL;
    weft_status_t status = launch_group_join(&config, diag, &group);
    /* Our own port of the group before: a child being started may hold it for a moment. */
    for (uint32_t i = 0; status == WEFT_ERR_IN_USE && ranks->has_formed && i < PORT_TRIES; i++) {
        nanosleep(&(struct timespec){.tv_nsec = PORT_PAUSE_NS}, NULL);
        status = launch_group_join(&config, diag, &group);
    }
    pthread_mutex_lock(&ranks->lock);
    ranks->group = group;
    pthread_mutex_unlock(&ranks->lock);
    return status;
}

/* A group of all ranks. */
static weft_status_t make_group(serve_ranks_t *ranks, const char *backend, weft_device_t *device,
                                weft_diag_t *diag, coll_t **group_out)
{
    const coll_config_t config = {
        .backend = backend,
        .rank = ranks->place.rank,
        .size = ranks->place.size,
        .device = device,
        .timeout_ns = ranks->config.launch->coll_timeout * WEFT_NS_PER_SECOND,
        .is_deterministic = ranks->config.engine->deterministic,
        .exchange = {.user = ranks->group, .all_gather = launch_group_all_gather},
    };
    return coll_create(&config, diag, group_out);
}

/* The tensor ranks of a stage; with one stage those are all. */
static weft_status_t make_tensor(const serve_ranks_t *ranks, coll_t *all, weft_diag_t *diag,
                                 coll_t **tensor_out)
{
    const model_shard_t *shard = &ranks->engine.shard;
    if (shard->stages > 1 && shard->tensor_size > 1) {
        return coll_split(all, shard->stage, diag, tensor_out);
    }
    *tensor_out = shard->tensor_size > 1 ? all : NULL;
    return WEFT_OK;
}

/* Collective. One kind for all: the ranks would wait for each other in different groups. */
static weft_status_t check_devices(serve_ranks_t *ranks, const weft_device_t *device,
                                   weft_diag_t *diag)
{
    char mine[DEVICE_BYTES] = {0};
    char(*all)[DEVICE_BYTES] = weft_calloc(ranks->place.size, DEVICE_BYTES, "serve_ranks.devices");
    if (all == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    snprintf(mine, sizeof(mine), "%s", device->ops->name);
    weft_status_t status = launch_group_all_gather(ranks->group, mine, sizeof(mine), all, diag);
    for (uint32_t i = 0; status >= 0 && i < ranks->place.size; i++) {
        all[i][DEVICE_BYTES - 1] = '\0';
        if (strcmp(all[i], mine) != 0) {
            status =
                weft_diag(diag, WEFT_ERR_INVALID,
                          "rank %u runs on device %s, rank %u on %s: give all the same --device",
                          ranks->place.rank, mine, i, all[i]);
        }
    }
    weft_free(all);
    return status;
}

/* What moves in the device's memory goes by --coll-backend; on a GPU the plans find their own way. */
static weft_status_t connect_ranks(serve_ranks_t *ranks, weft_device_t *device, weft_diag_t *diag)
{
    const char *backend = ranks->config.launch->coll_backend;
    const bool is_host = device->ops->is_host;
    coll_t *world = NULL;
    coll_t *on_device = NULL;
    coll_t *tensor = NULL;
    weft_status_t status = check_devices(ranks, device, diag);
    if (status == WEFT_OK) {
        status = make_group(ranks, is_host ? backend : "auto", ranks->host, diag, &world);
    }
    if (status == WEFT_OK && !is_host) {
        status = make_group(ranks, backend, device, diag, &on_device);
    }
    if (status == WEFT_OK) {
        status = make_tensor(ranks, is_host ? world : on_device, diag, &tensor);
    }
    pthread_mutex_lock(&ranks->lock);
    ranks->world = world;
    ranks->device = on_device;
    ranks->tensor = tensor;
    abort_colls(ranks); /* a rank went meanwhile */
    pthread_mutex_unlock(&ranks->lock);
    return status;
}

static void set_forming(serve_ranks_t *ranks, bool is_forming)
{
    pthread_mutex_lock(&ranks->lock);
    ranks->is_forming = is_forming;
    if (is_forming) {
        ranks->lost = COLL_NO_RANK;
    }
    pthread_mutex_unlock(&ranks->lock);
}

static void part(void *user);

/* Why the ranks did not meet, where there is a better reason than that they have not come. */
static weft_status_t explain(serve_ranks_t *ranks, weft_status_t status, weft_diag_t *diag)
{
    pthread_mutex_lock(&ranks->lock);
    if (ranks->ended.text[0] != '\0') {
        status = weft_diag(diag, WEFT_ERR_PEER_GONE, "%s", ranks->ended.text);
    }
    pthread_mutex_unlock(&ranks->lock);
    return status;
}

static weft_status_t form(void *user, weft_device_t *device, weft_diag_t *diag,
                          engine_links_t *links_out)
{
    serve_ranks_t *ranks = user;
    set_forming(ranks, true);
    weft_status_t status = join(ranks, diag);
    status = status == WEFT_OK ? connect_ranks(ranks, device, diag) : explain(ranks, status, diag);
    set_forming(ranks, false);
    if (status < 0) {
        part(ranks);
        return status;
    }
    ranks->has_formed = true;
    const coll_t *carries = ranks->device != NULL ? ranks->device : ranks->world;
    weft_log_info("group has formed rank=%u ranks=%u device=%s:%d collectives=%s",
                  ranks->place.rank, ranks->place.size, device->ops->name, device->index,
                  coll_backend_name(carries));
    *links_out = (engine_links_t){
        .world = ranks->world,
        .stages = ranks->engine.shard.stages > 1 ? ranks->device : NULL,
        .tensor = ranks->tensor,
        .exchange = {.user = ranks->group, .all_gather = launch_group_all_gather},
    };
    return WEFT_OK;
}

/* The group first: its thread may be at the collectives. */
static void part(void *user)
{
    serve_ranks_t *ranks = user;
    pthread_mutex_lock(&ranks->lock);
    launch_group_t *group = ranks->group;
    ranks->group = NULL;
    pthread_mutex_unlock(&ranks->lock);
    launch_group_leave(group);

    if (ranks->tensor != ranks->world && ranks->tensor != ranks->device) {
        coll_destroy(ranks->tensor);
    }
    coll_destroy(ranks->device);
    coll_destroy(ranks->world);
    ranks->tensor = NULL;
    ranks->device = NULL;
    ranks->world = NULL;
}

static void fail(void *user, const char *why)
{
    serve_ranks_t *ranks = user;
    pthread_mutex_lock(&ranks->lock);
    if (ranks->group != NULL) {
        launch_group_fail(ranks->group, why);
    }
    pthread_mutex_unlock(&ranks->lock);
}

static void cancel(void *user)
{
    serve_ranks_t *ranks = user;
    atomic_store_explicit(&ranks->is_cancelled, true, memory_order_relaxed);
    pthread_mutex_lock(&ranks->lock);
    if (ranks->is_forming && ranks->group != NULL) {
        launch_group_fail(ranks->group, "it ends");
    }
    pthread_mutex_unlock(&ranks->lock);
}

/* ---- where this process stands --------------------------------------------------------------- */

/* Nobody else will start it again; who waits for it must not wait for long. */
static void on_local_end(void *user, uint32_t rank, const char *how)
{
    serve_ranks_t *ranks = user;
    pthread_mutex_lock(&ranks->lock);
    const bool is_missed = ranks->group == NULL;
    if (is_missed) {
        weft_diag(&ranks->ended, WEFT_ERR_PEER_GONE, "rank %u has ended before all had met: %s",
                  rank, how);
    }
    pthread_mutex_unlock(&ranks->lock);
    if (is_missed) {
        cancel(ranks);
    }
}

weft_status_t serve_ranks_check(const char *model, const engine_options_t *engine,
                                weft_diag_t *diag)
{
    const uint32_t size = engine->tensor_parallel_size * engine->pipeline_parallel_size;
    model_source_t *source = NULL;
    model_shard_t shard;
    model_cut_t cut;
    weft_status_t status = engine_shard(engine, 0, size, diag, &shard);
    if (status == WEFT_OK) {
        status = model_source_open(model, diag, &source);
    }
    if (status == WEFT_OK) {
        status = model_source_cut(source, &shard, diag, &cut);
    }
    model_source_close(source);
    return status;
}

static weft_status_t start_local(serve_ranks_t *ranks, uint32_t size, weft_diag_t *diag)
{
    const serve_local_config_t config = {
        .size = size,
        .restarts = ranks->config.launch->restarts,
        .words = ranks->config.words,
        .n_words = ranks->config.n_words,
        .on_end = on_local_end,
        .user = ranks,
    };
    const weft_status_t status = serve_ranks_check(ranks->config.model, ranks->config.engine, diag);
    return status < 0 ? status : serve_local_create(&config, diag, &ranks->place, &ranks->local);
}

static weft_status_t place(serve_ranks_t *ranks, weft_diag_t *diag)
{
    const engine_options_t *engine = ranks->config.engine;
    const uint64_t wanted = (uint64_t)engine->tensor_parallel_size * engine->pipeline_parallel_size;
    weft_status_t status = launch_options_place(ranks->config.launch, diag, &ranks->place);
    const bool is_alone =
        ranks->place.size == 1 && !launch_options_name_ranks(ranks->config.launch);
    if (status == WEFT_OK && is_alone && wanted > 1 && wanted <= SERVE_LOCAL_MAX) {
        status = start_local(ranks, (uint32_t)wanted, diag);
    }
    if (status == WEFT_OK) {
        status = engine_shard(ranks->config.engine, ranks->place.rank, ranks->place.size, diag,
                              &ranks->engine.shard);
    }
    if (status == WEFT_OK && ranks->place.size > 1) {
        status = serve_facts_make(ranks->config.model, ranks->config.engine, ranks->config.launch,
                                  diag, &ranks->facts);
    }
    return status;
}

static void init_lock(serve_ranks_t *ranks)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&ranks->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&ranks->has_lost, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

weft_status_t serve_ranks_create(const serve_ranks_config_t *config, weft_diag_t *diag,
                                 serve_ranks_t **ranks_out)
{
    *ranks_out = NULL;
    serve_ranks_t *ranks = weft_zalloc(sizeof(*ranks), "serve_ranks");
    if (ranks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    ranks->config = *config;
    ranks->lost = COLL_NO_RANK;
    init_lock(ranks);
    weft_status_t status = weft_device_open("cpu", 0, diag, &ranks->host);
    if (status == WEFT_OK) {
        status = place(ranks, diag);
    }
    if (status < 0 || ranks->place.size == 1) {
        serve_ranks_destroy(ranks, false);
        return status;
    }
    ranks->engine.device_index = engine_share_index(
        ranks->config.engine->data_parallel_rank, ranks->place.local_size, ranks->place.local_rank);
    ranks->engine.restarts = ranks->place.restarts;
    ranks->engine.user = ranks;
    ranks->engine.form = form;
    ranks->engine.part = part;
    ranks->engine.cancel = cancel;
    ranks->engine.find_cause = find_cause;
    ranks->engine.fail = fail;
    *ranks_out = ranks;
    return WEFT_OK;
}

void serve_ranks_destroy(serve_ranks_t *ranks, bool was_well)
{
    if (ranks != NULL) {
        part(ranks);
        serve_local_destroy(ranks->local, was_well ? LOCAL_GRACE_S : 0);
        pthread_cond_destroy(&ranks->has_lost);
        weft_device_close(ranks->host);
        pthread_mutex_destroy(&ranks->lock);
        weft_free(ranks);
    }
}

bool serve_ranks_is_leader(const serve_ranks_t *ranks)
{
    return ranks->place.rank == 0;
}

const engine_ranks_t *serve_ranks_for_engine(const serve_ranks_t *ranks)
{
    return &ranks->engine;
}

/* ---- followers ------------------------------------------------------------------------------- */

weft_status_t serve_ranks_follow(serve_ranks_t *ranks, weft_diag_t *diag)
{
    model_source_t *source = NULL;
    serve_signals_t *signals = NULL;
    weft_status_t status =
        serve_signals_begin(&ranks->engine, ranks->config.shutdown_timeout_s, &signals);
    if (status == WEFT_OK) {
        status = model_source_open(ranks->config.model, diag, &source);
    }
    if (status == WEFT_OK) {
        status = engine_follow(ranks->config.engine, source, &ranks->engine, diag);
    }
    serve_signals_end(signals);
    model_source_close(source);
    return status;
}
