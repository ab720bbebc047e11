/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "transport/coll/coll_priv.h"

#define BACKEND(name) extern const coll_backend_t coll_backend_##name;
#include "transport/coll/coll_backends.def"
#undef BACKEND

static const coll_backend_t *const backends[] = {
#define BACKEND(name) &coll_backend_##name,
#include "transport/coll/coll_backends.def"
#undef BACKEND
};

#define N_BACKENDS WEFT_ARRAY_LEN(backends)
#define NAME_BYTES 32

static const coll_backend_t *find_backend(const char *name)
{
    for (size_t i = 0; i < N_BACKENDS; i++) {
        if (strcmp(backends[i]->name, name) == 0) {
            return backends[i];
        }
    }
    return NULL;
}

static weft_status_t report_unknown(const char *name, weft_diag_t *diag)
{
    char known[WEFT_DIAG_BYTES / 2] = "auto";
    for (size_t i = 0, used = strlen(known); i < N_BACKENDS && used < sizeof(known); i++) {
        used += (size_t)snprintf(known + used, sizeof(known) - used, ", %s", backends[i]->name);
    }
    return weft_diag(diag, WEFT_ERR_NOT_FOUND, "collective backend \"%s\" is unknown; known: %s",
                     name, known);
}

static weft_status_t exchange(const coll_config_t *config, const void *mine, size_t bytes,
                              void *all, weft_diag_t *diag)
{
    return config->exchange.all_gather(config->exchange.user, mine, bytes, all, diag);
}

/* Ranks that name different backends would wait for each other for ever. */
static weft_status_t check_same_name(const coll_config_t *config, weft_diag_t *diag)
{
    char mine[NAME_BYTES] = {0};
    char(*all)[NAME_BYTES] = weft_calloc(config->size, NAME_BYTES, "coll.names");
    if (all == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    (void)snprintf(mine, sizeof(mine), "%s", config->backend);
    weft_status_t status = exchange(config, mine, sizeof(mine), all, diag);
    for (uint32_t rank = 0; status >= 0 && rank < config->size; rank++) {
        if (memcmp(all[rank], mine, sizeof(mine)) != 0) {
            all[rank][NAME_BYTES - 1] = '\0';
            status = weft_diag(diag, WEFT_ERR_INVALID,
                               "rank %u uses the collective backend \"%s\", rank %u \"%s\"",
                               config->rank, mine, rank, all[rank]);
        }
    }
    weft_free(all);
    return status;
}

/* Appends what a row lacks; as much of it as a diag has room for. */
static void add_reason(weft_diag_t *reasons, const coll_backend_t *backend, const char *who,
                       const char *why)
{
    const weft_diag_t before = *reasons;
    (void)weft_diag(reasons, WEFT_OK, "%s; %s: %s%s", before.text, backend->name, who, why);
}

/*
 * Collective. has_all_out: whether every rank can use the row. A status is the exchange's: then
 * nothing more can be agreed upon.
 */
static weft_status_t ask_all(const coll_config_t *config, const coll_backend_t *backend,
                             int32_t *votes, weft_diag_t *diag, weft_diag_t *reasons,
                             bool *has_all_out)
{
    weft_diag_t why = {.text = ""};
    const int32_t mine = backend->probe(config, &why);
    const weft_status_t status = exchange(config, &mine, sizeof(mine), votes, diag);
    *has_all_out = status >= 0;
    for (uint32_t rank = 0; status >= 0 && rank < config->size && *has_all_out; rank++) {
        *has_all_out = votes[rank] >= 0;
        if (votes[rank] < 0 && mine < 0) {
            add_reason(reasons, backend, "",
                       why.text[0] != '\0' ? why.text : weft_strerror((weft_status_t)mine));
        } else if (votes[rank] < 0) {
            char who[32];
            (void)snprintf(who, sizeof(who), "rank %u: ", rank);
            add_reason(reasons, backend, who, weft_strerror((weft_status_t)votes[rank]));
        }
    }
    return status;
}

static weft_status_t choose(const coll_config_t *config, const coll_backend_t *only, int32_t *votes,
                            weft_diag_t *diag, const coll_backend_t **backend_out)
{
    weft_diag_t reasons = {.text = ""};
    for (size_t i = 0; i < N_BACKENDS; i++) {
        bool has_all = false;
        if (only != NULL && backends[i] != only) {
            continue;
        }
        const weft_status_t status = ask_all(config, backends[i], votes, diag, &reasons, &has_all);
        if (status < 0) {
            return status;
        }
        if (has_all) {
            *backend_out = backends[i];
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "no collective backend for these %u ranks%s",
                     config->size, reasons.text);
}

weft_status_t coll_choose_backend(const coll_config_t *config, weft_diag_t *diag,
                                  const coll_backend_t **backend_out)
{
    const coll_backend_t *only = NULL;
    weft_status_t status;
    if (strcmp(config->backend, "auto") != 0) {
        only = find_backend(config->backend);
    }
    /* Before an unknown name is refused: the others are waiting in the exchange. */
    status = check_same_name(config, diag);
    if (status < 0) {
        return status;
    }
    if (only == NULL && strcmp(config->backend, "auto") != 0) {
        return report_unknown(config->backend, diag);
    }
    int32_t *votes = weft_calloc(config->size, sizeof(*votes), "coll.votes");
    if (votes == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    status = choose(config, only, votes, diag, backend_out);
    weft_free(votes);
    return status;
}
