/* SPDX-License-Identifier: Apache-2.0 */
/* `weft bench fabric` as a shell meets it. Every size is compared byte by byte by the program. */
#include "base/compiler.h"
#include "tests/support/model_rig.h"
#include "tests/support/weft_shell.h"

/* 1 and 16 blocks of 4 KiB, then 1 of 64 KiB; few of each. */
#define SMALL                                                                                      \
    "bench fabric --start-block-size 4KiB --max-block-size 64KiB --block-step 16 --start-total "   \
    "4KiB --max-total 64KiB --total-step 16 --rounds 2 --iterations 3 --json "

static double number_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) {
        print_error("no number \"%s\" in %s\n", key, output);
    }
    assert_true(json_is_number(value));
    return json_number_value(value);
}

static json_t *run_small(const char *words)
{
    char command[1024];
    snprintf(command, sizeof(command), WEFT SMALL "%s", words);
    return run_json(command);
}

static const json_t *result_at(const json_t *json, size_t i, double block, double blocks)
{
    const json_t *result = json_array_get(json_object_get(json, "results"), i);
    assert_true(number_of(result, "block_bytes") == block);
    assert_true(number_of(result, "blocks") == blocks);
    return result;
}

static void check_rates(const json_t *rates)
{
    assert_true(number_of(rates, "gb_s_min") > 0);
    assert_true(number_of(rates, "gb_s_min") <= number_of(rates, "gb_s"));
    assert_true(number_of(rates, "gb_s") <= number_of(rates, "gb_s_max"));
    assert_true(number_of(rates, "p50_us") <= number_of(rates, "p99_us"));
}

static void check_backend(const json_t *json, const char *backend)
{
    const json_t *results = json_object_get(json, "results");
    assert_int_equal(json_array_size(results), 3);
    for (size_t i = 0; i < json_array_size(results); i++) {
        const json_t *result = json_array_get(results, i);
        assert_string_equal(json_string_value(json_object_get(result, "backend")), backend);
        check_rates(json_object_get(result, "weft"));
    }
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static void each_size_and_its_floors_are_measured(void **state)
{
    (void)state;
    json_t *json = run_small("--backend shm --floors memcpy,readv");
    check_backend(json, "shm");
    result_at(json, 0, 4096, 1);
    result_at(json, 1, 4096, 16);
    const json_t *last = result_at(json, 2, 65536, 1);
    check_rates(json_object_get(last, "memcpy"));
    check_rates(json_object_get(last, "readv"));
    const double ratio = number_of(json_object_get(last, "memcpy"), "ratio");
    const double expected = number_of(json_object_get(last, "weft"), "gb_s") /
                            number_of(json_object_get(last, "memcpy"), "gb_s");
    assert_true(ratio > 0.999 * expected && ratio < 1.001 * expected);
    json_decref(json);
}

static void every_way_brings_the_right_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *words;
        const char *backend;
    } ways[] = {
        {"--backend shm --memory private --floors readv", "shm"},
        {"--backend shm --op write --floors memcpy,readv", "shm"},
        {"--backend shm --op write --memory private", "shm"},
        {"--backend shm --layout dense", "shm"},
        {"--backend shm --layout strided --guard", "shm"},
        {"--backend shm --posters 2 --pipeline 3", "shm"},
        {"--backend shm --progress thread --no-notify", "shm"},
        {"--backend tcp", "tcp"},
        {"--backend tcp --op write --layout strided", "tcp"},
        {"--backend tcp --checksum off --guard --pipeline 2", "tcp"},
        {"--backend tcp --progress thread --op write --posters 2", "tcp"},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(ways); i++) {
        json_t *json = run_small(ways[i].words);
        check_backend(json, ways[i].backend);
        json_decref(json);
    }
}

static void dense_blocks_are_merged_and_strided_are_not(void **state)
{
    (void)state;
    json_t *dense = run_small("--backend shm --layout dense");
    json_t *strided = run_small("--backend shm --layout strided");
    assert_true(number_of(result_at(dense, 1, 4096, 16), "extents") == 1);
    assert_true(number_of(result_at(strided, 1, 4096, 16), "extents") == 16);
    json_decref(dense);
    json_decref(strided);
}

static void a_batch_size_is_a_number_of_blocks(void **state)
{
    (void)state;
    json_t *json =
        run_small("--backend shm --start-batch-size 2 --max-batch-size 5 --total-step 2");
    result_at(json, 0, 4096, 2);
    result_at(json, 1, 4096, 4);
    result_at(json, 2, 4096, 5);
    result_at(json, 5, 65536, 5);
    json_decref(json);
}

static void people_get_a_table(void **state)
{
    (void)state;
    assert_int_equal(shell(WEFT "bench fabric --max-block-size 4KiB --max-total 1MiB --rounds 1 "
                                "--iterations 1 --backend shm --floors memcpy"),
                     0);
    assert_non_null(strstr(output, "read, dram to dram, memfd, scattered"));
    assert_non_null(strstr(output, "memcpy ratio"));
    assert_non_null(strstr(output, "\n     4K      256       1M"));
}

/* ---- cost ------------------------------------------------------------------------------------ */

static double median_of(const json_t *json, const char *name)
{
    const json_t *figures = json_object_get(json, "figures");
    for (size_t i = 0; i < json_array_size(figures); i++) {
        const json_t *figure = json_array_get(figures, i);
        if (strcmp(json_string_value(json_object_get(figure, "name")), name) == 0) {
            return number_of(figure, "median");
        }
    }
    print_error("no figure \"%s\" in %s\n", name, output);
    fail();
    return 0;
}

static void each_cost_is_measured(void **state)
{
    (void)state;
    static const char *const names[] = {
        "post 1 run, caller-driven",
        "post 4096 runs, thread awake",
        "post 256 runs, thread asleep",
        "describe 100000 blocks",
        "describe 100000 blocks, strided",
        "request of 100000 blocks",
        "transfer of 100000 blocks",
        "notification, there and back",
        "read of 16 runs to notification there, unpolled",
    };
    json_t *json = run_json(WEFT "bench fabric --cost --backend shm --json");
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        assert_true(median_of(json, names[i]) > 0);
    }
    assert_true(median_of(json, "idle, initiator") >= 0);
    assert_true(median_of(json, "idle, target") >= 0);
    json_decref(json);
}

static void a_model_decodes_with_and_without_pulls(void **state)
{
    (void)state;
    char command[1024];
    snprintf(command, sizeof(command),
             WEFT "bench fabric --interference --model %s --cpu-isa ref --threads 1 --backend shm "
                  "--iterations 20 --rounds 2 --start-total 64KiB --pull-rate 10m --json",
             tiny_model_path("llama"));
    json_t *json = run_json(command);
    assert_true(number_of(json, "tokens") >= 2 * 16);
    assert_true(number_of(json, "pulled_gb_s") > 0);
    assert_true(number_of(json, "p99_ratio") > 0);
    json_decref(json);
}

/* ---- how it ends ----------------------------------------------------------------------------- */

static void bad_words_get_one_line_and_exit_code_2(void **state)
{
    (void)state;
    static const weft_shell_case_t cases[] = {
        {"bench fabric --op move", "--op"},
        {"bench fabric --initiator-segment tape", "tape"},
        {"bench fabric --target-segment tape", "tape"},
        {"bench fabric --memory mine", "--memory"},
        {"bench fabric --start-block-size 0", "--start-block-size"},
        {"bench fabric --start-block-size 12", "--start-block-size"},
        {"bench fabric --start-block-size 8KiB --max-block-size 4KiB", "--max-block-size"},
        {"bench fabric --block-step 1", "--block-step"},
        {"bench fabric --start-total 0", "--start-total"},
        {"bench fabric --start-total 1KiB --max-total 2KiB", "no total"},
        {"bench fabric --pool-bytes 4KiB", "--pool-bytes"},
        {"bench fabric --layout round", "--layout"},
        {"bench fabric --posters 0", "--posters"},
        {"bench fabric --pipeline 0", "--pipeline"},
        {"bench fabric --progress none", "--progress"},
        {"bench fabric --checksum maybe", "--checksum"},
        {"bench fabric --rounds 0", "--rounds"},
        {"bench fabric --floors sendfile", "--floors"},
        {"bench fabric --floors memcpy,sendfile", "--floors"},
        {"bench fabric --op write --guard", "--guard"},
        {"bench fabric --listen 1 --connect 2", "--listen"},
        {"bench fabric --listen nowhere", "HOST:PORT"},
        {"bench fabric --netns --connect 127.0.0.1:1", "--netns"},
        {"bench fabric --cost --interference", "--cost"},
        {"bench fabric --interference", "--model"},
        {"bench fabric --interference --model /nonexistent", "/nonexistent"},
        {"bench fabric --no-such-flag", "no-such-flag"},
    };
    weft_shell_refuses(cases, WEFT_ARRAY_LEN(cases), tiny_model_path("llama"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_size_and_its_floors_are_measured),
        cmocka_unit_test(every_way_brings_the_right_bytes),
        cmocka_unit_test(dense_blocks_are_merged_and_strided_are_not),
        cmocka_unit_test(a_batch_size_is_a_number_of_blocks),
        cmocka_unit_test(people_get_a_table),
        cmocka_unit_test(each_cost_is_measured),
        cmocka_unit_test(a_model_decodes_with_and_without_pulls),
        cmocka_unit_test(bad_words_get_one_line_and_exit_code_2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
