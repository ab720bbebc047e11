/* SPDX-License-Identifier: Apache-2.0 */
/*
 * child_words: the command line of a `weft serve` that this process starts, and the flags in it of its
 * share of the machine.
 *
 * Owns     nothing: words live in the arena, or where they were given
 * Threads  one
 */
#pragma once

#include "base/arena.h"
#include "base/option.h"
#include "runtime/engine/engine_share.h"

typedef struct child_words {
    weft_arena_t *arena;
    const char **list; /* [max + 1], NULL behind the last */
    uint32_t n;
    uint32_t max;
    bool is_failed; /* no memory, or more than max */
} child_words_t;

void child_words_init(child_words_t *words, weft_arena_t *arena, uint32_t max);
void child_words_add(child_words_t *words, const char *word);
/* A flag and its value. */
void child_words_add_flag(child_words_t *words, const char *flag, const char *format, ...)
    WEFT_PRINTF(3, 4);

/*
 * Says what share child `name` gets, in the log and by flags, as far as set does not say it: these
 * flags win over those before them. options: of set.
 */
void child_words_add_share(child_words_t *words, const char *name, const weft_option_set_t *set,
                           const engine_options_t *options, const engine_share_t *share);

char **child_words_end(const child_words_t *words); /* NULL: is_failed */
