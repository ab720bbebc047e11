/* SPDX-License-Identifier: Apache-2.0 */
/* What an agent makes of what others say of themselves. The blobs are written by hand. */
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/loop_backend.h"
#include "transport/xfer/xfer_agent_priv.h"
#include "transport/xfer/xfer_blob.h"

/* ---- blobs ----------------------------------------------------------------------------------- */

typedef struct story {
    const char *agent;
    const char *address; /* of WEFT_LOOP; NULL: no connection */
    xfer_blob_region_t regions[4];
    size_t n;
} story_t;

static xfer_bytes_t text(const char *of)
{
    return (xfer_bytes_t){of, strlen(of)};
}

static void write_story(const story_t *story, const char *backend, weft_buffer_t *out)
{
    xfer_blob_conn_t conn = {text(backend), text(story->address == NULL ? "-" : story->address)};
    xfer_blob_region_t regions[4];
    memcpy(regions, story->regions, sizeof(regions));
    xfer_blob_section_t section = {text(backend), XFER_DRAM, regions, story->n};
    const xfer_blob_t blob = {.agent = text(story->agent),
                              .conns = &conn,
                              .n_conns = story->address != NULL,
                              .sections = &section,
                              .n_sections = story->n > 0};
    xfer_blob_encode(&blob, out);
}

static weft_status_t tell_as(xfer_agent_t *agent, const story_t *story, const char *backend,
                             xfer_peer_t **peer_out)
{
    weft_buffer_t out = {0};
    weft_diag_t diag = {0};
    write_story(story, backend, &out);
    weft_status_t status = xfer_import(agent, out.data, out.length, &diag, peer_out);
    assert_true(status == WEFT_OK || diag.text[0] != '\0');
    weft_buffer_free(&out);
    return status;
}

static weft_status_t tell(xfer_agent_t *agent, const story_t *story, xfer_peer_t **peer_out)
{
    return tell_as(agent, story, "WEFT_LOOP", peer_out);
}

static int open_agent(void **state)
{
    const xfer_agent_config_t config = {.name = "listener"};
    return xfer_agent_open(&config, loop_backends_two, NULL, (xfer_agent_t **)state) == WEFT_OK
               ? 0
               : -1;
}

static int close_agent(void **state)
{
    xfer_agent_destroy(*state);
    return 0;
}

static const story_t plain = {.agent = "teller",
                              .address = "here",
                              .regions = {{4096, 4096, 0, {"k1", 2}}, {16384, 10, 0, {"k2", 2}}},
                              .n = 2};

static bool has(xfer_peer_t *peer, uint64_t addr, uint64_t bytes)
{
    return xfer_peer_has(peer, XFER_DRAM, addr, bytes);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void what_is_told_is_known(void **state)
{
    xfer_peer_t *peer = NULL;
    assert_status(tell(*state, &plain, &peer), WEFT_OK);
    assert_string_equal(xfer_peer_name(peer), "teller");
    assert_ptr_equal(xfer_find_peer(*state, "teller"), peer);
    assert_null(xfer_find_peer(*state, "telle"));
    assert_true(has(peer, 4096, 4096) && has(peer, 8191, 1) && has(peer, 16384, 10));
    assert_false(has(peer, 4095, 1) || has(peer, 8191, 2) || has(peer, 8192, 1));
    assert_false(has(peer, UINT64_MAX, 2) || has(peer, 4096, UINT64_MAX));
    assert_false(xfer_peer_has(peer, XFER_VRAM, 4096, 1));
    assert_status(xfer_peer_status(peer), WEFT_PENDING);
}

static void the_same_again_changes_nothing(void **state)
{
    xfer_peer_t *peer = NULL;
    xfer_peer_t *again = NULL;
    assert_status(tell(*state, &plain, &peer), WEFT_OK);
    assert_status(tell(*state, &plain, &again), WEFT_OK);
    assert_ptr_equal(again, peer);
    assert_true(has(peer, 4096, 4096));
}

static void a_changed_story_is_refused_whole(void **state)
{
    xfer_peer_t *peer = NULL;
    xfer_peer_t *again = NULL;
    assert_status(tell(*state, &plain, &peer), WEFT_OK);
    story_t other = plain;
    other.regions[1] = (xfer_blob_region_t){65536, 10, 0, {"k3", 2}}; /* is new */
    other.address = "there";
    assert_status(tell(*state, &other, &again), WEFT_ERR_EXISTS);
    other.address = plain.address;
    other.regions[0].key.data = "kX";
    assert_status(tell(*state, &other, &again), WEFT_ERR_EXISTS);
    other.regions[0] = (xfer_blob_region_t){4096, 4097, 0, {"k1", 2}};
    assert_status(tell(*state, &other, &again), WEFT_ERR_EXISTS);
    other.regions[0] = (xfer_blob_region_t){5000, 1, 0, {"k1", 2}};
    assert_status(tell(*state, &other, &again), WEFT_ERR_EXISTS);
    assert_false(has(peer, 65536, 1)); /* nothing of it was learned */
    other.regions[0] = plain.regions[0];
    assert_status(tell(*state, &other, &again), WEFT_OK);
    assert_true(has(peer, 65536, 10));
}

static void regions_of_another_device_may_have_the_same_address(void **state)
{
    xfer_peer_t *peer = NULL;
    xfer_list_t *list = NULL;
    story_t story = plain;
    story.regions[1] = (xfer_blob_region_t){4096, 4096, 1, {"k2", 2}};
    assert_status(tell(*state, &story, &peer), WEFT_OK);
    for (uint64_t device = 0; device < 3; device++) {
        const xfer_run_t run = {.addr = 4096, .bytes = 4096, .device = device, .count = 1};
        assert_status(xfer_list_create(*state, peer, XFER_DRAM, &run, 1, NULL, &list),
                      device < 2 ? WEFT_OK : WEFT_ERR_NOT_FOUND);
        if (device < 2) {
            xfer_list_destroy(list);
        }
    }
}

static void overlapping_regions_are_refused(void **state)
{
    xfer_peer_t *peer = NULL;
    story_t story = plain;
    story.regions[1] = (xfer_blob_region_t){8191, 10, 0, {"k2", 2}};
    assert_status(tell(*state, &story, &peer), WEFT_ERR_MALFORMED);
    story.regions[1] = story.regions[0];
    assert_status(tell(*state, &story, &peer), WEFT_ERR_MALFORMED);
    assert_null(xfer_find_peer(*state, "teller"));
}

static void names_that_cannot_be_are_refused(void **state)
{
    static char name[XFER_MAX_NAME + 2];
    xfer_peer_t *peer = NULL;
    story_t story = plain;
    memset(name, 'n', XFER_MAX_NAME + 1);
    story.agent = name;
    assert_status(tell(*state, &story, &peer), WEFT_ERR_MALFORMED);
    name[XFER_MAX_NAME] = '\0';
    assert_status(tell(*state, &story, &peer), WEFT_OK);
    story.agent = "listener";
    assert_status(tell(*state, &story, &peer), WEFT_ERR_INVALID);
}

static void memory_may_be_told_before_the_address(void **state)
{
    xfer_peer_t *peer = NULL;
    xfer_peer_t *again = NULL;
    story_t story = plain;
    story.address = NULL;
    assert_status(tell(*state, &story, &peer), WEFT_OK);
    assert_true(has(peer, 4096, 1));
    assert_status(xfer_connect(peer), WEFT_ERR_UNSUPPORTED);
    assert_status(xfer_notify(peer, "x", 1), WEFT_ERR_PEER_GONE);
    story = (story_t){.agent = "teller", .address = "12345678"};
    assert_status(tell(*state, &story, &again), WEFT_OK);
    assert_ptr_equal(again, peer);
    assert_status(xfer_connect(peer), WEFT_ERR_PEER_GONE); /* a port that is not there */
}

static void an_address_that_makes_no_sense_is_never_reached(void **state)
{
    xfer_peer_t *peer = NULL;
    assert_status(tell(*state, &plain, &peer), WEFT_OK);
    assert_status(xfer_connect(peer), WEFT_ERR_UNSUPPORTED);
    assert_status(xfer_peer_status(peer), WEFT_ERR_PEER_GONE);
}

static void parts_for_other_backends_are_skipped(void **state)
{
    xfer_peer_t *peer = NULL;
    xfer_peer_t *again = NULL;
    assert_status(tell_as(*state, &plain, "CARRIER_PIGEON", &peer), WEFT_ERR_UNSUPPORTED);
    assert_status(tell(*state, &plain, &peer), WEFT_OK);
    story_t story = plain;
    story.address = NULL;
    story.regions[0].bytes = 5; /* would be a change, if it were ours to know */
    assert_status(tell_as(*state, &story, "CARRIER_PIGEON", &again), WEFT_OK);
    assert_true(has(peer, 4096, 4096));
    story = plain; /* the same memory, by one more of ours */
    assert_status(tell_as(*state, &story, "WEFT_LOOP2", &again), WEFT_OK);
    assert_ptr_equal(again, peer);
    story.regions[0].bytes = 5;
    assert_status(tell_as(*state, &story, "WEFT_LOOP2", &again), WEFT_ERR_EXISTS);
}

static void running_out_of_memory_learns_nothing(void **state)
{
    weft_buffer_t out = {0};
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    write_story(&plain, "WEFT_LOOP", &out);
    const size_t before = weft_alloc_live_bytes();
    for (uint64_t n = 1; status != WEFT_OK; n++) {
        xfer_peer_t *peer = NULL;
        weft_alloc_fail_nth(n);
        status = xfer_import(*state, out.data, out.length, NULL, &peer);
        weft_alloc_fail_nth(0);
        if (status == WEFT_OK) {
            xfer_forget(*state, peer);
        } else {
            assert_status(status, WEFT_ERR_NO_MEMORY);
            assert_null(xfer_find_peer(*state, "teller"));
        }
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    weft_buffer_free(&out);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_agent, close_agent)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_told_is_known),
        TEST(the_same_again_changes_nothing),
        TEST(a_changed_story_is_refused_whole),
        TEST(regions_of_another_device_may_have_the_same_address),
        TEST(overlapping_regions_are_refused),
        TEST(names_that_cannot_be_are_refused),
        TEST(memory_may_be_told_before_the_address),
        TEST(an_address_that_makes_no_sense_is_never_reached),
        TEST(parts_for_other_backends_are_skipped),
        TEST(running_out_of_memory_learns_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
