/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_adapters_priv: what the files about an engine's adapters share.
 *
 *   engine_adapters.c        the list, those of the command line, requests
 *   engine_adapters_ranks.c  the same adapters on every rank, also of those that join again
 *
 * One lock guards list and places; an adapter holds its place until the last of those that know it
 * lets go, and over several ranks until the others have been told.
 */
#pragma once

#include "runtime/engine/engine_priv.h"

struct engine_adapter {
    engine_t *engine;
    adapter_t *weights;
    char *name;
    char *path;
    uint64_t created;
    uint64_t serial; /* over several ranks: the same adapter has the same on all */
    uint32_t place;
    atomic_uint refs;
    atomic_uint running; /* samples */
    atomic_uint waiting;
};

/* Reads the folder, no more: this rank's part, in no place yet. */
weft_status_t engine_adapter_create(engine_t *engine, const char *name, const char *path,
                                    weft_diag_t *diag, engine_adapter_t **adapter_out);
void engine_adapter_destroy(engine_adapter_t *adapter); /* one that has no place; NULL is fine */

/* Whether one more could be inserted by this name. */
weft_status_t engine_adapters_check_room(engine_adapters_t *all, const char *name,
                                         weft_diag_t *diag);
/*
 * Into the table and the list, whose reference the caller's becomes. Where the place is given rank 0 has
 * found the name free: here one that is unloaded may have it, as long as something runs with it.
 */
#define ENGINE_ANY_PLACE UINT32_MAX
weft_status_t engine_adapters_insert(engine_adapters_t *all, uint32_t place,
                                     engine_adapter_t *adapter, weft_diag_t *diag);
/* Whatever has the place leaves the list. */
void engine_adapters_empty(engine_adapters_t *all, uint32_t place);

/* engine_adapters_ranks.c: a load on all ranks; rank 0 has a place to drop. */
weft_status_t engine_adapters_load_everywhere(engine_t *engine, const char *name, const char *path,
                                              weft_diag_t *diag);
void engine_adapters_note_drop(engine_t *engine);
