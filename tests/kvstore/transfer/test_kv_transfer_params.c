/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_transfer_params.h"

#include "tests/support/nixl_vectors.h"

static weft_diag_t diag;
static kv_transfer_params_t params;

static weft_status_t decode(const char *text)
{
    json_t *object = text == NULL ? NULL : json_loads(text, JSON_DECODE_ANY, NULL);
    assert_true(text == NULL || object != NULL);
    diag = (weft_diag_t){0};
    const weft_status_t status = kv_transfer_params_decode(object, &diag, &params);
    json_decref(object);
    return status;
}

/* What a prefill worker answers with is what vLLM's does, key by key and in its order. */
static void check_answer(const json_t *test)
{
    const json_t *answer = json_object_get(test, "response_kv_transfer_params");
    if (json_is_null(answer)) {
        return;
    }
    assert_status(kv_transfer_params_decode(answer, &diag, &params), WEFT_OK);
    assert_status(kv_transfer_params_check(&params, &diag), WEFT_OK);
    json_t *again = kv_transfer_params_json(&params);
    char *ours = json_dumps(again, 0);
    char *theirs = json_dumps(answer, 0);
    assert_string_equal(ours, theirs);
    free(ours);
    free(theirs);
    json_decref(again);
    kv_transfer_params_fini(&params);
}

static void answers_are_vllms(void **state)
{
    (void)state;
    nixl_for_each("response_kv_transfer_params", check_answer);
}

static void check_request(const json_t *test)
{
    const json_t *request = json_object_get(test, "request_params");
    assert_status(kv_transfer_params_decode(request, &diag, &params), WEFT_OK);
    assert_int_equal(params.do_remote_decode,
                     json_is_true(json_object_get(request, "do_remote_decode")));
    assert_false(params.do_remote_prefill);
    assert_status(kv_transfer_params_check(&params, &diag), WEFT_ERR_NOT_FOUND);
    kv_transfer_params_fini(&params);
}

static void requests_to_prefill_are_understood(void **state)
{
    (void)state;
    nixl_for_each("response_kv_transfer_params", check_request);
}

static void a_running_workers_answer_is_taken(void **state)
{
    kv_transfer_params_t copy;
    (void)state;
    json_t *live = read_json_vector("kv_transfer/vllm_live.json");
    assert_status(
        kv_transfer_params_decode(json_object_get(live, "kv_transfer_params"), &diag, &params),
        WEFT_OK);
    assert_status(kv_transfer_params_copy(&params, &copy), WEFT_OK);
    kv_transfer_params_fini(&params);
    assert_status(kv_transfer_params_check(&copy, &diag), WEFT_OK);
    assert_int_equal(copy.n_blocks, 2);
    assert_int_equal(copy.blocks[1], 2);
    assert_int_equal(copy.remote_num_tokens, 133);
    assert_int_equal(copy.remote_port, 5601);
    assert_string_equal(copy.remote_engine_id, "d612e0c3-f224-4d53-a079-3dfa2421b00e");
    kv_transfer_params_fini(&copy);
    json_decref(live);
}

static void older_flat_lists_are_one_group(void **state)
{
    (void)state;
    assert_status(decode("{\"remote_block_ids\": [7, 8, 4294967294]}"), WEFT_OK);
    assert_int_equal(params.n_groups, 1);
    assert_int_equal(params.n_blocks, 3);
    assert_int_equal(params.blocks[2], 4294967294u);
    kv_transfer_params_fini(&params);
    assert_status(decode("{\"remote_block_ids\": [[7], [], [8, 9]]}"), WEFT_OK);
    assert_int_equal(params.n_groups, 3);
    assert_int_equal(params.group_blocks[1], 0);
    assert_int_equal(params.blocks[2], 9);
    kv_transfer_params_fini(&params);
}

static void null_and_nothing_are_nothing(void **state)
{
    (void)state;
    const char *texts[] = {NULL, "null", "{}", "{\"some_later_key\": [1, {}]}"};
    for (size_t i = 0; i < 4; i++) {
        assert_status(decode(texts[i]), WEFT_OK);
        assert_int_equal(params.tp_size, 1);
        assert_status(kv_transfer_params_check(&params, &diag), WEFT_ERR_NOT_FOUND);
        kv_transfer_params_fini(&params);
    }
}

#define FULL                                                                                       \
    "\"do_remote_prefill\": true, \"remote_block_ids\": [[1]], \"remote_engine_id\": \"e\", "      \
    "\"remote_request_id\": \"r\", \"remote_host\": \"h\", \"remote_port\": 1"

static void what_is_missing_is_named(void **state)
{
    static const char *const keys[] = {"remote_engine_id", "remote_request_id", "remote_host",
                                       "remote_port"};
    char text[512];
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        snprintf(text, sizeof(text), "{" FULL ", \"%s\": null}", keys[i]);
        json_t *object = json_loads(text, 0, NULL);
        assert_status(kv_transfer_params_decode(object, &diag, &params), WEFT_OK);
        assert_status(kv_transfer_params_check(&params, &diag), WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, keys[i]));
        kv_transfer_params_fini(&params);
        json_decref(object);
    }
    assert_status(decode("{\"do_remote_prefill\": true}"), WEFT_OK);
    assert_status(kv_transfer_params_check(&params, &diag), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "remote_block_ids"));
    kv_transfer_params_fini(&params);
    assert_status(decode("{" FULL "}"), WEFT_OK);
    assert_status(kv_transfer_params_check(&params, &diag), WEFT_OK);
    kv_transfer_params_fini(&params);
}

static void a_request_ahead_needs_no_blocks(void **state)
{
    (void)state;
    assert_status(decode("{\"do_remote_prefill\": true, \"transfer_id\": \"xfer-1\","
                         " \"remote_host\": \"h\", \"remote_port\": 5600}"),
                  WEFT_OK);
    assert_status(kv_transfer_params_check(&params, &diag), WEFT_OK);
    assert_string_equal(params.transfer_id, "xfer-1");
    kv_transfer_params_fini(&params);
}

static void leases_come_back_as_they_were_written(void **state)
{
    (void)state;
    assert_status(decode("{" FULL ", \"weft_leases\": [[3, 9007199254740991], [0, 0]]}"), WEFT_OK);
    json_t *object = kv_transfer_params_json(&params);
    kv_transfer_params_fini(&params);
    assert_status(kv_transfer_params_decode(object, &diag, &params), WEFT_OK);
    assert_int_equal(params.n_leases, 2);
    assert_int_equal(params.leases[0].slot, 3);
    assert_true(params.leases[0].epoch == UINT64_C(9007199254740991));
    kv_transfer_params_fini(&params);
    json_decref(object);
}

static void what_cannot_be_is_refused_and_named(void **state)
{
    static const char *const wrong[][2] = {
        {"[]", "not an object"},
        {"{\"do_remote_prefill\": 1}", "do_remote_prefill"},
        {"{\"do_remote_prefill\": true, \"do_remote_decode\": true}", "do_remote_decode"},
        {"{\"remote_block_ids\": 5}", "remote_block_ids"},
        {"{\"remote_block_ids\": [[1], 2]}", "remote_block_ids"},
        {"{\"remote_block_ids\": [1, [2]]}", "remote_block_ids"},
        {"{\"remote_block_ids\": [-1]}", "remote_block_ids"},
        {"{\"remote_block_ids\": [4294967295]}", "remote_block_ids"},
        {"{\"remote_block_ids\": [1.5]}", "remote_block_ids"},
        {"{\"remote_port\": 65536}", "remote_port"},
        {"{\"remote_port\": \"5600\"}", "remote_port"},
        {"{\"remote_host\": \"\"}", "remote_host"},
        {"{\"remote_engine_id\": [\"e\"]}", "remote_engine_id"},
        {"{\"remote_request_id\": \"a\\u0000b\"}", "remote_request_id"},
        {"{\"tp_size\": -1}", "tp_size"},
        {"{\"remote_num_tokens\": 1e3}", "remote_num_tokens"},
        {"{\"transfer_mode\": \"push\"}", "transfer_mode"},
        {"{\"weft_leases\": [[1]]}", "weft_leases"},
        {"{\"weft_leases\": [[1, 9007199254740992]]}", "weft_leases"},
        {"{\"weft_leases\": {\"0\": 1}}", "weft_leases"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        json_t *object = json_loads(wrong[i][0], JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        diag = (weft_diag_t){0};
        const weft_status_t status = kv_transfer_params_decode(object, &diag, &params);
        assert_true(status == WEFT_ERR_INVALID || status == WEFT_ERR_UNSUPPORTED);
        if (strstr(diag.text, wrong[i][1]) == NULL) {
            fail_msg("%s: \"%s\"", wrong[i][0], diag.text);
        }
        json_decref(object);
    }
}

static void too_many_blocks_are_refused(void **state)
{
    (void)state;
    json_t *list = json_array();
    for (uint32_t i = 0; i <= KV_TRANSFER_MAX_BLOCKS; i++) {
        json_array_append_new(list, json_integer(0));
    }
    json_t *object = json_pack("{s:o}", "remote_block_ids", list);
    assert_status(kv_transfer_params_decode(object, &diag, &params), WEFT_ERR_UNSUPPORTED);
    json_array_remove(list, 0);
    assert_status(kv_transfer_params_decode(object, &diag, &params), WEFT_OK);
    kv_transfer_params_fini(&params);
    json_decref(object);
}

static void a_failed_allocation_leaves_nothing_behind(void **state)
{
    (void)state;
    json_t *object = json_loads("{" FULL ", \"transfer_id\": \"t\"}", 0, NULL);
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t n = 1; status != WEFT_OK; n++) {
        kv_transfer_params_t copy = {0};
        params = (kv_transfer_params_t){0};
        weft_alloc_fail_nth(n);
        status = kv_transfer_params_decode(object, &diag, &params);
        if (status == WEFT_OK) {
            status = kv_transfer_params_copy(&params, &copy);
        }
        weft_alloc_fail_nth(0);
        kv_transfer_params_fini(&params);
        kv_transfer_params_fini(&copy);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    json_decref(object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_vllms),
        cmocka_unit_test(requests_to_prefill_are_understood),
        cmocka_unit_test(a_running_workers_answer_is_taken),
        cmocka_unit_test(older_flat_lists_are_one_group),
        cmocka_unit_test(null_and_nothing_are_nothing),
        cmocka_unit_test(what_is_missing_is_named),
        cmocka_unit_test(a_request_ahead_needs_no_blocks),
        cmocka_unit_test(leases_come_back_as_they_were_written),
        cmocka_unit_test(what_cannot_be_is_refused_and_named),
        cmocka_unit_test(too_many_blocks_are_refused),
        cmocka_unit_test(a_failed_allocation_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
