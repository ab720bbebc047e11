/* SPDX-License-Identifier: Apache-2.0 */
/* Environments recorded from the programs that start ranks: tests/vectors/rank_env/. */
#include "launcher/launch_place.h"

#include <string.h>

#include "base/compiler.h"
#include "launcher/launch_hostlist.h"
#include "tests/support/check.h"

#ifdef __SANITIZE_ADDRESS__
/* PMIx forgets its own when it finds no server. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libpmix.so";
}
#endif

static const launch_place_flags_t no_flags = {.rank = UINT32_MAX, .leader = ""};

static void forget_environment(void)
{
    clearenv();
}

static int set_up(void **state)
{
    (void)state;
    forget_environment();
    return 0;
}

/* "NAME=value" lines of a vector, into the environment. */
static void take_vector(const char *name)
{
    char path[512];
    char line[1024];
    forget_environment();
    snprintf(path, sizeof(path), "%s/rank_env/%s.env", WEFT_TEST_VECTORS, name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof(line), file) != NULL) {
        char *equals = strchr(line, '=');
        line[strcspn(line, "\n")] = '\0';
        assert_non_null(equals);
        *equals = '\0';
        assert_int_equal(setenv(line, equals + 1, 1), 0);
    }
    fclose(file);
}

static launch_place_t place_now(const launch_place_flags_t *flags)
{
    weft_diag_t diag = {0};
    launch_place_t place = {0};
    const weft_status_t status = launch_place_read(flags, &diag, &place);
    if (status < 0) {
        print_error("%s\n", diag.text);
    }
    assert_status(status, WEFT_OK);
    return place;
}

static void recorded_environments_give_their_places(void **state)
{
    static const struct {
        const char *vector, *source, *host;
        uint32_t rank, size, local_rank, local_size;
        uint16_t port; /* 0: one made of the job's name */
    } rows[] = {
        {"openmpi", "OpenMPI", "127.0.0.1", 1, 2, 1, 2, 0},
        {"torchrun", "torchrun", "localhost", 1, 2, 1, 2, 0},
        {"lws", "LWS", "chat-0.chat.models", 1, 2, 0, 0, LAUNCH_DEFAULT_PORT},
        {"slurm_srun", "Slurm", "127.0.0.1", 1, 2, 1, 0, 0},
        {"slurm_srun_four_nodes", "Slurm", "rack1-n007", 5, 8, 1, 0, 0},
        {"slurm_srun_in_sbatch", "Slurm", "127.0.0.1", 1, 2, 1, 0, 0},
        {"slurm_srun_pmix", "Slurm", "127.0.0.1", 1, 2, 1, 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        take_vector(rows[i].vector);
        const launch_place_t place = place_now(&no_flags);
        assert_string_equal(place.source, rows[i].source);
        assert_string_equal(place.leader_host, rows[i].host);
        assert_int_equal(place.rank, rows[i].rank);
        assert_int_equal(place.size, rows[i].size);
        assert_int_equal(place.local_rank, rows[i].local_rank);
        assert_int_equal(place.local_size, rows[i].local_size);
        if (rows[i].port != 0) {
            assert_int_equal(place.leader_port, rows[i].port);
        } else {
            assert_in_range(place.leader_port, 20000, 28999);
        }
        launch_place_forget();
        assert_int_equal(place_now(&no_flags).size, 1);
    }
}

/* Who is started from here may get variables of these names behind them, and reads the first. */
static void what_is_forgotten_leaves_nothing_of_a_place(void **state)
{
    static const char *const names[] = {"WEFT_RANK", "WEFT_SIZE", "WEFT_LOCAL_RANK",
                                        "WEFT_LOCAL_SIZE", "WEFT_LEADER"};
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        setenv(names[i], "1", 1);
    }
    launch_place_forget();
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        assert_null(getenv(names[i]));
    }
}

/* The server of the recording is gone, so PMIx cannot tell. */
static void ranks_of_mpirun_on_several_hosts_fall_back_to_its_own(void **state)
{
    (void)state;
    take_vector("openmpi_two_hosts");
    const launch_place_t place = place_now(&no_flags);
    assert_int_equal(place.rank, 1);
    assert_string_equal(place.leader_host, "192.0.2.2");
}

static void a_shell_of_a_batch_job_is_alone(void **state)
{
    static const char *const vectors[] = {"slurm_sbatch_shell", "slurm_salloc_shell"};
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(vectors); i++) {
        take_vector(vectors[i]);
        const launch_place_t place = place_now(&no_flags);
        assert_string_equal(place.source, "none");
        assert_int_equal(place.size, 1);
        assert_int_equal(place.rank, 0);
    }
}

static void an_empty_environment_is_alone(void **state)
{
    (void)state;
    const launch_place_t place = place_now(&no_flags);
    assert_string_equal(place.source, "none");
    assert_int_equal(place.size, 1);
}

static void one_rank_needs_no_leader(void **state)
{
    (void)state;
    setenv("RANK", "0", 1);
    setenv("WORLD_SIZE", "1", 1);
    const launch_place_t place = place_now(&no_flags);
    assert_string_equal(place.source, "MASTER_ADDR");
    assert_int_equal(place.size, 1);
}

static void the_variables_alone_name_the_port(void **state)
{
    (void)state;
    setenv("RANK", "3", 1);
    setenv("WORLD_SIZE", "4", 1);
    setenv("MASTER_ADDR", "10.0.0.1", 1);
    setenv("MASTER_PORT", "29500", 1);
    const launch_place_t place = place_now(&no_flags);
    assert_string_equal(place.source, "MASTER_ADDR");
    assert_string_equal(place.leader_host, "10.0.0.1");
    assert_int_equal(place.leader_port, 29500);
}

static void jobs_on_one_host_get_ports_of_their_own(void **state)
{
    (void)state;
    take_vector("slurm_srun");
    const launch_place_t first = place_now(&no_flags);
    setenv("SLURM_STEP_ID", "1", 1);
    assert_int_not_equal(place_now(&no_flags).leader_port, first.leader_port);
    setenv("SLURM_STEP_ID", "0", 1);
    setenv("SLURM_PROCID", "0", 1);
    assert_int_equal(place_now(&no_flags).leader_port, first.leader_port);
}

static void the_nearest_starter_counts(void **state)
{
    (void)state;
    take_vector("openmpi");
    setenv("LWS_LEADER_ADDRESS", "a-0.a.b", 1);
    setenv("LWS_GROUP_SIZE", "4", 1);
    setenv("LWS_WORKER_INDEX", "0", 1);
    assert_string_equal(place_now(&no_flags).source, "OpenMPI");
    setenv("WEFT_RANK", "2", 1);
    setenv("WEFT_SIZE", "3", 1);
    setenv("WEFT_LEADER", "[::1]:7", 1);
    const launch_place_t place = place_now(&no_flags);
    assert_string_equal(place.source, "weft launch");
    assert_int_equal(place.rank, 2);
    assert_string_equal(place.leader_host, "::1");
    assert_int_equal(place.leader_port, 7);
}

static void flags_win_one_by_one(void **state)
{
    const launch_place_flags_t leader = {.rank = UINT32_MAX, .leader = "10.1.1.1:77"};
    const launch_place_flags_t rank = {.rank = 0, .leader = ""};
    const launch_place_flags_t all = {.rank = 3, .size = 4, .leader = "node7"};
    (void)state;
    take_vector("lws");
    launch_place_t place = place_now(&leader);
    assert_int_equal(place.rank, 1);
    assert_string_equal(place.leader_host, "10.1.1.1");
    assert_int_equal(place.leader_port, 77);

    place = place_now(&rank);
    assert_int_equal(place.rank, 0);
    assert_int_equal(place.size, 2);

    place = place_now(&all);
    assert_string_equal(place.source, "flags");
    assert_int_equal(place.rank, 3);
    assert_int_equal(place.size, 4);
    assert_string_equal(place.leader_host, "node7");
    assert_int_equal(place.leader_port, LAUNCH_DEFAULT_PORT);
}

/* Also where it could not have been read. */
static void flags_that_say_all_need_no_environment(void **state)
{
    const launch_place_flags_t all = {.rank = 1, .size = 2, .leader = "node7"};
    (void)state;
    setenv("LWS_GROUP_SIZE", "many", 1);
    assert_string_equal(place_now(&all).source, "flags");
}

static void a_local_rank_stays_known_beside_flags_that_agree(void **state)
{
    const launch_place_flags_t all = {.rank = 1, .size = 2, .leader = "node7"};
    (void)state;
    take_vector("openmpi");
    assert_int_equal(place_now(&all).local_rank, 1);
}

static void what_contradicts_itself_is_named(void **state)
{
    static const struct {
        const char *name, *value, *expected;
    } rows[] = {
        {"LWS_GROUP_SIZE", "two", "LWS_GROUP_SIZE=two: no number"},
        {"LWS_GROUP_SIZE", "-2", "LWS_GROUP_SIZE=-2: no number"},
        {"LWS_GROUP_SIZE", "0", "LWS_GROUP_SIZE=0: no ranks"},
        {"LWS_GROUP_SIZE", "99999999999999", "LWS_GROUP_SIZE=99999999999999: more than 1024"},
        {"LWS_GROUP_SIZE", "1", "LWS_WORKER_INDEX=1, but LWS_GROUP_SIZE=1"},
        {"LWS_GROUP_SIZE", "", "LWS: LWS_GROUP_SIZE is not set"},
        {"LWS_WORKER_INDEX", "2", "LWS_WORKER_INDEX=2, but LWS_GROUP_SIZE=2"},
        {"LWS_WORKER_INDEX", "1 ", "LWS_WORKER_INDEX=1 : no number"},
        {"LWS_LEADER_ADDRESS", "", "LWS: LWS_LEADER_ADDRESS is not set, and --leader not given"},
        {"LWS_LEADER_ADDRESS", "a b", "LWS_LEADER_ADDRESS: a b: no host, host:port or [v6]:port"},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        weft_diag_t diag = {0};
        launch_place_t place;
        take_vector("lws");
        setenv(rows[i].name, rows[i].value, 1);
        assert_status(launch_place_read(&no_flags, &diag, &place), WEFT_ERR_INVALID);
        assert_string_equal(diag.text, rows[i].expected);
    }
}

static void half_a_set_of_flags_is_refused(void **state)
{
    static const struct {
        launch_place_flags_t flags;
        const char *expected;
    } rows[] = {
        {{1, 0, ""}, "--rank without --world-size"},
        {{UINT32_MAX, 0, "a"}, "--leader without --world-size"},
        {{UINT32_MAX, 2, "a"}, "--world-size 2 without --rank"},
        {{2, 2, "a"}, "rank 2 of 2 ranks (flags)"},
        {{1, 2, ""}, "rank 1 of 2: --leader is not given"},
        {{1, 2, "a:0"}, "--leader: a:0: its port is none of 1 to 65535"},
        {{1, 2000, "a"}, "--world-size 2000: more than 1024"},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        weft_diag_t diag = {0};
        launch_place_t place;
        assert_status(launch_place_read(&rows[i].flags, &diag, &place), WEFT_ERR_INVALID);
        assert_string_equal(diag.text, rows[i].expected);
    }
}

static void lists_of_hosts_give_their_first(void **state)
{
    static const char *const good[][2] = {
        {"n1", "n1"},
        {"n1,n2", "n1"},
        {"n[007-009,012]", "n007"},
        {"n[3]", "n3"},
        {"rack[1-2]n[04,06],login", "rack1n04"},
        {"gpu-a.b_c[10-11]-ib,x", "gpu-a.b_c10-ib"},
    };
    static const char *const bad[] = {"",      ",n1", "n[1-2", "n[]",    "n[-2]",  "n[a]",
                                      "n[1b]", "n]",  "n 1",   "n[1;2]", "n[[1]]", "(null)"};
    char host[256];
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(good); i++) {
        assert_status(launch_hostlist_first(good[i][0], NULL, host, sizeof(host)), WEFT_OK);
        assert_string_equal(host, good[i][1]);
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(bad); i++) {
        assert_status(launch_hostlist_first(bad[i], NULL, host, sizeof(host)), WEFT_ERR_INVALID);
    }
    assert_status(launch_hostlist_first("abcd", NULL, host, 4), WEFT_ERR_INVALID);
    assert_status(launch_hostlist_first("abc", NULL, host, 4), WEFT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(recorded_environments_give_their_places, set_up),
        cmocka_unit_test_setup(what_is_forgotten_leaves_nothing_of_a_place, set_up),
        cmocka_unit_test_setup(ranks_of_mpirun_on_several_hosts_fall_back_to_its_own, set_up),
        cmocka_unit_test_setup(a_shell_of_a_batch_job_is_alone, set_up),
        cmocka_unit_test_setup(an_empty_environment_is_alone, set_up),
        cmocka_unit_test_setup(one_rank_needs_no_leader, set_up),
        cmocka_unit_test_setup(the_variables_alone_name_the_port, set_up),
        cmocka_unit_test_setup(jobs_on_one_host_get_ports_of_their_own, set_up),
        cmocka_unit_test_setup(the_nearest_starter_counts, set_up),
        cmocka_unit_test_setup(flags_win_one_by_one, set_up),
        cmocka_unit_test_setup(flags_that_say_all_need_no_environment, set_up),
        cmocka_unit_test_setup(a_local_rank_stays_known_beside_flags_that_agree, set_up),
        cmocka_unit_test_setup(what_contradicts_itself_is_named, set_up),
        cmocka_unit_test_setup(half_a_set_of_flags_is_refused, set_up),
        cmocka_unit_test(lists_of_hosts_give_their_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
