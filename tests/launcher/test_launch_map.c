/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_map.h"

#include <string.h>

#include "base/compiler.h"
#include "launcher/job/launch_binding.h"
#include "tests/support/check.h"

static launch_hosts_t hosts;
static weft_diag_t diag;
static launch_spot_t spots[64];

static int forget(void **state)
{
    (void)state;
    launch_hosts_fini(&hosts);
    return 0;
}

static void take(const char *hostfile)
{
    assert_status(launch_hosts_parse(&hosts, hostfile, strlen(hostfile), "hosts", &diag), WEFT_OK);
}

static weft_status_t map(uint32_t n, launch_map_by_t by, bool may_oversubscribe)
{
    return launch_map_ranks(&hosts, n, by, may_oversubscribe, &diag, spots);
}

/* "001" : the hosts of ranks 0, 1, 2 */
static void assert_hosts(const char *expected)
{
    char got[65] = "";
    for (size_t i = 0; i < strlen(expected); i++) {
        got[i] = (char)('0' + spots[i].host);
    }
    assert_string_equal(got, expected);
}

static void by_slot_a_host_is_filled_before_the_next(void **state)
{
    (void)state;
    take("a:2\nb:3\nc:1\n");
    assert_status(map(6, LAUNCH_BY_SLOT, false), WEFT_OK);
    assert_hosts("001112");
    assert_int_equal(spots[4].local_rank, 2);
    assert_int_equal(spots[4].local_size, 3);
    assert_status(map(3, LAUNCH_BY_CORE, false), WEFT_OK);
    assert_hosts("001");
    assert_int_equal(spots[2].local_size, 1);
}

static void by_node_ranks_go_round_the_hosts_with_slots(void **state)
{
    (void)state;
    take("a:1\nb:3\nc:2\n");
    assert_status(map(6, LAUNCH_BY_NODE, false), WEFT_OK);
    assert_hosts("012121");
    assert_int_equal(spots[5].local_rank, 2);
}

static void too_few_slots_are_refused_unless_allowed(void **state)
{
    (void)state;
    take("a:1\nb:2\n");
    assert_status(map(4, LAUNCH_BY_SLOT, false), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "4 ranks, but the hosts have 3 slots"));
    assert_status(map(6, LAUNCH_BY_SLOT, true), WEFT_OK);
    assert_hosts("011011");
    assert_status(map(5, LAUNCH_BY_NODE, true), WEFT_OK);
    assert_hosts("01101");
}

static void max_slots_bound_what_may_be_oversubscribed(void **state)
{
    (void)state;
    take("a slots=1 max_slots=2\nb\n");
    assert_status(map(6, LAUNCH_BY_SLOT, true), WEFT_OK);
    assert_hosts("010111");
    forget(NULL);
    take("a slots=1 max_slots=2\nb max_slots=1\n");
    assert_status(map(4, LAUNCH_BY_NODE, true), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "max_slots allow 3"));
}

/* ---- binding --------------------------------------------------------------------------------- */

/* Two nodes of two cores of two processors: cores 01 23 | 45 67. */
static launch_binding_t *binding;

static int draw(void **state)
{
    (void)state;
    return launch_binding_create("numa:2 core:2 pu:2", &diag, &binding) == WEFT_OK ? 0 : -1;
}

static int erase(void **state)
{
    (void)state;
    launch_binding_destroy(binding);
    return 0;
}

static unsigned long chosen(launch_bind_to_t bind_to, launch_map_by_t map_by, uint32_t local_rank)
{
    launch_cpus_t cpus;
    assert_status(launch_binding_choose(binding, bind_to, map_by, local_rank, &cpus), WEFT_OK);
    return cpus.bits[0];
}

static void ranks_are_bound_to_cores_in_turn(void **state)
{
    (void)state;
    assert_int_equal(launch_binding_cores(binding), 4);
    assert_int_equal(chosen(LAUNCH_BIND_CORE, LAUNCH_BY_SLOT, 0), 0x03);
    assert_int_equal(chosen(LAUNCH_BIND_CORE, LAUNCH_BY_CORE, 1), 0x0c);
    assert_int_equal(chosen(LAUNCH_BIND_CORE, LAUNCH_BY_NODE, 3), 0xc0);
    assert_int_equal(chosen(LAUNCH_BIND_CORE, LAUNCH_BY_SLOT, 4), 0x03); /* around again */
}

static void by_numa_ranks_alternate_between_the_nodes(void **state)
{
    (void)state;
    assert_int_equal(chosen(LAUNCH_BIND_CORE, LAUNCH_BY_NUMA, 0), 0x03);
    assert_int_equal(chosen(LAUNCH_BIND_CORE, LAUNCH_BY_NUMA, 1), 0x30);
    assert_int_equal(chosen(LAUNCH_BIND_CORE, LAUNCH_BY_NUMA, 2), 0x0c);
    assert_int_equal(chosen(LAUNCH_BIND_NUMA, LAUNCH_BY_NUMA, 1), 0xf0);
    assert_int_equal(chosen(LAUNCH_BIND_NUMA, LAUNCH_BY_SLOT, 1), 0x0f);
    assert_int_equal(chosen(LAUNCH_BIND_NUMA, LAUNCH_BY_SLOT, 2), 0xf0);
}

static void unknown_ways_are_named(void **state)
{
    launch_map_by_t by;
    launch_bind_to_t bind_to;
    (void)state;
    assert_status(launch_map_by_parse("numa", &diag, &by), WEFT_OK);
    assert_int_equal(by, LAUNCH_BY_NUMA);
    assert_status(launch_map_by_parse("socket", &diag, &by), WEFT_ERR_INVALID);
    assert_status(launch_bind_to_parse("core", &diag, &bind_to), WEFT_OK);
    assert_int_equal(bind_to, LAUNCH_BIND_CORE);
    assert_status(launch_bind_to_parse("", &diag, &bind_to), WEFT_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(by_slot_a_host_is_filled_before_the_next, forget),
        cmocka_unit_test_teardown(by_node_ranks_go_round_the_hosts_with_slots, forget),
        cmocka_unit_test_teardown(too_few_slots_are_refused_unless_allowed, forget),
        cmocka_unit_test_teardown(max_slots_bound_what_may_be_oversubscribed, forget),
        cmocka_unit_test_setup_teardown(ranks_are_bound_to_cores_in_turn, draw, erase),
        cmocka_unit_test_setup_teardown(by_numa_ranks_alternate_between_the_nodes, draw, erase),
        cmocka_unit_test(unknown_ways_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
