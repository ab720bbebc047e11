/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_cores.h"
#include "tests/kernels/kernels_support.h"

static void auto_takes_the_first_table_the_machine_supports(void **state)
{
    (void)state;
    const k_ops_t *const *ops = k_ops_all();
    while (!(*ops)->is_supported()) {
        ops++;
    }
    k_stream_t *stream = open_stream("auto", 0, 1, 1);
    assert_string_equal(stream->ops->name, (*ops)->name);
    assert_int_equal(k_stream_threads(stream), k_cores_usable());
    k_stream_destroy(stream);
}

static void ref_runs_on_every_machine(void **state)
{
    (void)state;
    k_stream_t *stream = open_stream("ref", 3, 1, 1);
    assert_string_equal(stream->ops->name, "ref");
    assert_int_equal(k_stream_threads(stream), 3);
    k_stream_destroy(stream);
}

static void an_unknown_set_is_answered_with_what_the_machine_has(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    k_stream_t *stream = NULL;
    assert_status(k_stream_create(open_cpu(), "sse9", 1, &diag, &stream), WEFT_ERR_UNSUPPORTED);
    assert_null(stream);
    assert_non_null(strstr(diag.text, "sse9"));
    assert_non_null(strstr(diag.text, "ref"));
}

static void every_table_is_complete(void **state)
{
    (void)state;
    for (const k_ops_t *const *ops = k_ops_all(); *ops != NULL; ops++) {
        assert_non_null((*ops)->weight_bytes);
        assert_non_null((*ops)->weight_pack);
        assert_non_null((*ops)->scratch_bytes);
#define OP(name) assert_non_null((*ops)->name);
#include "kernels/ops.def"
#undef OP
    }
}

static void a_failed_allocation_leaves_nothing_behind(void **state)
{
    (void)state;
    open_cpu();
    const size_t held = weft_alloc_live_bytes();
    for (uint64_t n = 1;; n++) {
        weft_diag_t diag = {0};
        k_stream_t *stream = NULL;
        weft_alloc_fail_nth(n);
        const weft_status_t status = k_stream_create(open_cpu(), "auto", 2, &diag, &stream);
        weft_alloc_fail_nth(0);
        if (status == WEFT_OK) {
            k_stream_destroy(stream);
            assert_true(n > 1);
            break;
        }
        assert_status(status, WEFT_ERR_NO_MEMORY);
        assert_string_not_equal(diag.text, "");
        assert_int_equal(weft_alloc_live_bytes(), held);
    }
    assert_int_equal(weft_alloc_live_bytes(), held);
}

static void reserve_only_ever_grows(void **state)
{
    (void)state;
    k_stream_t *stream = open_stream("auto", 1, 64, 4096);
    const size_t bytes = stream->scratch.bytes;
    assert_status(k_stream_reserve(stream, 1, 16), WEFT_OK);
    assert_int_equal(stream->scratch.bytes, bytes);
    assert_status(k_stream_reserve(stream, 128, 8192), WEFT_OK);
    assert_true(stream->scratch.bytes > bytes);
    k_stream_destroy(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_takes_the_first_table_the_machine_supports),
        cmocka_unit_test(ref_runs_on_every_machine),
        cmocka_unit_test(an_unknown_set_is_answered_with_what_the_machine_has),
        cmocka_unit_test(every_table_is_complete),
        cmocka_unit_test(a_failed_allocation_leaves_nothing_behind),
        cmocka_unit_test(reserve_only_ever_grows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
