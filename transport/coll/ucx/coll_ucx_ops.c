/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations. Everyone sends straight to everyone; sums are made by who has all the parts, in the
 * order of the ranks. Large ones go in steps, the next of which is on its way while one is added.
 */
#include <string.h>

#include "transport/coll/coll_sum.h"
#include "transport/coll/ucx/coll_ucx_priv.h"

/*
 * Up to so many bytes, sent to all others together, an all-reduce is an exchange of whole inputs: one
 * wait instead of two, for more adding. Two ranks send no more that way, and it is sooner also for a
 * large input that is one message; but not where that is about a segment of the network.
 */
#define ONE_SHOT_BYTES ((size_t)64 * 1024)
#define PAIR_BYTES     ((size_t)48 * 1024)
#define SEGMENT_BYTES  ((size_t)96 * 1024)

/* Elements of a part are a multiple of this, so that adding is aligned. */
#define GRAIN 32

/*
 * After so many broadcasts all wait for each other: a root that only sends must not run ahead of who
 * only receives.
 */
#define MAX_ONE_WAY 16

/* ---- batches --------------------------------------------------------------------------------- */

static coll_ucx_request_t *batch_of(coll_ucx_t *coll, unsigned index)
{
    return &coll->lane->requests[(size_t)index * 2 * coll->base.config.size];
}

static void batch_receive(coll_ucx_t *coll, unsigned batch, uint32_t from, void *out, size_t bytes)
{
    coll_ucx_receive(&batch_of(coll, batch)[from], from, out, bytes);
}

static void batch_send(coll_ucx_t *coll, unsigned batch, uint32_t to, const void *data,
                       size_t bytes)
{
    coll_ucx_send(&batch_of(coll, batch)[coll->base.config.size + to], to, data, bytes);
}

static bool batch_wait(coll_ucx_t *coll, unsigned batch)
{
    return coll_ucx_wait(coll->lane, batch_of(coll, batch), 2 * coll->base.config.size);
}

/* The i-th other rank to begin with, each from another place so that nobody is sent to by all. */
static uint32_t other(const coll_ucx_t *coll, uint32_t i)
{
    return (coll->base.config.rank + i) % coll->base.config.size;
}

/* Where what `rank` sent in a step of this parity is. */
static void *part_of(const coll_ucx_t *coll, size_t step, uint32_t rank)
{
    return coll->parts[step % 2] + rank * coll->part_bytes;
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* An operation on n elements in steps; each rank has a part of each. */
typedef struct plan {
    coll_ucx_t *coll;
    const uint8_t *in;
    uint8_t *out;
    coll_dtype_t dtype;
    size_t element;  /* bytes */
    size_t n;        /* elements in all */
    size_t per_rank; /* elements of a part, but the last ones of the last step */
    size_t steps;
    size_t row_stride; /* elements between what is for one rank and the next; 0: all get the same */
} plan_t;

static size_t round_up(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static plan_t plan_steps(coll_ucx_t *coll, const void *in, void *out, size_t n, uint32_t ranks,
                         coll_dtype_t dtype)
{
    const size_t element = coll_dtype_bytes(dtype);
    const size_t most = coll->part_bytes / element * ranks;
    const size_t steps = (n + most - 1) / most;

    return (plan_t){
        .coll = coll,
        .in = in,
        .out = out,
        .dtype = dtype,
        .element = element,
        .n = n,
        .per_rank = round_up((n + steps * ranks - 1) / (steps * ranks), GRAIN),
        .steps = steps,
    };
}

/* The part of index `part`, counted through all steps: from first_out, so many elements. */
static size_t part_extent(const plan_t *plan, size_t part, size_t *first_out)
{
    *first_out = least(part * plan->per_rank, plan->n);
    return least(plan->per_rank, plan->n - *first_out);
}

static void add_parts(const plan_t *plan, size_t step, const uint8_t *mine, uint8_t *out, size_t n)
{
    coll_ucx_t *coll = plan->coll;

    for (uint32_t rank = 0; rank < coll->base.config.size; rank++) {
        coll->sources[rank] = rank == coll->base.config.rank ? mine : part_of(coll, step, rank);
    }
    coll_sum(plan->dtype, out, NULL, coll->sources, coll->base.config.size, n);
}

/* ---- rows: everyone adds a whole row of all -------------------------------------------------- */

/* Everyone sends each other the other's row of its input. */
static void scatter_rows(const plan_t *plan, size_t step)
{
    coll_ucx_t *coll = plan->coll;
    size_t first;

    const size_t bytes = part_extent(plan, step, &first) * plan->element;
    for (uint32_t i = 1; i < coll->base.config.size; i++) {
        const uint32_t from = other(coll, i);
        batch_receive(coll, step % 2, from, part_of(coll, step, from), bytes);
    }
    for (uint32_t i = 1; i < coll->base.config.size; i++) {
        const uint32_t to = other(coll, i);
        const size_t at = to * plan->row_stride + first;
        batch_send(coll, step % 2, to, plan->in + at * plan->element, bytes);
    }
}

static void add_rows(const plan_t *plan)
{
    const size_t row = plan->coll->base.config.rank * plan->row_stride;
    size_t first;

    scatter_rows(plan, 0);
    for (size_t step = 0; step < plan->steps && batch_wait(plan->coll, step % 2); step++) {
        const size_t n = part_extent(plan, step, &first);
        if (step + 1 < plan->steps) {
            scatter_rows(plan, step + 1);
        }
        add_parts(plan, step, plan->in + (row + first) * plan->element,
                  plan->out + first * plan->element, n);
    }
}

void coll_ucx_reduce_scatter(coll_t *base, weft_queue_t *queue, const void *in, void *out, size_t n,
                             coll_dtype_t dtype)
{
    coll_ucx_t *coll = coll_ucx_of(base);
    plan_t plan = plan_steps(coll, in, out, n, 1, dtype);

    (void)queue;
    coll->one_way = 0;
    plan.row_stride = n;
    add_rows(&plan);
}

/* ---- all-reduce ------------------------------------------------------------------------------ */

/* Everyone sends each other its input of the other's part. */
static void scatter(const plan_t *plan, size_t step)
{
    coll_ucx_t *coll = plan->coll;
    const uint32_t size = coll->base.config.size;
    size_t first;

    const size_t mine = part_extent(plan, step * size + coll->base.config.rank, &first);
    for (uint32_t i = 1; i < size; i++) {
        const uint32_t from = other(coll, i);
        batch_receive(coll, step % 2, from, part_of(coll, step, from), mine * plan->element);
    }
    for (uint32_t i = 1; i < size; i++) {
        const uint32_t to = other(coll, i);
        const size_t n = part_extent(plan, step * size + to, &first);
        batch_send(coll, step % 2, to, plan->in + first * plan->element, n * plan->element);
    }
}

static void add_mine(const plan_t *plan, size_t step)
{
    const coll_config_t *config = &plan->coll->base.config;
    size_t first;

    const size_t n = part_extent(plan, step * config->size + config->rank, &first);
    const size_t at = first * plan->element;
    add_parts(plan, step, plan->in + at, plan->out + at, n);
}

/* Where the sums of a step are on their way: beside those of the step before, which may still be. */
static unsigned gather_batch(size_t step)
{
    return (unsigned)(2 + step % 2);
}

/* All others' sums of their parts go straight to their places, wherever they come from first. */
static void expect_sums(const plan_t *plan, size_t step)
{
    coll_ucx_t *coll = plan->coll;
    const uint32_t size = coll->base.config.size;
    size_t first;

    for (uint32_t i = 1; i < size; i++) {
        const uint32_t from = other(coll, i);
        const size_t n = part_extent(plan, step * size + from, &first);
        batch_receive(coll, gather_batch(step), from, plan->out + first * plan->element,
                      n * plan->element);
    }
}

/* Everyone sends all others the sum of its part. */
static void send_sum(const plan_t *plan, size_t step)
{
    coll_ucx_t *coll = plan->coll;
    const uint32_t size = coll->base.config.size;
    size_t first;

    const size_t mine = part_extent(plan, step * size + coll->base.config.rank, &first);
    for (uint32_t i = 1; i < size; i++) {
        batch_send(coll, gather_batch(step), other(coll, i), plan->out + first * plan->element,
                   mine * plan->element);
    }
}

/*
 * Inputs of the step after next follow a step's sums, so that links have work while a rank adds. A
 * step's sums may be received in place only once its inputs have been sent: they lie there.
 */
static void reduce_in_steps(const plan_t *plan)
{
    coll_ucx_t *coll = plan->coll;

    scatter(plan, 0);
    if (plan->steps > 1) {
        scatter(plan, 1);
    }
    for (size_t step = 0; step < plan->steps; step++) {
        if (!batch_wait(coll, step % 2) || !batch_wait(coll, gather_batch(step))) {
            return;
        }
        expect_sums(plan, step);
        add_mine(plan, step);
        send_sum(plan, step);
        if (step + 2 < plan->steps) {
            scatter(plan, step + 2);
        }
    }
    if (batch_wait(coll, gather_batch(0))) {
        (void)batch_wait(coll, gather_batch(1));
    }
}

static bool exchanges_whole(const coll_ucx_t *coll, size_t bytes)
{
    const uint32_t size = coll->base.config.size;

    return size <= 2 ? bytes <= PAIR_BYTES || (bytes > SEGMENT_BYTES && bytes <= coll->part_bytes)
                     : bytes * (size - 1) <= ONE_SHOT_BYTES;
}

void coll_ucx_all_reduce(coll_t *base, weft_queue_t *queue, const void *in, void *out, size_t n,
                         coll_dtype_t dtype)
{
    coll_ucx_t *coll = coll_ucx_of(base);
    const uint32_t size = base->config.size;
    const bool is_whole = exchanges_whole(coll, n * coll_dtype_bytes(dtype));
    const plan_t plan = plan_steps(coll, in, out, n, is_whole ? 1 : size, dtype);

    (void)queue;
    coll->one_way = 0;
    if (is_whole) {
        add_rows(&plan);
    } else {
        reduce_in_steps(&plan);
    }
}

/* ---- all-gather ------------------------------------------------------------------------------ */

static void gather_step(coll_ucx_t *coll, uint8_t *out, size_t bytes, size_t step)
{
    const size_t at = step * coll->part_bytes;
    const size_t here = least(coll->part_bytes, bytes - at);

    for (uint32_t i = 1; i < coll->base.config.size; i++) {
        batch_receive(coll, step % 2, other(coll, i), out + other(coll, i) * bytes + at, here);
    }
    for (uint32_t i = 1; i < coll->base.config.size; i++) {
        batch_send(coll, step % 2, other(coll, i), out + coll->base.config.rank * bytes + at, here);
    }
}

void coll_ucx_all_gather(coll_t *base, weft_queue_t *queue, const void *in, void *out, size_t bytes)
{
    coll_ucx_t *coll = coll_ucx_of(base);
    const size_t steps = (bytes + coll->part_bytes - 1) / coll->part_bytes;
    uint8_t *mine = (uint8_t *)out + base->config.rank * bytes;

    (void)queue;
    coll->one_way = 0;
    if (in != mine) {
        memcpy(mine, in, bytes);
    }
    gather_step(coll, out, bytes, 0);
    for (size_t step = 0; step < steps; step++) {
        if (step + 1 < steps) {
            gather_step(coll, out, bytes, step + 1);
        }
        if (!batch_wait(coll, step % 2)) {
            return;
        }
    }
}

/* ---- broadcast and barrier ------------------------------------------------------------------- */

/*
 * A binomial tree: counted from the root, rank v's parent is v without its lowest bit, its children
 * are v and one of the bits below that.
 */
static uint32_t reach_of(uint32_t v, uint32_t size)
{
    uint32_t reach = 1;
    while (reach < size && (v & reach) == 0) {
        reach *= 2;
    }
    return reach;
}

static bool broadcast_step(coll_ucx_t *coll, uint8_t *buffer, size_t bytes, uint32_t root)
{
    const uint32_t size = coll->base.config.size;
    const uint32_t v = (coll->base.config.rank + size - root) % size;
    const uint32_t reach = reach_of(v, size);

    if (v != 0) {
        batch_receive(coll, 0, (v - reach + root) % size, buffer, bytes);
        if (!batch_wait(coll, 0)) {
            return false;
        }
    }
    for (uint32_t bit = reach / 2; bit > 0; bit /= 2) {
        if (v + bit < size) {
            batch_send(coll, 0, (v + bit + root) % size, buffer, bytes);
        }
    }
    return batch_wait(coll, 0);
}

void coll_ucx_broadcast(coll_t *base, weft_queue_t *queue, void *buffer, size_t bytes,
                        uint32_t root)
{
    coll_ucx_t *coll = coll_ucx_of(base);
    const size_t most = coll->part_bytes;

    for (size_t at = 0; at < bytes; at += most) {
        if (!broadcast_step(coll, (uint8_t *)buffer + at, least(most, bytes - at), root)) {
            return;
        }
    }
    if (++coll->one_way >= MAX_ONE_WAY) {
        coll_ucx_barrier(base, queue);
    }
}

/* Dissemination: in round k each tells the one 2^k on, and hears of the one 2^k back. */
void coll_ucx_barrier(coll_t *base, weft_queue_t *queue)
{
    coll_ucx_t *coll = coll_ucx_of(base);
    const uint32_t size = base->config.size;

    (void)queue;
    coll->one_way = 0;
    for (uint32_t distance = 1; distance < size; distance *= 2) {
        batch_receive(coll, 0, (base->config.rank + size - distance) % size, NULL, 0);
        batch_send(coll, 0, (base->config.rank + distance) % size, NULL, 0);
        if (!batch_wait(coll, 0)) {
            return;
        }
    }
}
