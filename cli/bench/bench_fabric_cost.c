/* SPDX-License-Identifier: Apache-2.0 */
/* What calls cost, apart from the bytes: posting, describing, notifications, and doing nothing. */
#include <errno.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "base/json_writer.h"
#include "cli/bench/bench_fabric_rig.h"
#include "cli/bench/bench_fabric_wake.h"
#include "cli/bench/bench_figures.h"
#include "cli/bench/bench_machine.h"
#include "cli/bench/bench_print.h"
#include "cli/bench/bench_random.h"

#define PIECE_BYTES  64
#define STRIDE_BYTES 128 /* so that no two pieces touch */
#define MANY         100000
#define BUSY_BYTES   ((uint64_t)64 << 20) /* of a transfer that keeps the thread awake */
#define POSTS        101
#define ASLEEP_NS    (2 * WEFT_NS_PER_MS) /* after so long with nothing to do a thread sleeps */
#define DESCRIPTIONS 11
#define IDLE_SECONDS 2
#define WAIT_SECONDS 30

typedef struct cost {
    const bench_fabric_options_t *options;
    bench_fabric_rig_t rig;
    bool has_thread;
    sem_t echoes;                  /* notifications that came back */
    _Atomic(xfer_agent_t *) agent; /* of rig; set once introduced, read by on_event */
    bench_figures_t *figures;
} cost_t;

static void pause_ns(uint64_t ns)
{
    struct timespec left = {(time_t)(ns / WEFT_NS_PER_SECOND), (long)(ns % WEFT_NS_PER_SECOND)};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

static weft_status_t note(cost_t *cost, const char *name, uint64_t ns)
{
    return bench_figures_note(cost->figures, name, "s", (double)ns / (double)WEFT_NS_PER_SECOND);
}

/* ---- transfers ------------------------------------------------------------------------------- */

/* count pieces, apart from each other, of ours or the target's. */
static weft_status_t describe(const cost_t *cost, bool is_peer, uint64_t bytes, uint64_t stride,
                              uint64_t count, weft_diag_t *diag, xfer_list_t **list_out)
{
    const xfer_memory_t *memory =
        is_peer ? &cost->rig.target.memory : &cost->rig.end.segment.memory;
    const xfer_run_t run = {
        .addr = memory->addr,
        .bytes = bytes,
        .device = memory->device,
        .stride = stride,
        .count = count,
    };
    return xfer_list_create(cost->rig.end.agent, is_peer ? cost->rig.peer : NULL, memory->space,
                            &run, 1, diag, list_out);
}

/* A read of count pieces; lists go, requests made of them live on. */
static weft_status_t make_read(const cost_t *cost, uint64_t bytes, uint64_t stride, uint64_t count,
                               const char *notification, weft_diag_t *diag,
                               xfer_request_t **request_out)
{
    xfer_list_t *local = NULL;
    xfer_list_t *peer = NULL;
    weft_status_t status = describe(cost, false, bytes, stride, count, diag, &local);
    if (status >= 0) {
        status = describe(cost, true, bytes, stride, count, diag, &peer);
    }
    if (status >= 0) {
        const xfer_request_config_t config = {
            .direction = XFER_READ,
            .local = local,
            .peer = peer,
            .n = count,
            .notification = notification,
            .notification_bytes = notification == NULL ? 0 : strlen(notification),
        };
        status = xfer_request_create(cost->rig.end.agent, &config, diag, request_out);
    }
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    return status;
}

static weft_status_t finish(const cost_t *cost, const xfer_request_t *request, weft_diag_t *diag)
{
    const uint64_t until = weft_clock_ns() + WAIT_SECONDS * WEFT_NS_PER_SECOND;
    weft_status_t status = xfer_poll(request);
    while (status == WEFT_PENDING) {
        if (!cost->has_thread) {
            xfer_progress(cost->rig.end.agent, 0);
        }
        if (weft_clock_ns() > until) {
            return weft_diag(diag, WEFT_ERR_TIMEOUT, "a transfer does not end");
        }
        status = xfer_poll(request);
    }
    return status < 0 ? weft_diag(diag, status, "a transfer: %s", weft_strerror(status)) : WEFT_OK;
}

/* ---- posting --------------------------------------------------------------------------------- */

typedef enum worker { DRIVEN, AWAKE, ASLEEP, WORKERS } worker_t;

static const struct {
    uint64_t runs;
    const char *names[WORKERS];
} post_rows[] = {
    {1, {"post 1 run, caller-driven", "post 1 run, thread awake", "post 1 run, thread asleep"}},
    {16,
     {"post 16 runs, caller-driven", "post 16 runs, thread awake", "post 16 runs, thread asleep"}},
    {256,
     {"post 256 runs, caller-driven", "post 256 runs, thread awake",
      "post 256 runs, thread asleep"}},
    {4096,
     {"post 4096 runs, caller-driven", "post 4096 runs, thread awake",
      "post 4096 runs, thread asleep"}},
};

/* The posting alone is timed; busy, NULL but for AWAKE, runs meanwhile. */
static weft_status_t post_once(cost_t *cost, worker_t worker, xfer_request_t *request,
                               xfer_request_t *busy, weft_diag_t *diag, uint64_t *ns_out)
{
    weft_status_t status = WEFT_OK;
    if (worker == ASLEEP) {
        pause_ns(ASLEEP_NS);
    }
    if (worker == AWAKE) {
        status = xfer_post(busy);
        const uint64_t until = weft_clock_ns() + WEFT_NS_PER_MS;
        while (status >= 0 && weft_clock_ns() < until) {
            weft_cpu_relax();
        }
    }
    const uint64_t start = weft_clock_ns();
    if (status >= 0) {
        status = xfer_post(request);
    }
    *ns_out = weft_clock_ns() - start;
    if (status < 0) {
        return weft_diag(diag, status, "posting: %s", weft_strerror(status));
    }
    status = finish(cost, request, diag);
    return status < 0 || worker != AWAKE ? status : finish(cost, busy, diag);
}

static weft_status_t post_row(cost_t *cost, worker_t worker, size_t row, xfer_request_t *busy,
                              weft_diag_t *diag)
{
    xfer_request_t *request = NULL;
    weft_status_t status =
        make_read(cost, PIECE_BYTES, STRIDE_BYTES, post_rows[row].runs, NULL, diag, &request);
    for (int i = 0; status >= 0 && i < POSTS; i++) {
        uint64_t ns;
        status = post_once(cost, worker, request, busy, diag, &ns);
        if (status >= 0 && i > 0) {
            status = note(cost, post_rows[row].names[worker], ns);
        }
    }
    xfer_request_destroy(request);
    return status;
}

static weft_status_t measure_posts(cost_t *cost, worker_t worker, weft_diag_t *diag)
{
    xfer_request_t *busy = NULL;
    weft_status_t status = WEFT_OK;
    if (worker == AWAKE) {
        status = make_read(cost, BUSY_BYTES, BUSY_BYTES, 1, NULL, diag, &busy);
    }
    for (size_t row = 0; status >= 0 && row < WEFT_ARRAY_LEN(post_rows); row++) {
        status = post_row(cost, worker, row, busy, diag);
    }
    xfer_request_destroy(busy);
    return status;
}

static weft_status_t measure_driven_posts(cost_t *cost, weft_diag_t *diag)
{
    return measure_posts(cost, DRIVEN, diag);
}

static weft_status_t measure_thread_posts(cost_t *cost, weft_diag_t *diag)
{
    weft_status_t status = measure_posts(cost, AWAKE, diag);
    if (status >= 0) {
        status = measure_posts(cost, ASLEEP, diag);
    }
    return status < 0 ? status : bench_fabric_wake(POSTS, ASLEEP_NS, cost->figures, diag);
}

/* ---- describing ------------------------------------------------------------------------------ */

static weft_status_t describe_plain(cost_t *cost, const xfer_run_t *runs, weft_diag_t *diag)
{
    xfer_list_t *list = NULL;
    const uint64_t start = weft_clock_ns();
    weft_status_t status =
        xfer_list_create(cost->rig.end.agent, NULL, XFER_DRAM, runs, MANY, diag, &list);
    if (status >= 0) {
        status = note(cost, "describe 100000 blocks", weft_clock_ns() - start);
    }
    xfer_list_destroy(list);
    return status;
}

static weft_status_t describe_strided(cost_t *cost, weft_diag_t *diag)
{
    xfer_list_t *list = NULL;
    const uint64_t start = weft_clock_ns();
    weft_status_t status = describe(cost, false, PIECE_BYTES, STRIDE_BYTES, MANY, diag, &list);
    if (status >= 0) {
        status = note(cost, "describe 100000 blocks, strided", weft_clock_ns() - start);
    }
    xfer_list_destroy(list);
    return status;
}

static weft_status_t transfer_many(cost_t *cost, weft_diag_t *diag)
{
    xfer_request_t *request = NULL;
    uint64_t start = weft_clock_ns();
    weft_status_t status = make_read(cost, PIECE_BYTES, STRIDE_BYTES, MANY, NULL, diag, &request);
    if (status >= 0) {
        status = note(cost, "request of 100000 blocks", weft_clock_ns() - start);
    }
    start = weft_clock_ns();
    if (status >= 0) {
        status = xfer_post(request);
    }
    if (status >= 0) {
        status = note(cost, "post 100000 blocks, caller-driven", weft_clock_ns() - start);
    }
    if (status >= 0) {
        status = finish(cost, request, diag);
    }
    if (status >= 0) {
        status = note(cost, "transfer of 100000 blocks", weft_clock_ns() - start);
    }
    xfer_request_destroy(request);
    return status;
}

/* In no order, so that no two continue each other. */
static void shuffle_runs(xfer_run_t *runs, uint64_t base, uint64_t device)
{
    bench_random_t random = {.state = 1};
    for (uint64_t i = 0; i < MANY; i++) {
        runs[i] = (xfer_run_t){
            .addr = base + i * PIECE_BYTES, .bytes = PIECE_BYTES, .device = device, .count = 1};
    }
    for (uint64_t i = MANY - 1; i > 0; i--) {
        const uint64_t j = bench_random_next(&random) % (i + 1);
        const xfer_run_t run = runs[i];
        runs[i] = runs[j];
        runs[j] = run;
    }
}

static weft_status_t measure_descriptions(cost_t *cost, weft_diag_t *diag)
{
    const xfer_memory_t *memory = &cost->rig.end.segment.memory;
    xfer_run_t *runs = weft_calloc(MANY, sizeof(*runs), "bench_fabric.runs");
    weft_status_t status = runs == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    if (status >= 0) {
        shuffle_runs(runs, memory->addr, memory->device);
    }
    for (int i = 0; status >= 0 && i < DESCRIPTIONS; i++) {
        status = describe_plain(cost, runs, diag);
        if (status >= 0) {
            status = describe_strided(cost, diag);
        }
        if (status >= 0) {
            status = transfer_many(cost, diag);
        }
    }
    weft_free(runs);
    return status;
}

/* ---- notifications --------------------------------------------------------------------------- */

static void on_event(void *user)
{
    cost_t *cost = user;
    xfer_agent_t *agent = atomic_load(&cost->agent);
    xfer_notification_t *notification = agent == NULL ? NULL : xfer_next_notification(agent);
    while (notification != NULL) {
        sem_post(&cost->echoes);
        xfer_notification_free(notification);
        notification = xfer_next_notification(agent);
    }
}

static weft_status_t await_echo(cost_t *cost, weft_diag_t *diag)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_SECONDS;
    while (sem_timedwait(&cost->echoes, &until) != 0) {
        if (errno != EINTR) {
            return weft_diag(diag, WEFT_ERR_TIMEOUT, "a notification did not come back");
        }
    }
    return WEFT_OK;
}

/* Both agents sleep in between, as they would. */
static weft_status_t measure_echoes(cost_t *cost, weft_diag_t *diag)
{
    static const char echo[] = {BENCH_FABRIC_ECHO};
    weft_status_t status = WEFT_OK;
    for (int i = 0; status >= 0 && i < POSTS; i++) {
        pause_ns(WEFT_NS_PER_MS);
        const uint64_t start = weft_clock_ns();
        status = xfer_notify(cost->rig.peer, echo, sizeof(echo));
        if (status >= 0) {
            status = await_echo(cost, diag);
        }
        if (status >= 0 && i > 0) {
            status = note(cost, "notification, there and back", weft_clock_ns() - start);
        }
    }
    return status;
}

/* The initiator posts and does nothing more; the target says when the notification came. */
static weft_status_t measure_alarms(cost_t *cost, weft_diag_t *diag)
{
    static const char alarm[] = {BENCH_FABRIC_ALARM, '\0'};
    bench_fabric_target_t *target = &cost->rig.target;
    xfer_request_t *request = NULL;
    weft_status_t status = make_read(cost, PIECE_BYTES, STRIDE_BYTES, 16, alarm, diag, &request);
    if (target->child == 0) {
        xfer_request_destroy(request);
        return status; /* its clock is not ours */
    }
    for (int i = 0; status >= 0 && i < POSTS; i++) {
        uint64_t came = 0;
        status = bench_fabric_target_ask(target, BENCH_FABRIC_FORGET, NULL, diag, NULL);
        const uint64_t start = weft_clock_ns();
        if (status >= 0) {
            status = xfer_post(request);
        }
        if (status >= 0) {
            status = bench_fabric_target_ask(target, BENCH_FABRIC_AWAIT, NULL, diag, &came);
        }
        if (status >= 0 && i > 0) {
            status = note(cost, "read of 16 runs to notification there, unpolled", came - start);
        }
        if (status >= 0) {
            status = finish(cost, request, diag);
        }
    }
    xfer_request_destroy(request);
    return status;
}

static weft_status_t measure_notifications(cost_t *cost, weft_diag_t *diag)
{
    const weft_status_t status = measure_echoes(cost, diag);
    return status < 0 ? status : measure_alarms(cost, diag);
}

/* ---- idling ---------------------------------------------------------------------------------- */

static uint64_t used_ns(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * WEFT_NS_PER_SECOND +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
}

static weft_status_t measure_idling(cost_t *cost, weft_diag_t *diag)
{
    bench_fabric_target_t *target = &cost->rig.target;
    const double span = (double)IDLE_SECONDS * (double)WEFT_NS_PER_SECOND;
    uint64_t before = 0;
    uint64_t after = 0;
    weft_status_t status = bench_fabric_target_ask(target, BENCH_FABRIC_USAGE, NULL, diag, &before);
    const uint64_t start = used_ns();
    pause_ns(IDLE_SECONDS * WEFT_NS_PER_SECOND);
    const uint64_t used = used_ns() - start;
    if (status >= 0) {
        status = bench_fabric_target_ask(target, BENCH_FABRIC_USAGE, NULL, diag, &after);
    }
    if (status >= 0) {
        status = bench_figures_note(cost->figures, "idle, initiator", "cores", (double)used / span);
    }
    return status < 0 ? status
                      : bench_figures_note(cost->figures, "idle, target", "cores",
                                           (double)(after - before) / span);
}

/* ---- all of them ----------------------------------------------------------------------------- */

typedef weft_status_t (*part_fn)(cost_t *cost, weft_diag_t *diag);

static weft_status_t measure(const bench_fabric_options_t *options, bool has_thread,
                             const part_fn *parts, bench_figures_t *figures, weft_diag_t *diag)
{
    cost_t cost = {.options = options, .has_thread = has_thread, .figures = figures};
    const bench_fabric_rig_config_t config = {
        .has_thread = has_thread, .on_event = on_event, .user = &cost};
    cost.rig.options = options;
    cost.rig.geometry.pool_bytes = BUSY_BYTES;
    sem_init(&cost.echoes, 0, 0);
    weft_status_t status = bench_fabric_rig_open(&cost.rig, &config, diag);
    if (status >= 0) {
        status = bench_fabric_segment_fill(&cost.rig.end.segment, 0);
    }
    if (status >= 0) {
        const uint64_t salt[BENCH_FABRIC_WORDS] = {0};
        status = bench_fabric_target_ask(&cost.rig.target, BENCH_FABRIC_FILL, salt, diag, NULL);
    }
    atomic_store(&cost.agent, cost.rig.end.agent);
    for (const part_fn *part = parts; status >= 0 && *part != NULL; part++) {
        status = (*part)(&cost, diag);
    }
    bench_fabric_rig_close(&cost.rig);
    sem_destroy(&cost.echoes);
    return status;
}

static weft_status_t print_json(bench_figures_t *figures, const char *cpu)
{
    weft_buffer_t out = {0};
    weft_json_t json;
    weft_json_init(&json, &out);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "version", WEFT_VERSION);
    weft_json_put_string(&json, "cpu", cpu);
    bench_figures_put(figures, &json);
    weft_json_end_object(&json);
    return bench_print_buffer(&out);
}

static weft_status_t print(const bench_fabric_options_t *options, bench_figures_t *figures)
{
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    if (options->json) {
        return print_json(figures, cpu);
    }
    printf("%s; median (min to max)\n", cpu);
    bench_figures_print(figures);
    return fflush(stdout) == 0 ? WEFT_OK : WEFT_ERR_IO;
}

weft_status_t bench_fabric_cost(const bench_fabric_options_t *options, weft_diag_t *diag)
{
    static const part_fn driven[] = {measure_driven_posts, measure_descriptions, NULL};
    static const part_fn threaded[] = {measure_thread_posts, measure_notifications, measure_idling,
                                       NULL};
    static bench_figures_t figures;
    if (strcmp(options->initiator_segment, "dram") != 0 ||
        strcmp(options->target_segment, "dram") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--cost: is of DRAM");
    }
    weft_status_t status = measure(options, false, driven, &figures, diag);
    if (status >= 0) {
        status = measure(options, true, threaded, &figures, diag);
    }
    if (status >= 0) {
        status = print(options, &figures);
    }
    bench_figures_fini(&figures);
    return status;
}
