/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/prefill_peers.h"

#include <stdio.h>
#include <string.h>

#include "tests/support/check.h"

static const prefill_peer_t *learn(prefill_peers_t *peers, const char *url, const char *body)
{
    return prefill_peers_learn(peers, url, body, strlen(body));
}

static void a_peer_is_known_until_it_is_forgotten(void **state)
{
    static prefill_peers_t peers;
    (void)state;
    assert_null(prefill_peers_find(&peers, "http://a"));
    assert_null(prefill_peers_find(&peers, ""));
    assert_non_null(learn(&peers, "http://a", "{\"host\":\"h\",\"port\":5600,\"more\":1}"));
    assert_string_equal(prefill_peers_find(&peers, "http://a")->host, "h");
    assert_non_null(learn(&peers, "http://a", "{\"host\":\"i\",\"port\":5601}"));
    assert_int_equal(prefill_peers_find(&peers, "http://a")->port, 5601);
    prefill_peers_forget(&peers, "http://b");
    prefill_peers_forget(&peers, "http://a");
    assert_null(prefill_peers_find(&peers, "http://a"));
}

static void what_is_no_side_channel_is_not_learnt(void **state)
{
    static const char *const bodies[] = {
        "",
        "[]",
        "{\"host\":\"h\"}",
        "{\"port\":1}",
        "{\"host\":\"h\",\"port\":0}",
        "{\"host\":\"h\",\"port\":65536}",
        "{\"host\":7,\"port\":1}",
        "{\"host\":\"h\",\"port\":-1}",
    };
    static prefill_peers_t peers;
    char body[400];
    (void)state;
    for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        assert_null(learn(&peers, "http://a", bodies[i]));
    }
    snprintf(body, sizeof(body), "{\"host\":\"%0300d\",\"port\":1}", 0);
    assert_null(learn(&peers, "http://a", body));
    assert_null(prefill_peers_find(&peers, "http://a"));
}

static void the_oldest_makes_room(void **state)
{
    static prefill_peers_t peers;
    char url[32];
    (void)state;
    for (int i = 0; i <= PREFILL_PEERS_MAX; i++) {
        snprintf(url, sizeof(url), "http://%d", i);
        assert_non_null(learn(&peers, url, "{\"host\":\"h\",\"port\":1}"));
    }
    assert_null(prefill_peers_find(&peers, "http://0"));
    assert_non_null(prefill_peers_find(&peers, "http://1"));
    assert_non_null(prefill_peers_find(&peers, url));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_peer_is_known_until_it_is_forgotten),
        cmocka_unit_test(what_is_no_side_channel_is_not_learnt),
        cmocka_unit_test(the_oldest_makes_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
