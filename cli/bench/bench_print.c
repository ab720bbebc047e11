/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_print.h"

#include <stdio.h>

weft_status_t bench_print_buffer(weft_buffer_t *out)
{
    weft_buffer_puts(out, "\n");
    const bool is_written = !out->is_failed &&
                            fwrite(out->data, 1, out->length, stdout) == out->length &&
                            fflush(stdout) == 0;
    weft_buffer_free(out);
    return is_written ? WEFT_OK : WEFT_ERR_IO;
}
