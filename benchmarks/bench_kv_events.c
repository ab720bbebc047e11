/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv_events [blocks per second] [seconds] [blocks per batch]: what publishing KV events costs.
 * An engine that fills chains of 16 blocks, evicts the oldest at the same rate and ends a step every
 * so many blocks; one subscriber in another process that reads and counts. Rate 0: as fast as it
 * goes, where the publisher's speed shows in the stalls. One JSON object a line, for a ring that
 * keeps all batches and one that drops most of them into the mirror.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "base/clock.h"
#include "base/log.h"
#include "kvstore/events/kv_event_message.h"
#include "kvstore/events/kv_publisher.h"

enum { TOKENS = 16, CHAIN = 16, CACHED = 1 << 16 };

typedef struct setting {
    double rate; /* blocks stored a second; 0: no bound */
    double seconds;
    uint32_t batch_blocks;
    uint32_t buffer_steps;
} setting_t;

static void fail(const char *what)
{
    fprintf(stderr, "bench_kv_events: %s\n", what);
    exit(1);
}

/* ---- the subscriber, a process -------------------------------------------------------------- */

typedef struct received {
    uint64_t batches;
    uint64_t lost; /* numbers that did not come */
    uint64_t bytes;
} received_t;

/* Tells through fd that something came, and at the end, at a batch of another topic, what. */
static void subscribe(const char *endpoint, int fd)
{
    received_t received = {0};
    uint64_t next = UINT64_MAX;
    const int zero = 0;
    void *context = zmq_ctx_new();
    void *socket = zmq_socket(context, ZMQ_SUB);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &zero, sizeof(zero));
    zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0);
    if (zmq_connect(socket, endpoint) != 0) {
        fail("cannot connect");
    }
    for (;;) {
        zmq_msg_t frames[3];
        for (int i = 0; i < 3; i++) {
            zmq_msg_init(&frames[i]);
            if (zmq_msg_recv(&frames[i], socket, 0) < 0) {
                fail("the subscriber cannot receive");
            }
        }
        const uint64_t sequence = kv_event_sequence_decode(zmq_msg_data(&frames[1]));
        const size_t bytes = zmq_msg_size(&frames[2]);
        for (int i = 0; i < 3; i++) {
            zmq_msg_close(&frames[i]);
        }
        if (next == UINT64_MAX && write(fd, "", 1) != 1) {
            fail("pipe");
        }
        received.lost += next == UINT64_MAX ? 0 : sequence - next;
        received.batches++;
        received.bytes += bytes;
        next = sequence + 1;
        if (bytes < 64) { /* AllBlocksCleared alone: the first ones, and the last */
            const ssize_t n = write(fd, &received, sizeof(received));
            (void)n;
        }
    }
}

/* ---- the engine ------------------------------------------------------------------------------ */

typedef struct engine {
    kv_publisher_t *publisher;
    kv_hash_t *hashes; /* [CACHED] in the order they were stored */
    int32_t tokens[TOKENS];
    uint64_t stored;
    uint64_t state;
    uint64_t busy_ns; /* in publisher calls */
} engine_t;

static uint64_t random_u64(engine_t *engine)
{
    uint64_t z = (engine->state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* As an engine's step: what is evicted when it is planned, what is full once it was carried out.
 * Names are made before the clock starts: hashing is not what is measured. */
static void step(engine_t *engine, uint32_t n)
{
    const uint64_t first = engine->stored;
    static kv_hash_t fresh[CACHED];
    for (uint32_t i = 0; i < n; i++) {
        for (size_t j = 0; j < KV_HASH_BYTES / sizeof(uint64_t); j++) {
            const uint64_t word = random_u64(engine);
            memcpy(fresh[i].bytes + j * sizeof(word), &word, sizeof(word));
        }
    }
    kv_name_t name = {.tokens = engine->tokens};
    const uint64_t begin = weft_clock_ns();
    for (uint32_t i = 0; i < n && first + i >= CACHED; i++) {
        kv_publisher_removed(engine->publisher, KV_TIER_device,
                             &engine->hashes[(first + i) % CACHED]);
    }
    for (uint32_t i = 0; i < n; i++) {
        engine->hashes[(first + i) % CACHED] = fresh[i];
        name.hash = fresh[i];
        name.is_first = (first + i) % CHAIN == 0;
        kv_publisher_stored(engine->publisher, KV_TIER_device, &name);
        name.parent = fresh[i];
    }
    kv_publisher_flush(engine->publisher);
    engine->busy_ns += weft_clock_ns() - begin;
    engine->stored += n;
}

static void pause_until(uint64_t at_ns)
{
    const uint64_t now = weft_clock_ns();
    if (at_ns > now) {
        const struct timespec delay = {.tv_sec = (time_t)((at_ns - now) / WEFT_NS_PER_SECOND),
                                       .tv_nsec = (long)((at_ns - now) % WEFT_NS_PER_SECOND)};
        nanosleep(&delay, NULL);
    }
}

static uint64_t thread_cpu_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * WEFT_NS_PER_SECOND + (uint64_t)time.tv_nsec;
}

static uint64_t process_cpu_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * WEFT_NS_PER_SECOND + (uint64_t)time.tv_nsec;
}

/* ---- one run --------------------------------------------------------------------------------- */

static kv_publisher_t *make_publisher(const setting_t *setting, char *endpoint, size_t size)
{
    char text[512];
    weft_diag_t diag = {0};
    kv_publisher_t *publisher = NULL;
    snprintf(text, sizeof(text),
             "{\"enable_kv_cache_events\": true, \"endpoint\": \"tcp://127.0.0.1:0\", "
             "\"replay_endpoint\": \"tcp://127.0.0.1:0\", \"buffer_steps\": %u}",
             setting->buffer_steps);
    const kv_publisher_config_t config = {.events_config = text,
                                          .block_tokens = TOKENS,
                                          .algo = KV_HASH_ALGO_sha256_cbor,
                                          .has_int_hashes = true};
    if (kv_publisher_create(&config, &diag, &publisher) < 0) {
        fail(diag.text);
    }
    json_t *sources = kv_publisher_sources(publisher);
    snprintf(endpoint, size, "%s",
             json_string_value(json_object_get(json_object_get(sources, "0"), "endpoint")));
    json_decref(sources);
    return publisher;
}

/* The subscriber has its subscription once something comes. */
static void wait_for_subscriber(kv_publisher_t *publisher, int fd)
{
    char byte;
    for (int ready = 0; ready == 0;) {
        kv_publisher_cleared(publisher);
        kv_publisher_flush(publisher);
        struct timespec delay = {.tv_nsec = 1000000};
        nanosleep(&delay, NULL);
        zmq_pollitem_t item = {.fd = fd, .events = ZMQ_POLLIN};
        ready = zmq_poll(&item, 1, 0);
    }
    if (read(fd, &byte, 1) != 1) {
        fail("the subscriber is gone");
    }
}

static received_t read_last(int fd, uint64_t batches)
{
    received_t received = {0};
    do {
        if (read(fd, &received, sizeof(received)) != sizeof(received)) {
            fail("the subscriber is gone");
        }
    } while (received.batches + received.lost + 1000 < batches);
    return received;
}

static void run(const setting_t *setting)
{
    int fds[2];
    char endpoint[128];
    static kv_hash_t hashes[CACHED];
    engine_t engine = {.hashes = hashes, .state = 1};
    for (int i = 0; i < TOKENS; i++) {
        engine.tokens[i] = (int32_t)(random_u64(&engine) % 150000);
    }
    engine.publisher = make_publisher(setting, endpoint, sizeof(endpoint));
    if (pipe(fds) != 0) {
        fail("pipe");
    }
    const pid_t child = fork();
    if (child == 0) {
        subscribe(endpoint, fds[1]);
    }
    wait_for_subscriber(engine.publisher, fds[0]);

    const kv_publisher_stats_t before = kv_publisher_stats(engine.publisher);
    const uint64_t cpu_begin = process_cpu_ns() - thread_cpu_ns();
    const uint64_t begin = weft_clock_ns();
    const double step_ns = setting->rate > 0 ? 1e9 * setting->batch_blocks / setting->rate : 0;
    uint64_t steps = 0;
    while ((double)(weft_clock_ns() - begin) < 1e9 * setting->seconds) {
        step(&engine, setting->batch_blocks);
        steps++;
        pause_until(begin + (uint64_t)(step_ns * (double)steps));
    }
    const double seconds = (double)(weft_clock_ns() - begin) * 1e-9;
    kv_publisher_cleared(engine.publisher);
    kv_publisher_flush(engine.publisher);
    const uint64_t batches = before.batches + steps + 1;
    while (kv_publisher_stats(engine.publisher).batches < batches) {
        pause_until(weft_clock_ns() + 1000000);
    }
    const double whole_seconds = (double)(weft_clock_ns() - begin) * 1e-9;
    const received_t received = read_last(fds[0], batches);
    const double cpu = (double)(process_cpu_ns() - thread_cpu_ns() - cpu_begin);
    const kv_publisher_stats_t after = kv_publisher_stats(engine.publisher);
    printf(
        "{\"rate\": %.0f, \"blocks_per_batch\": %u, \"buffer_steps\": %u, \"seconds\": %.2f, "
        "\"stored_per_s\": %.0f, \"published_per_s\": %.0f, \"engine_ns_per_block\": %.1f, "
        "\"publisher_cpu_ns_per_block\": %.0f, \"publisher_cpu\": %.3f, \"bytes_per_block\": %.1f, "
        "\"batches\": %llu, \"received\": %llu, \"lost\": %llu, \"stalls\": %llu, "
        "\"wakes\": %llu}\n",
        setting->rate, setting->batch_blocks, setting->buffer_steps, seconds,
        (double)engine.stored / seconds, (double)engine.stored / whole_seconds,
        (double)engine.busy_ns / (double)engine.stored, cpu / (double)engine.stored,
        cpu * 1e-9 / whole_seconds, (double)(after.bytes - before.bytes) / (double)engine.stored,
        (unsigned long long)(after.batches - before.batches), (unsigned long long)received.batches,
        (unsigned long long)received.lost, (unsigned long long)after.stalls,
        (unsigned long long)after.wakes);
    fflush(stdout);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(fds[0]);
    close(fds[1]);
    kv_publisher_destroy(engine.publisher);
}

int main(int argc, char **argv)
{
    setting_t setting = {.rate = argc > 1 ? strtod(argv[1], NULL) : 200000,
                         .seconds = argc > 2 ? strtod(argv[2], NULL) : 5,
                         .batch_blocks = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 256,
                         .buffer_steps = 10000};
    if (!(setting.rate >= 0) || !(setting.seconds > 0) || setting.batch_blocks == 0 ||
        setting.batch_blocks > CACHED) {
        fail("usage: bench_kv_events [blocks per second] [seconds] [blocks per batch]");
    }
    weft_log_set_level(WEFT_LOG_WARN);
    run(&setting);
    setting.buffer_steps = 100;
    run(&setting);
    return 0;
}
