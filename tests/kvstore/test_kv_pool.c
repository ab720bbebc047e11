/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "tests/support/random.h"

/* A memory space that counts; the pool needs no more of a device. */
typedef struct heap_device {
    weft_device_t device;
    uint32_t live;
    uint32_t flags;
    bool is_empty;
} heap_device_t;

static weft_status_t heap_alloc(weft_device_t *device, size_t bytes, uint32_t flags,
                                weft_mem_t *mem_out)
{
    heap_device_t *heap = WEFT_CONTAINER(device, heap_device_t, device);
    void *addr = heap->is_empty ? NULL : weft_alloc_aligned(4096, bytes, "test.heap");
    if (addr == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    heap->live++;
    heap->flags = flags;
    *mem_out = (weft_mem_t){.addr = addr, .bytes = bytes, .mapped = bytes, .fd = -1};
    return WEFT_OK;
}

static void heap_free(weft_device_t *device, weft_mem_t *mem)
{
    WEFT_CONTAINER(device, heap_device_t, device)->live--;
    weft_free(mem->addr);
    *mem = (weft_mem_t){.fd = -1};
}

static const weft_device_ops_t heap_ops = {.name = "heap", .alloc = heap_alloc, .free = heap_free};

static heap_device_t heap_device(void)
{
    return (heap_device_t){.device = {.ops = &heap_ops}};
}

static kv_pool_config_t config_of(heap_device_t *heap, uint32_t n_blocks)
{
    kv_pool_config_t config = {
        .device = &heap->device,
        .layout = {.block_tokens = 4,
                   .element_bytes = 4,
                   .n_groups = 1,
                   .groups = {{.layers = 1, .heads = 1, .head_dim = 4}}},
        .n_blocks = n_blocks,
    };
    assert_int_equal(kv_layout_init(&config.layout, n_blocks, NULL), WEFT_OK);
    return config;
}

static void alloc_is_all_or_nothing(void **state)
{
    (void)state;
    heap_device_t heap = heap_device();
    kv_pool_config_t config = config_of(&heap, 4);
    kv_pool_t *pool = NULL;
    kv_block_id_t ids[5] = {77, 77, 77, 77, 77};
    assert_int_equal(kv_pool_create(&config, &pool), WEFT_OK);
    assert_int_equal(kv_pool_alloc(pool, 5, ids), WEFT_ERR_NO_BLOCKS);
    assert_int_equal(ids[0], 77);
    assert_int_equal(kv_pool_free_blocks(pool), 4);
    assert_int_equal(kv_pool_alloc(pool, 4, ids), WEFT_OK);
    assert_int_equal(kv_pool_alloc(pool, 1, ids), WEFT_ERR_NO_BLOCKS);
    assert_int_equal(kv_pool_alloc(pool, 0, ids), WEFT_OK);
    kv_pool_destroy(pool);
    assert_int_equal(heap.live, 0);
}

static void a_chain_is_evicted_from_its_tail(void **state)
{
    (void)state;
    heap_device_t heap = heap_device();
    kv_pool_config_t config = config_of(&heap, 3);
    kv_pool_t *pool = NULL;
    kv_block_id_t chain[3], next[3];
    assert_int_equal(kv_pool_create(&config, &pool), WEFT_OK);
    assert_int_equal(kv_pool_alloc(pool, 3, chain), WEFT_OK);
    kv_pool_release(pool, chain, 3);
    assert_int_equal(kv_pool_alloc(pool, 3, next), WEFT_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(next[i], chain[2 - i]);
    }
    kv_pool_destroy(pool);
}

static void memory_can_be_exported_and_holds_every_block(void **state)
{
    (void)state;
    heap_device_t heap = heap_device();
    kv_pool_config_t config = config_of(&heap, 6);
    kv_pool_t *pool = NULL;
    assert_int_equal(kv_pool_create(&config, &pool), WEFT_OK);
    assert_int_equal(heap.flags, WEFT_MEM_EXPORTABLE);
    assert_int_equal(kv_pool_memory(pool)->bytes, 6 * kv_pool_layout(pool)->block_bytes[0]);
    kv_pool_destroy(pool);
}

static void private_memory_is_not_exported(void **state)
{
    (void)state;
    heap_device_t heap = heap_device();
    kv_pool_config_t config = config_of(&heap, 3);
    config.is_private = true;
    config.memory_flags = WEFT_MEM_HOST;
    kv_pool_t *pool = NULL;
    assert_int_equal(kv_pool_create(&config, &pool), WEFT_OK);
    assert_int_equal(heap.flags, WEFT_MEM_HOST);
    kv_pool_destroy(pool);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    heap_device_t heap = heap_device();
    kv_pool_config_t config = config_of(&heap, 6);
    kv_pool_t *pool = NULL;
    for (uint64_t n = 1; n <= 2; n++) {
        weft_alloc_fail_nth(n);
        assert_int_equal(kv_pool_create(&config, &pool), WEFT_ERR_NO_MEMORY);
    }
    weft_alloc_fail_nth(0);
    heap.is_empty = true;
    assert_int_equal(kv_pool_create(&config, &pool), WEFT_ERR_NO_MEMORY);
    assert_null(pool);
    config.n_blocks = 0;
    assert_int_equal(kv_pool_create(&config, &pool), WEFT_ERR_INVALID);
}

/* The free list as an array, oldest first. */
enum { BLOCKS = 12 };

typedef struct naive {
    kv_block_id_t free[BLOCKS];
    uint32_t n_free;
    uint32_t refs[BLOCKS];
    kv_block_id_t reused[BLOCKS]; /* told through on_reuse */
    uint32_t n_reused;
    uint32_t n_told; /* that these are all */
} naive_t;

static void note_reuse(void *user, kv_block_id_t block)
{
    naive_t *naive = user;
    naive->reused[naive->n_reused++] = block;
}

static void note_all_reused(void *user)
{
    ((naive_t *)user)->n_told++;
}

static void naive_take(naive_t *naive, kv_block_id_t id)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < naive->n_free; i++) {
        if (naive->free[i] != id) {
            naive->free[kept++] = naive->free[i];
        }
    }
    naive->n_free = kept;
}

static void step_alloc(kv_pool_t *pool, naive_t *naive, test_random_t *random)
{
    kv_block_id_t ids[BLOCKS];
    const uint32_t n = test_random_below(random, 5);
    naive->n_reused = naive->n_told = 0;
    const weft_status_t status = kv_pool_alloc(pool, n, ids);
    assert_int_equal(status, n > naive->n_free ? WEFT_ERR_NO_BLOCKS : WEFT_OK);
    assert_int_equal(naive->n_told, status == WEFT_OK && n > 0 ? 1 : 0);
    for (uint32_t i = 0; status == WEFT_OK && i < n; i++) {
        assert_int_equal(ids[i], naive->free[0]);
        assert_int_equal(naive->reused[i], ids[i]);
        naive_take(naive, ids[i]);
        naive->refs[ids[i]] = 1;
    }
}

static void step_acquire(kv_pool_t *pool, naive_t *naive, kv_block_id_t id)
{
    kv_pool_acquire(pool, &id, 1);
    naive_take(naive, id);
    naive->refs[id]++;
}

static void step_release(kv_pool_t *pool, naive_t *naive, test_random_t *random)
{
    kv_block_id_t ids[BLOCKS];
    uint32_t n = 0;
    for (kv_block_id_t id = 0; id < BLOCKS; id++) {
        if (naive->refs[id] > 0 && test_random_below(random, 3) == 0) {
            ids[n++] = id;
        }
    }
    kv_pool_release(pool, ids, n);
    for (uint32_t i = n; i-- > 0;) {
        if (--naive->refs[ids[i]] == 0) {
            naive->free[naive->n_free++] = ids[i];
        }
    }
}

static void random_use_equals_a_naive_pool(void **state)
{
    (void)state;
    test_random_t random = {test_seed(3)};
    heap_device_t heap = heap_device();
    naive_t naive = {.n_free = BLOCKS};
    kv_pool_config_t config = config_of(&heap, BLOCKS);
    config.on_reuse = note_reuse;
    config.after_reuse = note_all_reused;
    config.user = &naive;
    kv_pool_t *pool = NULL;
    assert_int_equal(kv_pool_create(&config, &pool), WEFT_OK);
    for (kv_block_id_t id = 0; id < BLOCKS; id++) {
        naive.free[id] = id;
    }
    for (int i = 0; i < 20000; i++) {
        switch (test_random_below(&random, 3)) {
        case 0:
            step_alloc(pool, &naive, &random);
            break;
        case 1:
            step_acquire(pool, &naive, test_random_below(&random, BLOCKS));
            break;
        default:
            step_release(pool, &naive, &random);
            break;
        }
        assert_int_equal(kv_pool_free_blocks(pool), naive.n_free);
        for (kv_block_id_t id = 0; id < BLOCKS; id++) {
            assert_int_equal(kv_pool_refs(pool, id), naive.refs[id]);
        }
    }
    kv_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alloc_is_all_or_nothing),
        cmocka_unit_test(a_chain_is_evicted_from_its_tail),
        cmocka_unit_test(memory_can_be_exported_and_holds_every_block),
        cmocka_unit_test(private_memory_is_not_exported),
        cmocka_unit_test(creation_survives_no_memory),
        cmocka_unit_test(random_use_equals_a_naive_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
