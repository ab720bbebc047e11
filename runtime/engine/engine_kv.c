/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KV blocks over ranks: each has its part of every block, in its own tiers and under its own leases.
 * Rank 0's store and transfer decide; what they order of the others goes ahead of the next plan.
 */
#define WEFT_LOG_MODULE "engine"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/log.h"
#include "runtime/engine/engine_priv.h"

/* Messages of orders before a plan: there is room for more only when no step is in flight. */
#define MESSAGES_IN_FLIGHT 1

/* What a rank says of itself, with the bytes of its texts behind. */
typedef struct words {
    uint64_t epoch; /* of rank 0 */
    uint32_t tiers; /* kv_store_tiers, kv_member_tiers */
    uint32_t has_transfer;
    uint32_t pp_rank;
    uint32_t tp_rank;
    uint32_t blob_bytes; /* how to report to it: of rank 0 */
    uint32_t export_bytes;
} words_t;

/* ---- opening --------------------------------------------------------------------------------- */

static void wake(void *user)
{
    mailbox_wake(&((engine_t *)user)->mailbox);
}

static weft_status_t name_folder(engine_t *engine, const char *path, weft_diag_t *diag)
{
    weft_buffer_t folder = {0};
    if (mkdir(path, 0700) < 0 && errno != EEXIST) {
        weft_log_warn("--kv-disk-path %s: %s", path, strerror(errno)); /* the tier says the rest */
    }
    weft_buffer_printf(&folder, "%s/shard-%u", path, engine->group.rank);
    engine->kv.disk_path = weft_buffer_take(&folder, NULL);
    return engine->kv.disk_path == NULL
               ? weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for a path")
               : WEFT_OK;
}

weft_status_t engine_kv_open(engine_t *engine, const engine_options_t *options, weft_diag_t *diag)
{
    const bool has_tiers =
        options->kv_host_bytes + options->kv_disk_bytes > 0 && options->enable_prefix_caching;
    if (engine->n_ranks < 2 || (!has_tiers && engine->transfer_config.role == 0)) {
        return WEFT_OK;
    }
    const kv_crew_config_t config = {
        .rank = engine->group.rank,
        .size = engine->n_ranks,
        .wake = engine->group.rank == 0 ? wake : NULL, /* others are told nothing by it */
        .user = engine,
    };
    const weft_status_t status = kv_crew_create(&config, diag, &engine->kv.crew);
    return status < 0 || options->kv_disk_bytes == 0
               ? status
               : name_folder(engine, options->kv_disk_path, diag);
}

void engine_kv_close(engine_t *engine)
{
    engine_kv_t *kv = &engine->kv;
    kv_member_destroy(kv->member);
    kv_crew_destroy(kv->crew);
    weft_buffer_free(&kv->words);
    weft_buffer_free(&kv->shared);
    weft_free(kv->offsets);
    weft_free(kv->disk_path);
    *kv = (engine_kv_t){0};
}

/* ---- what this rank says --------------------------------------------------------------------- */

static weft_status_t write_words(engine_t *engine, uint32_t tiers, const weft_buffer_t *blob,
                                 const weft_buffer_t *export, weft_diag_t *diag)
{
    engine_kv_t *kv = &engine->kv;
    const model_shard_t *shard = &engine->group.ranks.shard;
    const words_t words = {
        .tiers = tiers,
        .has_transfer = engine->transfer_config.role != 0,
        .pp_rank = shard->stage,
        .tp_rank = shard->tensor_rank,
        .blob_bytes = (uint32_t)blob->length,
        .export_bytes = (uint32_t)export->length,
    };
    weft_buffer_append(&kv->words, &words, sizeof(words));
    weft_buffer_append(&kv->words, blob->data, blob->length);
    weft_buffer_append(&kv->words, export->data, export->length);
    return kv->words.is_failed || blob->is_failed || export->is_failed
               ? weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory to meet the other ranks")
               : WEFT_OK;
}

weft_status_t engine_kv_lead(engine_t *engine, weft_diag_t *diag)
{
    weft_buffer_t blob = {0};
    const weft_buffer_t none = {0};
    if (engine->kv.crew == NULL) {
        return WEFT_OK;
    }
    weft_status_t status = kv_crew_export(engine->kv.crew, &blob);
    if (status >= 0) {
        status = write_words(engine, kv_store_tiers(engine->store), &blob, &none, diag);
    }
    weft_buffer_free(&blob);
    return status;
}

/* The device has done what it was given before anything else writes to its blocks. */
static void settle(void *user)
{
    (void)k_stream_sync(((engine_t *)user)->stream); /* a failure shows where steps are collected */
}

static weft_status_t create_member(engine_t *engine, const engine_options_t *options,
                                   const model_source_t *source, kv_pool_t *pool, weft_diag_t *diag)
{
    uint8_t fingerprint[ENGINE_FINGERPRINT_BYTES] = {0};
    weft_status_t status = WEFT_OK;
    if (options->kv_disk_bytes > 0) {
        status = engine_create_hasher(engine, options, diag);
        status = status < 0 ? status : engine_fingerprint(engine, source, fingerprint);
    }
    const kv_member_config_t config = {
        .device = engine->device,
        .pool = pool,
        .crew = engine->kv.crew,
        .host_bytes = options->kv_host_bytes,
        .disk_bytes = options->kv_disk_bytes,
        .disk_path = engine->kv.disk_path,
        .fingerprint = fingerprint,
        .settle = engine->device->ops->is_host ? NULL : settle,
        .user = engine,
    };
    return status < 0 ? status : kv_member_create(&config, diag, &engine->kv.member);
}

weft_status_t engine_kv_follow(engine_t *engine, const engine_options_t *options,
                               const model_source_t *source, kv_pool_t *pool, weft_diag_t *diag)
{
    weft_status_t status = engine_kv_open(engine, options, diag);
    if (status < 0 || engine->kv.crew == NULL) {
        return status;
    }
    status = create_member(engine, options, source, pool, diag);
    if (status >= 0) {
        status = engine_transfer_follow(engine, source, pool, diag);
    }
    return status < 0 ? status : kv_member_start(engine->kv.member);
}

/* A follower's transfer says whose part it is; that may be another rank 0 by now. */
static weft_status_t write_follower_words(engine_t *engine, weft_diag_t *diag)
{
    engine_kv_t *kv = &engine->kv;
    weft_buffer_t export = {0};
    const weft_buffer_t none = {0};
    weft_buffer_clear(&kv->words);
    weft_status_t status = kv_member_export(kv->member, engine->transfer_config.engine_id, &export);
    if (status >= 0) {
        status = write_words(engine, kv_member_tiers(kv->member), &none, &export, diag);
    }
    weft_buffer_free(&export);
    return status;
}

/* ---- meeting --------------------------------------------------------------------------------- */

static weft_status_t draw_epoch(engine_t *engine)
{
    words_t *words = (words_t *)(void *)engine->kv.words.data;
    if (getrandom(&words->epoch, sizeof(words->epoch), 0) != (ssize_t)sizeof(words->epoch)) {
        return WEFT_ERR_IO;
    }
    words->epoch |= 1; /* not 0 */
    return WEFT_OK;
}

weft_status_t engine_kv_share(engine_t *engine, weft_status_t status, weft_diag_t *diag)
{
    engine_kv_t *kv = &engine->kv;
    if (engine->n_ranks < 2) {
        return status;
    }
    if (status >= 0 && kv->member != NULL) {
        status = write_follower_words(engine, diag);
    } else if (status >= 0 && kv->crew != NULL) {
        status = draw_epoch(engine);
    }
    weft_buffer_clear(&kv->shared);
    weft_free(kv->offsets);
    kv->offsets = NULL;
    return engine_group_share(&engine->group, status, diag, &kv->words, &kv->shared, &kv->offsets);
}

/* What a rank said; one that has nothing to do with KV said nothing. */
typedef struct said {
    words_t words;
    const char *blob;
    const char *export;
} said_t;

static weft_status_t read_words(const engine_kv_t *kv, uint32_t rank, said_t *said)
{
    const char *at = kv->shared.data + kv->offsets[rank];
    const size_t bytes = kv->offsets[rank + 1] - kv->offsets[rank];
    *said = (said_t){0};
    if (bytes == 0) {
        return WEFT_OK;
    }
    if (bytes < sizeof(said->words)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&said->words, at, sizeof(said->words));
    said->blob = at + sizeof(said->words);
    said->export = said->blob + said->words.blob_bytes;
    return bytes == sizeof(said->words) + (size_t)said->words.blob_bytes + said->words.export_bytes
               ? WEFT_OK
               : WEFT_ERR_MALFORMED;
}

static weft_status_t check_transfer(const engine_t *engine, const said_t *said, uint32_t rank,
                                    weft_diag_t *diag)
{
    const bool has = engine->transfer_config.role != 0;
    return (said->words.has_transfer != 0) == has
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_DENIED,
                           "--kv-transfer-config: rank %u has %s, rank %u has %s", rank,
                           has ? "none" : "one", engine->group.rank, has ? "one" : "none");
}

static weft_status_t serve(engine_t *engine, const said_t *said)
{
    const model_shard_t *shard = &engine->group.ranks.shard;
    const words_t *words = &said->words;
    const bool is_own = words->pp_rank == shard->stage && words->tp_rank == shard->tensor_rank;
    return is_own || engine->transfer == NULL
               ? WEFT_OK
               : kv_transfer_serve_rank(engine->transfer, words->pp_rank, words->tp_rank,
                                        said->export, words->export_bytes);
}

static weft_status_t meet_others(engine_t *engine, weft_diag_t *diag)
{
    engine_kv_t *kv = &engine->kv;
    uint32_t tiers = kv_store_tiers(engine->store);
    weft_status_t status = WEFT_OK;
    said_t said = {0};
    for (uint32_t rank = 1; rank < engine->group.size && status >= 0; rank++) {
        status = read_words(kv, rank, &said);
        if (status >= 0) {
            status = check_transfer(engine, &said, rank, diag);
        }
        if (status >= 0) {
            status = serve(engine, &said);
        }
        tiers &= said.words.tiers;
    }
    if (status >= 0) {
        status = read_words(kv, 0, &said);
    }
    if (status < 0) {
        return status;
    }
    kv_store_keep_tiers(engine->store, tiers);
    return kv->crew == NULL ? WEFT_OK : kv_crew_meet(kv->crew, said.words.epoch, NULL, 0, diag);
}

static weft_status_t meet_leader(engine_t *engine, weft_diag_t *diag)
{
    engine_kv_t *kv = &engine->kv;
    said_t said;
    weft_status_t status = read_words(kv, 0, &said);
    if (status >= 0) {
        status = check_transfer(engine, &said, 0, diag);
    }
    if (status < 0 || kv->member == NULL || said.words.blob_bytes == 0) {
        return status; /* without a crew rank 0 orders nothing */
    }
    return kv_member_meet(kv->member, said.words.epoch, said.blob, said.words.blob_bytes, diag);
}

weft_status_t engine_kv_meet(engine_t *engine, weft_diag_t *diag)
{
    if (engine->kv.offsets == NULL) {
        return WEFT_OK; /* it is alone */
    }
    return engine->group.rank == 0 ? meet_others(engine, diag) : meet_leader(engine, diag);
}

/* ---- while they are together ----------------------------------------------------------------- */

void engine_kv_poll(engine_t *engine)
{
    kv_report_t report;
    while (engine->kv.crew != NULL && kv_crew_next_report(engine->kv.crew, &report)) {
        if (report.kind == KV_REPORT_READ) {
            kv_store_hear(engine->store, &report);
        } else if (engine->transfer != NULL) {
            kv_transfer_hear(engine->transfer, &report);
        }
    }
}

weft_status_t engine_kv_flush(engine_t *engine)
{
    const char *orders = NULL;
    size_t n = 0;
    uint32_t messages = 0;
    if (engine->kv.crew == NULL) {
        return WEFT_OK;
    }
    weft_status_t status = kv_crew_orders(engine->kv.crew, &orders, &n);
    while (status >= 0 && orders != NULL) {
        const size_t bytes = n < STEP_WIRE_ORDER_BYTES ? n : STEP_WIRE_ORDER_BYTES;
        if (++messages > MESSAGES_IN_FLIGHT && engine->group.ranks.shard.stages > 1) {
            status = engine_collect_all(engine);
        }
        if (status >= 0) { /* what was collected may have added orders, and moved the others */
            status = kv_crew_orders(engine->kv.crew, &orders, &n);
        }
        if (status >= 0) {
            status = engine_group_send_orders(&engine->group, STEP_WIRE_ORDERS, orders, bytes);
            kv_crew_sent(engine->kv.crew, bytes);
        }
        if (status >= 0) {
            status = kv_crew_orders(engine->kv.crew, &orders, &n);
        }
    }
    return status;
}

/* ---- losing and ending ----------------------------------------------------------------------- */

void engine_kv_lose(engine_t *engine)
{
    engine_kv_t *kv = &engine->kv;
    if (kv->member != NULL) {
        kv_member_part(kv->member);
    } else if (kv->crew != NULL) {
        kv_crew_part(kv->crew);
        kv_store_lose_ranks(engine->store);
    }
    if (kv->member == NULL && kv->crew != NULL && engine->transfer != NULL) {
        kv_transfer_lose_ranks(engine->transfer);
        sched_fail_pulls(engine->sched, WEFT_ERR_PEER_GONE, "a rank of this worker is lost");
    }
}

static void flush_saved(void *user)
{
    engine_t *engine = user;
    if (!engine_has_lost_rank(engine)) {
        (void)engine_kv_flush(engine); /* else the others save nothing more */
    }
}

void engine_kv_save(engine_t *engine)
{
    if (engine->kv.crew != NULL && kv_crew_has_met(engine->kv.crew) &&
        engine_group_is_formed(&engine->group) && engine_health(engine) == ENGINE_UP) {
        kv_store_save(engine->store, flush_saved, engine);
    }
}
