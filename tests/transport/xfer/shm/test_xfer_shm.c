/* SPDX-License-Identifier: Apache-2.0 */
/* What the conformance test does not see of shm: sockets, descriptors, hostile and dead peers. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/check.h"
#include "tests/support/port_rig.h"
#include "tests/support/test_fork.h"
#include "transport/xfer/shm/xfer_shm_priv.h"

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)

/* A reader and an owner of memory, in one process. */
typedef struct pair {
    port_rig_t reader;
    port_rig_t owner;
    xfer_link_t *link; /* the reader's to the owner */
    port_rig_memory_t local;
    port_rig_memory_t remote;
} pair_t;

static void open_pair(pair_t *pair, size_t bytes, bool is_shared)
{
    *pair = (pair_t){.link = NULL};
    assert_status(port_rig_open(&pair->reader, &xfer_backend_shm, "reader"), WEFT_OK);
    assert_status(port_rig_open(&pair->owner, &xfer_backend_shm, "owner"), WEFT_OK);
    pair->link = port_rig_connect(&pair->reader, &pair->owner);
    port_rig_map(&pair->reader, &pair->local, bytes, true, 1);
    port_rig_map(&pair->owner, &pair->remote, bytes, is_shared, 2);
    const weft_status_t status = port_rig_import(pair->link, &pair->remote);
    if (!is_shared && status == WEFT_ERR_UNSUPPORTED) {
        print_message("process_vm_readv is denied here\n");
        skip();
    }
    assert_status(status, WEFT_OK);
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

static void post(pair_t *pair, port_rig_op_t *op)
{
    pair->reader.backend->post(pair->link, &op->op);
}

static void run(pair_t *pair, port_rig_op_t *op, weft_status_t expected)
{
    post(pair, op);
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

static void move_both_ways(size_t bytes, bool is_shared)
{
    pair_t pair;
    port_rig_op_t op;
    const size_t begin = 3 * KIB + 5;
    open_pair(&pair, bytes, is_shared);
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, begin, bytes - 2 * begin);
    run(&pair, &op, WEFT_OK);
    assert_pattern(&pair.local, 1, 0, begin);
    assert_pattern(&pair.local, 2, begin, bytes - begin);
    assert_pattern(&pair.local, 1, bytes - begin, bytes);
    memset(pair.local.mem.addr, 7, bytes);
    port_rig_prepare(&op, XFER_WRITE, &pair.local, &pair.remote, begin, bytes - 2 * begin);
    run(&pair, &op, WEFT_OK);
    assert_pattern(&pair.remote, 2, 0, begin);
    assert_int_equal(((uint8_t *)pair.remote.mem.addr)[begin], 7);
    assert_int_equal(((uint8_t *)pair.remote.mem.addr)[bytes - begin - 1], 7);
    assert_pattern(&pair.remote, 2, bytes - begin, bytes);
    close_pair(&pair);
}

static void mapped_memory_is_read_and_written(void **state)
{
    (void)state;
    move_both_ways(64 * KIB, true);
    move_both_ways(24 * MIB, true); /* long enough to be streamed, in many slices */
}

static void memory_that_is_not_ours_is_read_and_written(void **state)
{
    (void)state;
    move_both_ways(64 * KIB, false);
    move_both_ways(8 * MIB, false);
}

/* Pieces of each size and distance, in an order that merges on neither side or on one alone. */
static void scattered(bool is_shared)
{
    enum { PIECES = 3000 };
    static xfer_extent_t extents[PIECES];
    pair_t pair;
    port_rig_op_t op;
    uint64_t seed = 1;
    uint64_t at = 0;
    open_pair(&pair, 4 * MIB, is_shared);
    for (size_t i = 0; i < PIECES; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1;
        const uint64_t bytes = 1 + (seed >> 40) % 1000;
        extents[i] = (xfer_extent_t){.local = pair.local.memory.addr + at,
                                     .peer = pair.remote.memory.addr + at,
                                     .bytes = bytes};
        at += bytes + (seed >> 62 == 0 ? (seed >> 30) % 200 : 0);
    }
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, at);
    op.op.extents = extents;
    op.op.n_extents = PIECES;
    run(&pair, &op, WEFT_OK);
    at = 0;
    for (size_t i = 0; i < PIECES; i++) {
        const size_t begin = extents[i].local - pair.local.memory.addr;
        assert_pattern(&pair.local, 1, at, begin);
        assert_pattern(&pair.local, 2, begin, begin + extents[i].bytes);
        at = begin + extents[i].bytes;
    }
    close_pair(&pair);
}

static void pieces_come_where_they_belong_and_nowhere_else(void **state)
{
    (void)state;
    scattered(true);
    scattered(false);
}

static void a_notification_comes_after_the_data_with_the_senders_name(void **state)
{
    (void)state;
    pair_t pair;
    port_rig_op_t op;
    open_pair(&pair, 4 * MIB, true);
    port_rig_prepare(&op, XFER_WRITE, &pair.local, &pair.remote, 0, 4 * MIB);
    op.op.notification = "done";
    op.op.notification_bytes = 4;
    post(&pair, &op);
    assert_true(port_rig_wait(&pair.reader, &pair.owner, &pair.owner.notifications, 1));
    assert_string_equal(pair.owner.last_text, "done");
    assert_string_equal(pair.owner.last_peer, "reader");
    assert_pattern(&pair.remote, 1, 0, 4 * MIB);
    assert_status(op.status, WEFT_OK);
    assert_int_equal(pair.reader.links_up, 1);
    close_pair(&pair);
}

static void a_full_socket_loses_no_notification(void **state)
{
    (void)state;
    enum { OPS = 300 };
    static char text[XFER_MAX_NOTIFICATION];
    static port_rig_op_t ops[OPS];
    pair_t pair;
    size_t queued = 0;
    open_pair(&pair, 4 * KIB, true);
    memset(text, 'x', sizeof(text));
    while (pair.reader.backend->notify(pair.link, text, sizeof(text)) == WEFT_OK) {
        queued++; /* the owner makes no progress */
        assert_in_range(queued, 1, 1000);
    }
    assert_status(pair.reader.backend->notify(pair.link, text, sizeof(text)), WEFT_ERR_QUEUE_FULL);
    for (size_t i = 0; i < OPS; i++) {
        port_rig_prepare(&ops[i], XFER_READ, &pair.local, &pair.remote, 0, 0);
        ops[i].op.notification = text;
        ops[i].op.notification_bytes = sizeof(text);
        post(&pair, &ops[i]);
    }
    for (int i = 0; i < 20; i++) {
        port_rig_turn(&pair.reader, NULL);
    }
    assert_int_equal(ops[0].ends, 0);
    int fd;
    assert_true(pair.reader.backend->arm(pair.reader.port, &fd)); /* it waits, it does not spin */
    pair.reader.backend->cancel(&ops[1].op);
    assert_status(ops[1].status, WEFT_ERR_CANCELLED);
    assert_true(
        port_rig_wait(&pair.reader, &pair.owner, &pair.owner.notifications, queued + OPS - 1));
    assert_int_equal(pair.owner.last_bytes, sizeof(text));
    for (size_t i = 0; i < OPS; i++) {
        assert_int_equal(ops[i].ends, 1);
    }
    assert_int_equal(pair.owner.notifications, queued + OPS - 1);
    close_pair(&pair);
}

static void a_changed_guard_makes_a_read_stale(bool is_shared)
{
    pair_t pair;
    port_rig_op_t op;
    open_pair(&pair, 32 * MIB, is_shared);
    uint64_t *word = pair.remote.mem.addr;
    *word = 5;
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 4 * KIB, 64 * KIB);
    op.op.has_guard = true;
    op.op.guard = (xfer_guard_t){.addr = pair.remote.memory.addr, .expected = 5};
    op.op.guard_handle = pair.remote.import;
    run(&pair, &op, WEFT_OK);
    assert_pattern(&pair.local, 2, 4 * KIB, 68 * KIB);

    op.op.guard.expected = 6; /* before the data */
    op.ends = 0;
    memset(pair.local.mem.addr, 9, 64 * KIB);
    run(&pair, &op, WEFT_ERR_STALE);
    assert_int_equal(((uint8_t *)pair.local.mem.addr)[4 * KIB], 9);

    op.op.guard.expected = 5; /* while they are read */
    op.ends = 0;
    op.extent.bytes = 31 * MIB;
    op.op.bytes = 31 * MIB;
    post(&pair, &op);
    while (op.op.position == 0 && op.op.offset == 0) {
        port_rig_turn(&pair.reader, &pair.owner);
    }
    assert_int_equal(op.ends, 0);
    *word = 6;
    assert_true(port_rig_wait(&pair.reader, &pair.owner, &op.ends, 1));
    assert_status(op.status, WEFT_ERR_STALE);
    close_pair(&pair);
}

/* The owner's first turn comes when the other has gone: it cannot even say welcome. */
static void what_was_said_before_the_end_is_heard_after_it(void **state)
{
    (void)state;
    port_rig_t sender = {0};
    port_rig_t owner = {0};
    port_rig_memory_t memory;
    assert_status(port_rig_open(&sender, &xfer_backend_shm, "sender"), WEFT_OK);
    assert_status(port_rig_open(&owner, &xfer_backend_shm, "owner"), WEFT_OK);
    port_rig_map(&owner, &memory, 64 * KIB, true, 1);
    xfer_link_t *link = port_rig_connect(&sender, &owner);
    assert_status(port_rig_import(link, &memory), WEFT_OK);
    for (int i = 0; i < 100; i++) {
        assert_status(sender.backend->notify(link, "here", 4), WEFT_OK);
    }
    assert_status(sender.backend->notify(link, "gone", 4), WEFT_OK);
    sender.backend->disconnect(link);
    sender.backend->release(sender.port, memory.import);
    port_rig_close(&sender);

    port_rig_turn(NULL, &owner);
    port_rig_unmap(&owner, &memory); /* tells those that are there */
    assert_true(port_rig_wait(NULL, &owner, &owner.notifications, 101));
    assert_string_equal(owner.last_text, "gone");
    assert_string_equal(owner.last_peer, "sender");
    port_rig_close(&owner);
}

static void taken_back_unseen(bool is_shared)
{
    pair_t pair;
    port_rig_op_t op;
    open_pair(&pair, 64 * KIB, is_shared);
    pair.owner.backend->unmap(pair.owner.port, pair.remote.handle);
    pair.remote.handle = NULL;
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, 64 * KIB);
    post(&pair, &op);
    assert_true(port_rig_wait(&pair.reader, NULL, &op.ends, 1));
    assert_status(op.status, WEFT_ERR_NOT_FOUND);
    assert_pattern(&pair.local, 1, 0, 64 * KIB);
    close_pair(&pair);
}

/* The owner has had no turn since the reader came: it has not let it in yet. */
static void memory_taken_back_is_gone_for_those_at_the_door(void **state)
{
    (void)state;
    taken_back_unseen(true);
    taken_back_unseen(false);
}

static void a_changed_guard_makes_a_mapped_read_stale(void **state)
{
    (void)state;
    a_changed_guard_makes_a_read_stale(true);
}

static void a_changed_guard_makes_a_kernel_read_stale(void **state)
{
    (void)state;
    a_changed_guard_makes_a_read_stale(false);
}

static void urgent_ops_overtake_and_cancelled_ones_stop(void **state)
{
    (void)state;
    pair_t pair;
    port_rig_op_t bulk;
    port_rig_op_t other;
    port_rig_op_t urgent;
    open_pair(&pair, 48 * MIB, true);
    port_rig_prepare(&bulk, XFER_READ, &pair.local, &pair.remote, 0, 48 * MIB);
    bulk.op.priority = 100;
    other = bulk;
    other.op.extents = &other.extent;
    other.op.local_handles = &other.local;
    other.op.peer_handles = &other.peer;
    port_rig_prepare(&urgent, XFER_READ, &pair.local, &pair.remote, 0, 4 * KIB);
    urgent.op.priority = 99;
    post(&pair, &bulk);
    post(&pair, &other);
    while (bulk.op.offset == 0) {
        port_rig_turn(&pair.reader, &pair.owner);
    }
    post(&pair, &urgent);
    port_rig_turn(&pair.reader, NULL);
    assert_int_equal(urgent.ends, 1);
    assert_int_equal(bulk.ends, 0);
    pair.reader.backend->cancel(&bulk.op);
    assert_status(bulk.status, WEFT_ERR_CANCELLED);
    assert_true(port_rig_wait(&pair.reader, &pair.owner, &other.ends, 1));
    assert_status(other.status, WEFT_OK);
    assert_int_equal(bulk.ends, 1);
    close_pair(&pair);
}

static void disconnecting_ends_what_waits_and_what_runs(void **state)
{
    (void)state;
    pair_t pair;
    port_rig_op_t ops[3];
    open_pair(&pair, 32 * MIB, true);
    for (size_t i = 0; i < 3; i++) {
        port_rig_prepare(&ops[i], XFER_READ, &pair.local, &pair.remote, 0, 32 * MIB);
        ops[i].op.priority = (uint8_t)i;
    }
    post(&pair, &ops[0]);
    port_rig_turn(&pair.reader, NULL); /* waits for the descriptor */
    while (ops[0].op.offset == 0) {
        port_rig_turn(&pair.reader, &pair.owner);
    }
    post(&pair, &ops[1]);
    post(&pair, &ops[2]);
    pair.reader.backend->disconnect(pair.link);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(ops[i].ends, 1);
        assert_status(ops[i].status, WEFT_ERR_CANCELLED);
    }
    pair.link = port_rig_connect(&pair.reader, &pair.owner);
    pair.reader.backend->release(pair.reader.port, pair.remote.import);
    assert_status(port_rig_import(pair.link, &pair.remote), WEFT_OK);
    port_rig_prepare(&ops[0], XFER_READ, &pair.local, &pair.remote, 0, MIB);
    run(&pair, &ops[0], WEFT_OK);
    close_pair(&pair);
}

static void a_region_taken_back_is_read_no_more(bool is_shared)
{
    pair_t pair;
    port_rig_op_t op;
    port_rig_op_t late;
    open_pair(&pair, 32 * MIB, is_shared);
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, 32 * MIB);
    post(&pair, &op);
    while (op.op.offset == 0) {
        port_rig_turn(&pair.reader, &pair.owner);
    }
    pair.owner.backend->unmap(pair.owner.port, pair.remote.handle);
    pair.remote.handle = NULL;
    assert_true(port_rig_wait(&pair.reader, &pair.owner, &op.ends, 1));
    assert_status(op.status, WEFT_ERR_NOT_FOUND);
    port_rig_prepare(&late, XFER_READ, &pair.local, &pair.remote, 0, 4 * KIB);
    run(&pair, &late, WEFT_ERR_NOT_FOUND);

    if (is_shared) { /* of a key that is out of date */
        pair.reader.backend->release(pair.reader.port, pair.remote.import);
        assert_status(port_rig_import(pair.link, &pair.remote), WEFT_OK);
        port_rig_prepare(&late, XFER_READ, &pair.local, &pair.remote, 0, 4 * KIB);
        run(&pair, &late, WEFT_ERR_NOT_FOUND);
    }
    close_pair(&pair);
}

static void a_mapped_region_taken_back_is_read_no_more(void **state)
{
    (void)state;
    a_region_taken_back_is_read_no_more(true);
}

static void a_kernel_region_taken_back_is_read_no_more(void **state)
{
    (void)state;
    a_region_taken_back_is_read_no_more(false);
}

static void memory_that_went_without_a_word_is_an_error(void **state)
{
    (void)state;
    pair_t pair;
    port_rig_op_t op;
    open_pair(&pair, 4 * MIB, false);
    assert_int_equal(munmap((char *)pair.remote.mem.addr + 2 * MIB, 2 * MIB), 0);
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, 4 * MIB);
    run(&pair, &op, WEFT_ERR_NOT_FOUND);
    pair.remote.mem.mapped = 2 * MIB;
    close_pair(&pair);
}

static void a_memfd_that_can_shrink_is_not_mapped(void **state)
{
    (void)state;
    pair_t pair;
    open_pair(&pair, 64 * KIB, true);
    xfer_memory_t memory = pair.remote.memory;
    xfer_shm_key_t key;
    weft_buffer_t out = {0};
    void *handle;
    memory.fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(memory.fd, 64 * KIB), 0);
    assert_status(pair.owner.backend->map(pair.owner.port, &memory, &out, &handle), WEFT_OK);
    assert_status(xfer_shm_decode_key(out.data, out.length, &key), WEFT_OK);
    assert_int_equal(key.is_mappable, 0);
    pair.owner.backend->unmap(pair.owner.port, handle);
    weft_buffer_free(&out);
    close(memory.fd);

    memory = pair.remote.memory;
    memory.space = XFER_VRAM;
    assert_status(pair.owner.backend->map(pair.owner.port, &memory, &out, &handle),
                  WEFT_ERR_UNSUPPORTED);
    close_pair(&pair);
}

static void an_address_of_another_host_is_left_to_others(void **state)
{
    (void)state;
    pair_t pair;
    weft_buffer_t out = {0};
    xfer_shm_address_t address;
    xfer_link_t *link;
    open_pair(&pair, 4 * KIB, true);
    const xfer_backend_t *shm = pair.reader.backend;
    assert_status(shm->address(pair.owner.port, &out), WEFT_OK);
    assert_status(xfer_shm_decode_address(out.data, out.length, &address), WEFT_OK);

    xfer_shm_address_t other = address;
    other.boot[15] ^= 1;
    assert_status(shm->connect(pair.reader.port, "x", &other, sizeof(other), &link),
                  WEFT_ERR_UNSUPPORTED);
    other = address;
    other.network_namespace++;
    assert_status(shm->connect(pair.reader.port, "x", &other, sizeof(other), &link),
                  WEFT_ERR_UNSUPPORTED);
    other = address;
    other.version++;
    assert_status(shm->connect(pair.reader.port, "x", &other, sizeof(other), &link),
                  WEFT_ERR_UNSUPPORTED);
    assert_status(shm->connect(pair.reader.port, "x", &address, sizeof(address) - 1, &link),
                  WEFT_ERR_MALFORMED);
    assert_status(shm->connect(pair.reader.port, "x", &address, 3, &link), WEFT_ERR_MALFORMED);
    other = address;
    other.socket[0] ^= 1; /* nobody listens there */
    assert_status(shm->connect(pair.reader.port, "x", &other, sizeof(other), &link),
                  WEFT_ERR_PEER_GONE);
    weft_buffer_free(&out);
    close_pair(&pair);
}

static int raw_socket_to(port_rig_t *rig)
{
    weft_buffer_t out = {0};
    xfer_shm_address_t address;
    struct sockaddr_un name;
    assert_status(rig->backend->address(rig->port, &out), WEFT_OK);
    assert_status(xfer_shm_decode_address(out.data, out.length, &address), WEFT_OK);
    weft_buffer_free(&out);
    const socklen_t length = xfer_shm_host_name(&address, &name);
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&name, length), 0);
    return fd;
}

/* The owner hangs up; the pair goes on. */
static void assert_refused(pair_t *pair, const void *message, size_t bytes)
{
    char byte;
    const int fd = raw_socket_to(&pair->owner);
    struct pollfd hung_up = {.fd = fd, .events = POLLIN};
    const size_t before = pair->owner.notifications;
    assert_int_equal(send(fd, message, bytes, MSG_NOSIGNAL), bytes);
    do {
        port_rig_turn(&pair->owner, &pair->reader);
    } while (poll(&hung_up, 1, 0) == 0);
    assert_true(recv(fd, &byte, 1, MSG_DONTWAIT) <= 0);
    assert_int_equal(pair->owner.notifications, before);
    close(fd);
}

static void a_stranger_that_talks_nonsense_is_cut_off(void **state)
{
    (void)state;
    static char message[XFER_SHM_MAX_FRAME + 1];
    pair_t pair;
    port_rig_op_t op;
    open_pair(&pair, 64 * KIB, true);
    memset(message, 0xff, sizeof(message));
    assert_refused(&pair, message, 1);
    assert_refused(&pair, message, sizeof(xfer_shm_frame_t));
    assert_refused(&pair, message, sizeof(message));
    /* A notification, and a question, of someone who has not said who it is. */
    xfer_shm_frame_t frame = xfer_shm_frame(XFER_SHM_NOTE, 0, 0);
    assert_refused(&pair, &frame, sizeof(frame));
    frame = xfer_shm_frame(XFER_SHM_ASK, 1, 0);
    assert_refused(&pair, &frame, sizeof(frame));
    /* An empty name; a payload that is shorter than said; an answer from who should ask. */
    frame = xfer_shm_frame(XFER_SHM_HELLO, 0, 0);
    assert_refused(&pair, &frame, sizeof(frame));
    frame = xfer_shm_frame(XFER_SHM_HELLO, 0, 3);
    assert_refused(&pair, &frame, sizeof(frame));
    frame = xfer_shm_frame(XFER_SHM_GONE, 1, 0);
    assert_refused(&pair, &frame, sizeof(frame));

    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, 64 * KIB);
    run(&pair, &op, WEFT_OK);
    close_pair(&pair);
}

/* A peer that is not weft: listens where its address says, and answers as it is told. */
typedef struct impostor {
    xfer_shm_address_t address;
    int listen_fd;
    int fd;
} impostor_t;

static void open_impostor(impostor_t *impostor)
{
    struct sockaddr_un name;
    assert_status(xfer_shm_host_address(&impostor->address), WEFT_OK);
    const socklen_t length = xfer_shm_host_name(&impostor->address, &name);
    impostor->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(impostor->listen_fd, (const struct sockaddr *)&name, length), 0);
    assert_int_equal(listen(impostor->listen_fd, 1), 0);
}

static void answer_with(const impostor_t *impostor, const xfer_shm_frame_t *frame, int fd)
{
    xfer_shm_conn_t conn = {.fd = impostor->fd, .epoll_fd = -1};
    assert_status(xfer_shm_conn_try(&conn, frame, NULL, fd), WEFT_OK);
}

static void descriptors_that_could_fault_are_refused(void **state)
{
    (void)state;
    port_rig_t reader = {0};
    port_rig_memory_t local;
    port_rig_memory_t remote = {.memory = {.addr = 1 << 20, .bytes = 64 * KIB, .fd = -1}};
    impostor_t impostor;
    xfer_link_t *link;
    assert_status(port_rig_open(&reader, &xfer_backend_shm, "reader"), WEFT_OK);
    port_rig_map(&reader, &local, 64 * KIB, true, 1);
    open_impostor(&impostor);
    assert_status(reader.backend->connect(reader.port, "impostor", &impostor.address,
                                          sizeof(impostor.address), &link),
                  WEFT_OK);
    impostor.fd = accept(impostor.listen_fd, NULL, NULL);
    assert_true(impostor.fd >= 0);

    for (int kind = 0; kind < 4; kind++) {
        const xfer_shm_key_t key = {
            .version = XFER_SHM_VERSION, .is_mappable = 1, .region = (uint64_t)kind};
        xfer_shm_frame_t answer = xfer_shm_frame(XFER_SHM_REGION, (uint64_t)kind, 0);
        port_rig_op_t op;
        const int fd = kind == 3 ? open("/dev/zero", O_RDWR | O_CLOEXEC)
                                 : memfd_create("bad", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (kind < 3) { /* unsealed; too short; too short behind its offset */
            assert_int_equal(ftruncate(fd, kind == 1 ? 60 * KIB : 64 * KIB), 0);
            answer.offset = kind == 2 ? 4 * KIB : 0;
        }
        if (kind == 1 || kind == 2) {
            assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
        }
        assert_status(
            reader.backend->import(link, &remote.memory, &key, sizeof(key), &remote.import),
            WEFT_OK);
        port_rig_prepare(&op, XFER_READ, &local, &remote, 0, 4 * KIB);
        reader.backend->post(link, &op.op);
        port_rig_turn(&reader, NULL);
        assert_int_equal(op.ends, 0);
        answer_with(&impostor, &answer, fd);
        assert_true(port_rig_wait(&reader, NULL, &op.ends, 1));
        assert_status(op.status, WEFT_ERR_MALFORMED);
        reader.backend->release(reader.port, remote.import);
        close(fd);
    }
    const xfer_shm_frame_t nonsense = xfer_shm_frame(XFER_SHM_HELLO, 0, 0);
    answer_with(&impostor, &nonsense, -1);
    assert_true(port_rig_wait(&reader, NULL, &reader.links_lost, 1));
    reader.backend->disconnect(link);
    close(impostor.fd);
    close(impostor.listen_fd);
    port_rig_unmap(&reader, &local);
    port_rig_close(&reader);
}

static void an_idle_port_sleeps_and_a_notification_wakes_it(void **state)
{
    (void)state;
    pair_t pair;
    port_rig_op_t op;
    int fd;
    open_pair(&pair, 64 * KIB, true);
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, 64 * KIB);
    run(&pair, &op, WEFT_OK);
    while (!pair.reader.backend->arm(pair.reader.port, &fd)) { /* page tables are filled */
        port_rig_turn(&pair.reader, &pair.owner);
    }
    port_rig_turn(&pair.reader, &pair.owner);
    assert_true(pair.owner.backend->arm(pair.owner.port, &fd));
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&readable, 1, 0), 0);
    assert_false(pair.owner.backend->progress(pair.owner.port));
    assert_status(pair.reader.backend->notify(pair.link, "wake", 4), WEFT_OK);
    assert_int_equal(poll(&readable, 1, -1), 1);
    assert_true(port_rig_wait(NULL, &pair.owner, &pair.owner.notifications, 1));
    assert_string_equal(pair.owner.last_text, "wake");
    assert_int_equal(poll(&readable, 1, 0), 0);

    op.ends = 0;
    post(&pair, &op);
    assert_false(pair.reader.backend->arm(pair.reader.port, &fd));
    assert_true(port_rig_wait(&pair.reader, &pair.owner, &op.ends, 1));
    close_pair(&pair);
}

/* The owner in a process of its own, which serves until it is killed. */
typedef struct other_process {
    pid_t pid;
    xfer_shm_address_t address;
    port_rig_memory_t memory; /* address and keys are good here, the rest is not */
    char key[sizeof(xfer_shm_key_t)];
} other_process_t;

static void serve(int pipe_fd, size_t bytes, bool is_shared)
{
    port_rig_t owner = {0};
    port_rig_memory_t memory;
    weft_buffer_t address = {0};
    int fd;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (port_rig_open(&owner, &xfer_backend_shm, "other") < 0) {
        _exit(1);
    }
    port_rig_map(&owner, &memory, bytes, is_shared, 2);
    owner.backend->address(owner.port, &address);
    if (write(pipe_fd, address.data, address.length) < 0 ||
        write(pipe_fd, &memory.memory, sizeof(memory.memory)) < 0 ||
        write(pipe_fd, memory.key.data, memory.key.length) < 0) {
        _exit(1);
    }
    for (;;) {
        while (!owner.backend->arm(owner.port, &fd)) {
            owner.backend->progress(owner.port);
        }
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        (void)poll(&readable, 1, -1);
        owner.backend->progress(owner.port);
    }
}

static void start_other(other_process_t *other, size_t bytes, bool is_shared)
{
    int pipe_fds[2];
    assert_int_equal(pipe(pipe_fds), 0);
    *other = (other_process_t){.pid = test_fork()};
    if (other->pid == 0) {
        serve(pipe_fds[1], bytes, is_shared);
    }
    close(pipe_fds[1]);
    assert_int_equal(read(pipe_fds[0], &other->address, sizeof(other->address)),
                     sizeof(other->address));
    assert_int_equal(read(pipe_fds[0], &other->memory.memory, sizeof(other->memory.memory)),
                     sizeof(other->memory.memory));
    assert_int_equal(read(pipe_fds[0], other->key, sizeof(other->key)), sizeof(other->key));
    other->memory.key = (weft_buffer_t){.data = other->key, .length = sizeof(other->key)};
    close(pipe_fds[0]);
}

static void read_from_a_process_that_is_killed(bool is_shared)
{
    port_rig_t reader = {0};
    port_rig_memory_t local;
    port_rig_op_t op;
    other_process_t other;
    xfer_link_t *link;
    start_other(&other, 16 * MIB, is_shared);
    assert_status(port_rig_open(&reader, &xfer_backend_shm, "reader"), WEFT_OK);
    port_rig_map(&reader, &local, 16 * MIB, true, 1);
    assert_status(
        reader.backend->connect(reader.port, "other", &other.address, sizeof(other.address), &link),
        WEFT_OK);
    if (port_rig_import(link, &other.memory) == WEFT_ERR_UNSUPPORTED && !is_shared) {
        print_message("process_vm_readv is denied here\n");
        kill(other.pid, SIGKILL);
        skip();
    }
    port_rig_prepare(&op, XFER_READ, &local, &other.memory, 0, 16 * MIB);
    reader.backend->post(link, &op.op);
    assert_true(port_rig_wait(&reader, NULL, &op.ends, 1));
    assert_status(op.status, WEFT_OK);
    assert_pattern(&local, 2, 0, 16 * MIB);

    op.ends = 0;
    reader.backend->post(link, &op.op);
    port_rig_turn(&reader, NULL);
    assert_int_equal(kill(other.pid, SIGKILL), 0);
    assert_int_equal(waitpid(other.pid, NULL, 0), other.pid);
    assert_true(port_rig_wait(&reader, NULL, &reader.links_lost, 1));
    assert_int_equal(op.ends, 1);
    assert_status(op.status, WEFT_ERR_PEER_GONE);
    op.ends = 0;
    reader.backend->post(link, &op.op);
    assert_int_equal(op.ends, 1);
    assert_status(op.status, WEFT_ERR_PEER_GONE);
    assert_status(reader.backend->notify(link, "x", 1), WEFT_ERR_PEER_GONE);
    assert_int_equal(reader.links_lost, 1);
    reader.backend->disconnect(link);
    reader.backend->release(reader.port, other.memory.import);
    port_rig_unmap(&reader, &local);
    port_rig_close(&reader);
}

static void a_killed_process_ends_reads_of_its_mapped_memory(void **state)
{
    (void)state;
    read_from_a_process_that_is_killed(true);
}

static void a_killed_process_ends_reads_of_its_own_memory(void **state)
{
    (void)state;
    read_from_a_process_that_is_killed(false);
}

/* OK, or without memory and nothing left behind. */
static weft_status_t connect_once(pair_t *pair)
{
    const xfer_backend_t *shm = pair->reader.backend;
    weft_buffer_t address = {0};
    xfer_link_t *link;
    (void)shm->address(pair->owner.port, &address);
    weft_status_t status = address.is_failed ? WEFT_ERR_NO_MEMORY
                                             : shm->connect(pair->reader.port, "owner",
                                                            address.data, address.length, &link);
    if (status == WEFT_OK) {
        port_rig_memory_t again = pair->remote;
        status = port_rig_import(link, &again);
        shm->disconnect(link);
        if (status == WEFT_OK) {
            shm->release(pair->reader.port, again.import);
        }
    }
    weft_buffer_free(&address);
    return status;
}

static void failing_allocations_fail_a_connection_alone(void **state)
{
    (void)state;
    pair_t pair;
    port_rig_op_t op;
    uint64_t made;
    open_pair(&pair, 64 * KIB, true);
    for (uint64_t n = 1;; n++) {
        (void)weft_alloc_fail_nth(n);
        const weft_status_t status = connect_once(&pair);
        made = weft_alloc_fail_nth(0);
        if (made < n) {
            assert_status(status, WEFT_OK);
            break;
        }
        assert_status(status, WEFT_ERR_NO_MEMORY);
    }
    assert_true(made > 2);
    port_rig_prepare(&op, XFER_READ, &pair.local, &pair.remote, 0, 64 * KIB);
    run(&pair, &op, WEFT_OK);
    close_pair(&pair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mapped_memory_is_read_and_written),
        cmocka_unit_test(memory_that_is_not_ours_is_read_and_written),
        cmocka_unit_test(pieces_come_where_they_belong_and_nowhere_else),
        cmocka_unit_test(a_notification_comes_after_the_data_with_the_senders_name),
        cmocka_unit_test(a_full_socket_loses_no_notification),
        cmocka_unit_test(what_was_said_before_the_end_is_heard_after_it),
        cmocka_unit_test(memory_taken_back_is_gone_for_those_at_the_door),
        cmocka_unit_test(a_changed_guard_makes_a_mapped_read_stale),
        cmocka_unit_test(a_changed_guard_makes_a_kernel_read_stale),
        cmocka_unit_test(urgent_ops_overtake_and_cancelled_ones_stop),
        cmocka_unit_test(disconnecting_ends_what_waits_and_what_runs),
        cmocka_unit_test(a_mapped_region_taken_back_is_read_no_more),
        cmocka_unit_test(a_kernel_region_taken_back_is_read_no_more),
        cmocka_unit_test(memory_that_went_without_a_word_is_an_error),
        cmocka_unit_test(a_memfd_that_can_shrink_is_not_mapped),
        cmocka_unit_test(an_address_of_another_host_is_left_to_others),
        cmocka_unit_test(a_stranger_that_talks_nonsense_is_cut_off),
        cmocka_unit_test(descriptors_that_could_fault_are_refused),
        cmocka_unit_test(an_idle_port_sleeps_and_a_notification_wakes_it),
        cmocka_unit_test(a_killed_process_ends_reads_of_its_mapped_memory),
        cmocka_unit_test(a_killed_process_ends_reads_of_its_own_memory),
        cmocka_unit_test(failing_allocations_fail_a_connection_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
