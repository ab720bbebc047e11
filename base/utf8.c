/* SPDX-License-Identifier: Apache-2.0 */
#include "base/utf8.h"

static bool is_tail(unsigned char c)
{
    return (c & 0xc0) == 0x80;
}

size_t weft_utf8_length(const char *text, size_t available)
{
    const unsigned char *s = (const unsigned char *)text;
    if (available == 0) {
        return 0;
    }
    if (s[0] < 0x80) {
        return 1;
    }
    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        return available >= 2 && is_tail(s[1]) ? 2 : 0;
    }
    if (s[0] >= 0xe0 && s[0] <= 0xef) {
        const unsigned char low = s[0] == 0xe0 ? 0xa0 : 0x80;
        const unsigned char high = s[0] == 0xed ? 0x9f : 0xbf;
        return available >= 3 && s[1] >= low && s[1] <= high && is_tail(s[2]) ? 3 : 0;
    }
    if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        const unsigned char low = s[0] == 0xf0 ? 0x90 : 0x80;
        const unsigned char high = s[0] == 0xf4 ? 0x8f : 0xbf;
        return available >= 4 && s[1] >= low && s[1] <= high && is_tail(s[2]) && is_tail(s[3]) ? 4
                                                                                               : 0;
    }
    return 0;
}

bool weft_utf8_valid(const char *text, size_t length)
{
    for (size_t i = 0; i < length;) {
        const size_t n = weft_utf8_length(text + i, length - i);
        if (n == 0) {
            return false;
        }
        i += n;
    }
    return true;
}

size_t weft_utf8_count(const char *text, size_t length)
{
    size_t count = 0;
    for (size_t i = 0; i < length; i++) {
        count += !is_tail((unsigned char)text[i]);
    }
    return count;
}
