/* SPDX-License-Identifier: Apache-2.0 */
/* Rank 0's orders as another rank carries them out, and what it reports. */
#include <semaphore.h>
#include <string.h>

#include "base/compiler.h"
#include "kvstore/ranks/kv_member.h"
#include "tests/support/check.h"

enum { BLOCKS = 8, TOKENS = 16 };

typedef struct rig {
    weft_device_t *device;
    kv_pool_t *pool;
    kv_crew_t *leader;
    kv_crew_t *follower;
    kv_member_t *member;
    sem_t news; /* reports have come to the leader */
} rig_t;

static void wake(void *user)
{
    rig_t *rig = user;
    sem_post(&rig->news);
}

static kv_crew_t *open_crew(rig_t *rig, uint32_t rank)
{
    const kv_crew_config_t config = {
        .rank = rank, .size = 2, .wake = rank == 0 ? wake : NULL, .user = rig};
    weft_diag_t diag = {0};
    kv_crew_t *crew = NULL;
    assert_status(kv_crew_create(&config, &diag, &crew), WEFT_OK);
    return crew;
}

static void meet(rig_t *rig, uint64_t epoch)
{
    weft_buffer_t blob = {0};
    weft_diag_t diag = {0};
    assert_status(kv_crew_export(rig->leader, &blob), WEFT_OK);
    assert_status(kv_crew_meet(rig->leader, epoch, NULL, 0, &diag), WEFT_OK);
    assert_status(kv_member_meet(rig->member, epoch, blob.data, blob.length, &diag), WEFT_OK);
    weft_buffer_free(&blob);
}

static void open_rig(rig_t *rig)
{
    weft_diag_t diag = {0};
    kv_pool_config_t pool = {.n_blocks = BLOCKS};
    *rig = (rig_t){0};
    assert_status(weft_device_open("cpu", 0, &diag, &rig->device), WEFT_OK);
    pool.device = rig->device;
    pool.layout = (kv_layout_t){.order = KV_ORDER_BHLNC,
                                .block_tokens = TOKENS,
                                .element_bytes = 4,
                                .n_groups = 1,
                                .groups = {{.layers = 1, .heads = 1, .head_dim = 2}}};
    assert_status(kv_layout_init(&pool.layout, BLOCKS, &diag), WEFT_OK);
    assert_status(kv_pool_create(&pool, &rig->pool), WEFT_OK);
    assert_int_equal(sem_init(&rig->news, 0, 0), 0);
    rig->leader = open_crew(rig, 0);
    rig->follower = open_crew(rig, 1);
    const kv_member_config_t config = {.device = rig->device,
                                       .pool = rig->pool,
                                       .crew = rig->follower,
                                       .host_bytes = 4 * pool.layout.block_bytes[0]};
    assert_status(kv_member_create(&config, &diag, &rig->member), WEFT_OK);
    assert_int_equal(kv_member_tiers(rig->member), 1 << KV_TIER_host);
    assert_status(kv_member_start(rig->member), WEFT_OK);
    meet(rig, 11);
}

static void close_rig(rig_t *rig)
{
    kv_member_destroy(rig->member);
    kv_crew_destroy(rig->follower);
    kv_crew_destroy(rig->leader);
    sem_destroy(&rig->news);
    kv_pool_destroy(rig->pool);
    weft_device_close(rig->device);
}

static void fill(const rig_t *rig, kv_block_id_t block, int value)
{
    memset(kv_pool_block(rig->pool, block), value, kv_pool_layout(rig->pool)->block_bytes[0]);
}

static bool holds(const rig_t *rig, kv_block_id_t block, int value)
{
    const uint8_t *bytes = kv_pool_block(rig->pool, block);
    return bytes[0] == value && bytes[kv_pool_layout(rig->pool)->block_bytes[0] - 1] == value;
}

static kv_hash_t hash_of(uint8_t name)
{
    return (kv_hash_t){.bytes = {name}};
}

static void order(const rig_t *rig, kv_order_kind_t kind, uint64_t id, kv_block_id_t block,
                  uint8_t name)
{
    const kv_order_head_t head = {
        .kind = kind, .id = id, .tier = KV_TIER_host, .block = block, .hash = hash_of(name)};
    kv_crew_order(rig->leader, &head, NULL);
}

/* As they lie, in pieces that care for no border. */
static weft_status_t carry(const rig_t *rig, size_t piece)
{
    const char *bytes = NULL;
    size_t n = 0;
    weft_diag_t diag = {0};
    weft_status_t status = kv_crew_orders(rig->leader, &bytes, &n);
    while (status >= 0 && bytes != NULL) {
        const size_t taken = n < piece ? n : piece;
        status = kv_member_obey(rig->member, bytes, taken, &diag);
        kv_crew_sent(rig->leader, taken);
        if (status >= 0) {
            status = kv_crew_orders(rig->leader, &bytes, &n);
        }
    }
    return status;
}

static kv_report_t next_report(rig_t *rig)
{
    kv_report_t report;
    while (!kv_crew_next_report(rig->leader, &report)) {
        sem_wait(&rig->news); /* ctest has the deadline */
    }
    return report;
}

static void what_was_put_is_read_back_and_reported(void **state)
{
    (void)state;
    for (size_t piece = 7; piece < 4096; piece *= 9) {
        rig_t rig;
        open_rig(&rig);
        fill(&rig, 2, 0x22);
        order(&rig, KV_ORDER_TIER_PUT, 0, 2, 1);
        order(&rig, KV_ORDER_TIER_GET, 5, 6, 1);
        assert_status(carry(&rig, piece), WEFT_OK);
        const kv_report_t report = next_report(&rig);
        assert_int_equal(report.kind, KV_REPORT_READ);
        assert_int_equal(report.rank, 1);
        assert_int_equal(report.id, 5);
        assert_status((weft_status_t)report.status, WEFT_OK);
        assert_true(holds(&rig, 6, 0x22));
        close_rig(&rig);
    }
}

static void what_is_not_there_is_reported_too(void **state)
{
    (void)state;
    rig_t rig;
    open_rig(&rig);
    order(&rig, KV_ORDER_TIER_GET, 7, 0, 9);
    order(&rig, KV_ORDER_TIER_PUT, 0, 1, 1);
    order(&rig, KV_ORDER_TIER_CLEAR, 0, KV_BLOCK_NONE, 0);
    order(&rig, KV_ORDER_TIER_GET, 10, 0, 1);
    assert_status(carry(&rig, 4096), WEFT_OK);
    uint64_t ids = 0; /* they come in any order */
    for (int i = 0; i < 2; i++) {
        const kv_report_t report = next_report(&rig);
        assert_status((weft_status_t)report.status, WEFT_ERR_NOT_FOUND);
        ids += report.id;
    }
    assert_int_equal(ids, 17);
    close_rig(&rig);
}

static void reports_of_another_meeting_are_not_heard(void **state)
{
    (void)state;
    rig_t rig;
    open_rig(&rig);
    order(&rig, KV_ORDER_TIER_GET, 7, 0, 9);
    assert_status(carry(&rig, 4096), WEFT_OK);
    kv_crew_part(rig.leader);
    order(&rig, KV_ORDER_TIER_GET, 8, 0, 9); /* for nobody */
    kv_member_part(rig.member);
    meet(&rig, 13);
    order(&rig, KV_ORDER_TIER_GET, 9, 0, 9);
    assert_status(carry(&rig, 4096), WEFT_OK);
    assert_int_equal(next_report(&rig).id, 9);
    close_rig(&rig);
}

static void what_cannot_be_ordered_is_refused(void **state)
{
    (void)state;
    static const kv_order_head_t bad[] = {
        {.kind = 0},
        {.kind = KV_ORDER_COUNT},
        {.kind = KV_ORDER_TIER_PUT, .tier = KV_TIER_COUNT},
        {.kind = KV_ORDER_TIER_PUT, .tier = KV_TIER_host, .block = BLOCKS},
        {.kind = KV_ORDER_TIER_GET, .tier = KV_TIER_host, .block = KV_BLOCK_NONE, .id = 1},
        {.kind = KV_ORDER_TIER_GET, .tier = KV_TIER_host, .block = 0, .id = 0},
        {.kind = KV_ORDER_PULL_START, .id = 1}, /* there is no transfer */
        {.kind = KV_ORDER_TIER_TOUCH, .bytes = KV_ORDER_MAX_BYTES + 1},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(bad); i++) {
        rig_t rig;
        weft_diag_t diag = {0};
        open_rig(&rig);
        assert_status(kv_member_obey(rig.member, &bad[i], sizeof(bad[i]), &diag),
                      WEFT_ERR_MALFORMED);
        close_rig(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_put_is_read_back_and_reported),
        cmocka_unit_test(what_is_not_there_is_reported_too),
        cmocka_unit_test(reports_of_another_meeting_are_not_heard),
        cmocka_unit_test(what_cannot_be_ordered_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
