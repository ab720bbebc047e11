/* SPDX-License-Identifier: Apache-2.0 */
/* The HTTP server behind TLS, asked by libcurl. */
#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <gnutls/x509.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/http_server.h"
#include "base/log.h"
#include "tests/support/tally.h"

static char folder[64];
static weft_loop_t *loop;
static weft_http_server_t *server;
static pthread_t thread;
static uint16_t port;
static tally_t hung_up = TALLY_INIT;

static const char *path_of(const char *name)
{
    static char paths[4][128];
    static int next;
    next = (next + 1) % 4;
    snprintf(paths[next], sizeof(paths[next]), "%s/%s", folder, name);
    return paths[next];
}

static void write_file(const char *name, const void *bytes, size_t length)
{
    FILE *file = fopen(path_of(name), "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    fclose(file);
}

/* A self-signed certificate for 127.0.0.1 as <name>.crt and <name>.key. */
static void make_pair(const char *name, unsigned char serial)
{
    const unsigned char address[] = {127, 0, 0, 1};
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t crt;
    gnutls_datum_t pem;
    char file[64];
    assert_int_equal(gnutls_x509_privkey_init(&key), 0);
    assert_int_equal(gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA, 256, 0), 0);
    assert_int_equal(gnutls_x509_crt_init(&crt), 0);
    gnutls_x509_crt_set_version(crt, 3);
    gnutls_x509_crt_set_serial(crt, &serial, 1);
    gnutls_x509_crt_set_activation_time(crt, time(NULL) - 3600);
    gnutls_x509_crt_set_expiration_time(crt, time(NULL) + 3600);
    gnutls_x509_crt_set_basic_constraints(crt, 1, -1);
    gnutls_x509_crt_set_key(crt, key);
    gnutls_x509_crt_set_dn(crt, "CN=weft test", NULL);
    gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, address, sizeof(address),
                                         GNUTLS_FSAN_SET);
    assert_int_equal(gnutls_x509_crt_sign2(crt, crt, key, GNUTLS_DIG_SHA256, 0), 0);

    assert_int_equal(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &pem), 0);
    snprintf(file, sizeof(file), "%s.crt", name);
    write_file(file, pem.data, pem.size);
    gnutls_free(pem.data);
    assert_int_equal(gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &pem), 0);
    snprintf(file, sizeof(file), "%s.key", name);
    write_file(file, pem.data, pem.size);
    gnutls_free(pem.data);
    gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(key);
}

/* Puts <name>'s file in the place of the server's, as Kubernetes and cert-manager do. */
static void install(const char *from, const char *to)
{
    char command[512];
    snprintf(command, sizeof(command), "cp '%s' '%s' && mv '%s' '%s'", path_of(from),
             path_of("new"), path_of("new"), path_of(to));
    assert_int_equal(system(command), 0);
}

static void on_hangup(weft_http_exchange_t *exchange, void *user)
{
    (void)exchange;
    (void)user;
    tally_add(&hung_up);
}

static void handle(void *user, weft_http_exchange_t *exchange)
{
    (void)user;
    if (strcmp(weft_http_path(exchange), "/stream") == 0) {
        weft_http_on_hangup(exchange, on_hangup, NULL);
        weft_http_stream_begin(exchange, 200, "text/plain", NULL, 0);
        weft_http_stream_write(exchange, "first\n", 6);
        return;
    }
    size_t length = 0;
    const char *body = weft_http_body(exchange, &length);
    weft_http_respond(exchange, 200, "text/plain", NULL, 0, body, length);
}

static void *run_loop(void *user)
{
    weft_loop_run(user);
    return NULL;
}

static int start_server(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/weft-tls-XXXXXX");
    assert_non_null(mkdtemp(folder));
    make_pair("one", 1);
    make_pair("two", 2);
    install("one.crt", "tls.crt");
    install("one.key", "tls.key");
    const weft_http_server_config_t config = {.host = "127.0.0.1",
                                              .tls_cert = path_of("tls.crt"),
                                              .tls_key = path_of("tls.key"),
                                              .max_body_bytes = (size_t)8 << 20,
                                              .max_connections = 100,
                                              .idle_timeout_s = 2,
                                              .handle = handle};
    weft_diag_t diag = {0};
    weft_log_set_level(WEFT_LOG_ERROR);
    tally_reset(&hung_up);
    assert_status(weft_loop_create(&loop), WEFT_OK);
    assert_status(weft_http_server_start(loop, &config, &diag, &server), WEFT_OK);
    port = weft_http_server_port(server);
    assert_int_equal(pthread_create(&thread, NULL, run_loop, loop), 0);
    return 0;
}

static int stop_server(void **state)
{
    char command[128];
    (void)state;
    weft_loop_stop(loop);
    pthread_join(thread, NULL);
    weft_http_server_destroy(server);
    weft_loop_destroy(loop);
    assert_int_equal(weft_alloc_live_bytes(), 0);
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

static size_t count_bytes(char *bytes, size_t size, size_t n, void *user)
{
    (void)bytes;
    *(size_t *)user += size * n;
    return size * n;
}

static CURL *make_client(const char *trusted, const char *path)
{
    char url[64];
    CURL *curl = curl_easy_init();
    assert_non_null(curl);
    snprintf(url, sizeof(url), "https://127.0.0.1:%u%s", port, path);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CAINFO, path_of(trusted));
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 30L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    return curl;
}

/* Whether a new connection is answered by the one certificate that is trusted. */
static bool is_served_by(const char *trusted)
{
    size_t received = 0;
    CURL *curl = make_client(trusted, "/echo");
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "hello");
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, count_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &received);
    const CURLcode code = curl_easy_perform(curl);
    curl_easy_cleanup(curl);
    assert_true(code == CURLE_OK || code == CURLE_PEER_FAILED_VERIFICATION);
    return code == CURLE_OK && received == 5;
}

static void the_certificate_is_reread_when_it_changes(void **state)
{
    (void)state;
    assert_true(is_served_by("one.crt"));
    assert_false(is_served_by("two.crt"));
    install("two.key", "tls.key"); /* half of the change: the old pair serves on */
    assert_true(is_served_by("one.crt"));
    install("two.crt", "tls.crt");
    assert_true(is_served_by("two.crt"));
    assert_false(is_served_by("one.crt"));
}

static void a_broken_certificate_leaves_the_old_one_in_use(void **state)
{
    (void)state;
    write_file("tls.crt", "-----BEGIN CERTIFICATE-----\nrubbish\n", 36);
    assert_true(is_served_by("one.crt"));
    write_file("tls.crt", "", 0);
    assert_true(is_served_by("one.crt"));
    assert_int_equal(unlink(path_of("tls.key")), 0);
    assert_true(is_served_by("one.crt"));
    install("two.crt", "tls.crt");
    install("two.key", "tls.key");
    assert_true(is_served_by("two.crt"));
}

static void large_bodies_pass_both_ways(void **state)
{
    (void)state;
    const size_t length = (size_t)8 << 20;
    char *body = calloc(1, length);
    size_t received = 0;
    CURL *curl = make_client("one.crt", "/echo");
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)length);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, count_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &received);
    assert_int_equal(curl_easy_perform(curl), CURLE_OK);
    assert_int_equal(received, length);
    curl_easy_cleanup(curl);
    free(body);
}

static size_t refuse_bytes(char *bytes, size_t size, size_t n, void *user)
{
    (void)bytes;
    (void)user;
    return size * n == 0 ? 0 : 1; /* not what curl gave: it hangs up */
}

static void a_peer_that_hangs_up_a_stream_is_noticed(void **state)
{
    (void)state;
    CURL *curl = make_client("one.crt", "/stream");
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, refuse_bytes);
    assert_int_equal(curl_easy_perform(curl), CURLE_WRITE_ERROR);
    curl_easy_cleanup(curl);
    tally_wait(&hung_up, 1);
}

static void a_peer_that_speaks_no_tls_is_closed(void **state)
{
    (void)state;
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    static const char *const greetings[] = {"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "\x16\x03"};
    for (int i = 0; i < 2; i++) { /* wrong at once; silent after a good beginning */
        char bytes[256];
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const struct timeval patience = {.tv_sec = 30};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
        assert_true(send(fd, greetings[i], strlen(greetings[i]), MSG_NOSIGNAL) > 0);
        ssize_t n;
        do {
            n = recv(fd, bytes, sizeof(bytes), 0);
        } while (n > 0);
        assert_true(n == 0 || errno == ECONNRESET);
        close(fd);
    }
    assert_true(is_served_by("one.crt"));
}

static void pairs_that_do_not_load_are_named_at_start(void **state)
{
    weft_http_server_config_t config = {.host = "127.0.0.1", .max_connections = 1};
    weft_http_server_t *second = NULL;
    weft_diag_t diag = {0};
    (void)state;
    config.tls_cert = path_of("one.crt");
    config.tls_key = path_of("two.key");
    assert_status(weft_http_server_start(loop, &config, &diag, &second), WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "one.crt with key "));
    assert_non_null(strstr(diag.text, "two.key: "));
    config.tls_key = path_of("one.crt");
    assert_status(weft_http_server_start(loop, &config, &diag, &second), WEFT_ERR_MALFORMED);
    config.tls_key = folder;
    assert_status(weft_http_server_start(loop, &config, &diag, &second), WEFT_ERR_MALFORMED);
    assert_null(second);
}

#define TLS_TEST(test) cmocka_unit_test_setup_teardown(test, start_server, stop_server)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TLS_TEST(the_certificate_is_reread_when_it_changes),
        TLS_TEST(a_broken_certificate_leaves_the_old_one_in_use),
        TLS_TEST(large_bodies_pass_both_ways),
        TLS_TEST(a_peer_that_hangs_up_a_stream_is_noticed),
        TLS_TEST(a_peer_that_speaks_no_tls_is_closed),
        TLS_TEST(pairs_that_do_not_load_are_named_at_start),
    };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    curl_global_cleanup();
    return failed;
}
