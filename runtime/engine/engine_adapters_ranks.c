/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A load at run time: rank 0 orders it, each rank reads its part of the folder on a thread that steps
 * do not wait for, all tell each other how it went, and only if it went well everywhere does rank 0 put
 * the adapter in its table and order the same of the others. Unloaded adapters are dropped there once
 * nothing here refers to them.
 *
 * Who joins a group that forms again gets a list of what there is: it reads what it lacks.
 */
#define WEFT_LOG_MODULE "engine"
#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "runtime/engine/adapter_order.h"
#include "runtime/engine/engine_adapters_priv.h"

/* ---- how it went ----------------------------------------------------------------------------- */

static uint64_t epoch_of(engine_adapters_ranks_t *ranks)
{
    pthread_mutex_lock(&ranks->meeting);
    const uint64_t epoch = ranks->epoch;
    pthread_mutex_unlock(&ranks->meeting);
    return epoch;
}

/* Of a load that was ordered in this epoch: every rank tells, or none does. */
static weft_status_t tell(engine_t *engine, uint64_t epoch, weft_status_t status, weft_diag_t *diag)
{
    engine_adapters_ranks_t *ranks = &engine->adapters.ranks;
    pthread_mutex_lock(&ranks->meeting);
    status = epoch == ranks->epoch
                 ? engine_group_tell(&engine->group, status, diag)
                 : weft_diag(diag, WEFT_ERR_PEER_GONE, "a rank was lost meanwhile");
    pthread_mutex_unlock(&ranks->meeting);
    return status;
}

/* ---- rank 0 ---------------------------------------------------------------------------------- */

/* A load of rank 0: its caller waits for what the engine's thread does of it. */
typedef struct load {
    engine_call_t call;
    const char *name;
    const char *path;
    uint64_t serial;
    uint64_t epoch; /* in which it was ordered */
    engine_adapter_t *adapter;
    weft_diag_t *diag;
} load_t;

/*
 * Engine's thread. Steps in flight end first: there is room for such messages when the others have no
 * plan left that they could wait for rank 0 in.
 */
static weft_status_t send_order(engine_t *engine, const adapter_order_t *order)
{
    uint8_t bytes[ADAPTER_ORDER_MAX_BYTES];
    const size_t n = adapter_order_encode(order, bytes);
    assert(n > 0); /* looked at before anything was ordered */
    const weft_status_t status = engine_collect_all(engine);
    return status < 0 ? status
                      : engine_group_send_orders(&engine->group, STEP_WIRE_ADAPTER, bytes, n);
}

static weft_status_t send_or_fail(engine_t *engine, const adapter_order_t *order, weft_diag_t *diag)
{
    const weft_status_t status = send_order(engine, order);
    if (status < 0) {
        engine_fail(engine, status);
        return weft_diag(diag, WEFT_ERR_PEER_GONE, "a rank was lost meanwhile");
    }
    return WEFT_OK;
}

static weft_status_t order_load(engine_t *engine, engine_call_t *call)
{
    load_t *load = WEFT_CONTAINER(call, load_t, call);
    const adapter_order_t order = {.verb = ADAPTER_ORDER_LOAD,
                                   .place = ADAPTER_ORDER_NO_PLACE,
                                   .serial = load->serial,
                                   .name = load->name,
                                   .path = load->path};
    if (engine_health(engine) != ENGINE_UP || engine_has_lost_rank(engine)) {
        return weft_diag(load->diag, WEFT_ERR_PEER_GONE, "a rank is lost");
    }
    load->epoch = epoch_of(&engine->adapters.ranks); /* no other begins while health is up */
    return send_or_fail(engine, &order, load->diag);
}

static weft_status_t put_everywhere(engine_t *engine, engine_call_t *call)
{
    load_t *load = WEFT_CONTAINER(call, load_t, call);
    engine_adapters_t *all = &engine->adapters;
    adapter_order_t order = {.verb = ADAPTER_ORDER_DROP,
                             .place = ADAPTER_ORDER_NO_PLACE,
                             .serial = load->serial,
                             .name = "",
                             .path = ""};
    if (engine_health(engine) != ENGINE_UP || load->epoch != epoch_of(&all->ranks)) {
        return weft_diag(load->diag, WEFT_ERR_PEER_GONE, "a rank was lost meanwhile");
    }
    weft_status_t status = engine_adapters_flush(engine); /* more places may be free then */
    if (status < 0) {
        engine_fail(engine, status);
        return weft_diag(load->diag, WEFT_ERR_PEER_GONE, "a rank was lost meanwhile");
    }
    engine_adapter_t *adapter = engine_adapter_acquire(load->adapter); /* in the list it may go */
    status = engine_adapters_insert(all, ENGINE_ANY_PLACE, adapter, load->diag);
    if (status >= 0) {
        order.verb = ADAPTER_ORDER_PUT;
        order.place = adapter->place;
        load->adapter = NULL; /* the list's */
    }
    const weft_status_t sent = send_or_fail(engine, &order, load->diag);
    if (status >= 0 && sent < 0) {
        engine_adapters_empty(all, order.place);
    }
    engine_release_adapter(adapter);
    return status < 0 ? status : sent;
}

static weft_status_t call_engine(engine_t *engine, load_t *load,
                                 weft_status_t (*fn)(engine_t *engine, engine_call_t *call))
{
    load->call.fn = fn;
    const weft_status_t status = engine_call(engine, &load->call);
    return status != WEFT_ERR_STOPPING ? status
                                       : weft_diag(load->diag, status, "the server is stopping");
}

static weft_status_t check_order(engine_t *engine, const load_t *load)
{
    uint8_t bytes[ADAPTER_ORDER_MAX_BYTES];
    const adapter_order_t order = {
        .verb = ADAPTER_ORDER_LOAD, .name = load->name, .path = load->path};
    return adapter_order_encode(&order, bytes) == 0
               ? weft_diag(load->diag, WEFT_ERR_TOO_LARGE, "name and path are too long")
               : engine_adapters_check_room(&engine->adapters, load->name, load->diag);
}

/* The loading lock is held. */
static weft_status_t load_everywhere(engine_t *engine, load_t *load)
{
    weft_status_t status = check_order(engine, load);
    if (status >= 0) {
        status = call_engine(engine, load, order_load);
    }
    if (status < 0) {
        return status;
    }
    status = engine_adapter_create(engine, load->name, load->path, load->diag, &load->adapter);
    status = tell(engine, load->epoch, status, load->diag);
    if (status < 0) {
        return status;
    }
    load->adapter->serial = load->serial;
    return call_engine(engine, load, put_everywhere);
}

/* Of this process and of one that takes its place, as long as clocks do not go back. */
static uint64_t draw_serial(engine_adapters_ranks_t *ranks)
{
    const uint64_t now = weft_wallclock_ns();
    ranks->last_serial = now > ranks->last_serial ? now : ranks->last_serial + 1;
    return ranks->last_serial;
}

weft_status_t engine_adapters_load_everywhere(engine_t *engine, const char *name, const char *path,
                                              weft_diag_t *diag)
{
    engine_adapters_ranks_t *ranks = &engine->adapters.ranks;
    load_t load = {.name = name, .path = path, .diag = diag};
    pthread_mutex_lock(&ranks->loading);
    load.serial = draw_serial(ranks);
    const weft_status_t status = load_everywhere(engine, &load);
    pthread_mutex_unlock(&ranks->loading);
    engine_adapter_destroy(load.adapter);
    return status;
}

void engine_adapters_note_drop(engine_t *engine)
{
    atomic_store_explicit(&engine->adapters.ranks.has_dropped, true, memory_order_release);
    mailbox_wake(&engine->mailbox);
}

/* A place that the others are yet to hear of, which is free then; ENGINE_MAX_ADAPTERS: none. */
static uint32_t take_dropped(engine_adapters_t *all)
{
    uint32_t place = 0;
    pthread_mutex_lock(&all->lock);
    while (place < ENGINE_MAX_ADAPTERS && all->states[place] != ENGINE_PLACE_DROPPED) {
        place++;
    }
    if (place < ENGINE_MAX_ADAPTERS) {
        all->states[place] = ENGINE_PLACE_FREE;
    }
    pthread_mutex_unlock(&all->lock);
    return place;
}

weft_status_t engine_adapters_flush(engine_t *engine)
{
    engine_adapters_t *all = &engine->adapters;
    if (!atomic_load_explicit(&all->ranks.has_dropped, memory_order_acquire)) {
        return WEFT_OK;
    }
    atomic_store(&all->ranks.has_dropped, false);
    adapter_order_t order = {.verb = ADAPTER_ORDER_DROP, .name = "", .path = ""};
    weft_status_t status = WEFT_OK;
    while (status >= 0 && (order.place = take_dropped(all)) < ENGINE_MAX_ADAPTERS) {
        status = send_order(engine, &order);
    }
    return status;
}

/* ---- the others ------------------------------------------------------------------------------ */

/* A folder being read, and how that went on all ranks. */
typedef struct engine_adapter_read {
    engine_t *engine;
    uint64_t epoch;
    char *name;
    char *path;
    uint64_t serial;
    engine_adapter_t *adapter; /* NULL: it was not read, or not on every rank */
} read_t;

static void destroy_read(read_t *reading)
{
    if (reading != NULL) {
        engine_adapter_destroy(reading->adapter);
        weft_free(reading->name);
        weft_free(reading->path);
        weft_free(reading);
    }
}

static void *read_folder(void *user)
{
    read_t *reading = user;
    weft_diag_t diag = {0};
    weft_status_t status = engine_adapter_create(reading->engine, reading->name, reading->path,
                                                 &diag, &reading->adapter);
    status = tell(reading->engine, reading->epoch, status, &diag);
    if (status < 0) {
        weft_log_warn("adapter is not loaded name=%s: %s", reading->name, diag.text);
        engine_adapter_destroy(reading->adapter);
        reading->adapter = NULL;
    } else {
        reading->adapter->serial = reading->serial;
    }
    return NULL;
}

/* Waits for the thread; what it has read is the caller's. */
static engine_adapter_t *end_reading(engine_adapters_ranks_t *ranks)
{
    read_t *reading = ranks->reading;
    engine_adapter_t *adapter = NULL;
    if (ranks->has_reader) {
        pthread_join(ranks->reader, NULL);
        ranks->has_reader = false;
    }
    if (reading != NULL) {
        adapter = reading->adapter;
        reading->adapter = NULL;
        destroy_read(reading);
        ranks->reading = NULL;
    }
    return adapter;
}

static weft_status_t create_read(engine_t *engine, const adapter_order_t *order, read_t **read_out)
{
    read_t *reading = weft_zalloc(sizeof(*reading), "engine.adapter_read");
    if (reading == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    reading->engine = engine;
    reading->epoch = epoch_of(&engine->adapters.ranks);
    reading->serial = order->serial;
    reading->name = weft_strdup(order->name, "engine.adapter_read");
    reading->path = weft_strdup(order->path, "engine.adapter_read");
    if (reading->name == NULL || reading->path == NULL) {
        destroy_read(reading);
        return WEFT_ERR_NO_MEMORY;
    }
    *read_out = reading;
    return WEFT_OK;
}

/* A rank that cannot even begin says so at once: steps wait for that, no longer. */
static weft_status_t begin_reading(engine_t *engine, const adapter_order_t *order)
{
    engine_adapters_ranks_t *ranks = &engine->adapters.ranks;
    weft_diag_t diag = {0};
    engine_adapter_destroy(end_reading(ranks));
    weft_status_t status = create_read(engine, order, &ranks->reading);
    if (status >= 0 && pthread_create(&ranks->reader, NULL, read_folder, ranks->reading) != 0) {
        status = WEFT_ERR_NO_MEMORY;
    }
    ranks->has_reader = status >= 0;
    if (status < 0) {
        weft_diag(&diag, status, "no memory to read an adapter");
        (void)tell(engine, epoch_of(ranks), status, &diag);
    }
    return WEFT_OK;
}

static weft_status_t put_read(engine_t *engine, const adapter_order_t *order, weft_diag_t *diag)
{
    engine_adapters_t *all = &engine->adapters;
    engine_adapter_t *adapter = end_reading(&all->ranks);
    weft_status_t status = WEFT_ERR_MALFORMED;
    if (adapter != NULL && adapter->serial == order->serial && order->place < ENGINE_MAX_ADAPTERS) {
        status = engine_adapters_insert(all, order->place, adapter, diag);
    } else {
        weft_diag(diag, status, "an adapter that was not read is to have place %u", order->place);
    }
    if (status < 0) {
        engine_adapter_destroy(adapter);
    }
    return status;
}

static void drop(engine_t *engine, const adapter_order_t *order)
{
    if (order->place == ADAPTER_ORDER_NO_PLACE) {
        engine_adapter_destroy(end_reading(&engine->adapters.ranks));
    } else {
        engine_adapters_empty(&engine->adapters, order->place);
    }
}

weft_status_t engine_adapters_obey(engine_t *engine, const void *bytes, size_t n, weft_diag_t *diag)
{
    adapter_order_t order;
    size_t used;
    const weft_status_t status = adapter_order_decode(bytes, n, diag, &order, &used);
    if (status < 0) {
        return status;
    }
    if (engine->adapters.table == NULL) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "an order for adapters, and none are kept here");
    }
    switch (order.verb) {
    case ADAPTER_ORDER_LOAD:
        return begin_reading(engine, &order);
    case ADAPTER_ORDER_PUT:
        return put_read(engine, &order, diag);
    case ADAPTER_ORDER_DROP:
        drop(engine, &order);
        break;
    }
    return WEFT_OK;
}

/* ---- meeting --------------------------------------------------------------------------------- */

void engine_adapters_part(engine_t *engine)
{
    engine_adapters_ranks_t *ranks = &engine->adapters.ranks;
    if (engine->adapters.table == NULL) {
        return;
    }
    pthread_mutex_lock(&ranks->meeting); /* after those who tell each other: the loss ends that */
    ranks->epoch++;
    pthread_mutex_unlock(&ranks->meeting);
    engine_adapter_destroy(end_reading(ranks));
}

/* What rank 0 has, as orders to put it. Places that were dropped are free: nobody is told of them. */
static void write_list(engine_adapters_t *all, weft_buffer_t *out)
{
    uint8_t bytes[ADAPTER_ORDER_MAX_BYTES];
    pthread_mutex_lock(&all->lock);
    for (uint32_t place = 0; place < ENGINE_MAX_ADAPTERS; place++) {
        const engine_adapter_t *adapter = all->places[place];
        if (all->states[place] == ENGINE_PLACE_DROPPED) {
            all->states[place] = ENGINE_PLACE_FREE;
        } else if (adapter != NULL) {
            const adapter_order_t order = {ADAPTER_ORDER_PUT, place, adapter->serial, adapter->name,
                                           adapter->path};
            const size_t n = adapter_order_encode(&order, bytes);
            out->is_failed |= n == 0;
            weft_buffer_append(out, bytes, n);
        }
    }
    pthread_mutex_unlock(&all->lock);
}

static bool is_there(const engine_adapters_t *all, const adapter_order_t *order)
{
    const engine_adapter_t *adapter = all->places[order->place];
    return adapter != NULL && adapter->serial == order->serial &&
           strcmp(adapter->path, order->path) == 0;
}

static weft_status_t read_missing(engine_t *engine, const adapter_order_t *order, weft_diag_t *diag)
{
    engine_adapters_t *all = &engine->adapters;
    engine_adapter_t *adapter = NULL;
    if (order->place >= ENGINE_MAX_ADAPTERS) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "an adapter at place %u", order->place);
    }
    if (is_there(all, order)) {
        return WEFT_OK;
    }
    engine_adapters_empty(all, order->place);
    weft_status_t status = engine_adapter_create(engine, order->name, order->path, diag, &adapter);
    if (status < 0) {
        return status;
    }
    adapter->serial = order->serial;
    status = engine_adapters_insert(all, order->place, adapter, diag);
    if (status < 0) {
        engine_adapter_destroy(adapter);
    }
    return status;
}

/* What is not in the list goes first: it may take much memory. */
static weft_status_t take_list(engine_t *engine, const char *list, size_t n, weft_diag_t *diag)
{
    engine_adapters_t *all = &engine->adapters;
    bool is_kept[ENGINE_MAX_ADAPTERS] = {false};
    adapter_order_t order;
    size_t used = 0;
    weft_status_t status = WEFT_OK;
    for (size_t at = 0; at < n && status >= 0; at += used) {
        status = adapter_order_decode(list + at, n - at, diag, &order, &used);
        if (status >= 0 && order.place < ENGINE_MAX_ADAPTERS) {
            is_kept[order.place] = is_there(all, &order);
        }
    }
    for (uint32_t place = 0; place < ENGINE_MAX_ADAPTERS && status >= 0; place++) {
        if (!is_kept[place]) {
            engine_adapters_empty(all, place);
        }
    }
    for (size_t at = 0; at < n && status >= 0; at += used) {
        status = adapter_order_decode(list + at, n - at, diag, &order, &used);
        if (status >= 0) {
            status = read_missing(engine, &order, diag);
        }
    }
    return status;
}

weft_status_t engine_adapters_share(engine_t *engine, weft_status_t status, weft_diag_t *diag)
{
    engine_adapters_t *all = &engine->adapters;
    weft_buffer_t mine = {0};
    weft_buffer_t shared = {0};
    size_t *offsets = NULL;
    if (engine->n_ranks < 2) {
        return status;
    }
    if (engine->group.rank == 0 && all->table != NULL) {
        write_list(all, &mine);
    }
    if (status >= 0 && mine.is_failed) {
        status = weft_diag(diag, WEFT_ERR_NO_MEMORY,
                           "no memory for the list of adapters, or the "
                           "name of one is too long");
    }
    status = engine_group_share(&engine->group, status, diag, &mine, &shared, &offsets);
    if (status >= 0 && engine->group.rank > 0 && all->table != NULL) {
        status = take_list(engine, shared.data, offsets[1], diag);
    }
    weft_buffer_free(&mine);
    weft_buffer_free(&shared);
    weft_free(offsets);
    return status;
}
