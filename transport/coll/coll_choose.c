/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "transport/coll/coll_priv.h"

#define BACKEND(name, weak) extern weak const coll_backend_t coll_backend_##name;
#include "transport/coll/coll_backends.def"
#undef BACKEND

typedef struct row {
    const char *name;
    const coll_backend_t *backend; /* NULL: this program has it not */
    bool is_weak;                  /* another rank's may lack it, too */
} row_t;

static const row_t rows[] = {
#define BACKEND(name, weak) {#name, &coll_backend_##name, sizeof(#weak) > 1},
#include "transport/coll/coll_backends.def"
#undef BACKEND
};

#define N_ROWS     WEFT_ARRAY_LEN(rows)
#define NAME_BYTES 32

static const row_t *find_row(const char *name)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        if (strcmp(rows[i].name, name) == 0) {
            return &rows[i];
        }
    }
    return NULL;
}

static weft_status_t report_unknown(const char *name, weft_diag_t *diag)
{
    char known[WEFT_DIAG_BYTES / 2] = "auto";
    for (size_t i = 0, used = strlen(known); i < N_ROWS && used < sizeof(known); i++) {
        used += (size_t)snprintf(known + used, sizeof(known) - used, ", %s", rows[i].name);
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
static void add_reason(weft_diag_t *reasons, const row_t *row, const char *who, const char *why)
{
    const weft_diag_t before = *reasons;
    (void)weft_diag(reasons, WEFT_OK, "%s; %s: %s%s", before.text, row->name, who, why);
}

/* What all ranks need to agree upon a row. */
typedef struct vote {
    const coll_config_t *config;
    int32_t *votes;      /* [size] */
    weft_diag_t reasons; /* why rows were not taken */
    weft_diag_t *diag;   /* what the exchange says */
} vote_t;

/*
 * Collective. has_all_out: whether mine and everyone's vote is for the row. A status is the exchange's:
 * then nothing more can be agreed upon.
 */
static weft_status_t take_vote(vote_t *vote, const row_t *row, weft_status_t mine, const char *why,
                               bool *has_all_out)
{
    const int32_t given = mine;
    const weft_status_t status =
        exchange(vote->config, &given, sizeof(given), vote->votes, vote->diag);
    *has_all_out = status >= 0;
    for (uint32_t rank = 0; status >= 0 && rank < vote->config->size && *has_all_out; rank++) {
        const weft_status_t theirs = (weft_status_t)vote->votes[rank];
        *has_all_out = theirs >= 0;
        if (theirs < 0 && mine < 0) {
            add_reason(&vote->reasons, row, "", why[0] != '\0' ? why : weft_strerror(mine));
        } else if (theirs < 0) {
            char who[32];
            (void)snprintf(who, sizeof(who), "rank %u: ", rank);
            add_reason(&vote->reasons, row, who, weft_strerror(theirs));
        }
    }
    return status;
}

/* A probe is collective, too: first all must have it. */
static weft_status_t ask_all(vote_t *vote, const row_t *row, bool *has_all_out)
{
    weft_diag_t why = {.text = ""};
    *has_all_out = true;
    if (row->is_weak) {
        const bool is_here = row->backend != NULL;
        const weft_status_t status = take_vote(vote, row, is_here ? WEFT_OK : WEFT_ERR_UNSUPPORTED,
                                               "this weft was built without it", has_all_out);
        if (status < 0 || !*has_all_out) {
            return status;
        }
    }
    const weft_status_t mine = row->backend->probe(vote->config, &why);
    return take_vote(vote, row, mine, why.text, has_all_out);
}

static weft_status_t choose(vote_t *vote, const row_t *only, const coll_backend_t **backend_out)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        bool has_all = false;
        if (only != NULL && &rows[i] != only) {
            continue;
        }
        const weft_status_t status = ask_all(vote, &rows[i], &has_all);
        if (status < 0) {
            return status;
        }
        if (has_all) {
            *backend_out = rows[i].backend;
            return WEFT_OK;
        }
    }
    return weft_diag(vote->diag, WEFT_ERR_UNSUPPORTED, "no collective backend for these %u ranks%s",
                     vote->config->size, vote->reasons.text);
}

weft_status_t coll_check_backend_name(const char *name, weft_diag_t *diag)
{
    return strcmp(name, "auto") == 0 || find_row(name) != NULL ? WEFT_OK
                                                               : report_unknown(name, diag);
}

weft_status_t coll_choose_backend(const coll_config_t *config, weft_diag_t *diag,
                                  const coll_backend_t **backend_out)
{
    const row_t *only = find_row(config->backend); /* NULL: "auto" */
    /* Before an unknown name is refused: the others are waiting in the exchange. */
    weft_status_t status = check_same_name(config, diag);
    if (status == WEFT_OK) {
        status = coll_check_backend_name(config->backend, diag);
    }
    if (status < 0) {
        return status;
    }
    vote_t vote = {.config = config,
                   .votes = weft_calloc(config->size, sizeof(int32_t), "coll.votes"),
                   .diag = diag};
    if (vote.votes == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    status = choose(&vote, only, backend_out);
    weft_free(vote.votes);
    return status;
}
