/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "launcher/job/launch_sink.h"

#define MAX_PENDING ((size_t)256 << 10)
#define OWN_LINES   (UINT64_MAX - 1) /* owner of what the launcher says */

static const char *const stream_names[LAUNCH_STREAMS] = {"stdout", "stderr"};

typedef struct rank_stream {
    launch_output_t *output;
    launch_lines_t lines;
    uint32_t rank;
    launch_stream_t stream;
    int fd; /* of its file, or -1 */
} rank_stream_t;

/* One of the two places that output goes to. */
typedef struct outlet {
    launch_output_t *output;
    launch_stream_t stream;
    launch_sink_t *sink;
} outlet_t;

struct launch_output {
    launch_output_config_t config;
    rank_stream_t *streams; /* [n_ranks * LAUNCH_STREAMS] */
    outlet_t outlets[LAUNCH_STREAMS];
    bool is_one; /* both go to the same place, by the sink of standard output */
    bool is_raw;
};

static launch_sink_t *sink_of(const launch_output_t *output, launch_stream_t stream)
{
    return output->outlets[output->is_one ? LAUNCH_STDOUT : stream].sink;
}

static rank_stream_t *find(launch_output_t *output, uint32_t rank, launch_stream_t stream)
{
    return &output->streams[(size_t)rank * LAUNCH_STREAMS + stream];
}

/* ---- room ------------------------------------------------------------------------------------ */

size_t launch_output_pending(const launch_output_t *output)
{
    return launch_sink_pending(output->outlets[LAUNCH_STDOUT].sink) +
           launch_sink_pending(output->outlets[LAUNCH_STDERR].sink);
}

bool launch_output_has_room(const launch_output_t *output)
{
    return launch_output_pending(output) < MAX_PENDING;
}

static void on_written(void *user)
{
    const outlet_t *outlet = user;
    const launch_output_config_t *config = &outlet->output->config;
    config->on_written(config->user);
}

static void on_broken(void *user, int error)
{
    const outlet_t *outlet = user;
    const launch_output_config_t *config = &outlet->output->config;
    config->on_broken(config->user, outlet->stream, error);
    on_written(user);
}

/* ---- making ---------------------------------------------------------------------------------- */

static bool is_same_place(int one, int other)
{
    struct stat a;
    struct stat b;
    return fstat(one, &a) == 0 && fstat(other, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

static weft_status_t open_file(rank_stream_t *stream, weft_diag_t *diag)
{
    char path[4096];
    const char *folder = stream->output->config.folder;
    if (folder[0] == '\0') {
        return WEFT_OK;
    }
    snprintf(path, sizeof(path), "%s/rank-%u.%s", folder, stream->rank,
             stream_names[stream->stream]);
    stream->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    return stream->fd >= 0 ? WEFT_OK
                           : weft_diag(diag, WEFT_ERR_IO, "%s: %s", path, strerror(errno));
}

static weft_status_t open_files(launch_output_t *output, weft_diag_t *diag)
{
    const char *folder = output->config.folder;
    weft_status_t status = WEFT_OK;
    if (folder[0] != '\0' && mkdir(folder, 0777) != 0 && errno != EEXIST) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: %s", folder, strerror(errno));
    }
    for (uint32_t i = 0; i < output->config.n_ranks * LAUNCH_STREAMS && status == WEFT_OK; i++) {
        status = open_file(&output->streams[i], diag);
    }
    return status;
}

static weft_status_t open_outlets(launch_output_t *output, weft_loop_t *loop)
{
    static const int fds[LAUNCH_STREAMS] = {STDOUT_FILENO, STDERR_FILENO};
    weft_status_t status = WEFT_OK;
    for (int i = 0; i < LAUNCH_STREAMS && status == WEFT_OK; i++) {
        outlet_t *outlet = &output->outlets[i];
        *outlet = (outlet_t){.output = output, .stream = (launch_stream_t)i};
        status = launch_sink_create(
            loop, fds[i], &(launch_sink_events_t){on_written, on_broken, outlet}, &outlet->sink);
    }
    return status;
}

weft_status_t launch_output_create(weft_loop_t *loop, const launch_output_config_t *config,
                                   weft_diag_t *diag, launch_output_t **output_out)
{
    launch_output_t *output = weft_zalloc(sizeof(*output), "launch.output");
    if (output == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory");
    }
    output->config = *config;
    output->is_one = is_same_place(STDOUT_FILENO, STDERR_FILENO);
    output->is_raw = config->n_ranks == 1 && !config->is_tagged;
    output->streams = weft_calloc((size_t)config->n_ranks * LAUNCH_STREAMS,
                                  sizeof(*output->streams), "launch.streams");
    for (uint32_t i = 0; output->streams != NULL && i < config->n_ranks * LAUNCH_STREAMS; i++) {
        output->streams[i] = (rank_stream_t){.output = output,
                                             .rank = i / LAUNCH_STREAMS,
                                             .stream = (launch_stream_t)(i % LAUNCH_STREAMS),
                                             .fd = -1};
    }
    weft_status_t status = output->streams == NULL
                               ? weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory")
                               : open_outlets(output, loop);
    if (status == WEFT_OK) {
        status = open_files(output, diag);
    }
    if (status < 0) {
        launch_output_destroy(output);
        return status;
    }
    *output_out = output;
    return WEFT_OK;
}

void launch_output_destroy(launch_output_t *output)
{
    if (output == NULL) {
        return;
    }
    for (uint32_t i = 0; output->streams != NULL && i < output->config.n_ranks * LAUNCH_STREAMS;
         i++) {
        launch_lines_fini(&output->streams[i].lines);
        if (output->streams[i].fd >= 0) {
            close(output->streams[i].fd);
        }
    }
    launch_sink_destroy(output->outlets[LAUNCH_STDOUT].sink);
    launch_sink_destroy(output->outlets[LAUNCH_STDERR].sink);
    weft_free(output->streams);
    weft_free(output);
}

/* ---- what comes ------------------------------------------------------------------------------ */

static void put_piece(void *user, const launch_piece_t *piece)
{
    const rank_stream_t *stream = user;
    char tag[64] = "";
    if (stream->output->config.is_tagged) {
        snprintf(tag, sizeof(tag), "[%u]<%s>: ", stream->rank, stream_names[stream->stream]);
    }
    launch_sink_put(sink_of(stream->output, stream->stream),
                    (uint64_t)stream->rank * LAUNCH_STREAMS + stream->stream, tag, piece);
}

/* A disk that is full is told once; the terminal still has everything. */
static void write_file(rank_stream_t *stream, const char *bytes, size_t n)
{
    while (stream->fd >= 0 && n > 0) {
        const ssize_t written = write(stream->fd, bytes, n);
        if (written >= 0) {
            bytes += written;
            n -= (size_t)written;
        } else if (errno != EINTR) {
            launch_output_say(stream->output, "%s/rank-%u.%s: %s", stream->output->config.folder,
                              stream->rank, stream_names[stream->stream], strerror(errno));
            close(stream->fd);
            stream->fd = -1;
        }
    }
}

void launch_output_take(launch_output_t *output, uint32_t rank, launch_stream_t stream,
                        const char *bytes, size_t n)
{
    rank_stream_t *from = find(output, rank, stream);
    write_file(from, bytes, n);
    if (output->is_raw) {
        launch_sink_put_raw(sink_of(output, stream), bytes, n);
    } else if (launch_lines_take(&from->lines, bytes, n, put_piece, from) < 0) {
        launch_output_say(output, "output of rank %u is lost: out of memory", rank);
    }
}

void launch_output_end(launch_output_t *output, uint32_t rank, launch_stream_t stream)
{
    rank_stream_t *from = find(output, rank, stream);
    launch_lines_end(&from->lines, put_piece, from);
}

void launch_output_say(launch_output_t *output, const char *format, ...)
{
    weft_diag_t line = {0};
    char text[900];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    weft_diag(&line, WEFT_OK, "%s", text); /* no control characters of others reach a terminal */
    const size_t length = strlen(line.text);
    line.text[length] = '\n';
    launch_sink_put(sink_of(output, LAUNCH_STDERR), OWN_LINES,
                    "weft launch: ", &(launch_piece_t){line.text, length + 1, true, true});
}

void launch_output_finish(launch_output_t *output)
{
    for (int i = 0; i < LAUNCH_STREAMS && output->config.is_tagged; i++) {
        launch_sink_end_line(output->outlets[i].sink);
    }
}
