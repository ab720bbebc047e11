/* SPDX-License-Identifier: Apache-2.0 */
/*
 * option_tables: the option rows of every command, so that a variable that is meant for another
 * command is not called unknown.
 */
#pragma once

#include "base/option.h"

#define TABLE(name, title)                                                                         \
    extern const weft_option_t name##_option_rows[];                                               \
    extern const size_t name##_option_count;
#include "cli/option_tables.def"
#undef TABLE

/* The table `name` as a group that fills config. */
#define CLI_OPTION_GROUP(name, heading, where)                                                     \
    {.title = heading, .rows = name##_option_rows, .n_rows = name##_option_count, .config = where}

/* All tables, without configs. Static. */
const weft_option_group_t *cli_option_tables(size_t *n_out);
