/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <string.h>

#include "base/option_priv.h"

/* One walk over the words. */
typedef struct arguments {
    weft_option_set_t *set;
    option_rank_t rank;
    const char *const *words; /* [n] */
    uint32_t n;
    uint32_t next;
    weft_diag_t *diag;
} arguments_t;

/* A word that is a flag, taken apart. */
typedef struct flag {
    const char *word;
    const char *name; /* within word, behind the dashes */
    size_t length;
    const char *value; /* behind the '='; NULL when there is none */
} flag_t;

static bool is_flag(const char *word)
{
    return word[0] == '-' && word[1] != '\0' && !isdigit((unsigned char)word[1]) && word[1] != '.';
}

static flag_t take_apart(const char *word)
{
    flag_t flag = {.word = word, .name = word + (word[1] == '-' ? 2 : 1)};
    if (word[1] != '-' && isdigit((unsigned char)word[2])) { /* -O3 */
        flag.length = 1;
        flag.value = word + 2;
        return flag;
    }
    flag.length = strcspn(flag.name, "=");
    flag.value = flag.name[flag.length] == '=' ? flag.name + flag.length + 1 : NULL;
    return flag;
}

static bool has_no_prefix(const flag_t *flag)
{
    return flag->length > 3 &&
           (strncmp(flag->name, "no-", 3) == 0 || strncmp(flag->name, "no_", 3) == 0);
}

/* The value of a flag: behind its '=' or the next word; NULL with diag filled if there is none. */
static const char *value_of(arguments_t *args, const flag_t *flag)
{
    if (flag->value != NULL) {
        return flag->value;
    }
    if (args->next < args->n && strncmp(args->words[args->next], "--", 2) != 0) {
        return args->words[args->next++];
    }
    weft_diag(args->diag, WEFT_ERR_INVALID, "%.*s needs a value",
              (int)(flag->name - flag->word + (ptrdiff_t)flag->length), flag->word);
    return NULL;
}

static weft_status_t read_list(arguments_t *args, option_cell_t *cell, const flag_t *flag,
                               const char *where)
{
    const char *value = value_of(args, flag);
    if (value == NULL) {
        return WEFT_ERR_INVALID;
    }
    weft_status_t status = option_assign(args->set, cell, args->rank, value, where, args->diag);
    while (status >= 0 && flag->value == NULL && args->next < args->n &&
           !is_flag(args->words[args->next])) {
        status = option_assign(args->set, cell, args->rank, args->words[args->next++], where,
                               args->diag);
    }
    return status;
}

static weft_status_t read_known(arguments_t *args, option_cell_t *cell, const flag_t *flag)
{
    char where[80];
    snprintf(where, sizeof(where), "--%s", cell->row->flag);
    if (cell->row->type == WEFT_OPTION_LIST) {
        return read_list(args, cell, flag, where);
    }
    const char *value = flag->value;
    if (cell->row->type == WEFT_OPTION_BOOL) {
        value = value == NULL ? "true" : value;
    } else {
        value = value_of(args, flag);
    }
    return value == NULL ? WEFT_ERR_INVALID
                         : option_assign(args->set, cell, args->rank, value, where, args->diag);
}

/* --no-x of a BOOL x, known or ignored. */
static bool read_negated(arguments_t *args, const flag_t *flag, weft_status_t *status_out)
{
    if (!has_no_prefix(flag)) {
        return false;
    }
    const char *name = flag->name + 3;
    const size_t length = flag->length - 3;
    option_cell_t *cell = option_find(args->set, name, length);
    const weft_option_ignored_t *ignored = option_find_ignored(args->set, name, length);
    const bool is_bool = cell != NULL && cell->row->type == WEFT_OPTION_BOOL;
    if (!is_bool && (ignored == NULL || ignored->arity != WEFT_OPTION_TAKES_NONE)) {
        return false;
    }
    if (flag->value != NULL) {
        *status_out = weft_diag(args->diag, WEFT_ERR_INVALID, "--%.*s takes no value",
                                (int)flag->length, flag->name);
    } else if (is_bool) {
        *status_out = option_assign(args->set, cell, args->rank, "false", flag->word, args->diag);
    } else {
        option_log_ignored(args->set, ignored);
        *status_out = WEFT_OK;
    }
    return true;
}

static weft_status_t read_ignored(arguments_t *args, const weft_option_ignored_t *ignored,
                                  const flag_t *flag)
{
    option_log_ignored(args->set, ignored);
    if (ignored->arity != WEFT_OPTION_TAKES_NONE && value_of(args, flag) == NULL) {
        return WEFT_ERR_INVALID;
    }
    if (ignored->arity == WEFT_OPTION_TAKES_LIST && flag->value == NULL) {
        while (args->next < args->n && !is_flag(args->words[args->next])) {
            args->next++;
        }
    }
    return WEFT_OK;
}

static weft_status_t read_flag(arguments_t *args)
{
    const flag_t flag = take_apart(args->words[args->next++]);
    const bool is_short = flag.word[1] != '-';
    const bool is_readable = !is_short || flag.length <= OPTION_SHORT_NAME;
    option_cell_t *cell = is_readable ? option_find(args->set, flag.name, flag.length) : NULL;
    if (cell != NULL) {
        return read_known(args, cell, &flag);
    }
    if (option_name_is(is_short ? "h" : "help", flag.name, flag.length)) {
        if (flag.value != NULL && strcmp(flag.value, "markdown") == 0) {
            weft_option_print_markdown(args->set->spec, stdout);
        } else {
            weft_option_print_help(args->set->spec, stdout);
        }
        return WEFT_ERR_CANCELLED;
    }
    if (args->set->spec->has_config_file && option_name_is("config", flag.name, flag.length)) {
        args->set->config_path = value_of(args, &flag);
        return args->set->config_path == NULL ? WEFT_ERR_INVALID : WEFT_OK;
    }
    const weft_option_ignored_t *ignored = option_find_ignored(args->set, flag.name, flag.length);
    if (ignored != NULL) {
        return read_ignored(args, ignored, &flag);
    }
    weft_status_t status = WEFT_OK;
    if (read_negated(args, &flag, &status)) {
        return status;
    }
    char shown[80];
    snprintf(shown, sizeof(shown), "%.*s", (int)(flag.name - flag.word + (ptrdiff_t)flag.length),
             flag.word);
    return option_report_unknown(args->set, shown, flag.name, flag.length, args->diag);
}

static weft_status_t read_positional(arguments_t *args)
{
    weft_option_set_t *set = args->set;
    const char *word = args->words[args->next++];
    if (args->rank != OPTION_FROM_ARGUMENTS || set->positional.count >= set->spec->max_positional) {
        return weft_diag(args->diag, WEFT_ERR_INVALID, "\"%s\" is one argument too many", word);
    }
    return option_list_append(set, &set->positional, word);
}

weft_status_t option_read_arguments(weft_option_set_t *set, option_rank_t rank, uint32_t n,
                                    const char *const *words, weft_diag_t *diag)
{
    arguments_t args = {.set = set, .rank = rank, .words = words, .n = n, .diag = diag};
    weft_status_t status = WEFT_OK;
    bool may_be_flag = true;
    while (status >= 0 && args.next < n) {
        if (may_be_flag && strcmp(words[args.next], "--") == 0) {
            may_be_flag = false;
            args.next++;
        } else if (may_be_flag && is_flag(words[args.next])) {
            status = read_flag(&args);
        } else {
            status = read_positional(&args);
        }
    }
    return status;
}
