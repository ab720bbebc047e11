/* SPDX-License-Identifier: Apache-2.0 */
#include "base/diag.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

static void make_printable(char *text)
{
    const size_t length = strlen(text);
    for (size_t i = 0; i < length;) {
        const size_t n = weft_utf8_length(text + i, length - i);
        if (n == 0 || (n == 1 && ((unsigned char)text[i] < 0x20 || text[i] == 0x7f))) {
            text[i++] = '?';
        } else {
            i += n;
        }
    }
}

static void format_line(char *text, const char *format, va_list args)
{
    const int n = vsnprintf(text, WEFT_DIAG_BYTES, format, args);
    if (n >= WEFT_DIAG_BYTES) {
        memcpy(text + WEFT_DIAG_BYTES - 4, "...", 4);
    }
    make_printable(text);
}

weft_status_t weft_diag(weft_diag_t *diag, weft_status_t status, const char *format, ...)
{
    if (diag != NULL) {
        va_list args;
        va_start(args, format);
        format_line(diag->text, format, args);
        va_end(args);
    }
    return status;
}

void weft_diag_prefix(weft_diag_t *diag, const char *format, ...)
{
    if (diag == NULL) {
        return;
    }
    char prefix[WEFT_DIAG_BYTES];
    va_list args;
    va_start(args, format);
    format_line(prefix, format, args);
    va_end(args);

    const weft_diag_t rest = *diag;
    const int n = snprintf(diag->text, WEFT_DIAG_BYTES, "%s: %s", prefix, rest.text);
    if (n >= WEFT_DIAG_BYTES) {
        memcpy(diag->text + WEFT_DIAG_BYTES - 4, "...", 4);
    }
    make_printable(diag->text);
}
