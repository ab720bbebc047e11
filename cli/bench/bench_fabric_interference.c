/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What pulls cost a model that decodes: the time between its tokens, by turns with and without
 * blocks being read from an idle process meanwhile. The engine has one thread and the first core of
 * --cpus; the target has the second, and the agent whose thread does the pulling the third, or the
 * second.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/json_writer.h"
#include "cli/bench/bench_fabric_rig.h"
#include "cli/bench/bench_machine.h"
#include "cli/bench/bench_print.h"
#include "cli/bench/bench_progress.h"
#include "cli/bench/bench_samples.h"

#define PROMPT_TOKENS  16
#define DEFAULT_TOKENS 256 /* of an answer: a phase */
#define WAIT_MS        60000
#define MS             1e3 /* in a second */

typedef struct interference {
    const bench_fabric_options_t *options;
    bench_fabric_rig_t rig;
    xfer_request_t *request;
    model_source_t *source;
    engine_t *engine;
    engine_client_t *client;
    uint32_t tokens; /* of a phase */
    uint64_t *steps; /* [tokens + 1], ends of steps; the engine thread's while it decodes */
    _Atomic uint32_t n_steps; /* stored by on_step behind the step, loaded by note_gaps */
    bench_samples_t gaps[2];  /* seconds between tokens: without, with pulls */

    _Atomic bool is_pulling; /* cleared to end the puller */
    weft_status_t pull_status;
    uint64_t pulled_bytes; /* of all phases */
    uint64_t pulling_ns;
} interference_t;

/* ---- pulls ----------------------------------------------------------------------------------- */

static weft_status_t make_request(interference_t *run, weft_diag_t *diag)
{
    const bench_fabric_geometry_t *geometry = &run->rig.geometry;
    const xfer_memory_t *memory = &run->rig.end.segment.memory;
    const bench_fabric_target_t *target = &run->rig.target;
    const xfer_run_t local = bench_fabric_lane(geometry, memory->addr, 0);
    const xfer_run_t peer = bench_fabric_lane(geometry, target->memory.addr, 0);
    uint32_t *ids = weft_calloc(2 * geometry->n_blocks, sizeof(*ids), "bench_fabric.ids");
    xfer_list_t *lists[2] = {NULL, NULL};
    weft_status_t status = ids == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    if (status >= 0) {
        status = bench_fabric_pick(geometry, BENCH_FABRIC_INITIATOR, 0, ids);
    }
    if (status >= 0) {
        status = bench_fabric_pick(geometry, BENCH_FABRIC_TARGET, 0, ids + geometry->n_blocks);
    }
    if (status >= 0) {
        status =
            xfer_list_create(run->rig.end.agent, NULL, memory->space, &local, 1, diag, &lists[0]);
    }
    if (status >= 0) {
        status = xfer_list_create(run->rig.end.agent, run->rig.peer, target->memory.space, &peer, 1,
                                  diag, &lists[1]);
    }
    if (status >= 0) {
        const xfer_request_config_t config = {
            .direction = XFER_READ,
            .local = lists[0],
            .peer = lists[1],
            .local_ids = ids,
            .peer_ids = ids + geometry->n_blocks,
            .n = geometry->n_blocks,
        };
        status = xfer_request_create(run->rig.end.agent, &config, diag, &run->request);
    }
    xfer_list_destroy(lists[0]);
    xfer_list_destroy(lists[1]);
    weft_free(ids);
    return status;
}

static void sleep_until(uint64_t due_ns)
{
    const uint64_t now = weft_clock_ns();
    const uint64_t ns = due_ns > now ? due_ns - now : 0;
    const struct timespec pause = {(time_t)(ns / WEFT_NS_PER_SECOND),
                                   (long)(ns % WEFT_NS_PER_SECOND)};
    nanosleep(&pause, NULL);
}

/* A transfer each time that one is due, at --pull-rate; one at least. Who is late does not make up for it. */
static void *pull(void *user)
{
    interference_t *run = user;
    const bench_fabric_geometry_t *geometry = &run->rig.geometry;
    const uint64_t bytes = geometry->block_bytes * geometry->n_blocks;
    const uint64_t interval = bytes * WEFT_NS_PER_SECOND / run->options->pull_rate;
    const uint64_t start = weft_clock_ns();
    uint64_t due = start;
    weft_status_t status = WEFT_OK;
    do {
        status = xfer_post(run->request);
        due += interval;
        sleep_until(due);
        while (status >= 0 && (status = xfer_poll(run->request)) == WEFT_PENDING) {
            sleep_until(weft_clock_ns() + 50000);
        }
        run->pulled_bytes += bytes;
        const uint64_t now = weft_clock_ns();
        due = due + interval < now ? now : due;
    } while (status >= 0 && atomic_load(&run->is_pulling));
    run->pulling_ns += weft_clock_ns() - start;
    run->pull_status = status;
    return NULL;
}

/* ---- decoding -------------------------------------------------------------------------------- */

/* On the engine's thread. */
static void on_step(void *user, uint32_t tokens)
{
    interference_t *run = user;
    const uint32_t n = atomic_load(&run->n_steps);
    if (tokens == 1 && n <= run->tokens) {
        run->steps[n] = weft_clock_ns();
        atomic_store(&run->n_steps, n + 1);
    }
}

static weft_status_t decode(interference_t *run, weft_diag_t *diag)
{
    int32_t prompt[PROMPT_TOKENS];
    engine_request_t *request = NULL;
    for (int32_t i = 0; i < PROMPT_TOKENS; i++) {
        prompt[i] = 100 + i;
    }
    const engine_submit_t submit = {
        .id = "bench",
        .prompt = prompt,
        .n_prompt = PROMPT_TOKENS,
        .n = 1,
        .sampling = {.top_p = 1,
                     .repetition_penalty = 1,
                     .max_tokens = run->tokens,
                     .ignore_eos = true},
    };
    atomic_store(&run->n_steps, 0);
    const weft_status_t status = engine_submit(run->engine, run->client, &submit, diag, &request);
    if (status < 0) {
        return status;
    }
    while (engine_request_answer(request, 0).finish == ENGINE_FINISH_NONE) {
        engine_client_wait(run->client, WAIT_MS);
    }
    const engine_finish_t finish = engine_request_answer(request, 0).finish;
    engine_request_release(request);
    return finish == ENGINE_FINISH_LENGTH
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INTERNAL, "the model stopped decoding");
}

/* Not the first one: before it may be the last step of the phase before, told of late. */
static weft_status_t note_gaps(interference_t *run, bench_samples_t *gaps)
{
    weft_status_t status = WEFT_OK;
    const uint32_t n = atomic_load(&run->n_steps);
    for (uint32_t i = 2; status >= 0 && i < n; i++) {
        status = bench_samples_add(gaps, (double)(run->steps[i] - run->steps[i - 1]) /
                                             (double)WEFT_NS_PER_SECOND);
    }
    return status;
}

static weft_status_t run_phase(interference_t *run, bool has_pulls, bool counts, weft_diag_t *diag)
{
    pthread_t puller;
    atomic_store(&run->is_pulling, has_pulls);
    if (has_pulls && pthread_create(&puller, NULL, pull, run) != 0) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no thread");
    }
    weft_status_t status = decode(run, diag);
    atomic_store(&run->is_pulling, false);
    if (has_pulls) {
        pthread_join(puller, NULL);
    }
    if (status >= 0 && has_pulls && run->pull_status < 0) {
        status = weft_diag(diag, run->pull_status, "a pull: %s", weft_strerror(run->pull_status));
    }
    return status < 0 || !counts ? status : note_gaps(run, &run->gaps[has_pulls]);
}

static weft_status_t run_phases(interference_t *run, weft_diag_t *diag)
{
    bench_progress_t progress = {0};
    weft_status_t status = run_phase(run, true, false, diag);
    run->pulled_bytes = 0;
    run->pulling_ns = 0;
    for (uint32_t i = 0; status >= 0 && i < run->options->rounds; i++) {
        bench_progress_show(&progress, "round %u of %u", i + 1, run->options->rounds);
        status = run_phase(run, false, true, diag);
        if (status >= 0) {
            status = run_phase(run, true, true, diag);
        }
    }
    bench_progress_end(&progress);
    return status;
}

/* ---- making ---------------------------------------------------------------------------------- */

static weft_status_t open_rig(interference_t *run, weft_diag_t *diag)
{
    const bench_fabric_options_t *options = run->options;
    const uint32_t place = strchr(options->cpus, ',') == NULL ? 0 : 1;
    const char *second = strchr(options->cpus, ',');
    const bench_fabric_rig_config_t config = {
        .has_thread = true,
        .place = second != NULL && strchr(second + 1, ',') != NULL ? 2 : place,
    };
    const bench_fabric_size_t size = {options->start_block_size,
                                      options->start_total / options->start_block_size};
    weft_status_t status =
        size.n_blocks == 0 || options->pull_rate == 0
            ? weft_diag(diag, WEFT_ERR_INVALID,
                        "--interference: start-total holds no block, or pull-rate is 0")
            : bench_fabric_geometry(options, &size, 1, diag, &run->rig.geometry);
    run->rig.geometry.block_bytes = size.block_bytes;
    run->rig.geometry.n_blocks = size.n_blocks;
    run->rig.geometry.lanes = 1;
    if (status >= 0) {
        status = bench_fabric_rig_open(&run->rig, &config, diag);
    }
    if (status >= 0) {
        status = bench_fabric_segment_fill(&run->rig.end.segment, 1);
    }
    return status < 0 ? status : make_request(run, diag);
}

/* The engine's threads are started from this one, while it is where they shall be. */
static weft_status_t open_engine(interference_t *run, const engine_options_t *engine,
                                 weft_diag_t *diag)
{
    const engine_observer_t observer = {.user = run, .on_step = on_step};
    engine_options_t options = *engine;
    options.threads = engine->threads == 0 ? 1 : engine->threads;
    options.enable_prefix_caching = false;
    options.max_num_seqs = 1;
    options.max_model_len =
        engine->max_model_len > 0 ? engine->max_model_len : PROMPT_TOKENS + run->tokens + 1;
    run->steps = weft_calloc(run->tokens + 1, sizeof(*run->steps), "bench_fabric.steps");
    weft_status_t status =
        run->steps == NULL ? WEFT_ERR_NO_MEMORY : bench_fabric_pin(run->options, 0, diag);
    if (status >= 0) {
        status = model_source_open(run->options->model, diag, &run->source);
    }
    if (status >= 0) {
        status = engine_create(&options, run->source, NULL, NULL, diag, &run->engine);
    }
    if (status >= 0) {
        engine_observe(run->engine, &observer);
        status = engine_client_create(run->engine, &run->client);
    }
    return status < 0 ? status : bench_fabric_pin(run->options, 1, diag);
}

static void interference_fini(interference_t *run)
{
    if (run->client != NULL) {
        engine_client_destroy(run->client);
    }
    engine_destroy(run->engine);
    model_source_close(run->source);
    xfer_request_destroy(run->request);
    bench_fabric_rig_close(&run->rig);
    bench_samples_fini(&run->gaps[0]);
    bench_samples_fini(&run->gaps[1]);
    weft_free(run->steps);
}

/* ---- telling --------------------------------------------------------------------------------- */

static void put_gaps(weft_json_t *json, const char *name, const bench_distribution_t *gaps)
{
    weft_json_key(json, name);
    weft_json_begin_object(json);
    weft_json_put_f64(json, "mean", gaps->mean * MS);
    weft_json_put_f64(json, "p50", gaps->p50 * MS);
    weft_json_put_f64(json, "p90", gaps->p90 * MS);
    weft_json_put_f64(json, "p99", gaps->p99 * MS);
    weft_json_put_f64(json, "max", gaps->max * MS);
    weft_json_end_object(json);
}

static weft_status_t print(interference_t *run)
{
    const bench_distribution_t without = bench_samples_distribute(&run->gaps[0]);
    const bench_distribution_t with = bench_samples_distribute(&run->gaps[1]);
    const double ratio = without.p99 > 0 ? with.p99 / without.p99 : 0;
    const double rate = (double)run->pulled_bytes / (double)(run->pulling_ns + 1); /* GB/s */
    char cpu[256];
    bench_machine_cpu(cpu, sizeof(cpu));
    if (!run->options->json) {
        printf("%s; cores %s; %zu tokens each; %.2f GB/s pulled\n", cpu, run->options->cpus,
               run->gaps[0].n, rate);
        printf("%-16s %10s %10s %10s %10s\n", "between tokens", "p50 ms", "p90 ms", "p99 ms",
               "max ms");
        printf("%-16s %10.3f %10.3f %10.3f %10.3f\n", "without pulls", without.p50 * MS,
               without.p90 * MS, without.p99 * MS, without.max * MS);
        printf("%-16s %10.3f %10.3f %10.3f %10.3f   p99 is %.3f times\n", "with pulls",
               with.p50 * MS, with.p90 * MS, with.p99 * MS, with.max * MS, ratio);
        return fflush(stdout) == 0 ? WEFT_OK : WEFT_ERR_IO;
    }
    weft_buffer_t out = {0};
    weft_json_t json;
    weft_json_init(&json, &out);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "version", WEFT_VERSION);
    weft_json_put_string(&json, "cpu", cpu);
    weft_json_put_string(&json, "cpus", run->options->cpus);
    weft_json_put_u64(&json, "tokens", run->gaps[0].n);
    weft_json_put_f64(&json, "pulled_gb_s", rate);
    put_gaps(&json, "without_ms", &without);
    put_gaps(&json, "with_ms", &with);
    weft_json_put_f64(&json, "p99_ratio", ratio);
    weft_json_end_object(&json);
    return bench_print_buffer(&out);
}

weft_status_t bench_fabric_interference(const bench_fabric_options_t *options,
                                        const engine_options_t *engine, weft_diag_t *diag)
{
    interference_t run = {
        .options = options,
        .rig.options = options,
        .tokens = options->iterations > 0 ? options->iterations : DEFAULT_TOKENS,
    };
    weft_status_t status = options->model[0] == '\0'
                               ? weft_diag(diag, WEFT_ERR_INVALID, "no model: give --model PATH")
                               : open_rig(&run, diag);
    if (status >= 0) {
        status = open_engine(&run, engine, diag);
    }
    if (status >= 0) {
        status = run_phases(&run, diag);
    }
    if (status >= 0) {
        status = print(&run);
    }
    interference_fini(&run);
    return status;
}
