/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_options.h"

#include <string.h>

#include "base/compiler.h"
#include "tests/support/check.h"

#define MAX_WORDS 16

/* A command line of words parted by spaces, and the place that it makes. */
static weft_status_t read_line(const char *line, launch_options_t *options, launch_place_t *place,
                               weft_diag_t *diag)
{
    const weft_option_group_t group = {.title = "Ranks",
                                       .rows = launch_option_rows,
                                       .n_rows = launch_option_count,
                                       .config = options};
    const weft_option_spec_t spec = {.usage = "test", .about = "", .groups = &group, .n_groups = 1};
    char copy[256];
    char *words[MAX_WORDS] = {(char *)"test"};
    int n = 1;
    weft_option_set_t *set = NULL;
    snprintf(copy, sizeof(copy), "%s", line);
    for (char *word = strtok(copy, " "); word != NULL; word = strtok(NULL, " ")) {
        words[n++] = word;
    }
    weft_status_t status = weft_option_set_parse(&spec, n, words, diag, &set);
    if (status == WEFT_OK) {
        status = launch_options_place(options, diag, place);
    }
    weft_option_set_destroy(set);
    return status;
}

static int set_up(void **state)
{
    (void)state;
    return clearenv();
}

static void nothing_given_is_a_process_alone(void **state)
{
    launch_options_t options;
    launch_place_t place;
    weft_diag_t diag = {0};
    (void)state;
    assert_status(read_line("", &options, &place, &diag), WEFT_OK);
    assert_int_equal(place.size, 1);
    assert_false(launch_options_name_ranks(&options));
}

static void lines_give_their_places(void **state)
{
    static const struct {
        const char *line;
        uint32_t rank, size;
        const char *host;
        uint16_t port;
    } rows[] = {
        {"--rank 1 --world-size 2 --leader 127.0.0.1:77", 1, 2, "127.0.0.1", 77},
        {"--rank 0 --world-size 4 --leader node7", 0, 4, "node7", LAUNCH_DEFAULT_PORT},
        {"--nnodes 2 --node-rank 1 --master-addr 10.0.0.1 --master-port 29500", 1, 2, "10.0.0.1",
         29500},
        {"--nnodes 2 --master-addr fd00::7 --master-port 5", 0, 2, "fd00::7", 5},
        {"--nnodes 3 --node-rank 2 --master-addr node7", 2, 3, "node7", LAUNCH_DEFAULT_PORT},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        launch_options_t options;
        launch_place_t place;
        weft_diag_t diag = {0};
        assert_status(read_line(rows[i].line, &options, &place, &diag), WEFT_OK);
        assert_int_equal(place.rank, rows[i].rank);
        assert_int_equal(place.size, rows[i].size);
        assert_string_equal(place.leader_host, rows[i].host);
        assert_int_equal(place.leader_port, rows[i].port);
        assert_true(launch_options_name_ranks(&options));
    }
}

/* As `weft launch` sets them; two of the variables are those of options. */
static void variables_of_weft_launch_are_a_place(void **state)
{
    launch_options_t options;
    launch_place_t place;
    weft_diag_t diag = {0};
    (void)state;
    setenv("WEFT_RANK", "1", 1);
    setenv("WEFT_SIZE", "3", 1);
    setenv("WEFT_LOCAL_RANK", "1", 1);
    setenv("WEFT_LOCAL_SIZE", "3", 1);
    setenv("WEFT_LEADER", "127.0.0.1:77", 1);
    setenv("WEFT_RESTARTS", "2", 1);
    setenv("WEFT_EPOCH", "0", 1);
    assert_status(read_line("", &options, &place, &diag), WEFT_OK);
    assert_string_equal(place.source, "weft launch");
    assert_int_equal(place.rank, 1);
    assert_int_equal(place.size, 3);
    assert_int_equal(place.local_rank, 1);
    assert_int_equal(place.restarts, 2);
    assert_int_equal(place.leader_port, 77);
}

static void lines_that_contradict_themselves_are_refused(void **state)
{
    static const char *const rows[][2] = {
        {"--rank -2", "--rank -2: no rank"},
        {"--node-rank 1", "--node-rank 1, but --nnodes 1"},
        {"--nnodes 2 --node-rank 1", "--nnodes 2 without --master-addr"},
        {"--nnodes 2 --rank 1 --master-addr a",
         "--nnodes 2 beside --rank or --world-size: give one of them"},
        {"--nnodes 2 --master-addr a --master-port 70000", "--master-port 70000: no port"},
        {"--nnodes 2 --node-rank 2 --master-addr a", "rank 2 of 2 ranks (flags)"},
        {"--coll-timeout 0", "--coll-timeout 0: at least a second"},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        launch_options_t options;
        launch_place_t place;
        weft_diag_t diag = {0};
        assert_status(read_line(rows[i][0], &options, &place, &diag), WEFT_ERR_INVALID);
        assert_string_equal(diag.text, rows[i][1]);
    }
}

static void what_the_group_would_find_out_is_said_before(void **state)
{
    launch_options_t options;
    launch_place_t place;
    weft_diag_t diag = {0};
    (void)state;
    assert_status(read_line("--coll-backend nope", &options, &place, &diag), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "--coll-backend: collective backend \"nope\" is unknown"));
    assert_status(read_line("--secret-file /nowhere/s", &options, &place, &diag),
                  WEFT_ERR_NOT_FOUND);
    assert_string_equal(diag.text, "--secret-file /nowhere/s: No such file or directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(nothing_given_is_a_process_alone, set_up),
        cmocka_unit_test_setup(lines_give_their_places, set_up),
        cmocka_unit_test_setup(variables_of_weft_launch_are_a_place, set_up),
        cmocka_unit_test_setup(lines_that_contradict_themselves_are_refused, set_up),
        cmocka_unit_test_setup(what_the_group_would_find_out_is_said_before, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
