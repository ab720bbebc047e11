/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_trace.h"

#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

static void fill_random(uint8_t *bytes, size_t length)
{
    if (getrandom(bytes, length, GRND_NONBLOCK) != (ssize_t)length) {
        uint64_t now = weft_clock_ns();
        memcpy(bytes, &now, length < sizeof(now) ? length : sizeof(now));
    }
}

/* Lower-case hex alone is valid in traceparent. */
static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool read_hex(const char *text, uint8_t *out, size_t n_bytes)
{
    uint8_t any = 0;

    for (size_t i = 0; i < n_bytes; i++) {
        int high = digit(text[2 * i]);
        int low = high < 0 ? -1 : digit(text[2 * i + 1]);
        if (low < 0) {
            return false;
        }
        out[i] = (uint8_t)(high << 4 | low);
        any |= out[i];
    }
    return any != 0;
}

/* 00-<32 hex>-<16 hex>-<2 hex> */
static bool parse(api_trace_t *trace, const char *text)
{
    size_t length = strlen(text);
    uint8_t flags = 0;

    if (length < 55 || text[2] != '-' || text[35] != '-' || text[52] != '-' ||
        strncmp(text, "ff", 2) == 0 || digit(text[0]) < 0 || digit(text[1]) < 0) {
        return false;
    }
    if (length > 55 && (strncmp(text, "00", 2) == 0 || text[55] != '-')) {
        return false;
    }
    if (digit(text[53]) < 0 || digit(text[54]) < 0) {
        return false;
    }
    read_hex(text + 53, &flags, 1);
    trace->is_sampled = (flags & 1) != 0;
    return read_hex(text + 3, trace->trace_id, API_TRACE_ID_BYTES) &&
           read_hex(text + 36, trace->parent_id, API_SPAN_ID_BYTES);
}

void api_trace_init(api_trace_t *trace, const char *traceparent)
{
    *trace = (api_trace_t){0};
    if (traceparent == NULL || !parse(trace, traceparent)) {
        *trace = (api_trace_t){.is_sampled = true};
        fill_random(trace->trace_id, API_TRACE_ID_BYTES);
    }
    fill_random(trace->span_id, API_SPAN_ID_BYTES);
}
