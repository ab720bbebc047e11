/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_message.h"

#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "tests/support/check.h"

static weft_status_t decode(const launch_message_t *message)
{
    static uint8_t bytes[1 << 20];
    launch_message_t *out = NULL;
    const size_t n = weft__rendezvous__message__pack(message, bytes);
    const weft_status_t status = launch_message_decode(bytes, n, &out);
    launch_message_free(out);
    return status;
}

static void a_join_keeps_its_facts(void **state)
{
    Weft__Rendezvous__Fact fact = WEFT__RENDEZVOUS__FACT__INIT;
    Weft__Rendezvous__Fact *facts[] = {&fact};
    Weft__Rendezvous__Join join = WEFT__RENDEZVOUS__JOIN__INIT;
    const launch_message_t message = LAUNCH_MESSAGE(JOIN, join, &join);
    uint8_t bytes[256];
    launch_message_t *out;
    (void)state;
    fact.key = (char *)"model";
    fact.value = (char *)"aa";
    join.rank = 3;
    join.n_facts = 1;
    join.facts = facts;
    const size_t n = weft__rendezvous__message__pack(&message, bytes);
    assert_status(launch_message_decode(bytes, n, &out), WEFT_OK);
    assert_int_equal(out->join->rank, 3);
    assert_string_equal(out->join->facts[0]->key, "model");
    assert_string_equal(out->join->facts[0]->value, "aa");
    launch_message_free(out);
    for (size_t cut = 1; cut < n; cut++) { /* a body that ends too early */
        assert_status(launch_message_decode(bytes, cut, &out), WEFT_ERR_MALFORMED);
    }
}

static void what_has_no_body_is_refused(void **state)
{
    launch_message_t *out;
    (void)state;
    assert_status(launch_message_decode("", 0, &out), WEFT_ERR_MALFORMED);
    assert_status(launch_message_decode("\xff\xff\xff\xff", 4, &out), WEFT_ERR_MALFORMED);
    assert_status(launch_message_decode("\x7a\x00", 2, &out), WEFT_ERR_MALFORMED); /* field 15 */
}

static void what_is_over_the_limits_is_refused(void **state)
{
    static char longer[LAUNCH_MAX_FACT_BYTES + 2];
    Weft__Rendezvous__Fact fact = WEFT__RENDEZVOUS__FACT__INIT;
    Weft__Rendezvous__Fact *facts[LAUNCH_MAX_FACTS + 1];
    Weft__Rendezvous__Join join = WEFT__RENDEZVOUS__JOIN__INIT;
    Weft__Rendezvous__Refuse refuse = WEFT__RENDEZVOUS__REFUSE__INIT;
    Weft__Rendezvous__Welcome welcome = WEFT__RENDEZVOUS__WELCOME__INIT;
    Weft__Rendezvous__Lost lost = WEFT__RENDEZVOUS__LOST__INIT;
    const launch_message_t with_join = LAUNCH_MESSAGE(JOIN, join, &join);
    const launch_message_t with_refuse = LAUNCH_MESSAGE(REFUSE, refuse, &refuse);
    const launch_message_t with_welcome = LAUNCH_MESSAGE(WELCOME, welcome, &welcome);
    const launch_message_t with_lost = LAUNCH_MESSAGE(LOST, lost, &lost);
    (void)state;
    memset(longer, 'a', sizeof(longer) - 1);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(facts); i++) {
        facts[i] = &fact;
    }
    join.facts = facts;
    join.n_facts = LAUNCH_MAX_FACTS;
    assert_status(decode(&with_join), WEFT_OK);
    join.n_facts++;
    assert_status(decode(&with_join), WEFT_ERR_MALFORMED);
    join.n_facts = 1;
    fact.value = longer + 1;
    assert_status(decode(&with_join), WEFT_OK);
    fact.value = longer;
    assert_status(decode(&with_join), WEFT_ERR_MALFORMED);

    refuse.status = WEFT_ERR_DENIED;
    assert_status(decode(&with_refuse), WEFT_OK);
    refuse.status = WEFT_OK; /* a refusal is an error */
    assert_status(decode(&with_refuse), WEFT_ERR_MALFORMED);
    assert_status(decode(&with_welcome), WEFT_ERR_MALFORMED); /* epoch 0 */
    lost.why = longer;
    assert_status(decode(&with_lost), WEFT_ERR_MALFORMED);
}

static void memory_that_fails_fails_the_message(void **state)
{
    Weft__Rendezvous__Fact fact = WEFT__RENDEZVOUS__FACT__INIT;
    Weft__Rendezvous__Fact *facts[] = {&fact, &fact};
    Weft__Rendezvous__Join join = WEFT__RENDEZVOUS__JOIN__INIT;
    const launch_message_t message = LAUNCH_MESSAGE(JOIN, join, &join);
    weft_status_t status = WEFT_ERR_MALFORMED;
    uint64_t n = 0;
    (void)state;
    join.host = (char *)"node7";
    fact.key = fact.value = (char *)"a";
    join.facts = facts;
    join.n_facts = 2;
    const size_t live = weft_alloc_live_bytes();
    while (status < 0 && n < 100) {
        n++;
        weft_alloc_fail_nth(n);
        status = decode(&message);
        weft_alloc_fail_nth(0);
        assert_int_equal(weft_alloc_live_bytes(), live);
    }
    assert_true(n > 5 && n < 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_join_keeps_its_facts),
        cmocka_unit_test(what_has_no_body_is_refused),
        cmocka_unit_test(what_is_over_the_limits_is_refused),
        cmocka_unit_test(memory_that_fails_fails_the_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
