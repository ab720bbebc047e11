/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_utf8: any bytes; a well-formed text is walked exactly to its end. */
#include <stdint.h>
#include <stdlib.h>

#include "base/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    size_t at = 0;
    while (at < size) {
        const size_t length = weft_utf8_length(text + at, size - at);
        if (length == 0 || length > size - at) {
            break;
        }
        at += length;
    }
    if (weft_utf8_valid(text, size) != (at == size)) {
        abort();
    }
    return 0;
}
