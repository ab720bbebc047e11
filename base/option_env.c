/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/option_priv.h"

#define PREFIX "WEFT_"

/*
 * Variables of ours that are no options: for tests and builds, of a rank (launch_place.h), and what
 * Kubernetes puts into every pod beside a Service named "weft" (WEFT_PORT=tcp://… is known by its
 * value).
 */
static const char *const not_options[] = {
    "WEFT_TEST_",        "WEFT_CARGO_",      "WEFT_CACHE_DIR", "WEFT_UCX_LIBRARY",
    "WEFT_NCCL_LIBRARY", "WEFT_SERVICE_",    "WEFT_PORT_",     "WEFT_SIZE=",
    "WEFT_LOCAL_RANK=",  "WEFT_LOCAL_SIZE=", "WEFT_EPOCH=",    "WEFT_EMU_",
};

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static bool is_no_option(const char *name, const char *value)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(not_options); i++) {
        if (starts_with(name, not_options[i])) {
            return true;
        }
    }
    return starts_with(name, "WEFT_PORT=") &&
           (starts_with(value, "tcp://") || starts_with(value, "udp://"));
}

static const weft_option_group_t *registered;
static size_t n_registered;

void weft_option_register(const weft_option_group_t *groups, size_t n_groups)
{
    registered = groups;
    n_registered = n_groups;
}

static bool is_of_other_command(const char *flag)
{
    for (size_t g = 0; g < n_registered; g++) {
        for (size_t i = 0; i < registered[g].n_rows; i++) {
            if (option_name_is(registered[g].rows[i].flag, flag, strlen(flag))) {
                return true;
            }
        }
    }
    return false;
}

/* "WEFT_BLOCK_SIZE=16" to the flag "block-size"; one that does not fit matches no option. */
static void flag_of(const char *entry, char *flag, size_t size)
{
    size_t n = 0;
    for (const char *c = entry + strlen(PREFIX); *c != '=' && *c != '\0' && n + 1 < size; c++) {
        flag[n++] = *c == '_' ? '-' : (char)tolower((unsigned char)*c);
    }
    flag[n] = '\0';
}

/* One entry of the environment that starts with WEFT_. */
static weft_status_t read_variable(weft_option_set_t *set, const char *entry, weft_diag_t *diag)
{
    const char *equals = strchr(entry, '=');
    if (equals == NULL || equals[1] == '\0' || is_no_option(entry, equals + 1)) {
        return WEFT_OK;
    }
    char name[256];
    char flag[256];
    snprintf(name, sizeof(name), "%.*s", (int)(equals - entry), entry);
    flag_of(entry, flag, sizeof(flag));
    option_cell_t *cell = option_find(set, flag, strlen(flag));
    if (cell != NULL) {
        return option_assign_words(set, cell, OPTION_FROM_ENVIRONMENT, equals + 1, name, diag);
    }
    if (strcmp(flag, "config") == 0 && set->spec->has_config_file) {
        set->config_path = set->config_path == NULL ? equals + 1 : set->config_path;
        return WEFT_OK;
    }
    if (strcmp(flag, "config") == 0 || is_of_other_command(flag)) {
        return WEFT_OK;
    }
    return option_report_unknown(set, name, flag, strlen(flag), diag);
}

static weft_status_t read_aliases(weft_option_set_t *set, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; i < set->spec->n_variables && status >= 0; i++) {
        const weft_option_alias_t *alias = &set->spec->variables[i];
        const char *value = getenv(alias->name);
        option_cell_t *cell = option_find(set, alias->flag, strlen(alias->flag));
        const bool has_own = cell != NULL && cell->rank >= OPTION_FROM_ENVIRONMENT;
        if (value != NULL && value[0] != '\0' && cell != NULL && !has_own) {
            status =
                option_assign_words(set, cell, OPTION_FROM_ENVIRONMENT, value, alias->name, diag);
        }
    }
    return status;
}

static weft_status_t read_extra_arguments(weft_option_set_t *set, weft_diag_t *diag)
{
    const char *name = set->spec->extra_arguments_variable;
    const char *text = name == NULL ? NULL : getenv(name);
    if (text == NULL) {
        return WEFT_OK;
    }
    weft_list_t words = {0};
    weft_status_t status = option_split_words(set, text, &words, diag);
    if (status >= 0) {
        const char *config_path = set->config_path;
        status =
            option_read_arguments(set, OPTION_FROM_EXTRA_ARGUMENTS, words.count, words.items, diag);
        set->config_path = config_path == NULL ? set->config_path : config_path;
    }
    if (status < 0 && status != WEFT_ERR_CANCELLED) {
        weft_diag_prefix(diag, "%s", name);
    }
    return status;
}

weft_status_t option_read_environment(weft_option_set_t *set, weft_diag_t *diag)
{
    weft_status_t status = read_extra_arguments(set, diag);
    for (char **entry = environ; entry != NULL && *entry != NULL && status >= 0; entry++) {
        if (starts_with(*entry, PREFIX)) {
            status = read_variable(set, *entry, diag);
        }
    }
    return status < 0 ? status : read_aliases(set, diag);
}
