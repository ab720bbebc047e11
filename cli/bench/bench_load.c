/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/clock.h"
#include "cli/bench/bench_serve.h"

#define EVENT_BYTES_MAX ((size_t)1 << 20)
#define POLL_MS         200

/* A request in flight. Its figures count only if it ends well. */
typedef struct slot {
    struct load *load;
    struct slot *next_free;
    CURL *easy;
    struct curl_slist *headers;
    char *body;
    double arrival;
    double first; /* time of the first text, 0 until then */
    double last;
    double *gaps; /* [output_len] */
    uint32_t n_gaps;
    bench_usage_t usage;
    bool is_done; /* "data: [DONE]" came */
    char error[BENCH_ERROR_BYTES];
    weft_buffer_t line; /* an event line that is not whole yet, or the body of an error */
} slot_t;

typedef struct load {
    const bench_serve_options_t *options;
    const char *model;
    uint32_t words;
    CURLM *multi;
    slot_t *slots; /* [n_slots] */
    slot_t *free_slots;
    uint32_t n_slots;
    uint32_t running;
    bench_random_t arrivals;
    double next_arrival;
    double started;
    double progress_shown;
    bench_result_t *result;
} load_t;

static double now_seconds(void)
{
    return (double)weft_clock_ns() / (double)WEFT_NS_PER_SECOND;
}

/* ---- events of one stream ------------------------------------------------------------------- */

static void take_text(slot_t *slot)
{
    const double now = now_seconds();
    if (slot->first == 0) {
        slot->first = now;
    } else if (slot->n_gaps < slot->load->options->output_len) {
        slot->gaps[slot->n_gaps++] = now - slot->last;
    }
    slot->last = now;
}

static void take_event(slot_t *slot, const char *data, size_t length)
{
    if (length == 6 && memcmp(data, "[DONE]", 6) == 0) {
        slot->is_done = true;
        return;
    }
    json_t *event = json_loadb(data, length, 0, NULL);
    if (event == NULL) {
        snprintf(slot->error, sizeof(slot->error), "event is not JSON");
        return;
    }
    const json_t *error = json_object_get(event, "error");
    if (json_is_object(error)) {
        const char *message = json_string_value(json_object_get(error, "message"));
        snprintf(slot->error, sizeof(slot->error), "error event: %s",
                 message != NULL ? message : "without a message");
    }
    bench_http_usage(event, &slot->usage);
    const json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    if (json_string_length(json_object_get(choice, "text")) > 0) {
        take_text(slot);
    }
    json_decref(event);
}

static void take_line(slot_t *slot, const char *line, size_t length)
{
    while (length > 0 && (line[length - 1] == '\r' || line[length - 1] == ' ')) {
        length--;
    }
    if (length < 5 || memcmp(line, "data:", 5) != 0) {
        return;
    }
    const size_t skip = length > 5 && line[5] == ' ' ? 6 : 5;
    take_event(slot, line + skip, length - skip);
}

static bool keep(slot_t *slot, const char *data, size_t length)
{
    weft_buffer_append(&slot->line, data, length);
    if (slot->line.is_failed || slot->line.length > EVENT_BYTES_MAX) {
        snprintf(slot->error, sizeof(slot->error), "event too large");
        return false;
    }
    return true;
}

static size_t take_data(char *data, size_t size, size_t n, void *user)
{
    slot_t *slot = user;
    const size_t length = size * n;
    size_t at = 0;
    for (const char *end; (end = memchr(data + at, '\n', length - at)) != NULL;) {
        const size_t part = (size_t)(end - (data + at));
        if (slot->line.length == 0) {
            take_line(slot, data + at, part);
        } else if (keep(slot, data + at, part)) {
            take_line(slot, slot->line.data, slot->line.length);
            weft_buffer_clear(&slot->line);
        } else {
            return 0;
        }
        at += part + 1;
    }
    return at == length || keep(slot, data + at, length - at) ? length : 0;
}

/* ---- requests -------------------------------------------------------------------------------- */

static void slot_close_request(slot_t *slot)
{
    curl_easy_cleanup(slot->easy);
    curl_slist_free_all(slot->headers);
    free(slot->body);
    slot->easy = NULL;
    slot->headers = NULL;
    slot->body = NULL;
}

static weft_status_t start_request(load_t *load, double arrival)
{
    const bench_serve_options_t *options = load->options;
    slot_t *slot = load->free_slots;
    slot->arrival = arrival;
    slot->first = 0;
    slot->n_gaps = 0;
    slot->usage = (bench_usage_t){0};
    slot->is_done = false;
    slot->error[0] = '\0';
    weft_buffer_clear(&slot->line);

    char *prompt =
        bench_prompt_create(options->seed, load->result->started,
                            (uint32_t)(options->shared_prefix * load->words), load->words);
    slot->body = prompt == NULL ? NULL : bench_http_body(options, load->model, prompt, true);
    weft_free(prompt);
    slot->easy = bench_http_open(options, BENCH_COMPLETIONS, &slot->headers);
    if (slot->body == NULL || slot->easy == NULL) {
        slot_close_request(slot);
        return WEFT_ERR_NO_MEMORY;
    }
    curl_easy_setopt(slot->easy, CURLOPT_POSTFIELDS, slot->body);
    curl_easy_setopt(slot->easy, CURLOPT_WRITEFUNCTION, take_data);
    curl_easy_setopt(slot->easy, CURLOPT_WRITEDATA, slot);
    curl_easy_setopt(slot->easy, CURLOPT_PRIVATE, slot);
    if (curl_multi_add_handle(load->multi, slot->easy) != CURLM_OK) {
        slot_close_request(slot);
        return WEFT_ERR_NO_MEMORY;
    }
    load->free_slots = slot->next_free;
    load->running++;
    load->result->started++;
    return WEFT_OK;
}

/* Why a request failed, in slot->error; "" when it did not. */
static void judge(slot_t *slot, CURLcode code)
{
    long http_status = 0;
    curl_easy_getinfo(slot->easy, CURLINFO_RESPONSE_CODE, &http_status);
    if (slot->error[0] != '\0') {
        return;
    }
    if (code != CURLE_OK) {
        snprintf(slot->error, sizeof(slot->error), "%s", curl_easy_strerror(code));
    } else if (http_status != 200) {
        snprintf(slot->error, sizeof(slot->error), "HTTP %ld: %.*s", http_status,
                 (int)(slot->line.length < 100 ? slot->line.length : 100),
                 slot->line.data != NULL ? slot->line.data : "");
    } else if (!slot->is_done) {
        snprintf(slot->error, sizeof(slot->error), "stream ended without [DONE]");
    } else if (slot->first == 0) {
        snprintf(slot->error, sizeof(slot->error), "answer without text");
    }
}

static weft_status_t count_success(load_t *load, const slot_t *slot, double now)
{
    bench_result_t *result = load->result;
    /* A server without usage figures: an event is taken for a token. */
    const uint64_t tokens =
        slot->usage.output_tokens > 0 ? slot->usage.output_tokens : slot->n_gaps + UINT64_C(1);
    result->succeeded++;
    result->prompt_tokens += slot->usage.prompt_tokens;
    result->cached_tokens += slot->usage.cached_tokens;
    result->output_tokens += tokens;
    weft_status_t status = bench_samples_add(&result->ttft, slot->first - slot->arrival);
    if (status >= 0) {
        status = bench_samples_add(&result->e2e, now - slot->arrival);
    }
    if (status >= 0 && tokens > 1) {
        status =
            bench_samples_add(&result->tpot, (slot->last - slot->first) / (double)(tokens - 1));
    }
    for (uint32_t i = 0; i < slot->n_gaps && status >= 0; i++) {
        status = bench_samples_add(&result->itl, slot->gaps[i]);
    }
    return status;
}

static weft_status_t end_request(load_t *load, slot_t *slot, CURLcode code)
{
    weft_status_t status = WEFT_OK;
    judge(slot, code);
    if (slot->error[0] == '\0') {
        status = count_success(load, slot, now_seconds());
    } else {
        load->result->failed++;
        bench_result_add_error(load->result, slot->error);
    }
    curl_multi_remove_handle(load->multi, slot->easy);
    slot_close_request(slot);
    slot->next_free = load->free_slots;
    load->free_slots = slot;
    load->running--;
    return status;
}

static weft_status_t end_requests(load_t *load)
{
    weft_status_t status = WEFT_OK;
    int left = 0;
    for (CURLMsg *message; (message = curl_multi_info_read(load->multi, &left)) != NULL;) {
        slot_t *slot = NULL;
        if (message->msg == CURLMSG_DONE && status >= 0) {
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&slot);
            status = end_request(load, slot, message->data.result);
        }
    }
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* Starts what is due; *wait_out is the seconds until the next one is. */
static weft_status_t start_requests(load_t *load, double *wait_out)
{
    weft_status_t status = WEFT_OK;
    const double rate = load->options->rate;
    *wait_out = POLL_MS / 1e3;
    while (status >= 0 && load->result->started < load->options->requests &&
           load->free_slots != NULL) {
        const double now = now_seconds();
        if (rate > 0 && load->next_arrival > now) {
            *wait_out = load->next_arrival - now;
            break;
        }
        status = start_request(load, rate > 0 ? load->next_arrival : now);
        if (rate > 0) {
            load->next_arrival += bench_random_exponential(&load->arrivals, rate);
        }
    }
    return status;
}

static void show_progress(load_t *load, bool is_last)
{
    const bench_result_t *result = load->result;
    const double now = now_seconds();
    if (!isatty(STDERR_FILENO) || (now - load->progress_shown < 0.5 && !is_last)) {
        return;
    }
    load->progress_shown = now;
    fprintf(stderr, "\r\033[K%llu of %u done, %u running, %llu failed, %.0f tok/s, %.0f s%s",
            (unsigned long long)(result->succeeded + result->failed), load->options->requests,
            load->running, (unsigned long long)result->failed,
            (double)result->output_tokens / (now - load->started), now - load->started,
            is_last ? "\n" : "");
}

static weft_status_t drive(load_t *load)
{
    const bench_result_t *result = load->result;
    load->started = now_seconds();
    load->next_arrival = load->started;
    while (result->succeeded + result->failed < load->options->requests) {
        double wait = 0;
        int running = 0;
        weft_status_t status = start_requests(load, &wait);
        curl_multi_perform(load->multi, &running);
        if (status >= 0) {
            status = end_requests(load);
        }
        if (status < 0) {
            return status;
        }
        show_progress(load, false);
        const bool can_start = load->free_slots != NULL && load->options->rate == 0 &&
                               result->started < load->options->requests;
        if (!can_start) {
            const double ms = wait * 1e3 < POLL_MS ? wait * 1e3 : POLL_MS;
            curl_multi_poll(load->multi, NULL, 0, (int)ceil(ms), NULL);
        }
    }
    load->result->seconds = now_seconds() - load->started;
    show_progress(load, true);
    return WEFT_OK;
}

static weft_status_t load_init(load_t *load)
{
    const bench_serve_options_t *options = load->options;
    load->n_slots = options->concurrency > 0 ? options->concurrency
                    : options->rate > 0      ? options->requests
                                             : 1;
    load->n_slots = load->n_slots < options->requests ? load->n_slots : options->requests;
    load->arrivals.state = ~options->seed;
    load->multi = curl_multi_init();
    load->slots = weft_calloc(load->n_slots, sizeof(*load->slots), "bench.slots");
    if (load->multi == NULL || load->slots == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    curl_multi_setopt(load->multi, CURLMOPT_MAXCONNECTS, (long)load->n_slots + 1);
    for (uint32_t i = load->n_slots; i-- > 0;) {
        slot_t *slot = &load->slots[i];
        slot->gaps = weft_calloc(options->output_len, sizeof(*slot->gaps), "bench.gaps");
        if (slot->gaps == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        slot->load = load;
        slot->next_free = load->free_slots;
        load->free_slots = slot;
    }
    return WEFT_OK;
}

static void load_fini(load_t *load)
{
    for (uint32_t i = 0; load->slots != NULL && i < load->n_slots; i++) {
        slot_t *slot = &load->slots[i];
        if (slot->easy != NULL) {
            curl_multi_remove_handle(load->multi, slot->easy);
        }
        slot_close_request(slot);
        weft_free(slot->gaps);
        weft_buffer_free(&slot->line);
    }
    weft_free(load->slots);
    curl_multi_cleanup(load->multi);
}

weft_status_t bench_load_run(const bench_serve_options_t *options, const char *model,
                             uint32_t words, weft_diag_t *diag, bench_result_t *result)
{
    load_t load = {.options = options, .model = model, .words = words, .result = result};
    weft_status_t status = load_init(&load);
    if (status >= 0) {
        status = drive(&load);
    }
    load_fini(&load);
    return status < 0 ? weft_diag(diag, status, "the load stopped: %s", weft_strerror(status))
                      : WEFT_OK;
}
