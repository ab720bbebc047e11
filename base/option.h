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
 * "enable-x" is also --no-enable-x; any BOOL "x" is also --no-x.
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
    WEFT_OPTION_U64,
    WEFT_OPTION_I64,
    WEFT_OPTION_F64,
    WEFT_OPTION_BYTES, /* 4096, 64MiB, 2G */
    WEFT_OPTION_STR,   /* "" means not given */
    WEFT_OPTION_LIST,  /* one value or several: --flag a b c, --flag a --flag b, YAML list */
} weft_option_type_t;

typedef struct weft_list {
    const char **items; /* [count], owned by the option set */
    uint32_t count;
} weft_list_t;

typedef bool weft_option_BOOL_t;
typedef uint32_t weft_option_U32_t;
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
