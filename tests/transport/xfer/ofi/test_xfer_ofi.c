/* SPDX-License-Identifier: Apache-2.0 */
/* What the conformance test does not see of ofi: sums, strangers, sleep. Over provider tcp. */
#include <poll.h>
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/port_rig.h"
#include "transport/xfer/ofi/xfer_ofi_priv.h"

#ifdef WEFT_HAS_OFI

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)

typedef struct pair {
    port_rig_t reader;
    port_rig_t owner;
    xfer_link_t *link; /* the reader's to the owner */
    port_rig_memory_t local;
    port_rig_memory_t remote;
} pair_t;

static const char *const with_sums[] = {"provider", "tcp", "host", "127.0.0.1", NULL};
static const char *const without_sums[] = {"provider", "tcp", "host", "127.0.0.1",
                                           "checksum", "off", NULL};

static void open_pair(pair_t *pair, size_t bytes, const char *const *params)
{
    *pair = (pair_t){.reader.params = params, .owner.params = params};
    if (port_rig_open(&pair->reader, &xfer_backend_ofi, "reader") == WEFT_ERR_UNSUPPORTED) {
        print_message("libfabric's provider tcp is not to be had here\n");
        skip();
    }
    assert_status(port_rig_open(&pair->owner, &xfer_backend_ofi, "owner"), WEFT_OK);
    pair->link = port_rig_connect(&pair->reader, &pair->owner);
    port_rig_map(&pair->reader, &pair->local, bytes, false, 1);
    port_rig_map(&pair->owner, &pair->remote, bytes, false, 2);
    assert_status(port_rig_import(pair->link, &pair->remote), WEFT_OK);
}

static void close_pair(pair_t *pair)
{
    pair->reader.backend->disconnect(pair->link);
    pair->reader.backend->release(pair->reader.port, pair->remote.import);
    port_rig_unmap(&pair->reader, &pair->local);
    port_rig_unmap(&pair->owner, &pair->remote);
    port_rig_close(&pair->reader);
    port_rig_close(&pair->owner);
}

static void run(pair_t *pair, port_rig_op_t *op, weft_status_t expected)
{
    pair->reader.backend->post(pair->link, &op->op);
    assert_true(port_rig_wait(&pair->reader, &pair->owner, &op->ends, 1));
    assert_status(op->status, expected);
}

static void assert_pattern(const port_rig_memory_t *memory, uint32_t seed, size_t begin, size_t end)
{
    const uint8_t *bytes = memory->mem.addr;
    for (size_t i = begin; i < end; i++) {
        if (bytes[i] != port_rig_byte(seed, i)) {
            print_message("byte %zu differs\n", i);
            assert_int_equal(bytes[i], port_rig_byte(seed, i));
        }
    }
}

static void move_both_ways(const char *const *params)
{
    pair_t pair;
    port_rig_op_t op;
    open_pair(&pair, 9 * MIB, params); /* several windows, and a piece that is cut */
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 77, 8 * MIB);
    run(&pair, &op, WEFT_OK);
    assert_pattern(&pair.local, 1, 0, 77);
    assert_pattern(&pair.local, 2, 77, 77 + 8 * MIB);
    assert_pattern(&pair.local, 1, 77 + 8 * MIB, 9 * MIB);
    memset(pair.local.mem.addr, 7, 9 * MIB);
    port_rig_prepare(&op, XFER_WRITE, &pair.local, &pair.remote, MIB, 8 * MIB);
    run(&pair, &op, WEFT_OK);
    assert_pattern(&pair.remote, 2, 0, MIB);
    assert_memory_equal((char *)pair.remote.mem.addr + MIB, pair.local.mem.addr, 8 * MIB);
    assert_int_equal(pair.reader.sums_wrong, 0);
    assert_int_equal(pair.reader.links_up, 1);
    close_pair(&pair);
}

static void bytes_move_with_sums_and_without(void **state)
{
    (void)state;
    move_both_ways(with_sums);
    move_both_ways(without_sums);
}

/* Damages a byte of the reader's memory whenever all have come and sums are waited for. */
static void damage_on_the_way(pair_t *pair, port_rig_op_t *op, size_t times)
{
    const uint64_t waits_for_sums = 5;
    uint8_t *byte = (uint8_t *)pair->local.mem.addr + 5000;
    pair->reader.backend->post(pair->link, &op->op);
    while (op->ends == 0) {
        port_rig_turn(&pair->reader, NULL);
        if (op->ends == 0 && op->op.words[0] == waits_for_sums && pair->reader.sums_wrong < times) {
            *byte = (uint8_t)(port_rig_byte(2, 5000) ^ 1);
        }
        port_rig_turn(NULL, &pair->owner);
    }
}

static void damaged_bytes_are_read_again(void **state)
{
    (void)state;
    pair_t pair;
    port_rig_op_t op;
    open_pair(&pair, 64 * KIB, with_sums);
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, 64 * KIB);
    damage_on_the_way(&pair, &op, 2);
    assert_status(op.status, WEFT_OK);
    assert_int_equal(pair.reader.sums_wrong, 2);
    assert_pattern(&pair.local, 2, 0, 64 * KIB);
    close_pair(&pair);
}

static void what_is_damaged_every_time_is_corrupt(void **state)
{
    (void)state;
    pair_t pair;
    port_rig_op_t op;
    open_pair(&pair, 64 * KIB, with_sums);
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, 64 * KIB);
    op.op.notification = "never";
    op.op.notification_bytes = 5;
    damage_on_the_way(&pair, &op, SIZE_MAX);
    assert_status(op.status, WEFT_ERR_CORRUPT);
    assert_int_equal(pair.owner.notifications, 0);
    close_pair(&pair);
}

static void a_strangers_messages_are_dropped(void **state)
{
    (void)state;
    pair_t pair;
    open_pair(&pair, 64 * KIB, with_sums);
    ofi_link_t *link = (ofi_link_t *)pair.link;
    link->token[3] ^= 1; /* as someone who has never seen the owner's address */
    assert_status(pair.reader.backend->notify(pair.link, "stranger", 8), WEFT_OK);
    link->token[3] ^= 1;
    assert_status(pair.reader.backend->notify(pair.link, "friend", 6), WEFT_OK);
    assert_true(port_rig_wait(&pair.reader, &pair.owner, &pair.owner.notifications, 1));
    assert_string_equal(pair.owner.last_text, "friend");
    assert_string_equal(pair.owner.last_peer, "reader");
    assert_int_equal(pair.owner.notifications, 1);
    close_pair(&pair);
}

static void an_idle_port_sleeps_and_a_notification_wakes_it(void **state)
{
    (void)state;
    pair_t pair;
    int fd;
    open_pair(&pair, 64 * KIB, with_sums);
    assert_status(pair.reader.backend->notify(pair.link, "first", 5), WEFT_OK);
    assert_true(port_rig_wait(&pair.reader, &pair.owner, &pair.owner.notifications, 1));
    for (int quiet = 0; quiet < 3;) { /* what connecting left behind */
        const bool did = pair.owner.backend->progress(pair.owner.port);
        quiet = !did && pair.owner.backend->arm(pair.owner.port, &fd) ? quiet + 1 : 0;
    }
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&readable, 1, 0), 0);
    assert_status(pair.reader.backend->notify(pair.link, "wake", 4), WEFT_OK);
    while (poll(&readable, 1, 0) == 0) {
        port_rig_turn(&pair.reader, NULL);
    }
    assert_true(port_rig_wait(NULL, &pair.owner, &pair.owner.notifications, 2));
    assert_string_equal(pair.owner.last_text, "wake");
    close_pair(&pair);
}

static void without_its_hardware_it_wants_to_be_told(void **state)
{
    (void)state;
    const char *const wrong[] = {"provider", "tcp", "checksum", "maybe", NULL};
    const char *const none[] = {"provider", "carrier-pigeon", NULL};
    port_rig_t rig = {.params = wrong};
    const weft_status_t status = port_rig_open(&rig, &xfer_backend_ofi, "a");
    assert_true(status == WEFT_ERR_INVALID || status == WEFT_ERR_UNSUPPORTED);
    rig.params = none;
    assert_status(port_rig_open(&rig, &xfer_backend_ofi, "a"), WEFT_ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_move_with_sums_and_without),
        cmocka_unit_test(damaged_bytes_are_read_again),
        cmocka_unit_test(what_is_damaged_every_time_is_corrupt),
        cmocka_unit_test(a_strangers_messages_are_dropped),
        cmocka_unit_test(an_idle_port_sleeps_and_a_notification_wakes_it),
        cmocka_unit_test(without_its_hardware_it_wants_to_be_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
    puts("built without libfabric's headers");
    return 77;
}

#endif
