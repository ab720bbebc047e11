/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/engine_adapters_priv.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/json_struct.h"

#define WEFT_LOG_MODULE "engine"
#include "base/log.h"

#define WHERE "--lora-modules: "

enum { USUAL_LORAS = 1, USUAL_RANK = 16 }; /* as in runtime/options.def */

void engine_adapter_destroy(engine_adapter_t *adapter)
{
    if (adapter != NULL) {
        adapter_destroy(adapter->weights);
        weft_free(adapter->name);
        weft_free(adapter->path);
        weft_free(adapter);
    }
}

static void acquire(engine_adapter_t *adapter)
{
    atomic_fetch_add(&adapter->refs, 1);
}

void engine_release_adapter(engine_adapter_t *adapter)
{
    if (adapter == NULL || atomic_fetch_sub(&adapter->refs, 1) > 1) {
        return;
    }
    engine_t *engine = adapter->engine;
    engine_adapters_t *all = &engine->adapters;
    const uint32_t place = adapter->place;
    const bool has_followers = all->ranks.has_followers;
    pthread_mutex_lock(&all->lock);
    all->places[place] = NULL;
    pthread_mutex_unlock(&all->lock);
    /* First: a GPU frees memory when its steps are done, so that none reads the place any more. */
    engine_adapter_destroy(adapter);
    pthread_mutex_lock(&all->lock);
    all->states[place] = has_followers ? ENGINE_PLACE_DROPPED : ENGINE_PLACE_FREE;
    pthread_mutex_unlock(&all->lock);
    if (has_followers) {
        engine_adapters_note_drop(engine);
    }
}

/* ---- the list -------------------------------------------------------------------------------- */

/* The lock is held. */
static uint32_t index_of(const engine_adapters_t *all, const char *name)
{
    uint32_t i = 0;
    while (i < all->n && strcmp(all->list[i]->name, name) != 0) {
        i++;
    }
    return i;
}

static uint32_t free_place(const engine_adapters_t *all)
{
    uint32_t i = 0;
    while (i < ENGINE_MAX_ADAPTERS && all->states[i] != ENGINE_PLACE_FREE) {
        i++;
    }
    return i;
}

static weft_status_t check_room(const engine_adapters_t *all, const char *name, weft_diag_t *diag)
{
    if (index_of(all, name) < all->n) {
        return weft_diag(diag, WEFT_ERR_IN_USE, "the adapter %s is there already", name);
    }
    if (all->n == ENGINE_MAX_ADAPTERS) {
        return weft_diag(diag, WEFT_ERR_QUEUE_FULL, "%d adapters are there already",
                         ENGINE_MAX_ADAPTERS);
    }
    return WEFT_OK;
}

weft_status_t engine_adapters_check_room(engine_adapters_t *all, const char *name,
                                         weft_diag_t *diag)
{
    pthread_mutex_lock(&all->lock);
    const weft_status_t status = check_room(all, name, diag);
    pthread_mutex_unlock(&all->lock);
    return status;
}

static weft_status_t insert_at(engine_adapters_t *all, uint32_t place, engine_adapter_t *adapter,
                               weft_diag_t *diag)
{
    if (place >= ENGINE_MAX_ADAPTERS || all->states[place] != ENGINE_PLACE_FREE) {
        return weft_diag(diag, WEFT_ERR_QUEUE_FULL, "no place for the adapter %s", adapter->name);
    }
    const weft_status_t status = adapter_table_put(all->table, place, adapter->weights);
    if (status < 0) {
        return weft_diag(diag, status, "the device did not take the adapter %s", adapter->name);
    }
    adapter->place = place;
    all->states[place] = ENGINE_PLACE_TAKEN;
    all->places[place] = adapter;
    all->list[all->n++] = adapter;
    weft_log_info("adapter is there name=%s path=%s", adapter->name, adapter->path);
    return WEFT_OK;
}

weft_status_t engine_adapters_insert(engine_adapters_t *all, uint32_t place,
                                     engine_adapter_t *adapter, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    pthread_mutex_lock(&all->lock);
    if (place == ENGINE_ANY_PLACE) {
        status = check_room(all, adapter->name, diag);
        place = free_place(all);
    }
    if (status >= 0) {
        status = insert_at(all, place, adapter, diag);
    }
    pthread_mutex_unlock(&all->lock);
    return status;
}

/* Entry i of the list; the lock is held. */
static engine_adapter_t *take_out(engine_adapters_t *all, uint32_t i)
{
    engine_adapter_t *adapter = NULL;
    if (i < all->n) {
        adapter = all->list[i];
        memmove(&all->list[i], &all->list[i + 1], (--all->n - i) * sizeof(all->list[0]));
    }
    return adapter;
}

void engine_adapters_empty(engine_adapters_t *all, uint32_t place)
{
    uint32_t i = 0;
    pthread_mutex_lock(&all->lock);
    while (i < all->n && all->list[i]->place != place) {
        i++;
    }
    engine_adapter_t *adapter = take_out(all, i);
    pthread_mutex_unlock(&all->lock);
    engine_release_adapter(adapter);
}

/* ---- loading -------------------------------------------------------------------------------- */

weft_status_t engine_adapter_create(engine_t *engine, const char *name, const char *path,
                                    weft_diag_t *diag, engine_adapter_t **adapter_out)
{
    const adapter_model_t model = {
        .config = &engine->model_config,
        .cut = model_cut(engine->model),
        .is_gguf = engine->adapters.is_gguf,
        .device = engine->device,
        .max_rank = engine->plan.model_limits.max_lora_rank,
    };
    engine_adapter_t *adapter = weft_zalloc(sizeof(*adapter), "engine.adapter");
    if (adapter == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for an adapter");
    }
    adapter->engine = engine;
    adapter->created = weft_wallclock_ns() / WEFT_NS_PER_SECOND;
    atomic_init(&adapter->refs, 1);
    weft_status_t status = adapter_load(&model, path, diag, &adapter->weights);
    if (status >= 0) {
        status = weft_json_set_text(&adapter->name, name);
    }
    if (status >= 0) {
        status = weft_json_set_text(&adapter->path, path);
    }
    if (status < 0) {
        engine_adapter_destroy(adapter);
        return status;
    }
    *adapter_out = adapter;
    return WEFT_OK;
}

/* On this rank alone. */
static weft_status_t load(engine_t *engine, const char *name, const char *path, uint64_t serial,
                          weft_diag_t *diag)
{
    engine_adapter_t *adapter = NULL;
    weft_status_t status = engine_adapter_create(engine, name, path, diag, &adapter);
    if (status < 0) {
        return status;
    }
    adapter->serial = serial;
    status = engine_adapters_insert(&engine->adapters, ENGINE_ANY_PLACE, adapter, diag);
    if (status < 0) {
        engine_adapter_destroy(adapter);
    }
    return status;
}

weft_status_t engine_load_adapter(engine_t *engine, const char *name, const char *path,
                                  weft_diag_t *diag)
{
    if (engine->adapters.table == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "adapters need --enable-lora");
    }
    return engine->adapters.ranks.has_followers
               ? engine_adapters_load_everywhere(engine, name, path, diag)
               : load(engine, name, path, 0, diag);
}

weft_status_t engine_unload_adapter(engine_t *engine, const char *name)
{
    engine_adapters_t *all = &engine->adapters;
    engine_adapter_t *adapter = NULL;
    if (all->table == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    pthread_mutex_lock(&all->lock);
    adapter = take_out(all, index_of(all, name));
    pthread_mutex_unlock(&all->lock);
    engine_release_adapter(adapter);
    return adapter == NULL ? WEFT_ERR_NOT_FOUND : WEFT_OK;
}

/* ---- those of the command line -------------------------------------------------------------- */

typedef struct module {
    char *name;
    char *path;
    char *base_model_name;
} module_t;

static const weft_json_field_t fields[] = {
    {"name", WEFT_JSON_TEXT, offsetof(module_t, name), 0, 0},
    {"path", WEFT_JSON_TEXT, offsetof(module_t, path), 0, 0},
    {"base_model_name", WEFT_JSON_OPTIONAL, offsetof(module_t, base_model_name), 0, 0},
};

static weft_status_t read_pair(const char *text, module_t *module)
{
    const char *sign = strchr(text, '=');
    if (sign == NULL) {
        return WEFT_OK;
    }
    module->name = weft_strndup(text, (size_t)(sign - text), "engine.lora_module");
    return module->name == NULL ? WEFT_ERR_NO_MEMORY : weft_json_set_text(&module->path, sign + 1);
}

/* Its texts are to be freed, also when it fails. */
static weft_status_t read_module(const char *text, weft_diag_t *diag, module_t *module)
{
    const weft_status_t status =
        text[0] == '{'
            ? weft_json_read_object(text, fields, WEFT_ARRAY_LEN(fields), WHERE, diag, module)
            : read_pair(text, module);
    const bool has_name = module->name != NULL && module->name[0] != '\0';
    const bool has_path = module->path != NULL && module->path[0] != '\0';
    if (status < 0 || (has_name && has_path)) {
        return status;
    }
    return text[0] == '{'
               ? weft_diag(diag, WEFT_ERR_INVALID, WHERE "%s has no \"%s\"", text,
                           has_name ? "path" : "name")
               : weft_diag(diag, WEFT_ERR_INVALID, WHERE "\"%s\" is not NAME=FOLDER", text);
}

/* Ranks that load the same modules give them the same serials. */
static weft_status_t load_module(engine_t *engine, const char *text, uint64_t serial,
                                 weft_diag_t *diag)
{
    module_t module = {0};
    weft_status_t status = read_module(text, diag, &module);
    if (status >= 0) {
        status = load(engine, module.name, module.path, serial, diag);
        if (status < 0) {
            weft_diag_prefix(diag, "--lora-modules");
        }
    }
    weft_json_free_texts(fields, WEFT_ARRAY_LEN(fields), &module);
    return status;
}

static weft_status_t measure_module(const adapter_model_t *model, const char *text,
                                    weft_diag_t *diag, size_t *bytes_out)
{
    module_t module = {0};
    weft_status_t status = read_module(text, diag, &module);
    if (status >= 0) {
        status = adapter_measure(model, module.path, diag, bytes_out);
        if (status < 0) {
            weft_diag_prefix(diag, "--lora-modules");
        }
    }
    weft_json_free_texts(fields, WEFT_ARRAY_LEN(fields), &module);
    return status;
}

weft_status_t engine_adapters_measure(const engine_options_t *options, const adapter_model_t *model,
                                      const model_config_t *local, weft_diag_t *diag,
                                      size_t *bytes_out)
{
    const uint32_t named = options->lora_modules.count;
    const size_t any = adapter_bytes(local, model->max_rank);
    *bytes_out = adapter_table_bytes(local, model->cut, ENGINE_MAX_ADAPTERS);
    for (uint32_t i = 0; i < named; i++) {
        size_t bytes = 0;
        const weft_status_t status =
            measure_module(model, options->lora_modules.items[i], diag, &bytes);
        if (status < 0) {
            return status;
        }
        *bytes_out += bytes;
    }
    *bytes_out += options->max_loras > named ? (options->max_loras - named) * any : 0;
    return WEFT_OK;
}

static weft_status_t check(const engine_options_t *options, weft_diag_t *diag)
{
    if (!options->enable_lora) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--lora-modules needs --enable-lora");
    }
    if (options->max_lora_rank < 1 || options->max_lora_rank > ADAPTER_MAX_RANK) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--max-lora-rank %u: 1 to %d are possible",
                         options->max_lora_rank, ADAPTER_MAX_RANK);
    }
    if (options->max_loras > ENGINE_MAX_ADAPTERS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--max-loras %u: at most %d are possible",
                         options->max_loras, ENGINE_MAX_ADAPTERS);
    }
    return WEFT_OK;
}

weft_status_t engine_adapters_check(const engine_options_t *options, weft_diag_t *diag)
{
    return options->enable_lora || options->lora_modules.count > 0 ? check(options, diag) : WEFT_OK;
}

/* Without attributes they fail only where memory does; the first is looked at for all. */
static weft_status_t init_locks(engine_adapters_t *all)
{
    if (pthread_mutex_init(&all->lock, NULL) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    (void)pthread_mutex_init(&all->ranks.loading, NULL);
    (void)pthread_mutex_init(&all->ranks.meeting, NULL);
    return WEFT_OK;
}

static void fini_locks(engine_adapters_t *all)
{
    pthread_mutex_destroy(&all->ranks.meeting);
    pthread_mutex_destroy(&all->ranks.loading);
    pthread_mutex_destroy(&all->lock);
}

static void warn_of_limits(const engine_options_t *options)
{
    if (options->max_loras != USUAL_LORAS || options->max_lora_rank != USUAL_RANK) {
        weft_log_warn("--max-loras, --max-lora-rank: no adapters without --enable-lora");
    }
}

weft_status_t engine_adapters_init(engine_t *engine, const engine_options_t *options,
                                   const model_source_t *source, weft_diag_t *diag)
{
    engine_adapters_t *all = &engine->adapters;
    if (!options->enable_lora) {
        warn_of_limits(options);
        return WEFT_OK;
    }
    all->ranks.has_followers = engine->n_ranks > 1 && engine->group.rank == 0;
    all->is_gguf = strcmp(model_source_format(source), "gguf") == 0;
    weft_status_t status = init_locks(all);
    if (status < 0) {
        return status;
    }
    status = adapter_table_create(model_local_config(engine->model), model_cut(engine->model),
                                  engine->device, ENGINE_MAX_ADAPTERS, &all->table);
    if (status < 0) {
        fini_locks(all);
        return weft_diag(diag, status, "no memory for the table of adapters");
    }
    model_set_adapters(engine->model, all->table);
    for (uint32_t i = 0; status >= 0 && i < options->lora_modules.count; i++) {
        status = load_module(engine, options->lora_modules.items[i], i + 1, diag);
    }
    return status;
}

void engine_adapters_fini(engine_t *engine)
{
    engine_adapters_t *all = &engine->adapters;
    if (all->table == NULL) {
        return;
    }
    engine_adapters_part(engine);
    while (all->n > 0) {
        engine_release_adapter(all->list[--all->n]);
    }
    adapter_table_destroy(all->table);
    fini_locks(all);
}

/* ---- those who ask -------------------------------------------------------------------------- */

bool engine_has_adapters(const engine_t *engine)
{
    return engine->adapters.table != NULL;
}

engine_adapter_t *engine_find_adapter(engine_t *engine, const char *name)
{
    engine_adapters_t *all = &engine->adapters;
    engine_adapter_t *found = NULL;
    if (all->table == NULL) {
        return NULL;
    }
    pthread_mutex_lock(&all->lock);
    const uint32_t i = index_of(all, name);
    if (i < all->n) {
        found = all->list[i];
        acquire(found);
    }
    pthread_mutex_unlock(&all->lock);
    return found;
}

uint32_t engine_list_adapters(engine_t *engine, engine_adapter_t **out)
{
    engine_adapters_t *all = &engine->adapters;
    if (all->table == NULL) {
        return 0;
    }
    pthread_mutex_lock(&all->lock);
    const uint32_t n = all->n;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = all->list[i];
        acquire(out[i]);
    }
    pthread_mutex_unlock(&all->lock);
    return n;
}

const char *engine_adapter_name(const engine_adapter_t *adapter)
{
    return adapter->name;
}

const char *engine_adapter_path(const engine_adapter_t *adapter)
{
    return adapter->path;
}

uint64_t engine_adapter_created(const engine_adapter_t *adapter)
{
    return adapter->created;
}

void engine_adapter_count(const engine_adapter_t *adapter, uint32_t *running, uint32_t *waiting)
{
    *running = atomic_load_explicit(&adapter->running, memory_order_relaxed);
    *waiting = atomic_load_explicit(&adapter->waiting, memory_order_relaxed);
}

/* ---- requests ------------------------------------------------------------------------------- */

engine_adapter_t *engine_adapter_acquire(engine_adapter_t *adapter)
{
    if (adapter != NULL) {
        acquire(adapter);
    }
    return adapter;
}

uint32_t engine_adapter_number(const engine_adapter_t *adapter)
{
    return adapter == NULL ? 0 : adapter->place + 1;
}

void engine_adapter_waits(engine_adapter_t *adapter, uint32_t samples)
{
    if (adapter != NULL) {
        atomic_fetch_add(&adapter->waiting, samples);
    }
}

void engine_adapter_runs(engine_adapter_t *adapter)
{
    if (adapter != NULL) {
        atomic_fetch_sub(&adapter->waiting, 1);
        atomic_fetch_add(&adapter->running, 1);
    }
}

void engine_adapter_ends(engine_adapter_t *adapter, bool has_run)
{
    if (adapter != NULL) {
        atomic_fetch_sub(has_run ? &adapter->running : &adapter->waiting, 1);
    }
}
