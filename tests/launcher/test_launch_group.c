/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks as threads of this process where they live, as processes where they die. */
#include "launcher/launch_group.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "tests/support/check.h"
#include "tests/support/reserved_port.h"
#include "tests/support/scratch_folder.h"
#include "tests/support/tally.h"
#include "tests/support/test_fork.h"
#include "tests/support/zmq_tsan.h"

#define MAX_RANKS 8

typedef struct rank {
    launch_group_config_t config;
    launch_group_t *group;
    weft_status_t status;
    weft_diag_t diag;
    pthread_t thread;
    /* of on_lost */
    tally_t lost;
    uint32_t lost_rank;
    char lost_why[256];
} rank_t;

static void note_loss(void *user, uint32_t lost, const char *why)
{
    rank_t *rank = user;
    rank->lost_rank = lost;
    snprintf(rank->lost_why, sizeof(rank->lost_why), "%s", why);
    tally_add(&rank->lost);
}

static void wait_for_loss(rank_t *rank)
{
    tally_wait(&rank->lost, 1);
}

static void init(rank_t *rank, uint32_t number, uint32_t size, uint16_t port)
{
    *rank = (rank_t){.config = {.place = {.source = "flags",
                                          .rank = number,
                                          .size = size,
                                          .leader_host = "127.0.0.1",
                                          .leader_port = port},
                                .secret_file = "",
                                .join_timeout_s = 60,
                                .lost_after_s = 30,
                                .on_lost = note_loss,
                                .user = rank},
                     .lost = TALLY_INIT};
}

static void init_all(rank_t *ranks, uint32_t size)
{
    const uint16_t port = reserve_port();
    for (uint32_t i = 0; i < size; i++) {
        init(&ranks[i], i, size, port);
    }
}

static void *join(void *user)
{
    rank_t *rank = user;
    rank->status = launch_group_join(&rank->config, &rank->diag, &rank->group);
    return NULL;
}

static void begin_join(rank_t *rank)
{
    assert_int_equal(pthread_create(&rank->thread, NULL, join, rank), 0);
}

static void end_join(rank_t *rank, weft_status_t expected)
{
    pthread_join(rank->thread, NULL);
    if (rank->status != expected) {
        print_error("rank %u: %s\n", rank->config.place.rank, rank->diag.text);
    }
    assert_status(rank->status, expected);
}

/* A leader that has been waited for long enough. */
static void cancel_join(rank_t *rank, atomic_bool *is_cancelled)
{
    atomic_store(is_cancelled, true);
    end_join(rank, WEFT_ERR_CANCELLED);
}

/* One that found nobody, or came as the leader went. */
static void abandon_join(rank_t *rank, atomic_bool *is_cancelled)
{
    atomic_store(is_cancelled, true);
    pthread_join(rank->thread, NULL);
    assert_true(rank->status < 0);
}

/* The leader comes up last. */
static void join_all(rank_t *ranks, uint32_t size)
{
    for (uint32_t i = size; i-- > 0;) {
        begin_join(&ranks[i]);
    }
    for (uint32_t i = 0; i < size; i++) {
        end_join(&ranks[i], WEFT_OK);
    }
}

static void leave_all(rank_t *ranks, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++) {
        launch_group_leave(ranks[i].group);
        ranks[i].group = NULL;
    }
}

typedef struct gather_job {
    rank_t *rank;
    char mine[64];
    size_t bytes;
    char all[MAX_RANKS * 64];
    weft_status_t status;
    weft_diag_t diag;
    pthread_t thread;
} gather_job_t;

static void *gather(void *user)
{
    gather_job_t *job = user;
    job->status =
        launch_group_all_gather(job->rank->group, job->mine, job->bytes, job->all, &job->diag);
    return NULL;
}

static void begin_gather(gather_job_t *job, rank_t *rank, const char *mine, size_t bytes)
{
    *job = (gather_job_t){.rank = rank, .bytes = bytes};
    memcpy(job->mine, mine, bytes);
    assert_int_equal(pthread_create(&job->thread, NULL, gather, job), 0);
}

static void end_gather(gather_job_t *job, weft_status_t expected)
{
    pthread_join(job->thread, NULL);
    assert_status(job->status, expected);
}

/* ---- meeting --------------------------------------------------------------------------------- */

static void ranks_meet_and_gather_in_rank_order(void **state)
{
    rank_t ranks[4];
    (void)state;
    init_all(ranks, 4);
    join_all(ranks, 4);
    for (uint32_t round = 0; round < 50; round++) {
        gather_job_t jobs[4];
        char expected[4 * 8];
        for (uint32_t i = 0; i < 4; i++) {
            snprintf(expected + 8 * i, 8, "%u:%u", i, round);
            begin_gather(&jobs[i], &ranks[i], expected + 8 * i, 8);
        }
        for (uint32_t i = 0; i < 4; i++) {
            end_gather(&jobs[i], WEFT_OK);
            assert_memory_equal(jobs[i].all, expected, sizeof(expected));
        }
    }
    assert_int_equal(launch_group_rank(ranks[3].group), 3);
    assert_int_equal(launch_group_size(ranks[3].group), 4);
    leave_all(ranks, 4);
    assert_int_equal(
        tally_count(&ranks[0].lost) + tally_count(&ranks[1].lost) + tally_count(&ranks[3].lost), 0);
}

static void nothing_can_be_gathered_too(void **state)
{
    rank_t ranks[2];
    gather_job_t jobs[2];
    (void)state;
    init_all(ranks, 2);
    join_all(ranks, 2);
    for (uint32_t i = 0; i < 2; i++) {
        begin_gather(&jobs[i], &ranks[i], "", 0);
    }
    end_gather(&jobs[0], WEFT_OK);
    end_gather(&jobs[1], WEFT_OK);
    leave_all(ranks, 2);
}

static void ranks_that_give_different_sizes_are_told(void **state)
{
    rank_t ranks[2];
    gather_job_t jobs[2];
    (void)state;
    init_all(ranks, 2);
    join_all(ranks, 2);
    begin_gather(&jobs[0], &ranks[0], "abcd", 4);
    begin_gather(&jobs[1], &ranks[1], "abcdefgh", 8);
    pthread_join(jobs[0].thread, NULL);
    pthread_join(jobs[1].thread, NULL);
    assert_true(jobs[0].status < 0);
    assert_string_equal(jobs[0].diag.text, "rank 1 gave 8 bytes, the leader 4");
    assert_string_equal(jobs[1].diag.text, jobs[0].diag.text);
    leave_all(ranks, 2);
}

static void a_process_alone_is_a_group(void **state)
{
    rank_t rank;
    char all[4];
    (void)state;
    init(&rank, 0, 1, reserve_port());
    begin_join(&rank);
    end_join(&rank, WEFT_OK);
    assert_status(launch_group_all_gather(rank.group, "abc", 4, all, NULL), WEFT_OK);
    assert_string_equal(all, "abc");
    launch_group_leave(rank.group);
}

static void a_group_can_form_again_on_its_port(void **state)
{
    rank_t ranks[3];
    (void)state;
    init_all(ranks, 3);
    for (int i = 0; i < 3; i++) {
        join_all(ranks, 3);
        leave_all(ranks, 3);
    }
}

/* Debian's name of a host is 127.0.1.1. */
static void any_address_of_the_loopback_will_do(void **state)
{
    rank_t ranks[2];
    (void)state;
    init_all(ranks, 2);
    for (uint32_t i = 0; i < 2; i++) {
        strcpy(ranks[i].config.place.leader_host, "127.0.1.1");
    }
    join_all(ranks, 2);
    leave_all(ranks, 2);
}

/* False: it was not long enough for rank 2, which was to come. */
static bool are_missing_ranks_named(uint32_t join_timeout_s)
{
    char expected[64];
    atomic_bool is_cancelled = false;
    rank_t ranks[4];
    init_all(ranks, 4);
    ranks[0].config.join_timeout_s = join_timeout_s;
    ranks[2].config.is_cancelled = &is_cancelled;
    begin_join(&ranks[0]);
    begin_join(&ranks[2]);
    end_join(&ranks[0], WEFT_ERR_TIMEOUT);
    if (strstr(ranks[0].diag.text, "of 4: 1, 2, 3") != NULL) {
        abandon_join(&ranks[2], &is_cancelled);
        return false;
    }
    end_join(&ranks[2], WEFT_ERR_TIMEOUT);
    snprintf(expected, sizeof(expected), "ranks that did not come within %u s, of 4: 1, 3",
             join_timeout_s);
    assert_string_equal(ranks[0].diag.text, expected);
    assert_non_null(strstr(ranks[2].diag.text, "of 4: 1, 3"));
    return true;
}

static void ranks_that_do_not_come_are_named(void **state)
{
    uint32_t seconds = 1;
    (void)state;
    while (!are_missing_ranks_named(seconds)) {
        seconds *= 2;
        assert_true(seconds < 60);
    }
}

static void a_leader_that_does_not_come_is_named(void **state)
{
    rank_t rank;
    char expected[64];
    (void)state;
    init(&rank, 1, 2, reserve_port());
    rank.config.join_timeout_s = 1;
    begin_join(&rank);
    end_join(&rank, WEFT_ERR_TIMEOUT);
    snprintf(expected, sizeof(expected), "leader at 127.0.0.1:%u", rank.config.place.leader_port);
    assert_non_null(strstr(rank.diag.text, expected));
}

static void a_name_that_does_not_resolve_yet_is_tried_again(void **state)
{
    rank_t rank;
    (void)state;
    init(&rank, 1, 2, reserve_port());
    rank.config.join_timeout_s = 1;
    strcpy(rank.config.place.leader_host, "leader.invalid");
    begin_join(&rank);
    end_join(&rank, WEFT_ERR_TIMEOUT);
    assert_non_null(strstr(rank.diag.text, "leader.invalid"));
}

static void a_join_can_be_cancelled(void **state)
{
    atomic_bool is_cancelled = false;
    rank_t ranks[2];
    (void)state;
    init_all(ranks, 2);
    for (uint32_t i = 0; i < 2; i++) {
        ranks[i].config.place.size = 3; /* one that never comes */
        ranks[i].config.is_cancelled = &is_cancelled;
        begin_join(&ranks[i]);
    }
    atomic_store(&is_cancelled, true);
    end_join(&ranks[0], WEFT_ERR_CANCELLED);
    end_join(&ranks[1], WEFT_ERR_CANCELLED);
}

/* ---- refusals -------------------------------------------------------------------------------- */

/* False: it was not long enough for rank 1 to come. */
static bool are_refused(const launch_fact_t *leader, const launch_fact_t *follower,
                        const char *expected, uint32_t join_timeout_s)
{
    atomic_bool is_cancelled = false;
    rank_t ranks[2];
    init_all(ranks, 2);
    ranks[0].config.facts = leader;
    ranks[1].config.facts = follower;
    ranks[0].config.n_facts = ranks[1].config.n_facts = 1;
    ranks[0].config.join_timeout_s = join_timeout_s;
    ranks[1].config.is_cancelled = &is_cancelled;
    begin_join(&ranks[0]);
    begin_join(&ranks[1]);
    end_join(&ranks[0], WEFT_ERR_TIMEOUT);
    if (strstr(ranks[0].diag.text, expected) == NULL) {
        abandon_join(&ranks[1], &is_cancelled);
        return false;
    }
    end_join(&ranks[1], WEFT_ERR_DENIED);
    assert_non_null(strstr(ranks[1].diag.text, expected));
    return true;
}

static void ranks_that_differ_are_refused_by_name(void **state)
{
    static const struct {
        launch_fact_t leader, follower;
        const char *expected;
    } rows[] = {
        {{"model", "aa"}, {"model", "bb"}, "model: rank 1 has bb, the leader aa"},
        {{"dtype", "f32"}, {"seed", "1"}, "dtype: rank 1 has none, the leader f32"},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        uint32_t seconds = 1;
        while (!are_refused(&rows[i].leader, &rows[i].follower, rows[i].expected, seconds)) {
            seconds *= 2;
            assert_true(seconds < 60);
        }
    }
}

static void another_number_of_ranks_is_refused(void **state)
{
    atomic_bool is_cancelled = false;
    rank_t ranks[2];
    (void)state;
    init_all(ranks, 2);
    ranks[1].config.place.size = 3;
    ranks[0].config.is_cancelled = &is_cancelled;
    begin_join(&ranks[0]);
    begin_join(&ranks[1]);
    end_join(&ranks[1], WEFT_ERR_DENIED);
    cancel_join(&ranks[0], &is_cancelled);
    assert_non_null(strstr(ranks[1].diag.text, "number of ranks: rank 1 has 3, the leader 2"));
}

static void a_second_process_of_a_rank_is_refused_and_the_group_lives(void **state)
{
    rank_t ranks[2];
    rank_t second;
    gather_job_t jobs[2];
    (void)state;
    init_all(ranks, 2);
    join_all(ranks, 2);
    init(&second, 1, 2, ranks[0].config.place.leader_port);
    begin_join(&second);
    end_join(&second, WEFT_ERR_IN_USE);
    assert_non_null(strstr(second.diag.text, "rank 1 is taken by "));
    begin_gather(&jobs[0], &ranks[0], "abc", 3);
    begin_gather(&jobs[1], &ranks[1], "def", 3);
    end_gather(&jobs[0], WEFT_OK);
    end_gather(&jobs[1], WEFT_OK);
    leave_all(ranks, 2);
}

static void a_second_leader_finds_its_port_taken(void **state)
{
    rank_t ranks[2];
    rank_t second;
    (void)state;
    init_all(ranks, 2);
    join_all(ranks, 2);
    init(&second, 0, 2, ranks[0].config.place.leader_port);
    begin_join(&second);
    end_join(&second, WEFT_ERR_IN_USE);
    leave_all(ranks, 2);
}

static void an_address_that_is_not_private_takes_a_secret(void **state)
{
    rank_t rank;
    (void)state;
    init(&rank, 1, 2, 1);
    strcpy(rank.config.place.leader_host, "203.0.113.1");
    begin_join(&rank);
    end_join(&rank, WEFT_ERR_DENIED);
    assert_non_null(strstr(rank.diag.text, "--secret-file"));
}

/* ---- secrets --------------------------------------------------------------------------------- */

static void write_secret(char *path, size_t size, const char *folder, const char *name,
                         const char *secret, mode_t mode)
{
    snprintf(path, size, "%s/%s", folder, name);
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, secret, strlen(secret)), (ssize_t)strlen(secret));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static void those_who_share_a_secret_meet_and_others_do_not(void **state)
{
    char folder[256];
    char good[600];
    char bad[600];
    rank_t ranks[2];
    rank_t stranger;
    const char *const others[] = {bad, ""};
    (void)state;
    scratch_folder_make(folder, sizeof(folder));
    write_secret(good, sizeof(good), folder, "good", "correct horse battery", 0400);
    write_secret(bad, sizeof(bad), folder, "bad", "incorrect horse battery", 0600);
    init_all(ranks, 2);
    ranks[0].config.secret_file = ranks[1].config.secret_file = good;
    begin_join(&ranks[0]);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(others); i++) {
        init(&stranger, 1, 2, ranks[0].config.place.leader_port);
        stranger.config.secret_file = others[i];
        begin_join(&stranger);
        end_join(&stranger, WEFT_ERR_DENIED);
        assert_non_null(strstr(stranger.diag.text, "secret"));
    }
    begin_join(&ranks[1]);
    end_join(&ranks[0], WEFT_OK);
    end_join(&ranks[1], WEFT_OK);
    leave_all(ranks, 2);
    scratch_folder_remove(folder);
}

static void a_follower_with_a_secret_refuses_a_leader_without(void **state)
{
    char folder[256];
    char secret[600];
    atomic_bool is_cancelled = false;
    rank_t ranks[2];
    (void)state;
    scratch_folder_make(folder, sizeof(folder));
    write_secret(secret, sizeof(secret), folder, "secret", "correct horse battery", 0400);
    init_all(ranks, 2);
    ranks[1].config.secret_file = secret;
    ranks[0].config.is_cancelled = &is_cancelled;
    begin_join(&ranks[0]);
    begin_join(&ranks[1]);
    end_join(&ranks[1], WEFT_ERR_DENIED);
    assert_non_null(strstr(ranks[1].diag.text, "none"));
    cancel_join(&ranks[0], &is_cancelled);
    scratch_folder_remove(folder);
}

static void secrets_that_protect_nothing_are_refused(void **state)
{
    static const struct {
        const char *secret;
        mode_t mode;
        weft_status_t status;
        const char *expected;
    } rows[] = {
        {"fifteen bytes..", 0600, WEFT_ERR_INVALID, "15 bytes; 16 to"},
        {"correct horse battery", 0640, WEFT_ERR_DENIED, "its mode is 640"},
        {"correct horse battery", 0604, WEFT_ERR_DENIED, "its mode is 604"},
    };
    char folder[256];
    rank_t rank;
    (void)state;
    scratch_folder_make(folder, sizeof(folder));
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        char name[16];
        char path[600];
        snprintf(name, sizeof(name), "%zu", i);
        write_secret(path, sizeof(path), folder, name, rows[i].secret, rows[i].mode);
        init(&rank, 0, 2, reserve_port());
        rank.config.secret_file = path;
        begin_join(&rank);
        end_join(&rank, rows[i].status);
        assert_non_null(strstr(rank.diag.text, rows[i].expected));
    }
    init(&rank, 0, 2, reserve_port());
    rank.config.secret_file = folder;
    begin_join(&rank);
    end_join(&rank, WEFT_ERR_INVALID);
    init(&rank, 0, 2, reserve_port());
    rank.config.secret_file = "/nonexistent/secret";
    begin_join(&rank);
    end_join(&rank, WEFT_ERR_NOT_FOUND);
    scratch_folder_remove(folder);
}

/* ---- strangers ------------------------------------------------------------------------------- */

static int connect_raw(uint16_t port)
{
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const uint64_t deadline = weft_clock_ns() + 30 * WEFT_NS_PER_SECOND;
    for (;;) {
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0) {
            return fd;
        }
        close(fd);
        assert_true(weft_clock_ns() < deadline);
    }
}

static void send_garbage(uint16_t port)
{
    uint8_t bytes[4096];
    const int fd = connect_raw(port);
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)(i * 167 + 13);
    }
    (void)!send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
    close(fd);
}

/* Whoever speaks ZeroMQ, but not our messages. */
static void send_messages_of_others(void *context, uint16_t port)
{
    char endpoint[64];
    void *socket = zmq_socket(context, ZMQ_DEALER);
    snprintf(endpoint, sizeof(endpoint), "tcp://127.0.0.1:%u", port);
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    assert_int_equal(zmq_send(socket, "\xff\xff\xff garbage", 11, 0), 11);
    assert_int_equal(zmq_send(socket, "", 0, 0), 0);
    assert_int_equal(zmq_send(socket, "two", 3, ZMQ_SNDMORE), 3);
    assert_int_equal(zmq_send(socket, "parts", 5, 0), 5);
    zmq_close(socket); /* lingers until it is sent */
}

static void strangers_are_refused_and_the_group_lives(void **state)
{
    rank_t ranks[2];
    gather_job_t jobs[2];
    void *context = zmq_ctx_new();
    (void)state;
    init_all(ranks, 2);
    const uint16_t port = ranks[0].config.place.leader_port;
    begin_join(&ranks[0]);
    const int silent = connect_raw(port);
    send_garbage(port);
    send_messages_of_others(context, port);
    begin_join(&ranks[1]);
    end_join(&ranks[0], WEFT_OK);
    end_join(&ranks[1], WEFT_OK);
    for (int i = 0; i < 30; i++) {
        send_garbage(port);
        send_messages_of_others(context, port);
    }
    zmq_ctx_term(context);
    begin_gather(&jobs[0], &ranks[0], "abc", 3);
    begin_gather(&jobs[1], &ranks[1], "def", 3);
    end_gather(&jobs[0], WEFT_OK);
    end_gather(&jobs[1], WEFT_OK);
    close(silent);
    leave_all(ranks, 2);
    assert_int_equal(tally_count(&ranks[0].lost), 0);
}

/* ---- losses ---------------------------------------------------------------------------------- */

/* A follower as a process that joins and waits for its end. */
static pid_t spawn_follower(const rank_t *model)
{
    const pid_t pid = test_fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        rank_t rank;
        init(&rank, model->config.place.rank, model->config.place.size,
             model->config.place.leader_port);
        rank.config.lost_after_s = model->config.lost_after_s;
        _exit(launch_group_join(&rank.config, NULL, &rank.group) == WEFT_OK && pause() != 0);
    }
    return pid;
}

static void everyone_hears_of_a_rank_that_dies(void **state)
{
    rank_t ranks[3];
    gather_job_t jobs[2];
    (void)state;
    init_all(ranks, 3);
    const pid_t pid = spawn_follower(&ranks[2]);
    join_all(ranks, 2);
    begin_gather(&jobs[0], &ranks[0], "abc", 3);
    begin_gather(&jobs[1], &ranks[1], "def", 3);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (uint32_t i = 0; i < 2; i++) {
        wait_for_loss(&ranks[i]);
        end_gather(&jobs[i], WEFT_ERR_PEER_GONE);
        assert_int_equal(ranks[i].lost_rank, 2);
        assert_string_equal(ranks[i].lost_why, "its connection ended");
        assert_non_null(strstr(jobs[i].diag.text, "rank 2 is lost"));
        assert_status(launch_group_all_gather(ranks[i].group, "", 0, NULL, NULL),
                      WEFT_ERR_PEER_GONE);
    }
    leave_all(ranks, 2);
    assert_int_equal(tally_count(&ranks[0].lost), 1);
    assert_int_equal(tally_count(&ranks[1].lost), 1);

    join_all(ranks, 3); /* and once more */
    leave_all(ranks, 3);
}

static void a_rank_that_hangs_is_lost_after_its_heartbeats(void **state)
{
    rank_t ranks[2];
    (void)state;
    init_all(ranks, 2);
    ranks[0].config.lost_after_s = ranks[1].config.lost_after_s = 1;
    const pid_t pid = spawn_follower(&ranks[1]);
    begin_join(&ranks[0]);
    end_join(&ranks[0], WEFT_OK);
    kill(pid, SIGSTOP);
    wait_for_loss(&ranks[0]);
    assert_int_equal(ranks[0].lost_rank, 1);
    assert_string_equal(ranks[0].lost_why, "no heartbeat for 1 s");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    launch_group_leave(ranks[0].group);
}

static void followers_hear_of_a_leader_that_dies(void **state)
{
    rank_t ranks[3];
    (void)state;
    init_all(ranks, 3);
    const pid_t pid = spawn_follower(&ranks[0]); /* any rank */
    begin_join(&ranks[1]);
    begin_join(&ranks[2]);
    end_join(&ranks[1], WEFT_OK);
    end_join(&ranks[2], WEFT_OK);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (uint32_t i = 1; i < 3; i++) {
        wait_for_loss(&ranks[i]);
        assert_int_equal(ranks[i].lost_rank, 0);
        launch_group_leave(ranks[i].group);
    }
}

static void a_rank_says_that_it_cannot_go_on(void **state)
{
    (void)state;
    for (uint32_t failing = 0; failing < 3; failing++) {
        rank_t ranks[3];
        init_all(ranks, 3);
        join_all(ranks, 3);
        launch_group_fail(ranks[failing].group, "no memory for KV blocks");
        for (uint32_t i = 0; i < 3; i++) {
            if (i != failing) {
                wait_for_loss(&ranks[i]);
                assert_int_equal(ranks[i].lost_rank, failing);
                assert_string_equal(ranks[i].lost_why, "no memory for KV blocks");
            }
            assert_status(launch_group_all_gather(ranks[i].group, "", 0, NULL, NULL),
                          WEFT_ERR_PEER_GONE);
        }
        leave_all(ranks, 3);
        assert_int_equal(tally_count(&ranks[failing].lost), 0);
    }
}

static void leaving_is_no_loss(void **state)
{
    (void)state;
    for (uint32_t first = 0; first < 3; first++) {
        rank_t ranks[3];
        init_all(ranks, 3);
        join_all(ranks, 3);
        launch_group_leave(ranks[first].group);
        for (uint32_t i = 0; i < 3; i++) {
            char all[3];
            if (i != first && (first == 0 || i == 0)) {
                assert_status(launch_group_all_gather(ranks[i].group, "a", 1, all, NULL),
                              WEFT_ERR_PEER_GONE);
            }
        }
        for (uint32_t i = 0; i < 3; i++) {
            if (i != first) {
                launch_group_leave(ranks[i].group);
                assert_int_equal(tally_count(&ranks[i].lost), 0);
            }
        }
    }
}

/* Before all have come, a place that is free again is taken by the next one. */
static void a_rank_that_dies_while_others_are_awaited_may_come_again(void **state)
{
    rank_t ranks[3];
    (void)state;
    init_all(ranks, 3);
    const pid_t pid = spawn_follower(&ranks[1]);
    begin_join(&ranks[0]);
    begin_join(&ranks[1]); /* one of the two is in, the other is refused or takes its place */
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    begin_join(&ranks[2]);
    end_join(&ranks[2], WEFT_OK);
    pthread_join(ranks[1].thread, NULL);
    end_join(&ranks[0], WEFT_OK);
    assert_status(ranks[1].status, WEFT_OK);
    leave_all(ranks, 3);
}

static void allocations_that_fail_fail_the_join(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 4; n++) {
        rank_t rank;
        const launch_fact_t fact = {"model", "aa"};
        init(&rank, 0, 1, reserve_port());
        rank.config.facts = &fact;
        rank.config.n_facts = 1;
        weft_alloc_fail_nth(n);
        assert_status(launch_group_join(&rank.config, NULL, &rank.group), WEFT_ERR_NO_MEMORY);
        weft_alloc_fail_nth(0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_meet_and_gather_in_rank_order),
        cmocka_unit_test(nothing_can_be_gathered_too),
        cmocka_unit_test(ranks_that_give_different_sizes_are_told),
        cmocka_unit_test(a_process_alone_is_a_group),
        cmocka_unit_test(a_group_can_form_again_on_its_port),
        cmocka_unit_test(any_address_of_the_loopback_will_do),
        cmocka_unit_test(ranks_that_do_not_come_are_named),
        cmocka_unit_test(a_leader_that_does_not_come_is_named),
        cmocka_unit_test(a_name_that_does_not_resolve_yet_is_tried_again),
        cmocka_unit_test(a_join_can_be_cancelled),
        cmocka_unit_test(ranks_that_differ_are_refused_by_name),
        cmocka_unit_test(another_number_of_ranks_is_refused),
        cmocka_unit_test(a_second_process_of_a_rank_is_refused_and_the_group_lives),
        cmocka_unit_test(a_second_leader_finds_its_port_taken),
        cmocka_unit_test(an_address_that_is_not_private_takes_a_secret),
        cmocka_unit_test(those_who_share_a_secret_meet_and_others_do_not),
        cmocka_unit_test(a_follower_with_a_secret_refuses_a_leader_without),
        cmocka_unit_test(secrets_that_protect_nothing_are_refused),
        cmocka_unit_test(strangers_are_refused_and_the_group_lives),
        cmocka_unit_test(everyone_hears_of_a_rank_that_dies),
        cmocka_unit_test(a_rank_that_hangs_is_lost_after_its_heartbeats),
        cmocka_unit_test(followers_hear_of_a_leader_that_dies),
        cmocka_unit_test(a_rank_says_that_it_cannot_go_on),
        cmocka_unit_test(leaving_is_no_loss),
        cmocka_unit_test(a_rank_that_dies_while_others_are_awaited_may_come_again),
        cmocka_unit_test(allocations_that_fail_fail_the_join),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
