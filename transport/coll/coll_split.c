/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks of one color make a group over the exchange of the group they leave. Other colors make theirs
 * at the same time and may need other messages or more of them, while an all-gather of that exchange
 * is everyone's: so it runs in rounds of frames of one size, and whoever is done goes on taking part
 * until all are.
 */
#include <string.h>

#include "base/alloc.h"
#include "transport/coll/coll_priv.h"

#define FRAME_BYTES 1024

typedef struct frame {
    uint32_t is_done;
    char payload[FRAME_BYTES];
} frame_t;

typedef struct rounds {
    const coll_config_t *parent;
    frame_t *frames;   /* [parent's size] */
    uint32_t *members; /* [size], ranks of the parent, ascending */
    uint32_t size;
    uint32_t rank;
} rounds_t;

static weft_status_t all_gather_of_parent(const rounds_t *rounds, const void *mine, size_t bytes,
                                          void *all, weft_diag_t *diag)
{
    const coll_exchange_t *exchange = &rounds->parent->exchange;
    return exchange->all_gather(exchange->user, mine, bytes, all, diag);
}

static weft_status_t run_round(rounds_t *rounds, const frame_t *mine, weft_diag_t *diag)
{
    return all_gather_of_parent(rounds, mine, sizeof(*mine), rounds->frames, diag);
}

static weft_status_t all_gather_members(void *user, const void *mine, size_t bytes, void *all_out,
                                        weft_diag_t *diag)
{
    rounds_t *rounds = user;
    for (size_t at = 0; at < bytes; at += FRAME_BYTES) {
        frame_t frame = {.is_done = 0};
        const size_t part = bytes - at < FRAME_BYTES ? bytes - at : FRAME_BYTES;
        memcpy(frame.payload, (const char *)mine + at, part);
        const weft_status_t status = run_round(rounds, &frame, diag);
        if (status < 0) {
            return status;
        }
        for (uint32_t i = 0; i < rounds->size; i++) {
            const frame_t *theirs = &rounds->frames[rounds->members[i]];
            if (theirs->is_done != 0) { /* it failed where we did not */
                return weft_diag(diag, WEFT_ERR_PEER_GONE, "rank %u could not make its group",
                                 rounds->members[i]);
            }
            memcpy((char *)all_out + i * bytes + at, theirs->payload, part);
        }
    }
    return WEFT_OK;
}

/* Until every rank is done. */
static weft_status_t finish_rounds(rounds_t *rounds, weft_diag_t *diag)
{
    const frame_t done = {.is_done = 1};
    for (;;) {
        uint32_t n_done = 0;
        const weft_status_t status = run_round(rounds, &done, diag);
        if (status < 0) {
            return status;
        }
        for (uint32_t rank = 0; rank < rounds->parent->size; rank++) {
            n_done += rounds->frames[rank].is_done != 0;
        }
        if (n_done == rounds->parent->size) {
            return WEFT_OK;
        }
    }
}

static weft_status_t find_members(rounds_t *rounds, uint32_t color, weft_diag_t *diag)
{
    uint32_t *colors = weft_calloc(rounds->parent->size, sizeof(*colors), "coll.colors");
    if (colors == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = all_gather_of_parent(rounds, &color, sizeof(color), colors, diag);
    for (uint32_t rank = 0; status >= 0 && rank < rounds->parent->size; rank++) {
        if (rank == rounds->parent->rank) {
            rounds->rank = rounds->size;
        }
        if (colors[rank] == color) {
            rounds->members[rounds->size++] = rank;
        }
    }
    weft_free(colors);
    return status;
}

static weft_status_t make_part(rounds_t *rounds, weft_diag_t *diag, coll_t **part_out)
{
    coll_t *part = NULL;
    weft_diag_t ignored;
    coll_config_t config = *rounds->parent;
    config.rank = rounds->rank;
    config.size = rounds->size;
    config.exchange = (coll_exchange_t){.user = rounds, .all_gather = all_gather_members};
    weft_status_t status = coll_create(&config, diag, &part);
    const weft_status_t finished = finish_rounds(rounds, status < 0 ? &ignored : diag);
    status = status < 0 ? status : finished;
    if (status < 0) {
        coll_destroy(part);
        return status;
    }
    part->config.exchange = (coll_exchange_t){.all_gather = NULL};
    *part_out = part;
    return WEFT_OK;
}

weft_status_t coll_split(coll_t *coll, uint32_t color, weft_diag_t *diag, coll_t **part_out)
{
    const uint32_t size = coll->config.size;
    if (coll->config.exchange.all_gather == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "a part of a group cannot be split again");
    }
    rounds_t rounds = {.parent = &coll->config,
                       .frames = weft_calloc(size, sizeof(frame_t), "coll.frames"),
                       .members = weft_calloc(size, sizeof(uint32_t), "coll.members")};
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (rounds.frames != NULL && rounds.members != NULL) {
        status = find_members(&rounds, color, diag);
        status = status < 0 ? status : make_part(&rounds, diag, part_out);
    }
    weft_free(rounds.members);
    weft_free(rounds.frames);
    return status;
}
