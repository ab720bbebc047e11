/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/option_tables.h"

#include "base/compiler.h"

const weft_option_group_t *cli_option_tables(size_t *n_out)
{
    static weft_option_group_t groups[] = {
#define TABLE(name, heading) {.title = heading, .rows = name##_option_rows},
#include "cli/option_tables.def"
#undef TABLE
    };
    const size_t counts[] = {
#define TABLE(name, heading) name##_option_count,
#include "cli/option_tables.def"
#undef TABLE
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(groups); i++) {
        groups[i].n_rows = counts[i];
    }
    *n_out = WEFT_ARRAY_LEN(groups);
    return groups;
}
