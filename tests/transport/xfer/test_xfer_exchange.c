/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_exchange.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/support/fabric_rig.h"
#include "tests/support/loop_backend.h"
#include "transport/xfer/xfer_commands.h"

#define HOST       "127.0.0.1"
#define TIMEOUT_MS 20000

/* An agent that listens, and what its exchange said. */
typedef struct listener {
    fabric_end_t end;
    xfer_exchange_t *exchange;
    pthread_mutex_t lock;
    pthread_cond_t stirred;
    unsigned learned; /* guarded by lock, so below */
    unsigned refused;
    char gone[64];
} listener_t;

static void note_metadata(void *user, xfer_peer_t *peer)
{
    listener_t *listener = user;
    pthread_mutex_lock(&listener->lock);
    *(peer != NULL ? &listener->learned : &listener->refused) += 1;
    pthread_cond_broadcast(&listener->stirred);
    pthread_mutex_unlock(&listener->lock);
}

static void note_gone(void *user, const char *name)
{
    listener_t *listener = user;
    pthread_mutex_lock(&listener->lock);
    snprintf(listener->gone, sizeof(listener->gone), "%s", name);
    pthread_cond_broadcast(&listener->stirred);
    pthread_mutex_unlock(&listener->lock);
}

#define wait_until(listener, condition)                                                            \
    do {                                                                                           \
        pthread_mutex_lock(&(listener)->lock);                                                     \
        while (!(condition)) {                                                                     \
            pthread_cond_wait(&(listener)->stirred, &(listener)->lock);                            \
        }                                                                                          \
        pthread_mutex_unlock(&(listener)->lock);                                                   \
    } while (0)

static void open_end(const char *name, fabric_end_t *end_out)
{
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096, .has_thread = true};
    fabric_end_open(&config, name, end_out);
}

static void open_listener(listener_t *listener)
{
    *listener =
        (listener_t){.lock = PTHREAD_MUTEX_INITIALIZER, .stirred = PTHREAD_COND_INITIALIZER};
    open_end("listener", &listener->end);
    const xfer_exchange_config_t config = {.agent = listener->end.agent,
                                           .host = HOST,
                                           .on_metadata = note_metadata,
                                           .on_gone = note_gone,
                                           .user = listener};
    assert_status(xfer_exchange_start(&config, NULL, &listener->exchange), WEFT_OK);
}

static void close_listener(listener_t *listener)
{
    xfer_exchange_stop(listener->exchange);
    fabric_end_close(&listener->end);
}

static xfer_exchange_place_t place_of(const listener_t *listener)
{
    return (xfer_exchange_place_t){
        .host = HOST, .port = xfer_exchange_port(listener->exchange), .timeout_ms = TIMEOUT_MS};
}

static void exchange_makes_two_agents_know_each_other(void **state)
{
    listener_t listener;
    fabric_end_t caller;
    weft_buffer_t metadata = {0};
    xfer_peer_t *peer = NULL;
    (void)state;

    open_listener(&listener);
    open_end("caller", &caller);
    const xfer_exchange_place_t place = place_of(&listener);
    assert_status(xfer_exchange_fetch(caller.agent, &place, NULL, &peer), WEFT_OK);
    assert_string_equal(xfer_peer_name(peer), "listener");
    assert_true(xfer_peer_has(peer, XFER_DRAM, fabric_addr(&listener.end, 0), 4096));

    fabric_export(&caller, &metadata);
    assert_status(xfer_exchange_send(&place, metadata.data, metadata.length, NULL), WEFT_OK);
    wait_until(&listener, listener.learned == 1);
    assert_non_null(xfer_find_peer(listener.end.agent, "caller"));

    assert_status(xfer_exchange_leave(&place, "caller", NULL), WEFT_OK);
    wait_until(&listener, strcmp(listener.gone, "caller") == 0);
    weft_buffer_free(&metadata);
    fabric_end_close(&caller);
    close_listener(&listener);
}

/* ---- strangers ------------------------------------------------------------------------------- */

static int connect_stranger(const listener_t *listener)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons(xfer_exchange_port(listener->exchange)),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void exchange_hangs_up_on_what_is_no_command(void **state)
{
    static const char huge[8] = {0, 0, 0, 0, 0, 0, 0, 1};
    weft_buffer_t frames[3] = {0};
    listener_t listener;
    char byte;
    (void)state;

    open_listener(&listener);
    xfer_commands_encode("WHAT", "", 0, &frames[0]);
    xfer_commands_encode("LOAD", "nixlSerDes|nothing", 18, &frames[1]);
    weft_buffer_append(&frames[2], huge, sizeof(huge));
    for (size_t i = 0; i < 3; i++) {
        const int fd = connect_stranger(&listener);
        assert_int_equal(send(fd, frames[i].data, frames[i].length, MSG_NOSIGNAL),
                         frames[i].length);
        assert_true(recv(fd, &byte, 1, 0) <= 0);
        close(fd);
        weft_buffer_free(&frames[i]);
    }
    assert_int_equal(listener.learned, 0);
    close_listener(&listener);
}

static void exchange_serves_others_beside_one_that_says_nothing(void **state)
{
    listener_t listener;
    fabric_end_t caller;
    xfer_peer_t *peer = NULL;
    (void)state;

    open_listener(&listener);
    open_end("caller", &caller);
    const xfer_exchange_place_t place = place_of(&listener);
    const int fd = connect_stranger(&listener);
    assert_int_equal(send(fd, "\1", 1, MSG_NOSIGNAL), 1);
    assert_status(xfer_exchange_fetch(caller.agent, &place, NULL, &peer), WEFT_OK);
    close(fd);
    fabric_end_close(&caller);
    close_listener(&listener);
}

/* More than it serves at a time; those before the caller have all been let in. */
static void exchange_serves_others_when_idle_strangers_take_all_places(void **state)
{
    enum { STRANGERS = 100 };
    listener_t listener;
    fabric_end_t caller;
    xfer_peer_t *peer = NULL;
    int strangers[STRANGERS];
    (void)state;

    open_listener(&listener);
    open_end("caller", &caller);
    const xfer_exchange_place_t place = place_of(&listener);
    for (size_t i = 0; i < STRANGERS; i++) {
        strangers[i] = connect_stranger(&listener);
    }
    assert_status(xfer_exchange_fetch(caller.agent, &place, NULL, &peer), WEFT_OK);
    for (size_t i = 0; i < STRANGERS; i++) {
        close(strangers[i]);
    }
    fabric_end_close(&caller);
    close_listener(&listener);
}

static void exchange_with_nobody_says_where(void **state)
{
    listener_t listener;
    weft_diag_t diag = {0};
    (void)state;

    open_listener(&listener);
    const xfer_exchange_place_t place = place_of(&listener);
    close_listener(&listener);
    assert_status(xfer_exchange_leave(&place, "anyone", &diag), WEFT_ERR_PEER_GONE);
    assert_non_null(strstr(diag.text, HOST));
}

static void exchange_port_that_is_taken_is_named(void **state)
{
    listener_t listener;
    xfer_exchange_t *second = NULL;
    weft_diag_t diag = {0};
    (void)state;

    open_listener(&listener);
    const xfer_exchange_config_t config = {
        .agent = listener.end.agent, .host = HOST, .port = xfer_exchange_port(listener.exchange)};
    assert_status(xfer_exchange_start(&config, &diag, &second), WEFT_ERR_IN_USE);
    assert_non_null(strstr(diag.text, HOST));
    close_listener(&listener);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exchange_makes_two_agents_know_each_other),
        cmocka_unit_test(exchange_hangs_up_on_what_is_no_command),
        cmocka_unit_test(exchange_serves_others_beside_one_that_says_nothing),
        cmocka_unit_test(exchange_serves_others_when_idle_strangers_take_all_places),
        cmocka_unit_test(exchange_with_nobody_says_where),
        cmocka_unit_test(exchange_port_that_is_taken_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
