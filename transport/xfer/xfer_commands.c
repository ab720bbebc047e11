/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_commands.h"

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define MARK       "NIXLCOMM:"
#define MARK_BYTES (sizeof(MARK) - 1)
#define VERB_BYTES ((size_t)4)
#define MAX_LONGER 8 /* times that a LOAD is tried with more behind it */

typedef struct span {
    const char *at;
    const char *end;
} span_t;

void xfer_commands_encode(const char *verb, const void *body, size_t bytes, weft_buffer_t *out)
{
    const uint64_t length = htole64(MARK_BYTES + VERB_BYTES + bytes);
    weft_buffer_append(out, &length, sizeof(length));
    weft_buffer_puts(out, MARK);
    weft_buffer_append(out, verb, VERB_BYTES);
    if (bytes > 0) {
        weft_buffer_append(out, body, bytes);
    }
}

weft_status_t xfer_commands_frame(const void *data, size_t n, size_t *bytes_out)
{
    uint64_t length;

    if (n < sizeof(length)) {
        return WEFT_PENDING;
    }
    memcpy(&length, data, sizeof(length));
    length = le64toh(length);
    if (length > XFER_MAX_FRAME) {
        return WEFT_ERR_TOO_LARGE;
    }
    if (n - sizeof(length) < length) {
        return WEFT_PENDING;
    }
    *bytes_out = (size_t)length;
    return WEFT_OK;
}

/* The next mark from `from` on, or the end. */
static const char *find_mark(const char *from, const char *end)
{
    const char *found = memmem(from, (size_t)(end - from), MARK, MARK_BYTES);
    return found != NULL ? found : end;
}

static bool verb_is(const char *verb, const char *name)
{
    return memcmp(verb, name, VERB_BYTES) == 0;
}

/* The body ends at the first mark where it is metadata. Where it ended; NULL: nowhere. */
static const char *run_load(span_t body, const xfer_commands_t *commands)
{
    const char *end = body.at;
    for (int i = 0; i <= MAX_LONGER; i++) {
        end = find_mark(end, body.end);
        if (commands->load(commands->user, body.at, (size_t)(end - body.at))) {
            return end;
        }
        if (end == body.end) {
            break;
        }
        end += MARK_BYTES;
    }
    return NULL;
}

/* One command, whose mark is behind us. Where it ended; NULL: it is none. */
static const char *run_command(span_t rest, const xfer_commands_t *commands)
{
    if ((size_t)(rest.end - rest.at) < VERB_BYTES) {
        return NULL;
    }
    const char *verb = rest.at;
    const span_t body = {.at = rest.at + VERB_BYTES, .end = rest.end};
    const char *end = find_mark(body.at, body.end);

    if (verb_is(verb, "LOAD")) {
        return run_load(body, commands);
    }
    if (verb_is(verb, "SEND") && end == body.at) {
        commands->send(commands->user);
        return end;
    }
    if (verb_is(verb, "INVL") && end > body.at) {
        commands->invalidate(commands->user, body.at, (size_t)(end - body.at));
        return end;
    }
    return NULL;
}

weft_status_t xfer_commands_run(const void *data, size_t n, const xfer_commands_t *commands)
{
    span_t rest = {.at = data, .end = (const char *)data + n};

    while (rest.at < rest.end) {
        if (find_mark(rest.at, rest.end) != rest.at) {
            return WEFT_ERR_MALFORMED;
        }
        rest.at += MARK_BYTES;
        rest.at = run_command(rest, commands);
        if (rest.at == NULL) {
            return WEFT_ERR_MALFORMED;
        }
    }
    return WEFT_OK;
}
