/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/coll_trial.h"

#include "base/device.h"

#define GUARD 64 /* bytes around an output that must stay */
#define MARK  0x5a

void coll_trial_open(coll_trial_t *trial, coll_rig_rank_t *self, const char *backend)
{
    const weft_device_ops_t *ops = self->device->ops;
    *trial = (coll_trial_t){.self = self,
                            .coll = coll_rig_create(self, backend),
                            .host = test_malloc(COLL_TRIAL_BYTES),
                            .expected = test_malloc(COLL_TRIAL_BYTES)};
    assert_status(ops->alloc(self->device, COLL_TRIAL_BYTES, 0, &trial->in), WEFT_OK);
    assert_status(ops->alloc(self->device, COLL_TRIAL_BYTES, 0, &trial->out), WEFT_OK);
}

void coll_trial_close(coll_trial_t *trial)
{
    const coll_rig_rank_t *self = trial->self;
    coll_barrier(trial->coll, self->queue);
    coll_trial_await(trial);
    assert_status(coll_status(trial->coll, NULL), WEFT_OK);
    coll_destroy(trial->coll);
    self->device->ops->free(self->device, &trial->in);
    self->device->ops->free(self->device, &trial->out);
    test_free(trial->expected);
    test_free(trial->host);
}

void coll_trial_copy(const coll_trial_t *trial, void *to, const void *from, size_t bytes)
{
    trial->self->device->ops->copy(trial->self->queue, to, from, bytes);
}

void coll_trial_await(const coll_trial_t *trial)
{
    assert_status(trial->self->device->ops->sync(trial->self->queue), WEFT_OK);
}

char *coll_trial_output(const coll_trial_t *trial, size_t bytes, size_t shift)
{
    const size_t whole = GUARD + shift + bytes + GUARD;
    assert_true(whole <= COLL_TRIAL_BYTES);
    trial->self->device->ops->fill(trial->self->queue, trial->out.addr, MARK, whole);
    return (char *)trial->out.addr + GUARD + shift;
}

void coll_trial_check(const coll_trial_t *trial, const char *out, size_t bytes)
{
    coll_trial_copy(trial, trial->host, out - GUARD, GUARD + bytes + GUARD);
    coll_trial_await(trial);
    assert_status(coll_status(trial->coll, NULL), WEFT_OK);
    assert_memory_equal(trial->host + GUARD, trial->expected, bytes);
    for (size_t i = 0; i < GUARD; i++) {
        assert_int_equal(trial->host[i], MARK);
        assert_int_equal(trial->host[GUARD + bytes + i], MARK);
    }
}

void coll_trial_all_reduce(coll_trial_t *trial, size_t n, coll_variant_t variant)
{
    const size_t width = coll_dtype_bytes(variant.dtype);
    const uint64_t round = trial->round++;
    char *out = coll_trial_output(trial, n * width, variant.shift * width);
    char *in = variant.is_in_place ? out : (char *)trial->in.addr + variant.shift * width;
    coll_model_input(round, trial->self->rank, variant.dtype, trial->host, 0, n);
    coll_trial_copy(trial, in, trial->host, n * width);
    coll_all_reduce(trial->coll, trial->self->queue, in, out, n, variant.dtype);
    coll_model_sum(round, trial->self->size, variant.dtype, trial->expected, 0, n);
    coll_trial_check(trial, out, n * width);
}

void coll_trial_reduce_scatter(coll_trial_t *trial, size_t n, coll_variant_t variant)
{
    const size_t width = coll_dtype_bytes(variant.dtype);
    const uint64_t round = trial->round++;
    const uint32_t rank = trial->self->rank;
    const uint32_t size = trial->self->size;
    char *in = (char *)trial->in.addr + variant.shift * width;
    char *out = coll_trial_output(trial, n * width, variant.shift * width);
    coll_model_input(round, rank, variant.dtype, trial->host, 0, n * size);
    coll_trial_copy(trial, in, trial->host, n * size * width);
    coll_reduce_scatter(trial->coll, trial->self->queue, in, out, n, variant.dtype);
    coll_model_sum(round, size, variant.dtype, trial->expected, rank * n, n);
    coll_trial_check(trial, out, n * width);
}

void coll_trial_all_gather(coll_trial_t *trial, size_t bytes, coll_variant_t variant)
{
    const uint64_t round = trial->round++;
    const uint32_t rank = trial->self->rank;
    const uint32_t size = trial->self->size;
    char *out = coll_trial_output(trial, bytes * size, variant.shift);
    char *in = variant.is_in_place ? out + rank * bytes : (char *)trial->in.addr + variant.shift;
    coll_model_bytes(round, rank, trial->host, bytes);
    coll_trial_copy(trial, in, trial->host, bytes);
    coll_all_gather(trial->coll, trial->self->queue, in, out, bytes);
    for (uint32_t peer = 0; peer < size; peer++) {
        coll_model_bytes(round, peer, trial->expected + peer * bytes, bytes);
    }
    coll_trial_check(trial, out, bytes * size);
}

void coll_trial_broadcast(coll_trial_t *trial, size_t bytes, coll_variant_t variant)
{
    const uint64_t round = trial->round++;
    const uint32_t root = variant.root % trial->self->size;
    char *buffer = coll_trial_output(trial, bytes, variant.shift);
    coll_model_bytes(round, root, trial->expected, bytes);
    if (trial->self->rank == root) {
        coll_trial_copy(trial, buffer, trial->expected, bytes);
    }
    coll_broadcast(trial->coll, trial->self->queue, buffer, bytes, root);
    coll_trial_check(trial, buffer, bytes);
}

void coll_trial_pairs(coll_trial_t *trial, size_t bytes)
{
    const coll_rig_rank_t *self = trial->self;
    const uint64_t round = trial->round++;
    for (uint32_t peer = 0; peer < self->size; peer++) {
        for (uint32_t k = 0; peer != self->rank && k < COLL_SEND_AHEAD; k++) {
            coll_model_bytes(round * COLL_SEND_AHEAD + k, self->rank * 16 + peer, trial->host,
                             bytes);
            coll_trial_copy(trial, trial->in.addr, trial->host, bytes);
            coll_send(trial->coll, self->queue, peer, trial->in.addr, bytes);
            self->device->ops->fill(self->queue, trial->in.addr, 0, bytes); /* it is ours again */
        }
    }
    for (uint32_t peer = 0; peer < self->size; peer++) {
        for (uint32_t k = 0; peer != self->rank && k < COLL_SEND_AHEAD; k++) {
            char *out = coll_trial_output(trial, bytes, k);
            coll_model_bytes(round * COLL_SEND_AHEAD + k, peer * 16 + self->rank, trial->expected,
                             bytes);
            coll_receive(trial->coll, self->queue, peer, out, bytes);
            coll_trial_check(trial, out, bytes);
        }
    }
}
