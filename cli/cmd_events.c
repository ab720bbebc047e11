/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_events: `weft events`, the KV events of a running engine as JSON lines. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "cli/commands.h"
#include "cli/events.h"
#include "cli/option_tables.h"

#define LOOK_MS     200 /* how often the rest of the world is looked at */
#define PATIENCE_NS (3 * WEFT_NS_PER_SECOND)

const weft_option_t events_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(events_options_t, __VA_ARGS__)
#include "cli/events.def"
#undef OPTION
};
const size_t events_option_count = WEFT_ARRAY_LEN(events_option_rows);

typedef struct reader {
    const events_options_t *options;
    kv_event_subscriber_t *subscriber;
    events_check_t *check; /* or NULL */
    weft_buffer_t lines;
    uint64_t batches;
    uint64_t events;
    uint64_t missed;
    uint64_t unreadable;
    uint64_t unanswered; /* said already */
    uint64_t begun_ns;
    bool was_connected;
    bool is_silence_said;
} reader_t;

static volatile sig_atomic_t is_interrupted;

static void interrupt(int number)
{
    (void)number;
    is_interrupted = 1;
}

static bool is_done(const reader_t *reader)
{
    const uint64_t count = reader->options->count;
    return is_interrupted || (count > 0 && reader->events >= count);
}

static weft_status_t print_batch(reader_t *reader, const kv_event_news_t *news, weft_diag_t *diag)
{
    weft_json_t json;
    weft_buffer_clear(&reader->lines);
    for (uint32_t i = 0; i < news->batch->n_events && !is_done(reader); i++, reader->events++) {
        if (reader->options->json) {
            weft_json_init(&json, &reader->lines);
            events_write_json(&json, news, &news->batch->events[i]);
            weft_buffer_puts(&reader->lines, "\n");
        }
    }
    if (reader->lines.is_failed) {
        return WEFT_ERR_NO_MEMORY;
    }
    const size_t length = reader->lines.length;
    if (length > 0 &&
        (fwrite(reader->lines.data, 1, length, stdout) != length || fflush(stdout) != 0)) {
        return weft_diag(diag, WEFT_ERR_IO, "standard output: %s", strerror(errno));
    }
    return WEFT_OK;
}

static void say_what_is_missing(reader_t *reader, const kv_event_news_t *news)
{
    if (news->is_restart) {
        fprintf(stderr, "weft events: the publisher begins anew at batch %" PRIu64 "\n",
                news->sequence);
    }
    if (news->missed == 0) {
        return;
    }
    if (reader->batches == 0) {
        fprintf(stderr, "weft events: joined at batch %" PRIu64 "; what was before is not known\n",
                news->sequence);
        return;
    }
    reader->missed += news->missed;
    fprintf(stderr, "weft events: %" PRIu64 " batches before %" PRIu64 " are missing%s\n",
            news->missed, news->sequence,
            reader->options->replay[0] == '\0' ? "; --replay ENDPOINT would ask for them" : "");
}

static weft_status_t take_news(reader_t *reader, const kv_event_news_t *news, weft_diag_t *diag)
{
    say_what_is_missing(reader, news);
    reader->batches++;
    weft_status_t status = print_batch(reader, news, diag);
    if (status >= 0 && reader->check != NULL) {
        status = events_check_news(reader->check, news);
    }
    return status;
}

/* Whoever gave a wrong endpoint would wait for ever: ZeroMQ goes on trying in silence. */
static void say_silence(reader_t *reader)
{
    const uint64_t unanswered = kv_event_subscriber_unanswered(reader->subscriber);
    if (unanswered > reader->unanswered) {
        fprintf(stderr,
                "weft events: no answer to a replay request at %s; is it the engine's "
                "replay_endpoint?\n",
                reader->options->replay);
        reader->unanswered = unanswered;
    }
    reader->was_connected |= kv_event_subscriber_is_connected(reader->subscriber);
    if (!reader->is_silence_said && !reader->was_connected &&
        weft_clock_ns() - reader->begun_ns > PATIENCE_NS) {
        fprintf(stderr,
                "weft events: nobody answers at %s; still trying. GET /kv_event_sources of "
                "the engine says where it publishes\n",
                reader->options->connect);
        reader->is_silence_said = true;
    }
}

static weft_status_t read_events(reader_t *reader, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    reader->begun_ns = weft_clock_ns();
    while (!is_done(reader) && status >= 0) {
        kv_event_news_t news;
        status = kv_event_subscriber_next(reader->subscriber, LOOK_MS, diag, &news);
        say_silence(reader);
        switch (status) {
        case WEFT_OK:
            status = take_news(reader, &news, diag);
            break;
        case WEFT_ERR_MALFORMED:
            fprintf(stderr, "weft events: %s\n", diag->text);
            reader->unreadable++;
            status = WEFT_OK;
            break;
        case WEFT_ERR_TIMEOUT:
        case WEFT_ERR_CANCELLED:
            status = WEFT_OK;
            break;
        default:
            break;
        }
    }
    return status;
}

static void print_summary(const reader_t *reader)
{
    fprintf(stderr,
            "weft events: %" PRIu64 " events in %" PRIu64 " batches, %" PRIu64 " batches missing, "
            "%" PRIu64 " unreadable, %" PRIu64 " replays\n",
            reader->events, reader->batches, reader->missed, reader->unreadable,
            kv_event_subscriber_replays(reader->subscriber));
    if (reader->check != NULL) {
        events_check_print(reader->check);
    }
}

static bool has_holes(const reader_t *reader)
{
    return reader->missed + reader->unreadable > 0 ||
           (reader->check != NULL && events_check_holes(reader->check) > 0);
}

static weft_status_t open_reader(const events_options_t *options, weft_diag_t *diag,
                                 reader_t *reader)
{
    const kv_event_subscriber_config_t config = {
        .endpoint = options->connect,
        .replay_endpoint = options->replay[0] == '\0' ? NULL : options->replay,
        .topic = options->topic,
        .from = options->from};
    const struct sigaction action = {.sa_handler = interrupt};
    reader->options = options;
    if (options->connect[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "no endpoint: weft events --connect tcp://host:5557");
    }
    if (options->from > 0 && config.replay_endpoint == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--from needs --replay ENDPOINT");
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* then it is an error of write */
    const weft_status_t status = options->check ? events_check_create(&reader->check) : WEFT_OK;
    return status < 0 ? status : kv_event_subscriber_create(&config, diag, &reader->subscriber);
}

/* Returns the exit code. */
static int follow(const events_options_t *options)
{
    reader_t reader = {.options = NULL};
    weft_diag_t diag = {0};
    weft_status_t status = open_reader(options, &diag, &reader);
    if (status >= 0) {
        status = read_events(&reader, &diag);
        print_summary(&reader);
    }
    const bool is_bad = has_holes(&reader) || !(reader.was_connected || reader.batches > 0);
    const int code = status < 0 ? cli_fail(status, &diag) : is_bad ? CLI_EXIT_FAILED : CLI_EXIT_OK;
    kv_event_subscriber_destroy(reader.subscriber);
    events_check_destroy(reader.check);
    weft_buffer_free(&reader.lines);
    return code;
}

int cmd_events(int argc, char **argv)
{
    events_options_t options;
    const weft_option_group_t group = CLI_OPTION_GROUP(events, "events", &options);
    const weft_option_spec_t spec = {
        .usage = "weft events --connect tcp://HOST:PORT [--replay tcp://HOST:PORT] [--check]",
        .about = "Prints the KV events of an engine, weft's or vLLM's, as JSON lines, missing ones "
                 "asked for again; a summary at Ctrl-C. Exit code 1: some were missing, or did not "
                 "fit, or nobody was there.",
        .groups = &group,
        .n_groups = 1,
    };
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    const weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    const int code = status < 0 ? cli_fail(status, &diag) : follow(&options);
    weft_option_set_destroy(set);
    return code;
}
