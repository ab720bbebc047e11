/* SPDX-License-Identifier: Apache-2.0 */
#include "base/metrics.h"

#include <pthread.h>
#include <string.h>

#include "tests/support/check.h"

enum { REQUESTS, WAITING, SECONDS, PLAIN };

static const weft_metric_t rows[] = {
    WEFT_METRIC_ROW(requests, COUNTER, "weft:requests_total", "reason,method", "Requests\nended.")
        WEFT_METRIC_ROW(waiting, GAUGE, "weft:waiting", "", "Back\\slash.")
            WEFT_METRIC_ROW(seconds, HISTOGRAM, "weft:seconds", "", "Time.")
                WEFT_METRIC_ROW(plain, GAUGE, "plain", "", "No base labels | here.")};

static void check_text(weft_metrics_t *metrics, const char *expected)
{
    size_t length = 0;
    char *text = weft_metrics_text(metrics, &length);
    assert_non_null(text);
    assert_string_equal(text, expected);
    assert_int_equal(length, strlen(expected));
    weft_free(text);
}

static void each_kind_prints_its_prometheus_text(void **state)
{
    (void)state;
    const double bounds[] = {0.005, 1, 10, 1000000};
    const char *const values[] = {"stop", "GET"};
    weft_metrics_t *metrics = NULL;
    assert_status(weft_metrics_create("model_name=\"m\",engine=\"0\"", &metrics), WEFT_OK);
    check_text(metrics, "");

    weft_series_t *requests = weft_metrics_series(metrics, &rows[REQUESTS], values, NULL, 0, 1);
    weft_series_add(requests, 1);
    weft_series_add(requests, 0.5);
    weft_series_set(weft_metrics_series(metrics, &rows[WAITING], NULL, NULL, 0, 1), 8589934592.0);
    weft_series_t *seconds = weft_metrics_series(metrics, &rows[SECONDS], NULL, bounds, 4, 1);
    weft_series_observe(seconds, 0.005); /* a bound belongs to its bucket */
    weft_series_observe(seconds, 2);
    weft_series_observe(seconds, 2e6);
    weft_series_set(weft_metrics_series(metrics, &rows[PLAIN], NULL, NULL, 0, 0), -0.25);

    check_text(metrics,
               "# HELP weft:requests_total Requests\\nended.\n"
               "# TYPE weft:requests_total counter\n"
               "weft:requests_total{model_name=\"m\",engine=\"0\",reason=\"stop\",method=\"GET\"} "
               "1.5\n"
               "# HELP weft:waiting Back\\\\slash.\n"
               "# TYPE weft:waiting gauge\n"
               "weft:waiting{model_name=\"m\",engine=\"0\"} 8.589934592e+09\n"
               "# HELP weft:seconds Time.\n"
               "# TYPE weft:seconds histogram\n"
               "weft:seconds_bucket{model_name=\"m\",engine=\"0\",le=\"0.005\"} 1.0\n"
               "weft:seconds_bucket{model_name=\"m\",engine=\"0\",le=\"1.0\"} 1.0\n"
               "weft:seconds_bucket{model_name=\"m\",engine=\"0\",le=\"10.0\"} 2.0\n"
               "weft:seconds_bucket{model_name=\"m\",engine=\"0\",le=\"1e+06\"} 2.0\n"
               "weft:seconds_bucket{model_name=\"m\",engine=\"0\",le=\"+Inf\"} 3.0\n"
               "weft:seconds_sum{model_name=\"m\",engine=\"0\"} 2.000002005e+06\n"
               "weft:seconds_count{model_name=\"m\",engine=\"0\"} 3.0\n"
               "# HELP plain No base labels | here.\n"
               "# TYPE plain gauge\n"
               "plain -0.25\n");
    weft_metrics_destroy(metrics);
}

static void label_values_are_escaped_and_made_utf8(void **state)
{
    (void)state;
    const char *const values[] = {"a\"b\\c\nd", "\xff"
                                                "\xc3\xa9"};
    weft_metrics_t *metrics = NULL;
    assert_status(weft_metrics_create(NULL, &metrics), WEFT_OK);
    weft_metrics_series(metrics, &rows[REQUESTS], values, NULL, 0, 1);
    char *text = weft_metrics_text(metrics, NULL);
    assert_non_null(strstr(text, "{reason=\"a\\\"b\\\\c\\nd\",method=\"?\xc3\xa9\"} 0.0\n"));
    weft_free(text);
    weft_metrics_destroy(metrics);
}

static void one_label_combination_is_one_series(void **state)
{
    (void)state;
    const char *const get[] = {"stop", "GET"};
    const char *const post[] = {"stop", "POST"};
    weft_metrics_t *metrics = NULL;
    assert_status(weft_metrics_create("", &metrics), WEFT_OK);
    weft_series_t *series = weft_metrics_series(metrics, &rows[REQUESTS], get, NULL, 0, 1);
    assert_ptr_equal(weft_metrics_series(metrics, &rows[REQUESTS], get, NULL, 0, 1), series);
    assert_ptr_not_equal(weft_metrics_series(metrics, &rows[REQUESTS], post, NULL, 0, 1), series);
    weft_metrics_destroy(metrics);
}

static void *add_many(void *user)
{
    for (int i = 0; i < 10000; i++) {
        weft_series_add(user, 1);
    }
    return NULL;
}

static void updates_of_many_threads_all_count(void **state)
{
    (void)state;
    pthread_t threads[4];
    weft_metrics_t *metrics = NULL;
    assert_status(weft_metrics_create("", &metrics), WEFT_OK);
    weft_series_t *series = weft_metrics_series(metrics, &rows[WAITING], NULL, NULL, 0, 1);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, series), 0);
    }
    weft_free(weft_metrics_text(metrics, NULL)); /* read while written */
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    char *text = weft_metrics_text(metrics, NULL);
    assert_non_null(strstr(text, "weft:waiting 40000.0\n"));
    weft_free(text);
    weft_metrics_destroy(metrics);
}

/* All of it, with any allocation failing; true when it went through. */
static bool use_metrics(void)
{
    const char *const values[] = {"a", "b"};
    const double bound = 1;
    weft_metrics_t *metrics = NULL;
    if (weft_metrics_create("x=\"y\"", &metrics) < 0) {
        return false;
    }
    weft_series_t *counter = weft_metrics_series(metrics, &rows[REQUESTS], values, NULL, 0, 1);
    weft_series_t *histogram = weft_metrics_series(metrics, &rows[SECONDS], NULL, &bound, 1, 1);
    weft_series_add(counter, 1);
    weft_series_set(counter, 1);
    weft_series_observe(histogram, 1);
    char *text = weft_metrics_text(metrics, NULL);
    const bool is_whole = counter != NULL && histogram != NULL && text != NULL;
    weft_free(text);
    weft_metrics_destroy(metrics);
    return is_whole;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const size_t before = weft_alloc_live_bytes();
    uint64_t n = 1;
    for (;; n++) {
        weft_alloc_fail_nth(n);
        const bool is_whole = use_metrics();
        assert_int_equal(weft_alloc_live_bytes(), before);
        if (weft_alloc_fail_nth(0) < n) {
            assert_true(is_whole);
            break;
        }
        assert_false(is_whole);
    }
    assert_true(n > 8);
}

static void markdown_lists_the_rows(void **state)
{
    (void)state;
    char *text = NULL;
    size_t length = 0;
    FILE *file = open_memstream(&text, &length);
    weft_metrics_print_markdown("Engine", &rows[PLAIN], 1, file);
    fclose(file);
    assert_string_equal(text, "## Engine\n\n| name | kind | labels | meaning |\n|---|---|---|---|\n"
                              "| `plain` | gauge |  | No base labels \\| here. |\n\n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_prints_its_prometheus_text),
        cmocka_unit_test(label_values_are_escaped_and_made_utf8),
        cmocka_unit_test(one_label_combination_is_one_series),
        cmocka_unit_test(updates_of_many_threads_all_count),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(markdown_lists_the_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
