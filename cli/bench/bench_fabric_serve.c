/* SPDX-License-Identifier: Apache-2.0 */
/* What the target's process runs. */
#include <errno.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/bench/bench_fabric_end.h"
#include "cli/bench/bench_fabric_target.h"

#define ALARM_SECONDS 30

typedef struct server {
    const bench_fabric_options_t *options;
    const char *host;
    int fd;
    bench_fabric_message_t message;
    bench_fabric_end_t end;
    _Atomic(xfer_agent_t *) agent; /* of end; set before peers know of it, read by on_event */
    sem_t alarms;
    _Atomic uint64_t alarm_ns; /* when the last one came; stored before alarms is posted */
} server_t;

/* ---- notifications, on the agent's thread ---------------------------------------------------- */

static void take_notification(server_t *server, xfer_agent_t *agent,
                              const xfer_notification_t *notification)
{
    const char kind = notification->bytes > 0 ? *(const char *)notification->data : '\0';
    if (kind == BENCH_FABRIC_ALARM) {
        atomic_store(&server->alarm_ns, weft_clock_ns());
        sem_post(&server->alarms);
    } else if (kind == BENCH_FABRIC_ECHO) {
        xfer_peer_t *peer = xfer_find_peer(agent, notification->peer);
        if (peer != NULL) {
            xfer_notify(peer, notification->data, notification->bytes);
        }
    }
}

static void on_event(void *user)
{
    server_t *server = user;
    xfer_agent_t *agent = atomic_load(&server->agent);
    if (agent == NULL) {
        return;
    }
    for (;;) {
        xfer_notification_t *notification = xfer_next_notification(agent);
        if (notification == NULL) {
            break;
        }
        take_notification(server, agent, notification);
        xfer_notification_free(notification);
    }
}

/* ---- what is asked --------------------------------------------------------------------------- */

typedef weft_status_t (*answer_fn)(server_t *server, weft_diag_t *diag, uint64_t *words,
                                   weft_buffer_t *bytes);

static weft_status_t answer_hello(server_t *server, weft_diag_t *diag, uint64_t *words,
                                  weft_buffer_t *bytes)
{
    const weft_buffer_t *version = &server->message.bytes;
    if (version->length != strlen(WEFT_VERSION) ||
        memcmp(version->data, WEFT_VERSION, version->length) != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "is of weft %s", WEFT_VERSION);
    }
    const bench_fabric_end_config_t config = {
        .segment = server->options->target_segment,
        .bytes = server->message.words[0],
        .host = server->host,
        .has_thread = true,
        .on_event = on_event,
        .user = server,
    };
    if (server->end.agent != NULL) {
        return weft_diag(diag, WEFT_ERR_EXISTS, "said hello already");
    }
    weft_status_t status = bench_fabric_end_open(server->options, &config, diag, &server->end);
    if (status < 0) {
        return status;
    }
    const xfer_memory_t *memory = &server->end.segment.memory;
    atomic_store(&server->agent, server->end.agent);
    words[0] = memory->space;
    words[1] = memory->addr;
    words[2] = memory->bytes;
    words[3] = memory->device;
    words[4] = server->end.guard.memory.addr;
    words[5] = (uint64_t)getpid();
    words[6] = (uint64_t)(int64_t)memory->fd;
    return xfer_export(server->end.agent, NULL, 0, true, bytes);
}

static weft_status_t answer_peer(server_t *server, weft_diag_t *diag, uint64_t *words,
                                 weft_buffer_t *bytes)
{
    (void)words;
    (void)bytes;
    xfer_peer_t *peer;
    return xfer_import(server->end.agent, server->message.bytes.data, server->message.bytes.length,
                       diag, &peer);
}

static weft_status_t answer_fill(server_t *server, weft_diag_t *diag, uint64_t *words,
                                 weft_buffer_t *bytes)
{
    (void)diag;
    (void)words;
    (void)bytes;
    return bench_fabric_segment_fill(&server->end.segment, server->message.words[0]);
}

static weft_status_t take_geometry(const server_t *server, weft_diag_t *diag,
                                   bench_fabric_geometry_t *geometry_out)
{
    const uint64_t *words = server->message.words;
    const bench_fabric_geometry_t geometry = {
        .layout = (bench_fabric_layout_t)words[0],
        .pool_bytes = words[1],
        .block_bytes = words[2],
        .n_blocks = words[3],
        .lanes = words[4],
        .seed = words[5],
    };
    if (words[0] > BENCH_FABRIC_STRIDED || geometry.pool_bytes > server->end.segment.memory.bytes ||
        geometry.lanes == 0 || geometry.block_bytes == 0 || geometry.n_blocks == 0 ||
        geometry.block_bytes > geometry.pool_bytes / geometry.lanes / geometry.n_blocks) {
        return weft_diag(diag, WEFT_ERR_INVALID, "a geometry that the pool does not hold");
    }
    *geometry_out = geometry;
    return WEFT_OK;
}

static weft_status_t answer_clear(server_t *server, weft_diag_t *diag, uint64_t *words,
                                  weft_buffer_t *bytes)
{
    (void)words;
    (void)bytes;
    bench_fabric_geometry_t geometry;
    const weft_status_t status = take_geometry(server, diag, &geometry);
    return status < 0 ? status
                      : bench_fabric_end_clear(&server->end, BENCH_FABRIC_TARGET, &geometry);
}

static weft_status_t answer_compare(server_t *server, weft_diag_t *diag, uint64_t *words,
                                    weft_buffer_t *bytes)
{
    (void)bytes;
    bench_fabric_geometry_t geometry;
    const weft_status_t status = take_geometry(server, diag, &geometry);
    return status < 0 ? status
                      : bench_fabric_end_compare(&server->end, BENCH_FABRIC_TARGET, &geometry,
                                                 server->message.words[6], &words[0]);
}

static weft_status_t answer_forget(server_t *server, weft_diag_t *diag, uint64_t *words,
                                   weft_buffer_t *bytes)
{
    (void)diag;
    (void)words;
    (void)bytes;
    while (sem_trywait(&server->alarms) == 0) {
    }
    return WEFT_OK;
}

static weft_status_t answer_await(server_t *server, weft_diag_t *diag, uint64_t *words,
                                  weft_buffer_t *bytes)
{
    (void)bytes;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ALARM_SECONDS;
    while (sem_timedwait(&server->alarms, &until) != 0) {
        if (errno != EINTR) {
            return weft_diag(diag, WEFT_ERR_TIMEOUT, "no notification came in %d s", ALARM_SECONDS);
        }
    }
    words[0] = atomic_load(&server->alarm_ns);
    return WEFT_OK;
}

static uint64_t timeval_ns(struct timeval time)
{
    return (uint64_t)time.tv_sec * WEFT_NS_PER_SECOND + (uint64_t)time.tv_usec * 1000;
}

static weft_status_t answer_usage(server_t *server, weft_diag_t *diag, uint64_t *words,
                                  weft_buffer_t *bytes)
{
    (void)server;
    (void)diag;
    (void)bytes;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    words[0] = timeval_ns(usage.ru_utime) + timeval_ns(usage.ru_stime);
    return WEFT_OK;
}

/* NULL: nothing that can be asked, now. */
static answer_fn find_answer(const server_t *server)
{
    static const answer_fn answers[] = {
        [BENCH_FABRIC_HELLO] = answer_hello,     [BENCH_FABRIC_PEER] = answer_peer,
        [BENCH_FABRIC_FILL] = answer_fill,       [BENCH_FABRIC_CLEAR] = answer_clear,
        [BENCH_FABRIC_COMPARE] = answer_compare, [BENCH_FABRIC_FORGET] = answer_forget,
        [BENCH_FABRIC_AWAIT] = answer_await,     [BENCH_FABRIC_USAGE] = answer_usage,
    };
    const uint32_t type = server->message.type;
    const bool is_known = type < sizeof(answers) / sizeof(answers[0]) &&
                          (type == BENCH_FABRIC_HELLO || server->end.agent != NULL);
    return is_known ? answers[type] : NULL;
}

static weft_status_t answer(server_t *server)
{
    uint64_t words[BENCH_FABRIC_WORDS] = {0};
    weft_buffer_t bytes = {0};
    weft_diag_t diag = {0};
    const answer_fn find = find_answer(server);
    weft_status_t status =
        find == NULL
            ? weft_diag(&diag, WEFT_ERR_INVALID, "message %u is not for me", server->message.type)
            : find(server, &diag, words, &bytes);
    if (status >= 0 && bytes.is_failed) {
        status = WEFT_ERR_NO_MEMORY;
    }
    if (status < 0) {
        const char *text = diag.text[0] != '\0' ? diag.text : weft_strerror(status);
        words[0] = (uint64_t)(int64_t)status;
        status =
            bench_fabric_channel_send(server->fd, BENCH_FABRIC_FAILED, words, text, strlen(text));
    } else {
        status = bench_fabric_channel_send(server->fd, BENCH_FABRIC_DONE, words, bytes.data,
                                           bytes.length);
    }
    weft_buffer_free(&bytes);
    return status;
}

weft_status_t bench_fabric_target_serve(const bench_fabric_options_t *options, int fd,
                                        const char *host, weft_diag_t *diag)
{
    server_t server = {.options = options, .host = host, .fd = fd};
    weft_status_t status = WEFT_OK;
    sem_init(&server.alarms, 0, 0);
    while (status >= 0) {
        status = bench_fabric_channel_receive(fd, -1, &server.message);
        if (status >= 0) {
            status = answer(&server);
        }
    }
    bench_fabric_end_close(&server.end);
    weft_buffer_free(&server.message.bytes);
    sem_destroy(&server.alarms);
    return status == WEFT_ERR_PEER_GONE
               ? WEFT_OK
               : weft_diag(diag, status, "the initiator: %s", weft_strerror(status));
}

weft_status_t bench_fabric_target_listen(const bench_fabric_options_t *options, weft_diag_t *diag)
{
    char host[64];
    int fd;
    weft_status_t status = bench_fabric_pin(options, BENCH_FABRIC_TARGET, diag);
    if (status >= 0) {
        status = bench_fabric_channel_listen(options->listen, diag, &fd);
    }
    if (status < 0) {
        return status;
    }
    bench_fabric_channel_host(fd, host, sizeof(host));
    status = bench_fabric_target_serve(options, fd, host, diag);
    close(fd);
    return status;
}
