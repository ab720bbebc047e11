/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_xfer_commands: any bytes from a socket; frames are cut as their lengths say, and what is
 * handed on lies within the frame. The first byte says which metadata are taken for good.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "transport/xfer/xfer_commands.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct frame {
    const char *at;
    size_t bytes;
    uint8_t modulus;
    size_t n;
} frame_t;

static void check_within(const frame_t *frame, const void *part, size_t bytes)
{
    const char *at = part;
    if (at < frame->at || at > frame->at + frame->bytes ||
        bytes > (size_t)(frame->at + frame->bytes - at)) {
        abort();
    }
}

static bool on_load(void *user, const void *metadata, size_t bytes)
{
    frame_t *frame = user;
    check_within(frame, metadata, bytes);
    frame->n++;
    return frame->modulus == 0 || bytes % frame->modulus == 0;
}

static void on_send(void *user)
{
    ((frame_t *)user)->n++;
}

static void on_invalidate(void *user, const void *name, size_t bytes)
{
    check_within(user, name, bytes);
    if (bytes == 0) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    frame_t frame = {.modulus = data[0]};
    const xfer_commands_t commands = {
        .load = on_load, .send = on_send, .invalidate = on_invalidate, .user = &frame};
    const char *at = (const char *)data + 1;
    size_t left = size - 1;
    size_t bytes;

    while (xfer_commands_frame(at, left, &bytes) == WEFT_OK) {
        if (bytes + sizeof(uint64_t) > left) {
            abort();
        }
        frame.at = at + sizeof(uint64_t);
        frame.bytes = bytes;
        if (xfer_commands_run(frame.at, bytes, &commands) < 0) {
            break;
        }
        at += sizeof(uint64_t) + bytes;
        left -= sizeof(uint64_t) + bytes;
    }
    return 0;
}
