/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_hosts.h"

#include <string.h>
#include <unistd.h>

#include "base/compiler.h"
#include "tests/support/check.h"

static launch_hosts_t hosts;
static weft_diag_t diag;

static int forget(void **state)
{
    (void)state;
    launch_hosts_fini(&hosts);
    diag = (weft_diag_t){0};
    return 0;
}

static weft_status_t parse(const char *text)
{
    return launch_hosts_parse(&hosts, text, strlen(text), "hosts", &diag);
}

static void assert_host(uint32_t i, const char *name, uint32_t slots, uint32_t max_slots)
{
    assert_true(i < hosts.n);
    assert_string_equal(hosts.all[i].name, name);
    assert_int_equal(hosts.all[i].slots, slots);
    assert_int_equal(hosts.all[i].max_slots, max_slots);
}

static void a_hostfile_of_openmpi_is_read(void **state)
{
    (void)state;
    assert_status(parse("# the rack\n"
                        "node-1 slots=4\n"
                        "\tme@node-2.example  slots = 2 max_slots=8 # half\r\n"
                        "\n"
                        "10.0.0.3:3\n"
                        "[fe80::1]:2 max-slots=5\n"
                        "last"),
                  WEFT_OK);
    assert_int_equal(hosts.n, 5);
    assert_host(0, "node-1", 4, 0);
    assert_host(1, "me@node-2.example", 2, 8);
    assert_host(2, "10.0.0.3", 3, 0);
    assert_host(3, "fe80::1", 2, 5);
    assert_host(4, "last", 1, 0);
}

static void a_host_named_again_gets_more_slots(void **state)
{
    (void)state;
    assert_status(parse("a slots=2\nb\na\na:3\n"), WEFT_OK);
    assert_int_equal(hosts.n, 2);
    assert_host(0, "a", 6, 0);
    assert_host(1, "b", 1, 0);
}

static void what_is_wrong_is_named_by_line_and_column(void **state)
{
    static const struct {
        const char *text;
        const char *says;
    } cases[] = {
        {"a\nb slots=x\n", "hosts:2:9: slots takes a number"},
        {"a slots=0", "hosts:1:9: slots takes a number"},
        {"a slots=65537", "hosts:1:9: slots takes a number"},
        {"a slots 4", "hosts:1:9: '=' must be here"},
        {"a slots", "hosts:1:8: '=' must be here"},
        {"# ok\n\n  a cpus=4", "hosts:3:5: only slots=N"},
        {"a:", "hosts:1:3: ':' takes a number"},
        {"a:4x", "hosts:1:4: no host's name"},
        {"a/b", "hosts:1:2: no host's name"},
        {"a\n -oProxyCommand=x", "hosts:2:2: a host's name must be here"},
        {"[::1", "hosts:1:1: a '[' without its ']'"},
        {"[::1::2]", "hosts:1:1: not an IPv6 address"},
        {"a slots=4 max_slots=2", "hosts:1:1: more slots than max_slots"},
        {"a\nb:60000\nb:60000\n", "hosts:3:1: too many"},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(cases); i++) {
        assert_status(parse(cases[i].text), WEFT_ERR_MALFORMED);
        if (strncmp(diag.text, cases[i].says, strlen(cases[i].says)) != 0) {
            print_error("\"%s\" says: %s\n", cases[i].text, diag.text);
            fail();
        }
        forget(NULL);
    }
}

static void a_zero_byte_is_no_part_of_a_name(void **state)
{
    (void)state;
    assert_status(launch_hosts_parse(&hosts, "a\0b", 3, "hosts", &diag), WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "hosts:1:2:"));
}

static void a_name_ends_at_255_characters(void **state)
{
    char name[400];
    (void)state;
    memset(name, 'a', sizeof(name));
    name[255] = '\0';
    assert_status(parse(name), WEFT_OK);
    assert_string_equal(hosts.all[0].name, name);
    name[255] = 'a';
    name[256] = '\0';
    assert_status(parse(name), WEFT_ERR_MALFORMED);
}

static void a_list_is_parted_by_commas(void **state)
{
    (void)state;
    assert_status(launch_hosts_parse_list(&hosts, "a:4,b,[::1]:2,a", &diag), WEFT_OK);
    assert_int_equal(hosts.n, 3);
    assert_host(0, "a", 5, 0);
    assert_host(1, "b", 1, 0);
    assert_host(2, "::1", 2, 0);
    forget(NULL);
    assert_status(launch_hosts_parse_list(&hosts, "a,,b", &diag), WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "column 3"));
    forget(NULL);
    assert_status(launch_hosts_parse_list(&hosts, "a b", &diag), WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "column 2"));
}

static void a_file_that_is_missing_or_names_no_host_is_refused(void **state)
{
    (void)state;
    assert_status(launch_hosts_read(&hosts, "/dev/null", &diag), WEFT_ERR_MALFORMED);
    assert_status(launch_hosts_read(&hosts, WEFT_BINARY_DIR "/no-such-hosts", &diag),
                  WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "no-such-hosts"));
}

static void this_machine_is_known_by_its_names_and_addresses(void **state)
{
    char own[LAUNCH_NAME_BYTES] = "";
    (void)state;
    gethostname(own, sizeof(own) - 1);
    assert_true(launch_hosts_is_here("localhost"));
    assert_true(launch_hosts_is_here("127.0.0.1"));
    assert_true(launch_hosts_is_here(own));
    assert_false(launch_hosts_is_here("192.0.2.1"));
    assert_false(launch_hosts_is_here("elsewhere.example"));
}

static void no_memory_is_said(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 3; n++) {
        weft_alloc_fail_nth(n);
        const weft_status_t status = parse("a\nb\nc\nd\ne\n");
        weft_alloc_fail_nth(0);
        assert_true(status < 0);
        forget(NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_hostfile_of_openmpi_is_read, forget),
        cmocka_unit_test_teardown(a_host_named_again_gets_more_slots, forget),
        cmocka_unit_test_teardown(what_is_wrong_is_named_by_line_and_column, forget),
        cmocka_unit_test_teardown(a_zero_byte_is_no_part_of_a_name, forget),
        cmocka_unit_test_teardown(a_name_ends_at_255_characters, forget),
        cmocka_unit_test_teardown(a_list_is_parted_by_commas, forget),
        cmocka_unit_test_teardown(a_file_that_is_missing_or_names_no_host_is_refused, forget),
        cmocka_unit_test_teardown(this_machine_is_known_by_its_names_and_addresses, forget),
        cmocka_unit_test_teardown(no_memory_is_said, forget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
