/* SPDX-License-Identifier: Apache-2.0 */
/* The child of fabric_rig.h: orders and answers over a socket pair. */
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/fabric_rig.h"
#include "tests/support/test_fork.h"

typedef enum order_kind {
    ORDER_FILL,
    ORDER_IS_FILLED,
    ORDER_POKE,
    ORDER_VRAM_IS_FILLED,
    ORDER_DEREGISTER,
    ORDER_DEREGISTER_VRAM,
    ORDER_CHURN,
    ORDER_NOTIFY, /* a blob and a text follow */
    ORDER_NEXT_NOTIFICATION,
    ORDER_STOP,
} order_kind_t;

typedef struct order {
    order_kind_t kind;
    uint64_t a;
    uint64_t b;
    uint64_t c;
} order_t;

/* ---- bytes over the socket ------------------------------------------------------------------- */

static bool send_all(int fd, const void *data, size_t n)
{
    for (size_t done = 0; done < n;) {
        const ssize_t sent = send(fd, (const char *)data + done, n - done, MSG_NOSIGNAL);
        if (sent <= 0) {
            return false;
        }
        done += (size_t)sent;
    }
    return true;
}

static bool receive_all(int fd, void *data, size_t n)
{
    for (size_t done = 0; done < n;) {
        const ssize_t got = recv(fd, (char *)data + done, n - done, 0);
        if (got <= 0) {
            return false;
        }
        done += (size_t)got;
    }
    return true;
}

static bool send_bytes(int fd, const void *data, uint64_t n)
{
    return send_all(fd, &n, sizeof(n)) && send_all(fd, data, n);
}

static bool receive_bytes(int fd, weft_buffer_t *out)
{
    char chunk[4096];
    uint64_t n;
    bool is_good = receive_all(fd, &n, sizeof(n));
    while (is_good && n > 0) {
        const size_t part = n < sizeof(chunk) ? (size_t)n : sizeof(chunk);
        is_good = receive_all(fd, chunk, part);
        weft_buffer_append(out, chunk, part);
        n -= part;
    }
    return is_good;
}

/* ---- in the child; what goes wrong there is its exit code ------------------------------------- */

static void require(bool claim, int code)
{
    if (!claim) {
        _exit(code);
    }
}

static void child_progress(fabric_end_t *end)
{
    if (!end->has_thread) {
        xfer_progress(end->agent, 0);
    }
}

static void child_notify(fabric_end_t *end, int socket)
{
    weft_buffer_t blob = {0};
    weft_buffer_t text = {0};
    xfer_peer_t *peer = NULL;
    weft_status_t status;
    require(receive_bytes(socket, &blob) && receive_bytes(socket, &text), 11);
    require(xfer_import(end->agent, blob.data, blob.length, NULL, &peer) == WEFT_OK, 12);
    while ((status = xfer_notify(peer, text.data, text.length)) == WEFT_ERR_QUEUE_FULL) {
        child_progress(end);
    }
    require(status == WEFT_OK, 13);
    weft_buffer_free(&blob);
    weft_buffer_free(&text);
}

static void child_send_notification(fabric_end_t *end, int socket)
{
    const uint64_t start = weft_clock_ns();
    xfer_notification_t *notification;
    while ((notification = xfer_next_notification(end->agent)) == NULL) {
        child_progress(end);
        require(weft_clock_ns() - start < FABRIC_DEADLINE_S * WEFT_NS_PER_SECOND, 14);
    }
    require(send_bytes(socket, notification->data, notification->bytes), 15);
    xfer_notification_free(notification);
}

static void child_poke(fabric_end_t *end, uint64_t offset, uint64_t word)
{
    __atomic_store_n((uint64_t *)(void *)(end->memory + offset), word, __ATOMIC_SEQ_CST);
}

static void child_churn(fabric_end_t *end, uint64_t rounds)
{
    fabric_end_t behind = *end;
    behind.memory += FABRIC_CHURN_FROM;
    behind.bytes -= FABRIC_CHURN_FROM;
    for (uint64_t k = 1; k <= rounds; k++) {
        child_poke(end, 0, FABRIC_CHURNING);
        fabric_fill(&behind, k);
        child_poke(end, 0, k);
        for (int i = 0; i < 4; i++) { /* a time in which a read can do it */
            child_progress(end);
            usleep(200);
        }
    }
}

static void child_obey(fabric_end_t *end, int socket, const order_t *order)
{
    uint64_t answer = 0;
    /* The peer knows that its read or write is done, and said so over the socket; a sanitizer sees
       only that its agent's thread and this one had the same lock. */
    xfer_agent_stats(end->agent, NULL, 0);
    switch (order->kind) {
    case ORDER_FILL:
        fabric_fill(end, order->a);
        break;
    case ORDER_IS_FILLED:
        answer = fabric_is_filled(end->memory + order->b, order->c, order->a, order->b);
        break;
    case ORDER_VRAM_IS_FILLED:
        answer = fabric_vram_is_filled(end, order->c, order->a, order->b, order->b);
        break;
    case ORDER_POKE:
        child_poke(end, order->a, order->b);
        break;
    case ORDER_CHURN:
        child_churn(end, order->a);
        break;
    case ORDER_DEREGISTER:
        answer = (uint64_t)xfer_deregister(end->agent, end->region);
        end->region = NULL;
        break;
    case ORDER_DEREGISTER_VRAM:
        answer = (uint64_t)xfer_deregister(end->agent, end->vram_region);
        break;
    case ORDER_NOTIFY:
        child_notify(end, socket);
        break;
    case ORDER_NEXT_NOTIFICATION:
        child_send_notification(end, socket);
        break;
    case ORDER_STOP:
        break;
    }
    require(send_all(socket, &answer, sizeof(answer)), 16);
}

/* Progress beside orders: sleeps in the agent at most briefly, so that both get their turn. */
static void child_serve(fabric_end_t *end, int socket)
{
    order_t order = {.kind = ORDER_FILL};
    while (order.kind != ORDER_STOP) {
        struct pollfd poll_fd = {.fd = socket, .events = POLLIN};
        if (!end->has_thread) {
            xfer_progress(end->agent, 1);
        }
        if (poll(&poll_fd, 1, end->has_thread ? -1 : 0) > 0) {
            require(receive_all(socket, &order, sizeof(order)), 17);
            child_obey(end, socket, &order);
        }
    }
}

static void child_main(const fabric_config_t *config, const char *name, int socket)
{
    fabric_end_t end;
    weft_buffer_t blob = {0};
    const uint64_t is_there = fabric_end_try_open(config, name, &end) == WEFT_OK;
    require(send_all(socket, &is_there, sizeof(is_there)), 18);
    if (!is_there) {
        _exit(0);
    }
    fabric_fill(&end, 1);
    if (end.gpu != NULL) {
        fabric_vram_fill(&end, 1);
    }
    fabric_export(&end, &blob);
    const uint64_t addr = fabric_addr(&end, 0);
    const uint64_t vram_addr = (uint64_t)(uintptr_t)end.vram.addr;
    require(send_all(socket, &addr, sizeof(addr)), 19);
    require(send_all(socket, &vram_addr, sizeof(vram_addr)), 19);
    require(send_bytes(socket, blob.data, blob.length), 20);
    child_serve(&end, socket);
    weft_buffer_free(&blob);
    fabric_end_close(&end);
    _exit(0);
}

/* ---- here ------------------------------------------------------------------------------------ */

static void reap(fabric_child_t *child, bool was_killed)
{
    int status;
    assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
    if (was_killed) {
        assert_true(WIFSIGNALED(status));
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fail_msg("child: status 0x%x", (unsigned)status);
    }
    close(child->socket);
    weft_buffer_free(&child->blob);
}

bool fabric_child_start(const fabric_config_t *config, const char *name, fabric_child_t *child_out)
{
    int sockets[2];
    uint64_t is_there = 0;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    fflush(NULL);
    fabric_child_t child = {.pid = test_fork(), .socket = sockets[0]};
    assert_true(child.pid >= 0);
    if (child.pid == 0) {
        close(sockets[0]);
        child_main(config, name, sockets[1]);
    }
    close(sockets[1]);
    assert_true(receive_all(child.socket, &is_there, sizeof(is_there)));
    if (!is_there) {
        reap(&child, false);
        return false;
    }
    assert_true(receive_all(child.socket, &child.addr, sizeof(child.addr)));
    assert_true(receive_all(child.socket, &child.vram_addr, sizeof(child.vram_addr)));
    assert_true(receive_bytes(child.socket, &child.blob));
    *child_out = child;
    return true;
}

static void send_order(fabric_child_t *child, const order_t *order)
{
    if (!send_all(child->socket, order, sizeof(*order))) {
        fail_msg("the child is gone");
    }
}

static uint64_t receive_answer(fabric_child_t *child)
{
    uint64_t answer = 0;
    if (!receive_all(child->socket, &answer, sizeof(answer))) {
        int status = 0;
        waitpid(child->pid, &status, 0);
        fail_msg("the child has ended, status 0x%x", (unsigned)status);
    }
    return answer;
}

static uint64_t obeyed(fabric_child_t *child, order_t order)
{
    send_order(child, &order);
    return receive_answer(child);
}

void fabric_child_fill(fabric_child_t *child, uint64_t seed)
{
    obeyed(child, (order_t){.kind = ORDER_FILL, .a = seed});
}

bool fabric_child_is_filled(fabric_child_t *child, uint64_t seed, uint64_t offset, uint64_t n)
{
    return obeyed(child, (order_t){.kind = ORDER_IS_FILLED, .a = seed, .b = offset, .c = n}) != 0;
}

bool fabric_child_vram_is_filled(fabric_child_t *child, uint64_t seed, uint64_t offset, uint64_t n)
{
    return obeyed(child, (order_t){.kind = ORDER_VRAM_IS_FILLED, .a = seed, .b = offset, .c = n}) !=
           0;
}

void fabric_child_poke(fabric_child_t *child, uint64_t offset, uint64_t word)
{
    obeyed(child, (order_t){.kind = ORDER_POKE, .a = offset, .b = word});
}

void fabric_child_deregister(fabric_child_t *child)
{
    assert_int_equal(obeyed(child, (order_t){.kind = ORDER_DEREGISTER}), WEFT_OK);
}

void fabric_child_deregister_vram(fabric_child_t *child)
{
    assert_int_equal(obeyed(child, (order_t){.kind = ORDER_DEREGISTER_VRAM}), WEFT_OK);
}

void fabric_child_churn(fabric_child_t *child, uint64_t rounds)
{
    send_order(child, &(order_t){.kind = ORDER_CHURN, .a = rounds});
}

void fabric_child_churned(fabric_child_t *child)
{
    receive_answer(child);
}

void fabric_child_notify(fabric_child_t *child, fabric_end_t *to, const char *text)
{
    weft_buffer_t blob = {0};
    fabric_export(to, &blob);
    send_order(child, &(order_t){.kind = ORDER_NOTIFY});
    assert_true(send_bytes(child->socket, blob.data, blob.length));
    assert_true(send_bytes(child->socket, text, strlen(text)));
    receive_answer(child);
    weft_buffer_free(&blob);
}

void fabric_child_next_notification(fabric_child_t *child, fabric_end_t *const *ends, size_t n,
                                    char *text_out, size_t size)
{
    weft_buffer_t text = {0};
    struct pollfd poll_fd = {.fd = child->socket, .events = POLLIN};
    send_order(child, &(order_t){.kind = ORDER_NEXT_NOTIFICATION});
    while (poll(&poll_fd, 1, 0) == 0) {
        fabric_progress(ends, n);
    }
    assert_true(receive_bytes(child->socket, &text));
    receive_answer(child);
    assert_true(text.length < size);
    memcpy(text_out, text.data, text.length);
    text_out[text.length] = '\0';
    weft_buffer_free(&text);
}

void fabric_child_stop(fabric_child_t *child)
{
    obeyed(child, (order_t){.kind = ORDER_STOP});
    reap(child, false);
}

void fabric_child_kill(fabric_child_t *child)
{
    assert_int_equal(kill(child->pid, SIGKILL), 0);
    reap(child, true);
}
