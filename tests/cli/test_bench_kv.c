/* SPDX-License-Identifier: Apache-2.0 */
/* `weft bench kv` as a shell meets it. */
#include <stdlib.h>
#include <unistd.h>

#include "tests/support/model_rig.h"
#include "tests/support/weft_shell.h"

/* Four conversations of 72 tokens, 2 at a time: 72 blocks of which the device holds half. */
#define TRACE                                                                                      \
    "bench kv --trace --model %s --cpu-isa ref --threads 1 --block-size 4 --conversations 4 "      \
    "--turns 3 --input-len 16 --output-len 8 --concurrency 2 --device-fraction 0.5 "
#define PROMPT_TOKENS (4 * (16 + 40 + 64))

static json_t *run_trace(const char *options)
{
    char command[2048];
    snprintf(command, sizeof(command), WEFT TRACE "%s --json", tiny_model_path("llama"), options);
    return run_json(command);
}

static const json_t *run_at(const json_t *json, size_t i, const char *store, double size)
{
    const json_t *run = json_array_get(json_object_get(json, "runs"), i);
    assert_string_equal(json_string_value(json_object_get(run, "store")), store);
    assert_true(json_number_value(json_object_get(run, "size")) == size);
    return run;
}

static double number_of(const json_t *run, const char *object, const char *key)
{
    const json_t *value = json_object_get(object == NULL ? run : json_object_get(run, object), key);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

static double hit_rate(const json_t *run)
{
    return number_of(run, "hit_rate", "device") + number_of(run, "hit_rate", "host") +
           number_of(run, "hit_rate", "disk");
}

static void check_run(const json_t *run)
{
    assert_int_equal(number_of(run, NULL, "prompt_tokens"), PROMPT_TOKENS);
    assert_int_equal(number_of(run, NULL, "different_turns"), 0);
    assert_true(number_of(run, NULL, "seconds") > 0);
    assert_true(number_of(run, "ttft_ms", "p50") > 0);
    assert_true(number_of(run, "ttft_ms", "p50") <= number_of(run, "ttft_ms", "p90"));
    assert_true(number_of(run, "ttft_ms", "p90") <= number_of(run, "ttft_ms", "p99"));
    assert_true(number_of(run, "ttft_ms", "p99") <= number_of(run, "e2e_ms", "max"));
}

/* ---- trace ----------------------------------------------------------------------------------- */

static void every_store_answers_as_the_cold_run_does(void **state)
{
    (void)state;
    json_t *json = run_trace("--check --stores none,host --sizes 0.5,2");
    assert_int_equal(json_array_size(json_object_get(json, "runs")), 4);
    assert_int_equal(json_integer_value(json_object_get(json, "working_set_blocks")), 72);
    assert_int_equal(json_integer_value(json_object_get(json, "device_blocks")), 36);
    const json_t *cold = run_at(json, 0, "cold", 0);
    const json_t *none = run_at(json, 1, "none", 0);
    const json_t *half = run_at(json, 2, "host", 0.5);
    const json_t *twice = run_at(json, 3, "host", 2);
    const json_t *runs[] = {cold, none, half, twice};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(runs); i++) {
        check_run(runs[i]);
        assert_true(
            json_equal(json_object_get(runs[i], "digest"), json_object_get(cold, "digest")));
    }
    assert_true(hit_rate(cold) == 0);
    assert_true(number_of(none, "hit_rate", "host") == 0);
    assert_true(number_of(twice, "hit_rate", "host") > 0);
    assert_int_equal(number_of(twice, NULL, "bytes"), 4 * number_of(half, NULL, "bytes"));
    json_decref(json);
}

/* Nothing is ever pushed out: whole blocks of what the engine has computed before are found. */
static void what_is_large_enough_finds_all_that_was_said(void **state)
{
    (void)state;
    json_t *json = run_trace("--check --stores none --device-blocks 400");
    const json_t *none = run_at(json, 1, "none", 0);
    /* Prompts of 16, 40 and 64 tokens; before them 0, 23 and 47 were computed. */
    const double found = number_of(none, "hit_rate", "device") * PROMPT_TOKENS;
    assert_true(fabs(found - 4 * (20 + 44)) < 1e-6);
    json_decref(json);
}

static void a_shared_beginning_is_shared(void **state)
{
    (void)state;
    json_t *json = run_trace("--stores none --device-blocks 400 --system-len 40 --turns 1");
    assert_int_equal(json_integer_value(json_object_get(json, "working_set_blocks")),
                     10 + 4 * (16 + 8) / 4);
    assert_true(number_of(run_at(json, 1, "none", 0), "hit_rate", "device") >= 3.0 * 40 / (4 * 56));
    json_decref(json);
}

static void a_seed_and_think_time_repeat_a_trace(void **state)
{
    (void)state;
    json_t *jsons[] = {
        run_trace("--stores none --no-cold --think-time 0.001 --seed 1"),
        run_trace("--stores none --no-cold --rounds 2 --seed 1"),
        run_trace("--stores none --no-cold --seed 2"),
    };
    const char *digests[WEFT_ARRAY_LEN(jsons)];
    for (size_t i = 0; i < WEFT_ARRAY_LEN(jsons); i++) {
        digests[i] = json_string_value(json_object_get(run_at(jsons[i], 0, "none", 0), "digest"));
    }
    assert_string_equal(digests[0], digests[1]);
    assert_string_not_equal(digests[0], digests[2]);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(jsons); i++) {
        json_decref(jsons[i]);
    }
}

static void people_get_a_table(void **state)
{
    (void)state;
    char command[2048];
    snprintf(command, sizeof(command), WEFT TRACE "--stores host --sizes 1",
             tiny_model_path("llama"));
    assert_int_equal(shell(command), 0);
    assert_non_null(strstr(output, "working set 72 blocks"));
    assert_non_null(strstr(output, "\ncold "));
    assert_non_null(strstr(output, "\nhost "));
    assert_null(strstr(output, "DIFFERENT"));
}

/* ---- parts ----------------------------------------------------------------------------------- */

static void each_part_is_measured(void **state)
{
    (void)state;
    static const char *const names[] = {
        "pool alloc",
        "pool release",
        "index size",
        "index insert",
        "index lookup, found",
        "index lookup, absent",
        "index evict",
        "match of the prompt",
        "hash sha256_cbor",
        "hash xxhash",
        "host put",
        "host put call p99",
        "host get",
        "host get latency p50",
    };
    json_t *json = run_json(WEFT "bench kv --index-blocks 5000 --prompt-tokens 1000 --block-bytes "
                                 "5000 --tier-bytes 200000 --repetitions 2 --json");
    const json_t *figures = json_object_get(json, "figures");
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        const json_t *found = NULL;
        for (size_t f = 0; f < json_array_size(figures); f++) {
            const json_t *figure = json_array_get(figures, f);
            if (strcmp(json_string_value(json_object_get(figure, "name")), names[i]) == 0) {
                found = figure;
            }
        }
        assert_non_null(found);
        assert_true(number_of(found, NULL, "min") > 0);
        assert_true(number_of(found, NULL, "min") <= number_of(found, NULL, "median"));
        assert_true(number_of(found, NULL, "median") <= number_of(found, NULL, "max"));
    }
    json_decref(json);
}

/* ---- how it ends ----------------------------------------------------------------------------- */

static void bad_words_get_one_line_and_exit_code_2(void **state)
{
    (void)state;
    static const weft_shell_case_t cases[] = {
        {"bench kv --index-blocks 0", "--index-blocks"},
        {"bench kv --block-size 0", "--block-size"},
        {"bench kv --prompt-tokens 1", "--prompt-tokens"},
        {"bench kv --block-bytes 0", "--tier-bytes"},
        {"bench kv --tier-bytes 10", "--tier-bytes"},
        {"bench kv --repetitions 0", "--repetitions"},
        {"bench kv --no-such-flag", "no-such-flag"},
        {"bench kv more", "more"},
        {"bench kv --trace", "--model"},
        {"bench kv --trace --model /nonexistent", "/nonexistent"},
        {"bench kv --trace --model LLAMA --conversations 0", "--conversations"},
        {"bench kv --trace --model LLAMA --turns 0", "--turns"},
        {"bench kv --trace --model LLAMA --output-len 0", "--output-len"},
        {"bench kv --trace --model LLAMA --rounds 0", "--rounds"},
        {"bench kv --trace --model LLAMA --turns 1000", "context"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --stores tape", "tape"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --stores host,", "--stores"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --stores disk", "--disk-path"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --stores disk --disk-path /tmp "
         "--policies some",
         "some"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --stores disk --disk-path "
         "/nonexistent "
         "--no-cold",
         "/nonexistent"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --sizes 1,x", "--sizes"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --sizes 0", "--sizes"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --device-blocks 1",
         "--device-blocks"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --device-fraction 0",
         "--device-fraction"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --think-time -1", "--think-time"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --check --no-cold", "--check"},
        {"bench kv --trace --model LLAMA --kv-host-bytes 1G", "--kv-host-bytes"},
        {"bench kv --trace --model LLAMA --turns 1 --input-len 20 --kv-cache-dtype q9",
         "--kv-cache-dtype"},
    };
    weft_shell_refuses(cases, WEFT_ARRAY_LEN(cases), tiny_model_path("llama"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_store_answers_as_the_cold_run_does),
        cmocka_unit_test(what_is_large_enough_finds_all_that_was_said),
        cmocka_unit_test(a_shared_beginning_is_shared),
        cmocka_unit_test(a_seed_and_think_time_repeat_a_trace),
        cmocka_unit_test(people_get_a_table),
        cmocka_unit_test(each_part_is_measured),
        cmocka_unit_test(bad_words_get_one_line_and_exit_code_2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
