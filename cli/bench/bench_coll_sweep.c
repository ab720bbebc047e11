/* SPDX-License-Identifier: Apache-2.0 */
/* What every rank does for each size: warm up, measure, compare. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/bench/bench_coll.h"
#include "cli/bench/bench_samples.h"
#include "transport/coll/coll_half.h"
#include "transport/coll/coll_sum.h"

#define MIN_ITERATIONS 5
#define MAX_ITERATIONS 20000

typedef struct sweep sweep_t;

typedef struct kind {
    const char *name;
    bool is_sum;
    bool can_be_in_place;
    bool is_shared_out; /* its size is that of all ranks' parts together */
    double (*bus_factor)(double ranks);
    void (*run)(const sweep_t *sweep, const void *in, void *out, size_t n);
} kind_t;

struct sweep {
    const bench_coll_options_t *options;
    const bench_coll_rank_t *rank;
    const kind_t *kind;
    coll_t *coll;
    weft_device_t *device;
    weft_queue_t *queue;
    coll_dtype_t dtype;
    size_t width;
    weft_mem_t in;   /* [max_bytes] */
    weft_mem_t out;  /* [max_bytes] */
    void *host;      /* [max_bytes], what the host writes and reads of them */
    double *seconds; /* [ranks], of one round */
};

/* ---- the operations --------------------------------------------------------------------------- */

static double twice_the_others(double ranks)
{
    return 2 * (ranks - 1) / ranks;
}

static double the_others(double ranks)
{
    return (ranks - 1) / ranks;
}

static double once(double ranks)
{
    (void)ranks;
    return 1;
}

static void run_all_reduce(const sweep_t *sweep, const void *in, void *out, size_t n)
{
    coll_all_reduce(sweep->coll, sweep->queue, in, out, n, sweep->dtype);
}

static void run_all_gather(const sweep_t *sweep, const void *in, void *out, size_t n)
{
    coll_all_gather(sweep->coll, sweep->queue, in, out, n * sweep->width);
}

static void run_reduce_scatter(const sweep_t *sweep, const void *in, void *out, size_t n)
{
    coll_reduce_scatter(sweep->coll, sweep->queue, in, out, n, sweep->dtype);
}

static void run_broadcast(const sweep_t *sweep, const void *in, void *out, size_t n)
{
    void *buffer = sweep->rank->rank == sweep->options->root ? (void *)(uintptr_t)in : out;
    coll_broadcast(sweep->coll, sweep->queue, buffer, n * sweep->width, sweep->options->root);
}

static void run_barrier(const sweep_t *sweep, const void *in, void *out, size_t n)
{
    (void)in;
    (void)out;
    (void)n;
    coll_barrier(sweep->coll, sweep->queue);
}

static void run_sendrecv(const sweep_t *sweep, const void *in, void *out, size_t n)
{
    const uint32_t size = coll_size(sweep->coll);
    const uint32_t rank = sweep->rank->rank;
    if (size > 1) {
        coll_send(sweep->coll, sweep->queue, (rank + 1) % size, in, n * sweep->width);
        coll_receive(sweep->coll, sweep->queue, (rank + size - 1) % size, out, n * sweep->width);
    }
}

static const kind_t kinds[] = {
    {"all_reduce", true, true, false, twice_the_others, run_all_reduce},
    {"all_gather", false, true, true, the_others, run_all_gather},
    {"reduce_scatter", true, false, true, the_others, run_reduce_scatter},
    {"broadcast", false, false, false, once, run_broadcast},
    {"barrier", false, false, false, once, run_barrier},
    {"sendrecv", false, false, false, once, run_sendrecv},
};

static const kind_t *find_kind(const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(kinds); i++) {
        if (strcmp(kinds[i].name, name) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}

double bench_coll_bus_factor(const bench_coll_options_t *options)
{
    return find_kind(options->op)->bus_factor(options->ranks);
}

bool bench_coll_has_root(const bench_coll_options_t *options)
{
    return find_kind(options->op)->run == run_broadcast;
}

bool bench_coll_is_sum(const bench_coll_options_t *options)
{
    return find_kind(options->op)->is_sum;
}

/* ---- right or wrong --------------------------------------------------------------------------- */

/* Small whole numbers: sums of them are exact in every type. */
static float value_of(uint32_t rank, size_t i)
{
    return (float)((i + 3 * (size_t)rank) % 8);
}

static void store(const sweep_t *sweep, void *at, size_t i, float value)
{
    if (sweep->dtype == COLL_F32) {
        ((float *)at)[i] = value;
    } else {
        ((uint16_t *)at)[i] =
            sweep->dtype == COLL_F16 ? coll_f16_of_f32(value) : coll_bf16_of_f32(value);
    }
}

static float load(const sweep_t *sweep, const void *at, size_t i)
{
    if (sweep->dtype == COLL_F32) {
        return ((const float *)at)[i];
    }
    const uint16_t half = ((const uint16_t *)at)[i];
    return sweep->dtype == COLL_F16 ? coll_f32_of_f16(half) : coll_f32_of_bf16(half);
}

static float sum_of(const sweep_t *sweep, size_t i)
{
    float sum = 0;
    for (uint32_t rank = 0; rank < sweep->options->ranks; rank++) {
        sum += value_of(rank, i);
    }
    return sum;
}

/* Element i of what this rank must have at the end; n: elements that a rank gives. */
static float expected(const sweep_t *sweep, size_t n, size_t i)
{
    const uint32_t ranks = sweep->options->ranks;
    const uint32_t rank = sweep->rank->rank;
    if (sweep->kind->run == run_all_reduce) {
        return sum_of(sweep, i);
    }
    if (sweep->kind->run == run_reduce_scatter) {
        return sum_of(sweep, rank * n + i);
    }
    if (sweep->kind->run == run_all_gather) {
        return value_of((uint32_t)(i / n), i % n);
    }
    return value_of(
        sweep->kind->run == run_broadcast ? sweep->options->root : (rank + ranks - 1) % ranks, i);
}

/* Where this rank's result is and how much there is of it. */
static const void *find_result(const sweep_t *sweep, const void *in, const void *out, size_t n,
                               size_t *count_out)
{
    const bool is_root = sweep->rank->rank == sweep->options->root;
    *count_out = sweep->kind->run == run_all_gather ? n * sweep->options->ranks : n;
    if (sweep->kind->run == run_barrier ||
        (sweep->kind->run == run_sendrecv && sweep->options->ranks == 1)) {
        *count_out = 0;
    }
    return sweep->kind->run == run_broadcast && is_root ? in : out;
}

static uint64_t count_wrong(const sweep_t *sweep, void *in, void *out, size_t n)
{
    const size_t given = sweep->kind->run == run_reduce_scatter ? n * sweep->options->ranks : n;
    uint64_t n_wrong = 0;
    size_t count;
    for (size_t i = 0; i < given; i++) {
        store(sweep, sweep->host, i, value_of(sweep->rank->rank, i));
    }
    sweep->device->ops->copy(sweep->queue, in, sweep->host, given * sweep->width);
    sweep->kind->run(sweep, in, out, n);
    const void *result = find_result(sweep, in, out, n, &count);
    sweep->device->ops->copy(sweep->queue, sweep->host, result, count * sweep->width);
    (void)sweep->device->ops->sync(sweep->queue);
    for (size_t i = 0; i < count; i++) {
        n_wrong += load(sweep, sweep->host, i) != expected(sweep, n, i);
    }
    return n_wrong;
}

/* ---- measuring -------------------------------------------------------------------------------- */

static weft_status_t exchange(const sweep_t *sweep, const void *mine, size_t bytes, void *all,
                              weft_diag_t *diag)
{
    const coll_exchange_t *by = &sweep->rank->exchange;
    return by->all_gather(by->user, mine, bytes, all, diag);
}

/* Of an operation; all ranks get the slowest one's. */
static weft_status_t time_round(const sweep_t *sweep, const void *in, void *out, size_t n,
                                uint32_t iterations, double *seconds_out, weft_diag_t *diag)
{
    for (uint32_t i = 0; i < sweep->options->warmup; i++) {
        sweep->kind->run(sweep, in, out, n);
    }
    coll_barrier(sweep->coll, sweep->queue);
    (void)sweep->device->ops->sync(sweep->queue);
    const uint64_t begin = weft_clock_ns();
    for (uint32_t i = 0; i < iterations; i++) {
        sweep->kind->run(sweep, in, out, n);
    }
    (void)sweep->device->ops->sync(sweep->queue);
    double seconds = (double)(weft_clock_ns() - begin) / 1e9 / iterations;
    uint32_t rank = COLL_NO_RANK;
    weft_status_t status = coll_status(sweep->coll, &rank);
    if (status < 0) {
        return weft_diag(diag, status, "%s failed at rank %d: %s", sweep->kind->name, (int)rank,
                         weft_strerror(status));
    }
    status = exchange(sweep, &seconds, sizeof(seconds), sweep->seconds, diag);
    for (uint32_t i = 0; status >= 0 && i < sweep->options->ranks; i++) {
        seconds = sweep->seconds[i] > seconds ? sweep->seconds[i] : seconds;
    }
    *seconds_out = seconds;
    return status;
}

/* All ranks have the same seconds and so come to the same number. */
static uint32_t choose_iterations(const bench_coll_options_t *options, double seconds)
{
    const double fitting = options->seconds / (seconds > 1e-9 ? seconds : 1e-9);
    if (options->iterations > 0) {
        return options->iterations;
    }
    return fitting < MIN_ITERATIONS   ? MIN_ITERATIONS
           : fitting > MAX_ITERATIONS ? MAX_ITERATIONS
                                      : (uint32_t)fitting;
}

static weft_status_t measure(const sweep_t *sweep, void *in, void *out, size_t n,
                             uint32_t *iterations, bench_coll_figure_t *figure_out,
                             weft_diag_t *diag)
{
    bench_samples_t samples = {0};
    bench_coll_figure_t figure = {0};
    double seconds = 0;
    uint64_t n_wrong = 0;
    weft_status_t status = time_round(sweep, in, out, n, MIN_ITERATIONS, &seconds, diag);
    if (*iterations == 0) {
        *iterations = choose_iterations(sweep->options, seconds);
    }
    for (uint32_t round = 0; status >= 0 && round < sweep->options->rounds; round++) {
        status = time_round(sweep, in, out, n, *iterations, &seconds, diag);
        status = status < 0 ? status : bench_samples_add(&samples, seconds);
    }
    if (status >= 0 && sweep->options->check) {
        n_wrong = count_wrong(sweep, in, out, n);
        uint64_t *all = (uint64_t *)(void *)sweep->seconds; /* as wide, and free here */
        status = exchange(sweep, &n_wrong, sizeof(n_wrong), all, diag);
        for (uint32_t rank = 0; status >= 0 && rank < sweep->options->ranks; rank++) {
            figure.n_wrong += all[rank];
        }
    }
    const bench_distribution_t distribution = bench_samples_distribute(&samples);
    figure.seconds = distribution.p50;
    figure.min_seconds = distribution.min;
    figure.max_seconds = distribution.max;
    bench_samples_fini(&samples);
    *figure_out = figure;
    return status;
}

static weft_status_t measure_size(const sweep_t *sweep, uint64_t bytes, bench_coll_row_t *row_out,
                                  weft_diag_t *diag)
{
    const uint64_t parts = sweep->kind->is_shared_out ? sweep->options->ranks : 1;
    const size_t n = (size_t)(bytes / parts / sweep->width);
    bench_coll_row_t row = {.bytes = n * parts * sweep->width,
                            .count = n,
                            .has_in_place = sweep->kind->can_be_in_place};
    char *in = sweep->in.addr;
    char *out = sweep->out.addr;
    weft_status_t status = measure(sweep, in, out, n, &row.iterations, &row.out_of_place, diag);
    if (status >= 0 && row.has_in_place) {
        char *own = sweep->kind->is_shared_out ? out + sweep->rank->rank * n * sweep->width : out;
        status = measure(sweep, own, out, n, &row.iterations, &row.in_place, diag);
    }
    *row_out = row;
    return status;
}

/* ---- the sweep -------------------------------------------------------------------------------- */

static weft_status_t open_sweep(sweep_t *sweep, weft_diag_t *diag)
{
    const bench_coll_options_t *options = sweep->options;
    const size_t bytes = (size_t)options->max_bytes;
    weft_status_t status =
        weft_device_open(options->device, (int)sweep->rank->local_rank, diag, &sweep->device);
    if (status < 0) {
        return status;
    }
    const weft_device_ops_t *ops = sweep->device->ops;
    status = ops->open_queue(sweep->device, &sweep->queue);
    status = status < 0 ? status : ops->alloc(sweep->device, bytes, 0, &sweep->in);
    status = status < 0 ? status : ops->alloc(sweep->device, bytes, 0, &sweep->out);
    sweep->host = weft_alloc(bytes, "bench.coll");
    status = status >= 0 && sweep->host == NULL ? WEFT_ERR_NO_MEMORY : status;
    if (status < 0) {
        return weft_diag(diag, status, "three buffers of %zu bytes: %s", bytes,
                         weft_strerror(status));
    }
    const coll_config_t config = {.backend = options->backend,
                                  .rank = sweep->rank->rank,
                                  .size = options->ranks,
                                  .device = sweep->device,
                                  .timeout_ns = (uint64_t)(options->timeout * 1e9),
                                  .is_deterministic = options->deterministic,
                                  .exchange = sweep->rank->exchange};
    return coll_create(&config, diag, &sweep->coll);
}

static void close_sweep(sweep_t *sweep)
{
    if (sweep->coll != NULL) {
        coll_barrier(sweep->coll, sweep->queue);
        (void)sweep->device->ops->sync(sweep->queue);
        coll_destroy(sweep->coll);
    }
    if (sweep->device != NULL) {
        const weft_device_ops_t *ops = sweep->device->ops;
        ops->free(sweep->device, &sweep->in);
        ops->free(sweep->device, &sweep->out);
        if (sweep->queue != NULL) {
            ops->close_queue(sweep->queue);
        }
        weft_device_close(sweep->device);
    }
    weft_free(sweep->host);
    weft_free(sweep->seconds);
}

static weft_status_t choose_type(sweep_t *sweep, weft_diag_t *diag)
{
    static const char *const names[] = {"f32", "f16", "bf16"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (strcmp(names[i], sweep->options->type) == 0) {
            sweep->dtype = (coll_dtype_t)i;
            sweep->width = coll_dtype_bytes(sweep->dtype);
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "--type %s: f32, f16 or bf16", sweep->options->type);
}

weft_status_t bench_coll_sweep(const bench_coll_options_t *options, const bench_coll_rank_t *rank,
                               bench_coll_row_fn *on_row, void *user, weft_diag_t *diag)
{
    sweep_t sweep = {.options = options,
                     .rank = rank,
                     .kind = find_kind(options->op),
                     .seconds = weft_calloc(options->ranks, sizeof(double), "bench.coll")};
    weft_status_t status = sweep.seconds == NULL ? WEFT_ERR_NO_MEMORY : choose_type(&sweep, diag);
    if (status >= 0 && sweep.kind == NULL) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "--op %s is unknown", options->op);
    }
    status = status < 0 ? status : open_sweep(&sweep, diag);
    for (uint64_t bytes = options->min_bytes; status >= 0 && bytes <= options->max_bytes;
         bytes *= options->factor) {
        bench_coll_row_t row;
        status = measure_size(&sweep, bytes, &row, diag);
        if (status >= 0 && rank->rank == 0) {
            on_row(user, coll_backend_name(sweep.coll), &row);
        }
        if (sweep.kind->run == run_barrier) {
            break; /* it has no size */
        }
    }
    close_sweep(&sweep);
    return status;
}
