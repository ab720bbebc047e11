/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_address.h"

#include <string.h>

#include "base/compiler.h"
#include "tests/support/check.h"

static void a_host_stands_alone_or_before_its_port(void **state)
{
    static const struct {
        const char *text, *host;
        uint16_t port;
    } rows[] = {
        {"node7", "node7", 0},
        {"node7:29500", "node7", 29500},
        {"job-0.job.team_a.svc", "job-0.job.team_a.svc", 0},
        {"10.0.0.7:1", "10.0.0.7", 1},
        {"[::1]:65535", "::1", 65535},
        {"[fe80::1%eth0]", "fe80::1%eth0", 0},
        {"fd00::7", "fd00::7", 0},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        launch_address_t address;
        assert_status(launch_address_parse(rows[i].text, NULL, &address), WEFT_OK);
        assert_string_equal(address.host, rows[i].host);
        assert_int_equal(address.port, rows[i].port);
    }
}

static void what_is_no_address_is_named(void **state)
{
    static const char *const texts[] = {
        "",     ":29500", "node7:", "node7:0", "node7:65536",       "node7:+1", "node7:1x",
        "[::1", "[]:1",   "[::1]1", "a b:1",   "node7:99999999999", "no/de",    "tcp://a:1",
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(texts); i++) {
        weft_diag_t diag = {0};
        launch_address_t address = {.host = "untouched"};
        assert_status(launch_address_parse(texts[i], &diag, &address), WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, texts[i]));
        assert_string_equal(address.host, "untouched");
    }
}

static void a_host_longer_than_any_name_is_refused(void **state)
{
    char text[LAUNCH_HOST_BYTES + 1];
    launch_address_t address;
    (void)state;
    memset(text, 'a', sizeof(text));
    text[LAUNCH_HOST_BYTES - 1] = '\0';
    assert_status(launch_address_parse(text, NULL, &address), WEFT_OK);
    assert_string_equal(address.host, text);
    text[LAUNCH_HOST_BYTES - 1] = 'a';
    text[LAUNCH_HOST_BYTES] = '\0';
    assert_status(launch_address_parse(text, NULL, &address), WEFT_ERR_INVALID);
}

static void private_networks_are_known(void **state)
{
    static const char *const private[] = {
        "127.0.0.1",        "127.9.9.9",       "::1",
        "::ffff:127.0.0.1", "10.0.0.1",        "10.255.255.255",
        "172.16.0.1",       "172.31.255.255",  "192.168.1.1",
        "100.64.0.1",       "100.127.255.255", "169.254.1.1",
        "fc00::1",          "fdff::1",         "fe80::1%eth0",
        "febf::1",          "::ffff:10.1.2.3",
    };
    static const char *const public[] = {
        "9.255.255.255", "11.0.0.0",       "172.15.0.1",  "172.32.0.1", "192.167.1.1",
        "192.169.0.0",   "100.63.0.1",     "100.128.0.0", "8.8.8.8",    "2001:db8::1",
        "fec0::1",       "::ffff:8.8.8.8", "::",          "",           "node7",
        "10.0.0",        "10.0.0.1.1",
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(private); i++) {
        assert_true(launch_address_is_private(private[i]));
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(public); i++) {
        assert_false(launch_address_is_private(public[i]));
    }
    assert_true(launch_address_is_loopback("127.0.0.2"));
    assert_false(launch_address_is_loopback("10.0.0.1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_host_stands_alone_or_before_its_port),
        cmocka_unit_test(what_is_no_address_is_named),
        cmocka_unit_test(private_networks_are_known),
        cmocka_unit_test(a_host_longer_than_any_name_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
