/* SPDX-License-Identifier: Apache-2.0 */
/*
 * option: one table makes the flags, the WEFT_* variables, the YAML keys, --help and
 * docs/options.md.
 *
 * A folder writes its rows in <folder>/options.def, makes its config struct from them in a header
 * and its table in one .c file:
 *
 *   OPTION(block_tokens, U32, "block-size", "16", "Tokens in a block.")
 *          field         type  flag         default (text, parsed as if given)  doc
 *
 *   typedef struct kv_options {
 *   #define OPTION WEFT_OPTION_FIELD
 *   #include "kvstore/options.def"
 *   #undef OPTION
 *   } kv_options_t;
 *
 *   const weft_option_t kv_option_rows[] = {
 *   #define OPTION(...) WEFT_OPTION_ROW(kv_options_t, __VA_ARGS__)
 *   #include "kvstore/options.def"
 *   #undef OPTION
 *   };
 *
 * Flag --block-size is variable WEFT_BLOCK_SIZE and YAML key block-size by rule. The command line
 * wins over the environment, the environment over the file, the file over the default. A BOOL
 * "enable-x" is also --no-enable-x; any BOOL "x" is also --no-x. Names of up to three letters are
 * also taken behind one dash (-p), those of one letter with a number unparted (-p8000), and '_' in
 * a name is as good as '-'. An empty variable is as good as none. Whole numbers may end in k, m, g,
 * t (1000…) or K, M, G, T (1024…), as vLLM's do.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/diag.h"
#include "base/status.h"

typedef enum weft_option_type {
    WEFT_OPTION_BOOL,
    WEFT_OPTION_U32,
    WEFT_OPTION_AUTO, /* a U32; "auto" and -1 are 0: judged by whoever takes it */
    WEFT_OPTION_U64,
    WEFT_OPTION_I64,
    WEFT_OPTION_F64,
    WEFT_OPTION_BYTES, /* 4096, 64MiB, 2G, 1.5GiB */
    WEFT_OPTION_STR,   /* "" means not given */
    WEFT_OPTION_LIST,  /* one value or several: --flag a b c, --flag a --flag b, YAML list, words
                          of a variable */
} weft_option_type_t;

typedef struct weft_list {
    const char **items; /* [count], owned by the option set */
    uint32_t count;
} weft_list_t;

typedef bool weft_option_BOOL_t;
typedef uint32_t weft_option_U32_t;
typedef uint32_t weft_option_AUTO_t;
typedef uint64_t weft_option_U64_t;
typedef int64_t weft_option_I64_t;
typedef double weft_option_F64_t;
typedef uint64_t weft_option_BYTES_t;
typedef const char *weft_option_STR_t;
typedef weft_list_t weft_option_LIST_t;

typedef struct weft_option {
    const char *flag; /* without the dashes */
    weft_option_type_t type;
    size_t offset; /* of the field in its struct */
    const char *fallback;
    const char *doc;
} weft_option_t;

#define WEFT_OPTION_FIELD(field, type, flag, fallback, doc) weft_option_##type##_t field;
#define WEFT_OPTION_ROW(strukt, field, type, flag, fallback, doc)                                  \
    {flag, WEFT_OPTION_##type, offsetof(strukt, field), fallback, doc},

/* Rows and the struct that they fill. */
typedef struct weft_option_group {
    const char *title; /* heading in --help */
    const weft_option_t *rows;
    size_t n_rows;
    void *config;
} weft_option_group_t;

/* Another name for an option: VLLM_API_KEY for api-key (variable), or an older flag. */
typedef struct weft_option_alias {
    const char *name;
    const char *flag;
} weft_option_alias_t;

/* How many words behind a flag are its own. */
typedef enum weft_option_arity {
    WEFT_OPTION_TAKES_NONE,
    WEFT_OPTION_TAKES_ONE,
    WEFT_OPTION_TAKES_LIST, /* all up to the next flag or "--", at least one */
} weft_option_arity_t;

/* A flag of the programs we stand in for that means nothing here: taken, with one log line. */
typedef struct weft_option_ignored {
    const char *flag; /* without the dashes */
    weft_option_arity_t arity;
    const char *reason; /* "weft has no CUDA graphs on the CPU" */
} weft_option_ignored_t;

typedef struct weft_option_spec {
    const char *usage; /* "weft serve MODEL [options]" */
    const char *about; /* one sentence */
    const weft_option_group_t *groups;
    size_t n_groups;
    const weft_option_alias_t *variables; /* environment aliases */
    size_t n_variables;
    const weft_option_alias_t *flags; /* flag aliases */
    size_t n_flags;
    const weft_option_ignored_t *ignored;
    size_t n_ignored;
    /* VLLM_ADDITIONAL_ARGS: flags, split as a shell would; they win over other variables. Or NULL. */
    const char *extra_arguments_variable;
    const char
        *unknown_hint; /* said with each unknown name: where else it may belong; NULL: nothing */
    uint32_t max_positional;
    bool has_config_file; /* --config FILE (YAML) */
    bool ignores_environment;
} weft_option_spec_t;

typedef struct weft_option_set weft_option_set_t; /* owns every string of the filled structs */

/*
 * The groups of all commands of this program, kept by reference: a variable of one of them may be
 * set where another command runs. Called once, before the first parse; configs are not used.
 */
void weft_option_register(const weft_option_group_t *groups, size_t n_groups);

/*
 * Fills every group's config from defaults, file, environment and argv[1..] (argv[0] is skipped).
 * WEFT_ERR_CANCELLED: --help was asked for and printed to stdout (--help=markdown: as markdown).
 * Anything wrong: diag, with the nearest known flag for an unknown one.
 */
weft_status_t weft_option_set_parse(const weft_option_spec_t *spec, int argc, char **argv,
                                    weft_diag_t *diag, weft_option_set_t **set_out);
void weft_option_set_destroy(weft_option_set_t *set); /* NULL is fine */

uint32_t weft_option_positional_count(const weft_option_set_t *set);
const char *weft_option_positional(const weft_option_set_t *set, uint32_t index);

/* Whether flag was given anywhere but in the defaults. */
bool weft_option_is_given(const weft_option_set_t *set, const char *flag);

void weft_option_print_help(const weft_option_spec_t *spec, FILE *file);
void weft_option_print_markdown(const weft_option_spec_t *spec, FILE *file); /* docs/options.md */
