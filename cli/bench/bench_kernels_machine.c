/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_kernels_machine.h"

#include <string.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "cli/bench/bench_peaks.h"
#include "kernels/k_team.h"

enum { PARTS = 16, STREAMS = 8, AHEAD_BYTES = 4096, ROUNDS = 40000 };

/*
 * How long each ceiling is looked for: the best of what fits. A try takes about a millisecond, so
 * that on a machine with other work some are not interrupted.
 */
#define LOOK_NS (WEFT_NS_PER_SECOND / 2)

#define BUFFER_BYTES (UINT64_C(512) << 20) /* more than caches hold */
#define TRY_BYTES    (UINT64_C(32) << 20)  /* the next of it, read in one try */

typedef struct machine {
    const uint8_t *buffer;
    size_t at; /* of the try */
    double (*multiply)(uint64_t n);
} machine_t;

static volatile uint64_t sink;

/* A load a cache line, in several streams. */
static void read_part(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const machine_t *machine = arg;
    const size_t bytes = TRY_BYTES / PARTS;
    const uint8_t *part = machine->buffer + machine->at + item * bytes;
    uint64_t sum = 0;
    for (size_t at = 0; at < bytes / STREAMS; at += WEFT_CACHE_LINE) {
        for (size_t stream = 0; stream < STREAMS; stream++) {
            uint64_t word;
            memcpy(&word, part + stream * (bytes / STREAMS) + at, sizeof(word));
            sum += word;
        }
    }
    sink = sum;
}

/* The same in one stream, asked for ahead. */
static void read_part_ahead(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const machine_t *machine = arg;
    const size_t bytes = TRY_BYTES / PARTS;
    const uint8_t *part = machine->buffer + machine->at + item * bytes;
    uint64_t sum = 0;
    for (size_t at = 0; at < bytes; at += WEFT_CACHE_LINE) {
        uint64_t word;
        weft_prefetch(part + at + AHEAD_BYTES);
        memcpy(&word, part + at, sizeof(word));
        sum += word;
    }
    sink = sum;
}

static void multiply_part(const void *arg, uint32_t item, uint32_t member)
{
    (void)item;
    (void)member;
    ((const machine_t *)arg)->multiply(ROUNDS);
}

/* `work` done in `items` items, a second, at best. */
static double best_rate(k_team_t *team, uint32_t items, k_team_fn fn, machine_t *machine,
                        double work)
{
    double best = 0;
    const uint64_t end = weft_clock_ns() + LOOK_NS;
    for (uint64_t start = weft_clock_ns(); start < end; start = weft_clock_ns()) {
        k_team_run(team, items, fn, machine);
        const double rate = work * WEFT_NS_PER_SECOND / (double)(weft_clock_ns() - start + 1);
        best = rate > best ? rate : best;
        machine->at = (machine->at + TRY_BYTES) % BUFFER_BYTES;
    }
    return best;
}

static double multiply_rate(k_team_t *team, double (*multiply)(uint64_t n))
{
    machine_t machine = {.multiply = multiply};
    const uint32_t threads = k_team_size(team);
    return best_rate(team, threads, multiply_part, &machine, multiply(1) * ROUNDS * threads);
}

static const bench_peaks_t *peaks_of(const char *isa)
{
#if defined(__x86_64__)
    static const bench_peaks_t *const all[] = {&bench_peaks_avx512_bf16, &bench_peaks_avx512,
                                               &bench_peaks_avx2};
    /* Tiles have no peak here yet: their products are held against those of vectors. */
    isa = strcmp(isa, "amx") == 0 ? "avx512_bf16" : isa;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(all); i++) {
        if (strcmp(isa, all[i]->isa) == 0) {
            return all[i];
        }
    }
#endif
    (void)isa;
    return NULL;
}

weft_status_t bench_kernels_machine(k_stream_t *stream, weft_diag_t *diag,
                                    bench_ceilings_t *ceilings_out)
{
    weft_device_t *device = stream->device;
    weft_mem_t buffer;
    const weft_status_t status = device->ops->alloc(device, BUFFER_BYTES, 0, &buffer);
    if (status < 0) {
        return weft_diag(diag, status, "no memory to read");
    }
    memset(buffer.addr, 1, BUFFER_BYTES);
    machine_t machine = {.buffer = buffer.addr};
    const double streams = best_rate(stream->team, PARTS, read_part, &machine, (double)TRY_BYTES);
    const double ahead =
        best_rate(stream->team, PARTS, read_part_ahead, &machine, (double)TRY_BYTES);
    bench_ceilings_t ceilings = {.read_bytes = streams > ahead ? streams : ahead};
    device->ops->free(device, &buffer);

    const bench_peaks_t *peaks = peaks_of(stream->ops->name);
    if (peaks != NULL) {
        ceilings.f32 = multiply_rate(stream->team, peaks->multiply_f32);
        ceilings.i8 = multiply_rate(stream->team, peaks->multiply_i8);
        ceilings.bf16 = peaks->multiply_bf16 == NULL
                            ? ceilings.f32
                            : multiply_rate(stream->team, peaks->multiply_bf16);
    }
    *ceilings_out = ceilings;
    return WEFT_OK;
}

double bench_ceiling_of(const bench_ceilings_t *ceilings, k_dtype_t dtype)
{
    return dtype == K_BF16 || dtype == K_F8_32       ? ceilings->bf16
           : k_dtype_info(dtype)->block_elements > 1 ? ceilings->i8
                                                     : ceilings->f32;
}
