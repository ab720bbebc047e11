/* SPDX-License-Identifier: Apache-2.0 */
#include "base/option.h"

#include <ctype.h>
#include <string.h>

#include "base/alloc.h"
#include "base/option_priv.h"

#define WEFT_LOG_MODULE "option"
#include "base/log.h"

#define MAX_NAME 64 /* longer names are not compared for likeness */

static char fold(char c)
{
    return c == '_' ? '-' : c;
}

bool option_name_is(const char *known, const char *name, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (known[i] == '\0' || fold(known[i]) != fold(name[i])) {
            return false;
        }
    }
    return known[length] == '\0';
}

option_cell_t *option_find(const weft_option_set_t *set, const char *name, size_t length)
{
    for (size_t i = 0; i < set->n_cells; i++) {
        if (option_name_is(set->cells[i].row->flag, name, length)) {
            return &set->cells[i];
        }
    }
    for (size_t i = 0; i < set->spec->n_flags; i++) {
        const weft_option_alias_t *alias = &set->spec->flags[i];
        if (option_name_is(alias->name, name, length) &&
            !option_name_is(alias->flag, name, length)) {
            return option_find(set, alias->flag, strlen(alias->flag));
        }
    }
    return NULL;
}

const weft_option_ignored_t *option_find_ignored(const weft_option_set_t *set, const char *name,
                                                 size_t length)
{
    const char *dot = memchr(name, '.', length);
    const size_t stem = dot != NULL ? (size_t)(dot - name) : length;
    for (size_t i = 0; i < set->spec->n_ignored; i++) {
        const weft_option_ignored_t *ignored = &set->spec->ignored[i];
        if (option_name_is(ignored->flag, name, stem)) {
            return ignored;
        }
    }
    for (size_t i = 0; i < set->spec->n_flags; i++) {
        const weft_option_alias_t *alias = &set->spec->flags[i];
        if (option_name_is(alias->name, name, stem) && !option_name_is(alias->flag, name, stem)) {
            return option_find_ignored(set, alias->flag, strlen(alias->flag));
        }
    }
    return NULL;
}

void option_log_ignored(weft_option_set_t *set, const weft_option_ignored_t *ignored)
{
    bool *was_ignored = &set->was_ignored[ignored - set->spec->ignored];
    if (!*was_ignored) {
        weft_log_info("--%s is ignored: %s", ignored->flag, ignored->reason);
        *was_ignored = true;
    }
}

weft_status_t option_list_append(weft_option_set_t *set, weft_list_t *list, const char *text)
{
    const char **items = list->items;
    if ((list->count & (list->count - 1)) == 0) { /* full at 0, 1, 2, 4, 8 … */
        items = weft_arena_calloc(&set->arena, list->count == 0 ? 1 : 2 * (size_t)list->count,
                                  sizeof(*items));
        if (items == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        for (uint32_t i = 0; i < list->count; i++) {
            items[i] = list->items[i];
        }
        list->items = items;
    }
    const char *copy = weft_arena_strdup(&set->arena, text);
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    items[list->count++] = copy;
    return WEFT_OK;
}

static weft_status_t store(weft_option_set_t *set, option_cell_t *cell, option_rank_t rank,
                           const char *text, weft_diag_t *diag)
{
    if (cell->row->type == WEFT_OPTION_STR) {
        const char *copy = weft_arena_strdup(&set->arena, text);
        if (copy == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        *(const char **)cell->field = copy;
        return WEFT_OK;
    }
    if (cell->row->type == WEFT_OPTION_LIST) {
        weft_list_t *list = cell->field;
        if (rank > cell->rank) {
            *list = (weft_list_t){0};
        }
        return option_list_append(set, list, text);
    }
    return option_parse_value(cell->row->type, text, cell->field, diag);
}

weft_status_t option_assign(weft_option_set_t *set, option_cell_t *cell, option_rank_t rank,
                            const char *text, const char *where, weft_diag_t *diag)
{
    if (rank < cell->rank) {
        return WEFT_OK;
    }
    const weft_status_t status = store(set, cell, rank, text, diag);
    if (status == WEFT_ERR_NO_MEMORY) {
        return weft_diag(diag, status, "%s: out of memory", where);
    }
    if (status < 0) {
        weft_diag_prefix(diag, "%s", where);
        return status;
    }
    cell->rank = rank;
    return WEFT_OK;
}

weft_status_t option_assign_words(weft_option_set_t *set, option_cell_t *cell, option_rank_t rank,
                                  const char *text, const char *where, weft_diag_t *diag)
{
    if (cell->row->type != WEFT_OPTION_LIST) {
        return option_assign(set, cell, rank, text, where, diag);
    }
    weft_list_t words = {0};
    weft_status_t status = option_split_words(set, text, &words, diag);
    if (status < 0) {
        weft_diag_prefix(diag, "%s", where);
    }
    for (uint32_t i = 0; i < words.count && status >= 0; i++) {
        status = option_assign(set, cell, rank, words.items[i], where, diag);
    }
    return status;
}

/* Levenshtein distance of two names, MAX_NAME if one is longer than that. */
static size_t distance(const char *a, size_t n, const char *b)
{
    size_t row[MAX_NAME + 1];
    const size_t m = strlen(b);
    if (n > MAX_NAME || m > MAX_NAME) {
        return MAX_NAME;
    }
    for (size_t j = 0; j <= m; j++) {
        row[j] = j;
    }
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            const size_t replaced = diagonal + (fold(a[i - 1]) != fold(b[j - 1]));
            const size_t shorter = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = replaced < shorter ? replaced : shorter;
        }
    }
    return row[m];
}

static const char *nearest_flag(const weft_option_set_t *set, const char *name, size_t length)
{
    const char *nearest = NULL;
    size_t best = length / 3 + 2; /* further away it would be a guess */
    for (size_t i = 0; i < set->n_cells; i++) {
        const size_t d = distance(name, length, set->cells[i].row->flag);
        if (d < best) {
            best = d;
            nearest = set->cells[i].row->flag;
        }
    }
    return nearest;
}

weft_status_t option_report_unknown(const weft_option_set_t *set, const char *shown,
                                    const char *name, size_t length, weft_diag_t *diag)
{
    const char *nearest = nearest_flag(set, name, length);
    const char *hint = set->spec->unknown_hint != NULL ? set->spec->unknown_hint : "";
    if (nearest == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s is unknown; --help lists what there is%s",
                         shown, hint);
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "%s is unknown; did you mean --%s?%s", shown, nearest,
                     hint);
}

static weft_status_t make_cells(weft_option_set_t *set)
{
    const weft_option_spec_t *spec = set->spec;
    for (size_t g = 0; g < spec->n_groups; g++) {
        set->n_cells += spec->groups[g].n_rows;
    }
    set->cells = weft_arena_calloc(&set->arena, set->n_cells + 1, sizeof(*set->cells));
    set->was_ignored =
        weft_arena_calloc(&set->arena, spec->n_ignored + 1, sizeof(*set->was_ignored));
    if (set->cells == NULL || set->was_ignored == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    option_cell_t *cell = set->cells;
    for (size_t g = 0; g < spec->n_groups; g++) {
        const weft_option_group_t *group = &spec->groups[g];
        for (size_t i = 0; i < group->n_rows; i++) {
            *cell++ = (option_cell_t){.row = &group->rows[i],
                                      .field = (char *)group->config + group->rows[i].offset};
        }
    }
    return WEFT_OK;
}

static weft_status_t set_defaults(weft_option_set_t *set, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; i < set->n_cells && status >= 0; i++) {
        option_cell_t *cell = &set->cells[i];
        if (cell->row->type == WEFT_OPTION_LIST) {
            *(weft_list_t *)cell->field = (weft_list_t){0};
        }
        status = option_assign_words(set, cell, OPTION_FROM_DEFAULT, cell->row->fallback,
                                     cell->row->flag, diag);
    }
    return status;
}

static weft_status_t read_sources(weft_option_set_t *set, int argc, char **argv, weft_diag_t *diag)
{
    weft_status_t status = set_defaults(set, diag);
    if (status >= 0 && argc > 1) {
        status = option_read_arguments(set, OPTION_FROM_ARGUMENTS, (uint32_t)argc - 1,
                                       (const char *const *)(argv + 1), diag);
    }
    if (status >= 0 && !set->spec->ignores_environment) {
        status = option_read_environment(set, diag);
    }
    if (status >= 0 && set->config_path != NULL) {
        status = option_read_yaml(set, set->config_path, diag);
    }
    return status;
}

weft_status_t weft_option_set_parse(const weft_option_spec_t *spec, int argc, char **argv,
                                    weft_diag_t *diag, weft_option_set_t **set_out)
{
    weft_option_set_t *set = weft_zalloc(sizeof(*set), "option.set");
    if (set == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    set->spec = spec;
    weft_status_t status = make_cells(set);
    if (status >= 0) {
        status = read_sources(set, argc, argv, diag);
    }
    if (status < 0) {
        weft_option_set_destroy(set);
        return status;
    }
    *set_out = set;
    return WEFT_OK;
}

void weft_option_set_destroy(weft_option_set_t *set)
{
    if (set != NULL) {
        weft_arena_free(&set->arena);
        weft_free(set);
    }
}

uint32_t weft_option_positional_count(const weft_option_set_t *set)
{
    return set->positional.count;
}

const char *weft_option_positional(const weft_option_set_t *set, uint32_t index)
{
    return index < set->positional.count ? set->positional.items[index] : NULL;
}

bool weft_option_is_given(const weft_option_set_t *set, const char *flag)
{
    const option_cell_t *cell = option_find(set, flag, strlen(flag));
    return cell != NULL && cell->rank != OPTION_FROM_DEFAULT;
}
