/* SPDX-License-Identifier: Apache-2.0 */
/* The client asks the server, both on one loop. */
#include "base/http_client.h"

#include <string.h>

#include "base/http_server.h"
#include "tests/support/check.h"

static weft_loop_t *loop;
static weft_http_server_t *server;
static weft_http_client_t *client;
static char url[64];
static int n_answers;
static int n_expected;
static int n_hung_up;
static char last_body[256];
static weft_http_answer_t last; /* without what it points to */
static char last_error[256];

static void on_hangup(weft_http_exchange_t *exchange, void *user)
{
    (void)exchange;
    (void)user;
    n_hung_up++;
}

static void handle(void *user, weft_http_exchange_t *exchange)
{
    const char *path = weft_http_path(exchange);
    const char *asked = weft_http_header(exchange, "X-Ask");
    size_t length = 0;
    const char *body = weft_http_body(exchange, &length);
    char text[128];
    (void)user;
    if (strcmp(path, "/never") == 0) {
        weft_http_on_hangup(exchange, on_hangup, NULL);
    } else if (strcmp(path, "/stream") == 0) {
        weft_http_stream_begin(exchange, 200, "text/event-stream", NULL, 0);
        weft_http_stream_write(exchange, "one ", 4);
        weft_http_stream_write(exchange, "two ", 4);
        weft_http_stream_end(exchange);
    } else if (strcmp(path, "/large") == 0) {
        static const char block[100000];
        weft_http_respond(exchange, 200, "text/plain", NULL, 0, block, sizeof(block));
    } else {
        const int n = snprintf(text, sizeof(text), "%s %s %s %.*s", weft_http_method(exchange),
                               path, asked == NULL ? "-" : asked, (int)length, body);
        const weft_http_header_t id = {"X-Id", path};
        weft_http_respond(exchange, strcmp(path, "/gone") == 0 ? 410 : 200, "text/plain", &id, 1,
                          text, (size_t)n);
    }
}

static int start(void **state)
{
    const weft_http_server_config_t config = {.host = "127.0.0.1",
                                              .max_body_bytes = (size_t)4 << 20,
                                              .max_connections = 100,
                                              .idle_timeout_s = 30,
                                              .handle = handle};
    (void)state;
    n_answers = n_hung_up = 0;
    unsetenv("http_proxy");
    assert_status(weft_loop_create(&loop), WEFT_OK);
    assert_status(weft_http_server_start(loop, &config, NULL, &server), WEFT_OK);
    assert_status(weft_http_client_create(loop, &client), WEFT_OK);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u", weft_http_server_port(server));
    return 0;
}

static int stop(void **state)
{
    (void)state;
    weft_http_client_destroy(client);
    weft_http_server_destroy(server);
    weft_loop_destroy(loop);
    client = NULL;
    assert_int_equal(weft_alloc_live_bytes(), 0);
    return 0;
}

static void on_answer(void *user, const weft_http_answer_t *answer)
{
    (void)user;
    last = *answer;
    snprintf(last_body, sizeof(last_body), "%s", answer->body);
    snprintf(last_error, sizeof(last_error), "%s", answer->error);
    if (++n_answers == n_expected) {
        weft_loop_stop(loop);
    }
}

static weft_http_request_t request_of(const char *method, const char *path)
{
    static char full[128];
    snprintf(full, sizeof(full), "%s%s", url, path);
    return (weft_http_request_t){
        .method = method, .url = full, .timeout_ms = 30000, .max_answer_bytes = 4096};
}

static void ask(const weft_http_request_t *request)
{
    n_expected = n_answers + 1;
    assert_status(weft_http_client_send(client, request, on_answer, NULL, NULL), WEFT_OK);
    weft_loop_run(loop);
}

static void an_answer_comes_with_status_and_body(void **state)
{
    static const char *const headers[] = {"X-Ask: this", "Content-Type: text/plain"};
    (void)state;
    weft_http_request_t request = request_of("GET", "/a");
    ask(&request);
    assert_status(last.status, WEFT_OK);
    assert_int_equal(last.http_status, 200);
    assert_string_equal(last_body, "GET /a - ");
    request = request_of("POST", "/gone");
    request.headers = headers;
    request.n_headers = 2;
    request.body = "hello";
    request.length = 5;
    ask(&request);
    assert_int_equal(last.http_status, 410);
    assert_string_equal(last_body, "POST /gone this hello");
    assert_string_equal(last_error, "");
    assert_int_equal(weft_http_server_connections(server), 1); /* used again */
}

static void on_answer_with_header(void *user, const weft_http_answer_t *answer)
{
    const weft_http_call_t *const *call = user;
    assert_string_equal(weft_http_call_header(*call, "x-id"), "/a");
    assert_string_equal(weft_http_call_header(*call, "Content-Type"), "text/plain");
    assert_null(weft_http_call_header(*call, "X"));
    on_answer(NULL, answer);
}

static void an_answer_has_headers(void **state)
{
    (void)state;
    weft_http_call_t *call = NULL;
    const weft_http_request_t request = request_of("GET", "/a");
    n_expected = 1;
    assert_status(weft_http_client_send(client, &request, on_answer_with_header, &call, &call),
                  WEFT_OK);
    weft_loop_run(loop);
    assert_int_equal(n_answers, 1);
}

static void many_are_asked_at_once(void **state)
{
    (void)state;
    const weft_http_request_t request = request_of("GET", "/many");
    n_expected = 50;
    for (int i = 0; i < 50; i++) {
        assert_status(weft_http_client_send(client, &request, on_answer, NULL, NULL), WEFT_OK);
    }
    weft_loop_run(loop);
    assert_int_equal(n_answers, 50);
}

static void faults_have_their_status_and_a_word(void **state)
{
    (void)state;
    weft_http_request_t request = request_of("GET", "/never");
    request.timeout_ms = 50;
    ask(&request);
    assert_status(last.status, WEFT_ERR_TIMEOUT);
    request = request_of("GET", "/large");
    ask(&request);
    assert_status(last.status, WEFT_ERR_TOO_LARGE);
    assert_string_equal(last_error, "the answer is too large");
    request.url = "http://127.0.0.1:1/";
    ask(&request);
    assert_status(last.status, WEFT_ERR_PEER_GONE);
    assert_true(last_error[0] != '\0');
    request.url = "file:///etc/passwd";
    ask(&request);
    assert_status(last.status, WEFT_ERR_INVALID);
    request.url = "http://[";
    ask(&request);
    assert_status(last.status, WEFT_ERR_INVALID);
    assert_string_equal(last_body, "");
}

static void a_cancelled_call_is_not_answered(void **state)
{
    (void)state;
    weft_http_call_t *call = NULL;
    weft_http_request_t request = request_of("GET", "/a");
    assert_status(weft_http_client_send(client, &request, on_answer, NULL, &call), WEFT_OK);
    weft_http_client_cancel(call);
    request = request_of("GET", "/b");
    ask(&request);
    assert_int_equal(n_answers, 1);
    assert_string_equal(last_body, "GET /b - ");
}

static char pieces[256];
static bool wants_more;

static bool take_piece(void *user, const weft_http_piece_t *piece)
{
    (void)user;
    assert_int_equal(piece->http_status, 200);
    assert_string_equal(piece->content_type, "text/event-stream");
    strncat(pieces, piece->data, piece->length);
    return wants_more;
}

static void a_streamed_answer_comes_in_pieces(void **state)
{
    (void)state;
    weft_http_request_t request = request_of("GET", "/stream");
    request.on_piece = take_piece;
    pieces[0] = '\0';
    wants_more = true;
    ask(&request);
    assert_status(last.status, WEFT_OK);
    assert_int_equal(last.http_status, 200);
    assert_string_equal(pieces, "one two ");
    assert_string_equal(last_body, "");
    wants_more = false;
    ask(&request);
    assert_status(last.status, WEFT_ERR_CANCELLED);
}

static void destroy_answers_what_is_on_its_way(void **state)
{
    (void)state;
    const weft_http_request_t request = request_of("GET", "/never");
    n_expected = 2;
    for (int i = 0; i < 2; i++) {
        assert_status(weft_http_client_send(client, &request, on_answer, NULL, NULL), WEFT_OK);
    }
    weft_http_client_destroy(client);
    client = NULL;
    assert_int_equal(n_answers, 2);
    assert_status(last.status, WEFT_ERR_CANCELLED);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const weft_http_request_t request = request_of("GET", "/a");
    for (uint64_t n = 1;; n++) {
        n_expected = n_answers + 1;
        weft_alloc_fail_nth(n);
        const weft_status_t status = weft_http_client_send(client, &request, on_answer, NULL, NULL);
        if (status >= 0) {
            weft_loop_run(loop);
        }
        if (weft_alloc_fail_nth(0) < n) {
            assert_status(status, WEFT_OK);
            assert_status(last.status, WEFT_OK);
            break;
        }
        assert_true(n < 100);
    }
}

#define CLIENT_TEST(test) cmocka_unit_test_setup_teardown(test, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CLIENT_TEST(an_answer_comes_with_status_and_body),
        CLIENT_TEST(an_answer_has_headers),
        CLIENT_TEST(many_are_asked_at_once),
        CLIENT_TEST(faults_have_their_status_and_a_word),
        CLIENT_TEST(a_cancelled_call_is_not_answered),
        CLIENT_TEST(a_streamed_answer_comes_in_pieces),
        CLIENT_TEST(destroy_answers_what_is_on_its_way),
        CLIENT_TEST(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
