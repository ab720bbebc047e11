/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kernels [threads] [isa] [dtype]: the linear kernels on SmolLM2's matrices, one row (decode)
 * and 512 rows (prefill), beside what the machine can read and multiply at most, measured in the
 * same run. One JSON object a line; bytes are those of the packed weights.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/device.h"
#include "benchmarks/bench_peaks.h"
#include "kernels/k_team.h"
#include "kernels/kernels.h"

enum { PREFILL_ROWS = 512, ROUNDS = 9, MAX_COPIES = 64 };

#define CACHE_BYTES  (UINT64_C(96) << 20) /* decode cycles through more weights than caches hold */
#define BUFFER_BYTES (UINT64_C(512) << 20)

typedef struct shape {
    const char *name;
    uint32_t rows;
    uint32_t columns;
} shape_t;

static const shape_t shapes[] = {
    {"qkv", 960, 576},   {"o", 576, 576},        {"gate_up", 3072, 576},
    {"down", 576, 1536}, {"output", 49152, 576},
};

static void fail(const char *what)
{
    fprintf(stderr, "bench_kernels: %s\n", what);
    exit(1);
}

static weft_mem_t take(weft_device_t *device, size_t bytes)
{
    weft_mem_t mem;
    if (device->ops->alloc(device, bytes, 0, &mem) < 0) {
        fail("not enough memory");
    }
    return mem;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median of ROUNDS calls after one to warm up; fn returns its amount of work. Work per second. */
static double rate(double (*fn)(void *user), void *user)
{
    double rates[ROUNDS];
    fn(user);
    for (int i = 0; i < ROUNDS; i++) {
        const uint64_t begin = weft_clock_ns();
        const double work = fn(user);
        rates[i] = work / ((double)(weft_clock_ns() - begin) * 1e-9);
    }
    qsort(rates, ROUNDS, sizeof(rates[0]), compare_doubles);
    return rates[ROUNDS / 2];
}

/* ---- the machine ---------------------------------------------------------------------------- */

typedef struct machine {
    k_team_t *team;
    const uint8_t *buffer;
    double (*multiply)(uint64_t n);
} machine_t;

static volatile uint64_t sink;

/* A sixty-fourth of the buffer, a load a cache line in eight streams. */
static void read_part(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    enum { STREAMS = 8 };
    const size_t bytes = BUFFER_BYTES / 64;
    const uint8_t *part = ((const machine_t *)arg)->buffer + item * bytes;
    uint64_t sum = 0;
    for (size_t at = 0; at < bytes / STREAMS; at += 64) {
        for (size_t stream = 0; stream < STREAMS; stream++) {
            uint64_t word;
            memcpy(&word, part + stream * (bytes / STREAMS) + at, sizeof(word));
            sum += word;
        }
    }
    sink = sum;
}

static double read_buffer(void *user)
{
    machine_t *machine = user;
    k_team_run(machine->team, 64, read_part, machine);
    return (double)BUFFER_BYTES;
}

static void multiply_part(const void *arg, uint32_t item, uint32_t member)
{
    (void)item;
    (void)member;
    ((const machine_t *)arg)->multiply(1000000);
}

static double multiply(void *user)
{
    machine_t *machine = user;
    const uint32_t items = k_team_size(machine->team);
    k_team_run(machine->team, items, multiply_part, machine);
    return machine->multiply(1) * 1e6 * items;
}

static const bench_peaks_t *peaks_of(const char *isa)
{
#if defined(__x86_64__)
    if (strcmp(isa, "avx512") == 0) {
        return &bench_peaks_avx512;
    }
    if (strcmp(isa, "avx2") == 0) {
        return &bench_peaks_avx2;
    }
#endif
    (void)isa;
    return NULL;
}

static void report_machine(weft_device_t *device, const k_stream_t *stream)
{
    weft_mem_t buffer = take(device, BUFFER_BYTES);
    machine_t machine = {.team = stream->team, .buffer = buffer.addr};
    device->ops->fill(stream->queue, buffer.addr, 1, BUFFER_BYTES);
    printf("{\"isa\": \"%s\", \"threads\": %u, \"read_gb_s\": %.1f", stream->ops->name,
           k_stream_threads(stream), rate(read_buffer, &machine) * 1e-9);
    const bench_peaks_t *peaks = peaks_of(stream->ops->name);
    if (peaks != NULL) {
        machine.multiply = peaks->multiply_f32;
        printf(", \"peak_f32_gop_s\": %.0f", rate(multiply, &machine) * 1e-9);
        machine.multiply = peaks->multiply_i8;
        printf(", \"peak_i8_gop_s\": %.0f", rate(multiply, &machine) * 1e-9);
    }
    printf("}\n");
    fflush(stdout);
    device->ops->free(device, &buffer);
}

/* ---- linear --------------------------------------------------------------------------------- */

typedef struct linear_bench {
    k_stream_t *stream;
    k_weight_t weights[MAX_COPIES];
    uint32_t copies;
    uint32_t rows;
    float *x;
    float *y;
} linear_bench_t;

static double run_linear(void *user)
{
    linear_bench_t *bench = user;
    for (uint32_t i = 0; i < bench->copies; i++) {
        const k_weight_t *w = &bench->weights[i];
        const k_linear_args_t args = {.w = w,
                                      .x = bench->x,
                                      .y = bench->y,
                                      .rows = bench->rows,
                                      .x_stride = w->columns,
                                      .y_stride = w->rows};
        bench->stream->ops->linear(bench->stream, &args);
    }
    k_stream_sync(bench->stream);
    return bench->copies;
}

static void report_linear(linear_bench_t *bench, k_dtype_t dtype, const shape_t *shape,
                          size_t bytes)
{
    const double per_s = rate(run_linear, bench);
    const double operations = 2.0 * bench->rows * shape->rows * shape->columns;
    printf("{\"isa\": \"%s\", \"threads\": %u, \"dtype\": \"%s\", \"matrix\": \"%s\", "
           "\"rows\": %u, \"us\": %.1f, \"gb_s\": %.1f, \"gop_s\": %.0f}\n",
           bench->stream->ops->name, k_stream_threads(bench->stream), k_dtype_info(dtype)->name,
           shape->name, bench->rows, 1e6 / per_s, per_s * (double)bytes * 1e-9,
           per_s * operations * 1e-9);
    fflush(stdout);
}

static void bench_shape(weft_device_t *device, k_stream_t *stream, k_dtype_t dtype,
                        const shape_t *shape)
{
    size_t row_bytes;
    if (k_dtype_row_bytes(dtype, shape->columns, &row_bytes) < 0) {
        return; /* 576 columns are no whole block of the k types */
    }
    const size_t bytes =
        stream->ops->weight_bytes(dtype, K_WEIGHT_ROWS, shape->rows, shape->columns);
    const uint32_t wanted = (uint32_t)(CACHE_BYTES / bytes) + 1;
    const uint32_t copies = wanted < MAX_COPIES ? wanted : MAX_COPIES;
    linear_bench_t bench = {.stream = stream, .copies = copies};
    weft_mem_t weights[MAX_COPIES];
    weft_mem_t source = take(device, shape->rows * row_bytes);
    weft_mem_t x = take(device, (size_t)PREFILL_ROWS * shape->columns * sizeof(float));
    weft_mem_t y = take(device, (size_t)PREFILL_ROWS * shape->rows * sizeof(float));
    const k_weight_part_t part = {source.addr, shape->rows};
    for (uint32_t i = 0; i < copies; i++) {
        weights[i] = take(device, bytes);
        stream->ops->weight_pack(stream, dtype, K_WEIGHT_ROWS, shape->columns, &part, 1,
                                 weights[i].addr);
        bench.weights[i] = (k_weight_t){.dtype = dtype,
                                        .rows = shape->rows,
                                        .columns = shape->columns,
                                        .data = weights[i].addr};
    }
    bench.x = x.addr;
    bench.y = y.addr;
    for (uint32_t i = 0; i < PREFILL_ROWS * shape->columns; i++) {
        bench.x[i] = (float)((i * UINT32_C(2654435761)) >> 16) * 0x1p-15f - 1;
    }
    bench.rows = 1;
    report_linear(&bench, dtype, shape, bytes);
    if (shape->rows < 10000) { /* a prefill makes logits of its last row only */
        bench.rows = PREFILL_ROWS;
        bench.copies = 1;
        report_linear(&bench, dtype, shape, bytes);
    }
    device->ops->free(device, &source);
    device->ops->free(device, &x);
    device->ops->free(device, &y);
    for (uint32_t i = 0; i < copies; i++) {
        device->ops->free(device, &weights[i]);
    }
}

int main(int argc, char **argv)
{
    const uint32_t threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
    weft_device_t *device;
    weft_diag_t diag = {0};
    if (weft_device_open("cpu", 0, &diag, &device) < 0) {
        fail(diag.text);
    }
    for (const k_ops_t *const *ops = k_ops_all(); *ops != NULL; ops++) {
        if (!(*ops)->is_supported() || (argc > 2 && strcmp(argv[2], (*ops)->name) != 0)) {
            continue;
        }
        k_stream_t *stream;
        if (k_stream_create(device, (*ops)->name, threads, &diag, &stream) < 0) {
            fail(diag.text);
        }
        if (k_stream_reserve(stream, PREFILL_ROWS, 1536) < 0) {
            fail("not enough memory");
        }
        report_machine(device, stream);
        for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
            if (argc > 3 && strcmp(argv[3], k_dtype_info(dtype)->name) != 0) {
                continue;
            }
            for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
                bench_shape(device, stream, dtype, &shapes[i]);
            }
        }
        k_stream_destroy(stream);
    }
    weft_device_close(device);
    return 0;
}
