/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_frame.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

#define MAGIC_0 'W'
#define MAGIC_1 'L'

static void put_u32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++) {
        at[i] = (uint8_t)(value >> 8 * i);
    }
}

static uint32_t get_u32(const void *from)
{
    const uint8_t *at = from;
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void append_header(weft_buffer_t *out, launch_frame_kind_t kind, uint32_t rank,
                          size_t length)
{
    uint8_t header[LAUNCH_FRAME_HEADER] = {MAGIC_0, MAGIC_1, LAUNCH_FRAME_VERSION, (uint8_t)kind};
    put_u32(header + 4, rank);
    put_u32(header + 8, (uint32_t)length);
    weft_buffer_append(out, header, sizeof(header));
}

void launch_frame_append(weft_buffer_t *out, launch_frame_kind_t kind, uint32_t rank,
                         const void *payload, size_t length)
{
    append_header(out, kind, rank, length);
    weft_buffer_append(out, payload, length);
}

static void append_u32(weft_buffer_t *out, uint32_t value)
{
    uint8_t bytes[4];
    put_u32(bytes, value);
    weft_buffer_append(out, bytes, sizeof(bytes));
}

void launch_frame_append_u32(weft_buffer_t *out, launch_frame_kind_t kind, uint32_t rank,
                             uint32_t value)
{
    append_header(out, kind, rank, sizeof(value));
    append_u32(out, value);
}

/* ---- reading --------------------------------------------------------------------------------- */

static bool is_known(uint8_t kind)
{
    switch (kind) {
#define FRAME(name, value, about) case value:
#include "launcher/job/launch_frames.def"
#undef FRAME
        return true;
    default:
        return false;
    }
}

/* A login's greeting, most often: shown as far as it can be read. */
static weft_status_t complain_of_noise(const char *bytes, size_t n, weft_diag_t *diag)
{
    char shown[65];
    size_t length = 0;
    while (length < n && length + 1 < sizeof(shown) && bytes[length] != '\n') {
        shown[length] = isprint((unsigned char)bytes[length]) ? bytes[length] : '?';
        length++;
    }
    shown[length] = '\0';
    return weft_diag(diag, WEFT_ERR_MALFORMED, "said \"%s\" where the agent should have spoken",
                     shown);
}

weft_status_t launch_frame_decode(const void *bytes, size_t n, weft_diag_t *diag,
                                  launch_frame_t *frame_out, size_t *used_out)
{
    const uint8_t *at = bytes;
    if ((n > 0 && at[0] != MAGIC_0) || (n > 1 && at[1] != MAGIC_1)) {
        return complain_of_noise(bytes, n, diag);
    }
    if (n > 2 && at[2] != LAUNCH_FRAME_VERSION) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "speaks version %u of the agents' protocol, this weft version %d", at[2],
                         LAUNCH_FRAME_VERSION);
    }
    if (n > 3 && !is_known(at[3])) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "sent a frame of the unknown kind %u", at[3]);
    }
    if (n < LAUNCH_FRAME_HEADER) {
        return WEFT_PENDING;
    }
    const uint32_t length = get_u32(at + 8);
    if (length > LAUNCH_FRAME_MAX_BYTES) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "sent a frame of %u bytes", length);
    }
    if (n - LAUNCH_FRAME_HEADER < length) {
        return WEFT_PENDING;
    }
    *frame_out = (launch_frame_t){.kind = (launch_frame_kind_t)at[3],
                                  .rank = get_u32(at + 4),
                                  .payload = (const char *)at + LAUNCH_FRAME_HEADER,
                                  .length = length};
    *used_out = LAUNCH_FRAME_HEADER + (size_t)length;
    return WEFT_OK;
}

weft_status_t launch_frame_u32(const launch_frame_t *frame, uint32_t *value_out)
{
    if (frame->length != 4) {
        return WEFT_ERR_MALFORMED;
    }
    *value_out = get_u32(frame->payload);
    return WEFT_OK;
}

/* Texts one after another, each with its zero byte. */
typedef struct texts {
    const char *at;
    size_t left;
} texts_t;

/* NULL: no whole one is left. */
static const char *next_text(texts_t *texts)
{
    const char *text = texts->at;
    const char *end = texts->left == 0 ? NULL : memchr(text, '\0', texts->left);
    if (end == NULL) {
        return NULL;
    }
    texts->left -= (size_t)(end - text) + 1;
    texts->at = end + 1;
    return text;
}

const char *launch_frame_text(const launch_frame_t *frame)
{
    texts_t texts = {frame->payload, frame->length};
    const char *text = next_text(&texts);
    return texts.left == 0 ? text : NULL;
}

static void append_text(weft_buffer_t *out, const char *text)
{
    weft_buffer_append(out, text, strlen(text) + 1);
}

/* ---- READY ----------------------------------------------------------------------------------- */

void launch_ready_append(weft_buffer_t *out, const launch_ready_t *ready)
{
    append_header(out, LAUNCH_FRAME_READY, LAUNCH_ALL,
                  8 + strlen(ready->version) + strlen(ready->own) + strlen(ready->launcher) + 3);
    append_u32(out, ready->pid);
    append_u32(out, ready->port);
    append_text(out, ready->version);
    append_text(out, ready->own);
    append_text(out, ready->launcher);
}

weft_status_t launch_ready_decode(const launch_frame_t *frame, launch_ready_t *ready_out)
{
    if (frame->length < 8 || get_u32(frame->payload + 4) > UINT16_MAX) {
        return WEFT_ERR_MALFORMED;
    }
    texts_t texts = {frame->payload + 8, frame->length - 8};
    launch_ready_t ready = {.pid = get_u32(frame->payload),
                            .port = (uint16_t)get_u32(frame->payload + 4)};
    ready.version = next_text(&texts);
    ready.own = next_text(&texts);
    ready.launcher = next_text(&texts);
    if (ready.launcher == NULL || texts.left != 0) {
        return WEFT_ERR_MALFORMED;
    }
    *ready_out = ready;
    return WEFT_OK;
}

/* ---- START ----------------------------------------------------------------------------------- */

#define START_FIXED 16 /* bind_to, map_by, has_input, 0, local_rank, argc, n_environment */

static size_t texts_bytes(char *const *texts, uint32_t n)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < n; i++) {
        bytes += strlen(texts[i]) + 1;
    }
    return bytes;
}

weft_status_t launch_start_append(weft_buffer_t *out, uint32_t rank, const launch_start_t *start)
{
    const size_t length = START_FIXED + strlen(start->folder) + 1 +
                          texts_bytes(start->argv, start->argc) +
                          texts_bytes(start->environment, start->n_environment);
    if (length > LAUNCH_FRAME_MAX_BYTES) {
        return WEFT_ERR_TOO_LARGE;
    }
    const uint8_t flags[4] = {start->bind_to, start->map_by, start->has_input, 0};
    append_header(out, LAUNCH_FRAME_START, rank, length);
    weft_buffer_append(out, flags, sizeof(flags));
    append_u32(out, start->local_rank);
    append_u32(out, start->argc);
    append_u32(out, start->n_environment);
    append_text(out, start->folder);
    for (uint32_t i = 0; i < start->argc; i++) {
        append_text(out, start->argv[i]);
    }
    for (uint32_t i = 0; i < start->n_environment; i++) {
        append_text(out, start->environment[i]);
    }
    return WEFT_OK;
}

static weft_status_t read_list(texts_t *texts, uint32_t n, char ***list_out)
{
    if (n > texts->left) { /* each takes a byte: what memory is asked for has come */
        return WEFT_ERR_MALFORMED;
    }
    char **list = weft_calloc((size_t)n + 1, sizeof(*list), "launch.start");
    if (list == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *list_out = list;
    for (uint32_t i = 0; i < n; i++) {
        list[i] = (char *)next_text(texts);
        if (list[i] == NULL) {
            return WEFT_ERR_MALFORMED;
        }
    }
    return WEFT_OK;
}

/* An agent trusts its launcher with programs, not with memory. */
static weft_status_t read_lists(texts_t *texts, launch_start_t *start)
{
    start->folder = next_text(texts);
    if (start->folder == NULL || start->argc == 0) {
        return WEFT_ERR_MALFORMED;
    }
    weft_status_t status = read_list(texts, start->argc, &start->argv);
    if (status == WEFT_OK) {
        status = read_list(texts, start->n_environment, &start->environment);
    }
    for (uint32_t i = 0; i < start->n_environment && status == WEFT_OK; i++) {
        const char *equals = strchr(start->environment[i], '=');
        status = equals == NULL || equals == start->environment[i] ? WEFT_ERR_MALFORMED : WEFT_OK;
    }
    return status == WEFT_OK && texts->left != 0 ? WEFT_ERR_MALFORMED : status;
}

weft_status_t launch_start_decode(const launch_frame_t *frame, launch_start_t *start_out)
{
    if (frame->length < START_FIXED || frame->payload[3] != 0) {
        return WEFT_ERR_MALFORMED;
    }
    const uint8_t *flags = (const uint8_t *)frame->payload;
    texts_t texts = {frame->payload + START_FIXED, frame->length - START_FIXED};
    launch_start_t start = {
        .bind_to = flags[0],
        .map_by = flags[1],
        .has_input = flags[2],
        .local_rank = get_u32(frame->payload + 4),
        .argc = get_u32(frame->payload + 8),
        .n_environment = get_u32(frame->payload + 12),
    };
    const weft_status_t status = read_lists(&texts, &start);
    if (status < 0) {
        launch_start_fini(&start);
        return status;
    }
    *start_out = start;
    return WEFT_OK;
}

void launch_start_fini(launch_start_t *start)
{
    weft_free(start->argv);
    weft_free(start->environment);
    *start = (launch_start_t){0};
}

/* ---- EXITED ---------------------------------------------------------------------------------- */

void launch_exit_append(weft_buffer_t *out, uint32_t rank, launch_exit_t end)
{
    append_header(out, LAUNCH_FRAME_EXITED, rank, 8);
    append_u32(out, end.code);
    append_u32(out, end.signal);
}

weft_status_t launch_exit_decode(const launch_frame_t *frame, launch_exit_t *end_out)
{
    if (frame->length != 8) {
        return WEFT_ERR_MALFORMED;
    }
    const launch_exit_t end = {get_u32(frame->payload), get_u32(frame->payload + 4)};
    if (end.code > 255 || end.signal > 127) {
        return WEFT_ERR_MALFORMED;
    }
    *end_out = end;
    return WEFT_OK;
}
