/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_ranks.h"

#include <string.h>

#include "base/compiler.h"
#include "tests/support/check.h"

static const char *peers[] = {"0=http://a:1", "1=http://b:2", "2=http://c:3"};

static api_options_t options_of(uint32_t n_peers)
{
    return (api_options_t){.data_parallel_size = 3,
                           .data_parallel_peers = {.items = peers, .count = n_peers}};
}

static void make(api_ranks_t *ranks, const api_options_t *options, uint32_t own)
{
    weft_diag_t diag = {0};
    *ranks = (api_ranks_t){0};
    assert_status(api_ranks_init(ranks, options, own, &diag), WEFT_OK);
}

static uint32_t chosen(api_ranks_t *ranks, const char *asked)
{
    api_error_t error = {0};
    uint32_t rank = UINT32_MAX;
    assert_status(api_ranks_choose(ranks, asked, &error, &rank), WEFT_OK);
    return rank;
}

static void the_header_names_the_rank(void **state)
{
    const api_options_t options = options_of(3);
    api_ranks_t ranks;
    (void)state;
    for (uint32_t own = 0; own < 3; own++) {
        make(&ranks, &options, own);
        assert_int_equal(chosen(&ranks, "0"), 0);
        assert_int_equal(chosen(&ranks, "2"), 2);
        api_ranks_fini(&ranks);
    }
}

static void a_rank_that_is_not_there_is_refused_with_the_range(void **state)
{
    static const char *const strangers[] = {"3", "-1", "99999999999"};
    const api_options_t options = options_of(3);
    api_ranks_t ranks;
    (void)state;
    make(&ranks, &options, 1);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(strangers); i++) {
        api_error_t error = {0};
        uint32_t rank;
        assert_status(api_ranks_choose(&ranks, strangers[i], &error, &rank), WEFT_ERR_INVALID);
        assert_int_equal(api_error_http_status(&error), 400);
        assert_non_null(strstr(error.message.text, "0 to 2"));
    }
    api_ranks_fini(&ranks);
}

static void a_rank_of_another_machine_is_refused(void **state)
{
    const api_options_t options = options_of(2);
    api_ranks_t ranks;
    api_error_t error = {0};
    uint32_t rank;
    (void)state;
    make(&ranks, &options, 0);
    assert_status(api_ranks_choose(&ranks, "2", &error, &rank), WEFT_ERR_INVALID);
    assert_non_null(strstr(error.message.text, "another machine"));
    for (uint32_t i = 0; i < 6; i++) {
        assert_true(chosen(&ranks, NULL) < 2);
    }
    api_ranks_fini(&ranks);
}

static void requests_go_to_the_least_busy_and_else_in_turns(void **state)
{
    const api_options_t options = options_of(3);
    api_ranks_t ranks;
    (void)state;
    make(&ranks, &options, 0);
    for (uint32_t i = 0; i < 6; i++) {
        const uint32_t rank = chosen(&ranks, i % 2 == 0 ? NULL : "any");
        assert_int_equal(rank, i % 3);
        ranks.all[rank].open++;
    }
    ranks.all[1].open = 0;
    assert_int_equal(chosen(&ranks, NULL), 1);
    assert_int_equal(chosen(&ranks, NULL), 1);
    api_ranks_fini(&ranks);
}

/* What balances: the first rank of a machine, unless others do it or it has no port for clients. */
static void a_rank_that_does_not_balance_answers_itself(void **state)
{
    api_options_t all[4];
    const uint32_t own[] = {1, 0, 0, 0};
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(all); i++) {
        all[i] = options_of(3);
    }
    all[1].data_parallel_external_lb = true;
    all[2].headless = true;
    all[3].data_parallel_peers.count = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(all); i++) {
        api_ranks_t ranks;
        make(&ranks, &all[i], own[i]);
        for (uint32_t n = 0; n < 3; n++) {
            assert_int_equal(chosen(&ranks, NULL), own[i]);
        }
        api_ranks_fini(&ranks);
    }
}

static void one_rank_alone_takes_any_header(void **state)
{
    const api_options_t options = {.data_parallel_size = 1};
    api_ranks_t ranks;
    (void)state;
    make(&ranks, &options, 0);
    assert_int_equal(chosen(&ranks, "7"), 0);
    api_ranks_fini(&ranks);
}

static void what_is_no_peer_is_named(void **state)
{
    static const char *bad[] = {"http://a", "3=http://a", "1=ftp://a", "=http://a"};
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(bad); i++) {
        const api_options_t options = {.data_parallel_size = 3,
                                       .data_parallel_peers = {.items = &bad[i], .count = 1}};
        api_ranks_t ranks = {0};
        weft_diag_t diag = {0};
        assert_status(api_ranks_init(&ranks, &options, 0, &diag), WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, bad[i]));
        api_ranks_fini(&ranks);
    }
}

static void a_rank_beyond_the_size_is_refused(void **state)
{
    const api_options_t options = options_of(3);
    api_ranks_t ranks = {0};
    weft_diag_t diag = {0};
    (void)state;
    assert_status(api_ranks_init(&ranks, &options, 3, &diag), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "--data-parallel-rank 3"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_header_names_the_rank),
        cmocka_unit_test(a_rank_that_is_not_there_is_refused_with_the_range),
        cmocka_unit_test(a_rank_of_another_machine_is_refused),
        cmocka_unit_test(requests_go_to_the_least_busy_and_else_in_turns),
        cmocka_unit_test(a_rank_that_does_not_balance_answers_itself),
        cmocka_unit_test(one_rank_alone_takes_any_header),
        cmocka_unit_test(what_is_no_peer_is_named),
        cmocka_unit_test(a_rank_beyond_the_size_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
