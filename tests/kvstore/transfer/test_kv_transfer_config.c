/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_transfer_config.h"

#include <string.h>

#include "tests/support/check.h"

static weft_diag_t diag;
static kv_transfer_config_t config;

static weft_status_t parse(const char *text)
{
    diag = (weft_diag_t){0};
    return kv_transfer_config_parse(text, 0, &diag, &config);
}

static int setup(void **state)
{
    (void)state;
    unsetenv("VLLM_NIXL_SIDE_CHANNEL_HOST");
    unsetenv("VLLM_NIXL_SIDE_CHANNEL_PORT");
    return 0;
}

static void what_is_not_said_is_as_in_vllm(void **state)
{
    (void)state;
    assert_status(parse("{\"kv_connector\": \"NixlConnector\", \"kv_role\": \"kv_both\"}"),
                  WEFT_OK);
    assert_int_equal(config.role, KV_TRANSFER_BOTH);
    assert_int_equal(config.policy, KV_TRANSFER_UNSAID);
    assert_int_equal(strlen(config.engine_id), 36);
    assert_string_equal(config.side_channel_host, "localhost");
    assert_int_equal(config.side_channel_port, 5600);
    assert_true(config.kv_lease_duration == 30);
    assert_true(config.engine_ttl == 3600);
    assert_int_equal(config.kv_recompute_threshold, 64);
    assert_true(config.enforce_handshake_compat);
    assert_null(config.backends);
    assert_null(config.vllm_version);
    kv_transfer_config_fini(&config);
}

static void every_engine_draws_another_id(void **state)
{
    const char *text = "{\"kv_connector\": \"WeftConnector\", \"kv_role\": \"kv_producer\"}";
    char first[64];
    (void)state;
    assert_status(parse(text), WEFT_OK);
    snprintf(first, sizeof(first), "%s", config.engine_id);
    kv_transfer_config_fini(&config);
    assert_status(parse(text), WEFT_OK);
    assert_string_not_equal(config.engine_id, first);
    assert_int_equal(config.engine_id[14], '4');
    kv_transfer_config_fini(&config);
}

static void all_that_is_said_is_taken(void **state)
{
    kv_transfer_config_t copy;
    (void)state;
    assert_status(parse("{\"kv_connector\": \"NixlPullConnector\", \"kv_role\": \"kv_consumer\","
                        " \"engine_id\": \"e1\", \"kv_load_failure_policy\": \"fail\","
                        " \"kv_buffer_device\": \"cpu\", \"kv_port\": 1, \"kv_ip\": null,"
                        " \"kv_connector_extra_config\": {\"backends\": [\"UCX\", \"SHM\"],"
                        " \"kv_lease_duration\": 1.5, \"enforce_handshake_compat\": false,"
                        " \"vllm_version\": \"0.32.0\", \"attn_backend_name\": \"CPU_ATTN\","
                        " \"nixl_connector_version\": 15}}"),
                  WEFT_OK);
    assert_status(kv_transfer_config_copy(&config, &copy), WEFT_OK);
    kv_transfer_config_fini(&config);
    assert_int_equal(copy.role, KV_TRANSFER_CONSUMER);
    assert_int_equal(copy.policy, KV_TRANSFER_FAIL);
    assert_string_equal(copy.engine_id, "e1");
    assert_string_equal(copy.backends, "ucx,shm");
    assert_true(copy.kv_lease_duration == 1.5);
    assert_false(copy.enforce_handshake_compat);
    assert_string_equal(copy.vllm_version, "0.32.0");
    assert_string_equal(copy.attn_backend_name, "CPU_ATTN");
    assert_int_equal(copy.nixl_connector_version, 15);
    assert_null(copy.kv_ip);
    kv_transfer_config_fini(&copy);
}

static void keys_nobody_knows_are_left_out(void **state)
{
    (void)state;
    assert_status(parse("{\"kv_connector\": \"NixlConnector\", \"kv_role\": \"kv_both\","
                        " \"of_vllm_1\": [1], \"kv_connector_extra_config\": {\"later\": {}}}"),
                  WEFT_OK);
    kv_transfer_config_fini(&config);
}

static void the_side_channel_is_where_the_environment_says(void **state)
{
    const char *text = "{\"kv_connector\": \"NixlConnector\", \"kv_role\": \"kv_both\"}";
    (void)state;
    setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "10.1.2.3", 1);
    setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "7000", 1);
    assert_status(kv_transfer_config_parse(text, 3, &diag, &config), WEFT_OK);
    assert_string_equal(config.side_channel_host, "10.1.2.3");
    assert_int_equal(config.side_channel_port, 7003);
    kv_transfer_config_fini(&config);
    setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "0", 1);
    assert_status(kv_transfer_config_parse(text, 3, &diag, &config), WEFT_OK);
    assert_int_equal(config.side_channel_port, 0);
    kv_transfer_config_fini(&config);
    const char *wrong[] = {"65536", "-1", "http", "65535"};
    for (size_t i = 0; i < 4; i++) {
        setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", wrong[i], 1);
        assert_status(kv_transfer_config_parse(text, 1, &diag, &config), WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, wrong[i]));
    }
}

typedef struct refusal {
    const char *text;
    weft_status_t status;
    const char *said;
} refusal_t;

#define BOTH "\"kv_connector\": \"NixlConnector\", \"kv_role\": \"kv_both\""

static void what_cannot_be_is_refused_with_its_place(void **state)
{
    static const refusal_t refusals[] = {
        {"", WEFT_ERR_INVALID, "not JSON"},
        {"{\"kv_connector\": \"NixlConnector\",\n \"kv_role\": }", WEFT_ERR_INVALID, "line 2"},
        {"[]", WEFT_ERR_INVALID, "not a JSON object"},
        {"{}", WEFT_ERR_INVALID, "kv_connector is missing"},
        {"{\"kv_connector\": \"NixlConnector\"}", WEFT_ERR_INVALID, "kv_role is missing"},
        {"{\"kv_connector\": 5}", WEFT_ERR_INVALID, "kv_connector: not a text"},
        {"{\"kv_connector\": \"NixlPushConnector\", \"kv_role\": \"kv_both\"}",
         WEFT_ERR_UNSUPPORTED, "NixlPushConnector"},
        {"{\"kv_connector\": \"NixlConnector\", \"kv_role\": \"both\"}", WEFT_ERR_INVALID,
         "\"both\""},
        {"{" BOTH ", \"kv_load_failure_policy\": \"retry\"}", WEFT_ERR_INVALID, "\"retry\""},
        {"{" BOTH ", \"kv_connector_extra_config\": 3}", WEFT_ERR_INVALID,
         "kv_connector_extra_config: not an object"},
        {"{" BOTH ", \"kv_connector_extra_config\": {\"kv_lease_duration\": 0}}", WEFT_ERR_INVALID,
         "kv_connector_extra_config.kv_lease_duration: not a number above 0"},
        {"{" BOTH ", \"kv_connector_extra_config\": {\"backends\": [1]}}", WEFT_ERR_INVALID,
         "kv_connector_extra_config.backends"},
        {"{" BOTH ", \"kv_connector_extra_config\": {\"enforce_handshake_compat\": 1}}",
         WEFT_ERR_INVALID, "enforce_handshake_compat: not true or false"},
        {"{" BOTH ", \"kv_connector_extra_config\": {\"nixl_connector_version\": -1}}",
         WEFT_ERR_INVALID, "nixl_connector_version: not a whole number"},
        {"{" BOTH ", \"kv_connector_extra_config\": {\"bidirectional_kv_xfer\": true}}",
         WEFT_ERR_UNSUPPORTED, "bidirectional_kv_xfer"},
        {"{" BOTH ", \"kv_role\": \"kv_both\"}", WEFT_ERR_INVALID, "duplicate"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        assert_status(parse(refusals[i].text), refusals[i].status);
        if (strstr(diag.text, refusals[i].said) == NULL) {
            fail_msg("%s: \"%s\" does not say %s", refusals[i].text, diag.text, refusals[i].said);
        }
    }
}

static void a_failed_allocation_leaves_nothing_behind(void **state)
{
    const char *text = "{" BOTH ", \"engine_id\": \"e\", \"kv_connector_extra_config\":"
                       " {\"backends\": [\"UCX\"], \"vllm_version\": \"1\"}}";
    (void)state;
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t n = 1; status != WEFT_OK; n++) {
        kv_transfer_config_t copy = {0};
        weft_alloc_fail_nth(n);
        status = parse(text);
        if (status == WEFT_OK) {
            status = kv_transfer_config_copy(&config, &copy);
            kv_transfer_config_fini(&config);
        }
        weft_alloc_fail_nth(0);
        assert_true(status == WEFT_OK || status == WEFT_ERR_NO_MEMORY);
        kv_transfer_config_fini(&copy);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_is_not_said_is_as_in_vllm, setup),
        cmocka_unit_test_setup(every_engine_draws_another_id, setup),
        cmocka_unit_test_setup(all_that_is_said_is_taken, setup),
        cmocka_unit_test_setup(keys_nobody_knows_are_left_out, setup),
        cmocka_unit_test_setup_teardown(the_side_channel_is_where_the_environment_says, setup,
                                        setup),
        cmocka_unit_test_setup(what_cannot_be_is_refused_with_its_place, setup),
        cmocka_unit_test_setup(a_failed_allocation_leaves_nothing_behind, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
