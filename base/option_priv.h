/* SPDX-License-Identifier: Apache-2.0 */
/* option_priv: what the readers of the sources (arguments, environment, file) share. */
#pragma once

#include "base/arena.h"
#include "base/option.h"

#define OPTION_SHORT_NAME 3 /* letters that may stand behind one dash: -p, -tp */

/* Where a value came from; the higher one wins, equal ones add to a LIST or replace. */
typedef enum option_rank {
    OPTION_FROM_DEFAULT,
    OPTION_FROM_FILE,
    OPTION_FROM_ENVIRONMENT,
    OPTION_FROM_EXTRA_ARGUMENTS,
    OPTION_FROM_ARGUMENTS,
} option_rank_t;

/* One row with the field that it fills. */
typedef struct option_cell {
    const weft_option_t *row;
    void *field;
    option_rank_t rank;
} option_cell_t;

struct weft_option_set {
    const weft_option_spec_t *spec;
    weft_arena_t arena;
    option_cell_t *cells; /* [n_cells], all groups one after another */
    size_t n_cells;
    bool *was_ignored; /* [spec->n_ignored]: its line is logged */
    weft_list_t positional;
    const char *config_path; /* NULL: none given */
};

/* By flag or alias, '_' as good as '-'; NULL when unknown. */
option_cell_t *option_find(const weft_option_set_t *set, const char *name, size_t length);

/* Whether the two names are equal but for '_' and '-'. */
bool option_name_is(const char *known, const char *name, size_t length);

/* An ignored flag of that name or alias or, for "a.b", of the name a; NULL if there is none. */
const weft_option_ignored_t *option_find_ignored(const weft_option_set_t *set, const char *name,
                                                 size_t length);
void option_log_ignored(weft_option_set_t *set, const weft_option_ignored_t *ignored);

/* Sets the cell from text unless a higher rank did; where names the place in the diag. */
weft_status_t option_assign(weft_option_set_t *set, option_cell_t *cell, option_rank_t rank,
                            const char *text, const char *where, weft_diag_t *diag);

/* As option_assign, but a LIST takes each word of text. */
weft_status_t option_assign_words(weft_option_set_t *set, option_cell_t *cell, option_rank_t rank,
                                  const char *text, const char *where, weft_diag_t *diag);

weft_status_t option_list_append(weft_option_set_t *set, weft_list_t *list, const char *text);

/* Fills diag with "unknown <kind> <shown>; did you mean --x?". */
weft_status_t option_report_unknown(const weft_option_set_t *set, const char *shown,
                                    const char *name, size_t length, weft_diag_t *diag);

/* Words of text as a POSIX shell splits them: blanks, quotes, backslash; nothing is expanded. */
weft_status_t option_split_words(weft_option_set_t *set, const char *text, weft_list_t *words_out,
                                 weft_diag_t *diag);

/* Text to the field of that type. diag says what is wrong, without the place. */
weft_status_t option_parse_value(weft_option_type_t type, const char *text, void *field,
                                 weft_diag_t *diag);

/* WEFT_ERR_CANCELLED: --help is among them. Only OPTION_FROM_ARGUMENTS may have positionals. */
weft_status_t option_read_arguments(weft_option_set_t *set, option_rank_t rank, uint32_t n,
                                    const char *const *words, weft_diag_t *diag);
weft_status_t option_read_environment(weft_option_set_t *set, weft_diag_t *diag);
weft_status_t option_read_yaml(weft_option_set_t *set, const char *path, weft_diag_t *diag);
