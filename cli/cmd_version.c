/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/option.h"
#include "cli/commands.h"

int cmd_version(int argc, char **argv)
{
    const weft_option_spec_t spec = {.usage = "weft version", .about = "Prints the version."};
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    const weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);

    weft_option_set_destroy(set);
    if (status < 0 && status != WEFT_ERR_CANCELLED) {
        return cli_fail(status, &diag);
    }
    if (status >= 0) {
        puts("weft " WEFT_VERSION);
    }
    return CLI_EXIT_OK;
}
