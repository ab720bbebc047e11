/* SPDX-License-Identifier: Apache-2.0 */
/* `weft events` as a shell meets it, beside a publisher of this process. */
#include <jansson.h>
#include <sys/wait.h>

#include "tests/support/kv_publisher_rig.h"

#define WEFT    WEFT_BINARY_DIR "/weft "
#define MAX_OUT ((size_t)1 << 20)

static char output[MAX_OUT];

/* Runs a shell command line; the exit code. What it printed is in output, terminated. */
static int shell(const char *command)
{
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    const size_t n = fread(output, 1, MAX_OUT - 1, pipe);
    output[n] = '\0';
    const int status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int events_of(const publisher_rig_t *rig, const char *more)
{
    char command[1024];
    snprintf(command, sizeof(command), WEFT "events --connect %s --replay %s %s 2>&1",
             rig->endpoint, rig->replay, more);
    return shell(command);
}

static void publish_chain(const publisher_rig_t *rig, rig_block_t *blocks, uint64_t n,
                          kv_extra_t *extra)
{
    for (uint64_t i = 0; i < n; i++) {
        rig_make_block(i, i == 0 ? NULL : &blocks[i - 1], extra, &blocks[i]);
        kv_publisher_stored(rig->publisher, KV_TIER_device, &blocks[i].name);
    }
    kv_publisher_flush(rig->publisher);
    rig_wait_for_batches(rig, 1);
}

static void events_are_lines_of_json(void **state)
{
    (void)state;
    rig_block_t blocks[2];
    char hash[17];
    kv_extra_t *extra = NULL;
    publisher_rig_t rig = rig_open(", \"topic\": \"kv@pod@model\"");
    assert_status(kv_extra_create("tenant", NULL, NULL, &extra), WEFT_OK);
    publish_chain(&rig, blocks, 2, extra);
    kv_publisher_removed(rig.publisher, KV_TIER_device, &blocks[1].name.hash);
    kv_publisher_cleared(rig.publisher);
    kv_publisher_flush(rig.publisher);
    rig_wait_for_batches(&rig, 2);
    assert_int_equal(events_of(&rig, "--topic kv@ --count 3 2>/dev/null"), 0);

    json_t *lines[3];
    const char *at = output;
    for (size_t i = 0; i < 3; i++) {
        lines[i] = json_loads(at, JSON_DISABLE_EOF_CHECK, NULL);
        assert_non_null(lines[i]);
        at = strchr(at, '\n') + 1;
    }
    assert_string_equal(json_string_value(json_object_get(lines[0], "type")), "BlockStored");
    assert_string_equal(json_string_value(json_object_get(lines[0], "topic")), "kv@pod@model");
    assert_string_equal(json_string_value(json_object_get(lines[0], "medium")), "GPU");
    const json_t *hashes = json_object_get(lines[0], "block_hashes");
    assert_int_equal(json_array_size(hashes), 2);
    snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)rig_number(&blocks[1].name.hash));
    assert_string_equal(json_string_value(json_array_get(hashes, 1)), hash);
    const json_t *tokens = json_object_get(lines[0], "token_ids");
    assert_int_equal(json_array_size(tokens), 2 * RIG_TOKENS);
    assert_int_equal(json_integer_value(json_array_get(tokens, RIG_TOKENS)), blocks[1].tokens[0]);
    char *extras = json_dumps(json_object_get(lines[0], "extra_keys"), JSON_COMPACT);
    assert_string_equal(extras, "[[\"tenant\"],null]");
    free(extras);
    assert_string_equal(json_string_value(json_object_get(lines[1], "type")), "BlockRemoved");
    assert_int_equal(json_integer_value(json_object_get(lines[1], "sequence")), 1);
    assert_string_equal(json_string_value(json_object_get(lines[2], "type")), "AllBlocksCleared");
    for (size_t i = 0; i < 3; i++) {
        json_decref(lines[i]);
    }
    kv_extra_release(extra);
    rig_close(&rig);
}

static void a_stream_that_fits_is_found_so(void **state)
{
    (void)state;
    rig_block_t blocks[20];
    publisher_rig_t rig = rig_open("");
    publish_chain(&rig, blocks, 20, NULL);
    assert_int_equal(events_of(&rig, "--check --no-json --count 1"), 0);
    assert_non_null(strstr(output, "20 blocks are present: GPU 20 CPU 0"));
    assert_non_null(strstr(output, " 0 holes"));
    assert_null(strstr(output, "block_hashes"));
    rig_close(&rig);
}

static void holes_are_named_and_are_the_exit_code(void **state)
{
    (void)state;
    rig_block_t blocks[4];
    publisher_rig_t rig = rig_open("");
    for (uint64_t i = 0; i < 4; i++) {
        rig_make_block(i, i == 0 ? NULL : &blocks[i - 1], NULL, &blocks[i]);
    }
    kv_publisher_stored(rig.publisher, KV_TIER_device, &blocks[0].name);
    kv_publisher_stored(rig.publisher, KV_TIER_device, &blocks[2].name);
    kv_publisher_removed(rig.publisher, KV_TIER_device, &blocks[3].name.hash);
    kv_publisher_flush(rig.publisher);
    rig_wait_for_batches(&rig, 1);
    assert_int_equal(events_of(&rig, "--check --count 3"), 1);
    assert_non_null(strstr(output, "its parent is not present"));
    assert_non_null(strstr(output, "removed, but not present"));
    assert_non_null(strstr(output, "2 holes: 1 without parent, 1 removed while absent"));
    rig_close(&rig);
}

static void what_is_no_longer_kept_is_no_hole(void **state)
{
    (void)state;
    rig_block_t blocks[50];
    publisher_rig_t rig = rig_open(", \"buffer_steps\": 3");
    for (uint64_t i = 0; i < 50; i++) {
        rig_make_block(i, i == 0 ? NULL : &blocks[i - 1], NULL, &blocks[i]);
        kv_publisher_stored(rig.publisher, KV_TIER_device, &blocks[i].name);
        kv_publisher_flush(rig.publisher);
    }
    rig_wait_for_batches(&rig, 50);
    /* AllBlocksCleared, 47 blocks in one event, three more */
    assert_int_equal(events_of(&rig, "--check --no-json --count 5"), 0);
    assert_non_null(strstr(output, "5 events in 4 batches, 0 batches missing"));
    assert_non_null(strstr(output, "50 blocks are present: GPU 50"));
    rig_close(&rig);
}

static void wrong_words_are_explained(void **state)
{
    (void)state;
    assert_int_equal(shell(WEFT "events 2>&1"), 2);
    assert_non_null(strstr(output, "no endpoint: weft events --connect tcp://host:5557"));
    assert_int_equal(shell(WEFT "events --connect localhost:5557 2>&1"), 2);
    assert_non_null(strstr(output, "localhost:5557: Invalid argument"));
    assert_int_equal(shell(WEFT "events --connect tcp://127.0.0.1:1 --from 3 2>&1"), 2);
    assert_non_null(strstr(output, "--from needs --replay"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_are_lines_of_json),
        cmocka_unit_test(a_stream_that_fits_is_found_so),
        cmocka_unit_test(holes_are_named_and_are_the_exit_code),
        cmocka_unit_test(what_is_no_longer_kept_is_no_hole),
        cmocka_unit_test(wrong_words_are_explained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
