/* SPDX-License-Identifier: Apache-2.0 */
/* A front before workers that are small servers on the same loop. */
#include "services/front/front.h"

#include <jansson.h>
#include <string.h>

#include "base/alloc.h"
#include "base/http_client.h"
#include "base/http_server.h"
#include "tests/support/check.h"

typedef struct worker {
    weft_http_server_t *server;
    char url[64];
    uint32_t status; /* of its answers; 0: none comes */
    int n_checks;
    int n_requests;
    int n_hung_up;
    char path[64];
    char id[64];
    json_t *body; /* of the last request */
} worker_t;

static weft_loop_t *loop;
static front_t *front;
static weft_http_client_t *client;
static worker_t prefill, decode;
static char front_url[64];
static weft_http_call_t *posted; /* the last call */
static weft_http_answer_t last;
static char last_body[512];
static char last_allow[64], last_id[64], last_retry[64]; /* its headers; "": none */

static const char params[] = "{\"do_remote_prefill\":true,\"remote_block_ids\":[[1,2]]}";

static void on_hangup(weft_http_exchange_t *exchange, void *user)
{
    worker_t *worker = user;
    (void)exchange;
    worker->n_hung_up++;
    weft_loop_stop(loop);
}

static void answer(worker_t *worker, weft_http_exchange_t *exchange)
{
    char text[256];
    if (json_is_true(json_object_get(worker->body, "stream"))) {
        const weft_http_header_t id = {"X-Request-Id", worker->id};
        weft_http_stream_begin(exchange, 200, "text/event-stream", &id, 1);
        weft_http_stream_write(exchange, "data: 1\n\n", 9);
        weft_http_stream_write(exchange, "data: [DONE]\n\n", 14);
        weft_http_stream_end(exchange);
        return;
    }
    const int n =
        snprintf(text, sizeof(text), "{\"by\":\"%s\",\"kv_transfer_params\":%s}",
                 worker == &prefill ? "prefill" : "decode", worker == &prefill ? params : "null");
    const weft_http_header_t headers[] = {{"X-Request-Id", worker->id}, {"Allow", "PUT"}};
    weft_http_respond(exchange, worker->status, "application/json", headers,
                      worker->status == 405 ? 2 : 1, text, (size_t)n);
}

static void handle(void *user, weft_http_exchange_t *exchange)
{
    worker_t *worker = user;
    size_t length = 0;
    const char *body = weft_http_body(exchange, &length);
    const char *id = weft_http_header(exchange, "x-request-id");
    if (strcmp(weft_http_path(exchange), "/health") == 0) {
        worker->n_checks++;
        weft_http_respond(exchange, 200, "text/plain", NULL, 0, "", 0);
        return;
    }
    worker->n_requests++;
    snprintf(worker->path, sizeof(worker->path), "%s", weft_http_path(exchange));
    snprintf(worker->id, sizeof(worker->id), "%s", id != NULL ? id : "");
    json_decref(worker->body);
    worker->body = json_loadb(body != NULL ? body : "", length, 0, NULL);
    if (worker->status == 0) {
        weft_http_on_hangup(exchange, on_hangup, worker);
        weft_loop_stop(loop);
    } else {
        answer(worker, exchange);
    }
}

static void start_worker(worker_t *worker)
{
    const weft_http_server_config_t config = {.host = "127.0.0.1",
                                              .max_body_bytes = 1 << 20,
                                              .max_connections = 100,
                                              .idle_timeout_s = 30,
                                              .handle = handle,
                                              .user = worker};
    *worker = (worker_t){.status = 200};
    assert_status(weft_http_server_start(loop, &config, NULL, &worker->server), WEFT_OK);
    snprintf(worker->url, sizeof(worker->url), "http://127.0.0.1:%u",
             weft_http_server_port(worker->server));
}

static void copy_header(const char *name, char text[64])
{
    const char *value = weft_http_call_header(posted, name);
    snprintf(text, 64, "%s", value != NULL ? value : "");
}

static void on_answer(void *user, const weft_http_answer_t *a)
{
    (void)user;
    last = *a;
    copy_header("Allow", last_allow);
    copy_header("X-Request-Id", last_id);
    copy_header("Retry-After", last_retry);
    snprintf(last_body, sizeof(last_body), "%s", a->body);
    weft_loop_stop(loop);
}

static weft_http_call_t *post_call(const char *method, const char *path, const char *body)
{
    static const char *const headers[] = {"Content-Type: application/json", "X-Request-Id: the-id"};
    char url[128];
    snprintf(url, sizeof(url), "%s%s", front_url, path);
    const weft_http_request_t request = {.method = method,
                                         .url = url,
                                         .headers = headers,
                                         .n_headers = 2,
                                         .body = body,
                                         .length = body == NULL ? 0 : strlen(body),
                                         .timeout_ms = 30000,
                                         .max_answer_bytes = 1 << 16};
    assert_status(weft_http_client_send(client, &request, on_answer, NULL, &posted), WEFT_OK);
    return posted;
}

static void ask(const char *method, const char *path, const char *body)
{
    (void)post_call(method, path, body);
    weft_loop_run(loop);
}

static void wait_until_up(front_role_t role, uint32_t n)
{
    while (front_workers_up(front, role) != n) {
        ask("GET", "/health", NULL);
    }
}

static void open_front(bool is_overlapped)
{
    const front_config_t config = {.host = "127.0.0.1",
                                   .max_body_bytes = 1 << 20,
                                   .max_connections = 100,
                                   .check_interval_ms = 5,
                                   .is_overlapped = is_overlapped};
    assert_status(front_create(loop, &config, NULL, &front), WEFT_OK);
    assert_status(front_add_worker(front, FRONT_PREFILL, "p", prefill.url), WEFT_OK);
    assert_status(front_add_worker(front, FRONT_DECODE, "d", decode.url), WEFT_OK);
    snprintf(front_url, sizeof(front_url), "http://127.0.0.1:%u", front_port(front));
    wait_until_up(FRONT_PREFILL, 1);
    wait_until_up(FRONT_DECODE, 1);
}

static int start(void **state)
{
    (void)state;
    unsetenv("http_proxy");
    assert_status(weft_loop_create(&loop), WEFT_OK);
    start_worker(&prefill);
    start_worker(&decode);
    assert_status(weft_http_client_create(loop, &client), WEFT_OK);
    open_front(false);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    weft_http_client_destroy(client);
    front_destroy(front);
    weft_http_server_destroy(prefill.server);
    weft_http_server_destroy(decode.server);
    weft_loop_destroy(loop);
    json_decref(prefill.body);
    json_decref(decode.body);
    assert_int_equal(weft_alloc_live_bytes(), 0);
    return 0;
}

static int64_t number(const worker_t *worker, const char *key)
{
    return json_integer_value(json_object_get(worker->body, key));
}

static void a_request_becomes_two_legs(void **state)
{
    (void)state;
    ask("POST", "/v1/completions",
        "{\"prompt\":\"x\",\"max_tokens\":7,\"stream_options\":{},\"kv_transfer_params\":null}");
    assert_int_equal(last.http_status, 200);
    assert_non_null(strstr(last_body, "\"by\":\"decode\""));
    assert_int_equal(number(&prefill, "max_tokens"), 1);
    assert_int_equal(number(&prefill, "max_completion_tokens"), 1);
    assert_int_equal(number(&prefill, "min_tokens"), 1);
    assert_null(json_object_get(prefill.body, "stream_options"));
    assert_true(json_is_false(json_object_get(prefill.body, "stream")));
    const json_t *asked = json_object_get(prefill.body, "kv_transfer_params");
    assert_true(json_is_true(json_object_get(asked, "do_remote_decode")));
    assert_true(json_is_null(json_object_get(asked, "remote_block_ids")));
    assert_int_equal(number(&decode, "max_tokens"), 7);
    const json_t *given = json_object_get(decode.body, "kv_transfer_params");
    assert_true(json_is_true(json_object_get(given, "do_remote_prefill")));
    assert_string_equal(prefill.id, "the-id");
    assert_string_equal(decode.id, "the-id");
    assert_string_equal(decode.path, "/v1/completions");
}

static void overlapped_the_decode_worker_is_told_whom_to_ask(void **state)
{
    (void)state;
    front_destroy(front);
    open_front(true);
    ask("POST", "/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":7}");
    assert_int_equal(last.http_status, 200);
    assert_int_equal(prefill.n_requests, 0);
    const json_t *given = json_object_get(decode.body, "kv_transfer_params");
    assert_true(json_is_true(json_object_get(given, "do_remote_prefill")));
    assert_string_equal(json_string_value(json_object_get(given, "prefill_url")), prefill.url);
    assert_int_equal(number(&decode, "max_tokens"), 7);
}

static void generate_has_its_limits_elsewhere(void **state)
{
    (void)state;
    ask("POST", "/inference/v1/generate",
        "{\"token_ids\":[1],\"sampling_params\":{\"max_tokens\":7,\"top_k\":2}}");
    const json_t *sampling = json_object_get(prefill.body, "sampling_params");
    assert_int_equal(json_integer_value(json_object_get(sampling, "max_tokens")), 1);
    assert_int_equal(json_integer_value(json_object_get(sampling, "top_k")), 2);
    sampling = json_object_get(decode.body, "sampling_params");
    assert_int_equal(json_integer_value(json_object_get(sampling, "max_tokens")), 7);
    assert_null(json_object_get(sampling, "min_tokens"));
}

static void a_stream_is_passed_on_as_it_comes(void **state)
{
    (void)state;
    ask("POST", "/v1/chat/completions", "{\"messages\":[],\"stream\":true}");
    assert_int_equal(last.http_status, 200);
    assert_string_equal(last_body, "data: 1\n\ndata: [DONE]\n\n");
    assert_string_equal(last_id, "the-id");
    assert_int_equal(prefill.n_requests, 1);
}

static void what_is_split_already_or_is_no_request_is_passed_on(void **state)
{
    (void)state;
    ask("POST", "/v1/completions", "{\"kv_transfer_params\":{\"do_remote_prefill\":false}}");
    ask("POST", "/v1/completions", "{");
    ask("GET", "/v1/models", NULL);
    ask("POST", "/tokenize", "{\"prompt\":\"x\"}");
    assert_int_equal(prefill.n_requests, 0);
    assert_int_equal(decode.n_requests, 4);
}

static void a_workers_headers_come_with_its_answer(void **state)
{
    (void)state;
    decode.status = 405;
    ask("GET", "/v1/completions", NULL);
    assert_int_equal(last.http_status, 405);
    assert_string_equal(last_allow, "PUT");
    assert_string_equal(last_id, "the-id");
    decode.status = 200;
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_string_equal(last_allow, "");
    assert_string_equal(last_id, "the-id");
}

static void its_own_paths_have_their_methods(void **state)
{
    static const struct {
        const char *path, *allow;
    } own[] = {{"/health", "GET"}, {"/ping", "GET, POST"}, {"/metrics", "GET"}};
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(own); i++) {
        ask("GET", own[i].path, NULL);
        assert_int_equal(last.http_status, 200);
        ask("DELETE", own[i].path, NULL);
        assert_int_equal(last.http_status, 405);
        assert_string_equal(last_allow, own[i].allow);
    }
    ask("POST", "/ping", "{}");
    assert_int_equal(last.http_status, 200);
    ask("OPTIONS", "/health", NULL);
    assert_int_equal(last.http_status, 200);
}

static void draining_it_takes_no_more_and_says_so(void **state)
{
    (void)state;
    front_drain(front);
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_int_equal(last.http_status, 503);
    assert_string_equal(last_retry, "1");
    assert_non_null(strstr(last_body, "shutting down"));
    ask("GET", "/health", NULL);
    assert_int_equal(last.http_status, 503);
    ask("GET", "/metrics", NULL);
    assert_int_equal(last.http_status, 200);
    assert_int_equal(prefill.n_requests + decode.n_requests, 0);
    front_stop(front);
    ask("GET", "/metrics", NULL); /* over the connection there is */
    assert_int_equal(last.http_status, 200);
}

/* Workers ask any URL they are given: requests may not give one. */
static void a_request_may_not_choose_the_prefill_worker(void **state)
{
    static const char *const bodies[] = {
        "{\"kv_transfer_params\":{\"prefill_url\":\"http://10.0.0.1\"}}",
        "{\"kv_transfer_params\":1,\"kv_transfer_params\":{\"prefill_url\":\"http://10.0.0.1\"}}",
        "{\"prompt\":\"\\u0000\",\"kv_transfer_params\":{\"prefill_url\":\"http://10.0.0.1\"}}",
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(bodies); i++) {
        ask("POST", "/v1/completions", bodies[i]);
        assert_int_equal(last.http_status, 400);
        assert_non_null(strstr(last_body, "prefill_url"));
    }
    assert_int_equal(prefill.n_requests + decode.n_requests, 0);
}

static void what_a_worker_refuses_is_the_answer(void **state)
{
    (void)state;
    prefill.status = 400;
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_int_equal(last.http_status, 400);
    assert_non_null(strstr(last_body, "\"by\":\"prefill\""));
    assert_int_equal(decode.n_requests, 0);
}

static void without_prefill_the_decode_worker_computes(void **state)
{
    (void)state;
    prefill.status = 503;
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_int_equal(last.http_status, 200);
    assert_null(json_object_get(decode.body, "kv_transfer_params"));
    weft_http_server_destroy(prefill.server);
    prefill.server = NULL;
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_int_equal(last.http_status, 200);
    wait_until_up(FRONT_PREFILL, 0);
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_int_equal(last.http_status, 200);
    ask("GET", "/metrics", NULL);
    assert_non_null(strstr(last_body, "weft:front_legs_total"));
}

static void a_full_decode_worker_says_so_itself(void **state)
{
    (void)state;
    decode.status = 503;
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_int_equal(last.http_status, 503);
    assert_non_null(strstr(last_body, "\"by\":\"decode\""));
}

static void without_decode_workers_it_is_not_well(void **state)
{
    (void)state;
    front_lose_worker(front, "d");
    front_lose_worker(front, "nobody");
    weft_http_server_destroy(decode.server);
    decode.server = NULL;
    wait_until_up(FRONT_DECODE, 0);
    ask("GET", "/health", NULL);
    assert_int_equal(last.http_status, 503);
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_int_equal(last.http_status, 503);
    assert_non_null(strstr(last_body, "No decode worker answers."));
}

static void a_worker_that_was_lost_is_asked_again_where_it_is_then(void **state)
{
    (void)state;
    front_lose_worker(front, "d"); /* with or without a check on its way */
    const int before = decode.n_checks;
    const int rounds = prefill.n_checks + 10;
    while (prefill.n_checks < rounds) {
        ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
        assert_int_equal(last.http_status, 503);
    }
    assert_in_range(decode.n_checks, before, before + 1);
    assert_status(front_add_worker(front, FRONT_DECODE, "d", decode.url), WEFT_OK);
    wait_until_up(FRONT_DECODE, 1);
    ask("POST", "/v1/completions", "{\"prompt\":\"x\"}");
    assert_int_equal(last.http_status, 200);
}

static void a_client_that_leaves_ends_the_leg(void **state)
{
    worker_t *const workers[] = {&prefill, &decode};
    (void)state;
    for (int i = 0; i < 2; i++) {
        workers[i]->status = 0;
        weft_http_call_t *call = post_call("POST", "/v1/completions", "{\"prompt\":\"x\"}");
        weft_loop_run(loop); /* until the worker has it */
        assert_int_equal(front_open_calls(front), 1);
        weft_http_client_cancel(call);
        weft_loop_run(loop); /* until it hears of it */
        assert_int_equal(workers[i]->n_hung_up, 1);
        assert_int_equal(front_open_calls(front), 0);
        workers[i]->status = 200;
    }
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        char url[128];
        snprintf(url, sizeof(url), "%s/v1/completions", front_url);
        const weft_http_request_t request = {.method = "POST",
                                             .url = url,
                                             .body = "{\"prompt\":\"x\"}",
                                             .length = 14,
                                             .timeout_ms = 30000,
                                             .max_answer_bytes = 1 << 16};
        assert_status(weft_http_client_send(client, &request, on_answer, NULL, &posted), WEFT_OK);
        weft_alloc_fail_nth(n);
        weft_loop_run(loop);
        const bool is_last = weft_alloc_fail_nth(0) < n;
        assert_true(last.status < 0 || last.http_status == 200 || last.http_status == 503);
        if (is_last) {
            break;
        }
        assert_true(n < 2000);
        wait_until_up(FRONT_PREFILL, 1);
        wait_until_up(FRONT_DECODE, 1);
    }
}

#define FRONT_TEST(test) cmocka_unit_test_setup_teardown(test, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRONT_TEST(a_request_becomes_two_legs),
        FRONT_TEST(overlapped_the_decode_worker_is_told_whom_to_ask),
        FRONT_TEST(generate_has_its_limits_elsewhere),
        FRONT_TEST(a_stream_is_passed_on_as_it_comes),
        FRONT_TEST(what_is_split_already_or_is_no_request_is_passed_on),
        FRONT_TEST(a_workers_headers_come_with_its_answer),
        FRONT_TEST(its_own_paths_have_their_methods),
        FRONT_TEST(draining_it_takes_no_more_and_says_so),
        FRONT_TEST(a_request_may_not_choose_the_prefill_worker),
        FRONT_TEST(what_a_worker_refuses_is_the_answer),
        FRONT_TEST(without_prefill_the_decode_worker_computes),
        FRONT_TEST(a_full_decode_worker_says_so_itself),
        FRONT_TEST(without_decode_workers_it_is_not_well),
        FRONT_TEST(a_worker_that_was_lost_is_asked_again_where_it_is_then),
        FRONT_TEST(a_client_that_leaves_ends_the_leg),
        FRONT_TEST(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
