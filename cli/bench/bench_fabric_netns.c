/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_netns.h"

#include <errno.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench/bench_fabric_channel.h"

#define INITIATOR_HOST "10.99.0.1"
#define TARGET_HOST    "10.99.0.2"
#define ANSWER_MS      10000

extern char **environ;

/* A program with its words parted by blanks. */
static weft_status_t run(weft_diag_t *diag, const char *words)
{
    char line[256];
    char *argv[32];
    char *rest = line;
    size_t n = 0;
    pid_t child;
    int result = -1;
    snprintf(line, sizeof(line), "%s", words);
    while (n < 31 && (argv[n] = strtok_r(rest, " ", &rest)) != NULL) {
        n++;
    }
    argv[n] = NULL;
    const int failed = posix_spawnp(&child, argv[0], NULL, NULL, argv, environ);
    if (failed != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "--netns: %s: %s", argv[0], strerror(failed));
    }
    while (waitpid(child, &result, 0) < 0 && errno == EINTR) {
    }
    return result == 0 ? WEFT_OK : weft_diag(diag, WEFT_ERR_IO, "--netns: %s: failed", words);
}

static weft_status_t leave_host(weft_diag_t *diag)
{
    return unshare(CLONE_NEWNET) == 0
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_DENIED, "--netns: %s", strerror(errno));
}

void bench_fabric_netns_rail(const char *host, uint32_t rail, char host_out[64])
{
    snprintf(host_out, 64, "10.99.%u.%s", rail, strrchr(host, '.') + 1);
}

static weft_status_t dress_link(const bench_fabric_options_t *options, const char *host,
                                uint32_t rail, weft_diag_t *diag)
{
    char words[256];
    char at[64];
    bench_fabric_netns_rail(host, rail, at);
    snprintf(words, sizeof(words), "ip addr add %s/24 dev weft%u", at, rail);
    weft_status_t status = run(diag, words);
    if (status >= 0) {
        snprintf(words, sizeof(words), "ip link set weft%u up", rail);
        status = run(diag, words);
    }
    if (status >= 0 && options->rail_rate[0] != '\0') {
        snprintf(words, sizeof(words),
                 "tc qdisc add dev weft%u root tbf rate %.32s burst 1mb latency 50ms", rail,
                 options->rail_rate);
        status = run(diag, words);
    }
    return status;
}

static weft_status_t dress_links(const bench_fabric_options_t *options, const char *host,
                                 weft_diag_t *diag)
{
    weft_status_t status = run(diag, "ip link set lo up");
    for (uint32_t rail = 0; status >= 0 && rail < options->rails; rail++) {
        status = dress_link(options, host, rail, diag);
    }
    return status;
}

static weft_status_t make_links(const bench_fabric_options_t *options, pid_t target,
                                weft_diag_t *diag)
{
    char words[128];
    weft_status_t status = WEFT_OK;
    for (uint32_t rail = 0; status >= 0 && rail < options->rails; rail++) {
        snprintf(words, sizeof(words), "ip link add weft%u type veth peer name weft%u netns %d",
                 rail, rail, (int)target);
        status = run(diag, words);
    }
    return status;
}

/* Three words each way: it has left the host, the link is there, it has dressed its end. */
weft_status_t bench_fabric_netns_enter(const bench_fabric_options_t *options, int fd,
                                       const char **host_out, weft_diag_t *diag)
{
    bench_fabric_message_t message = {0};
    weft_status_t status = leave_host(diag);
    if (status >= 0) {
        status = bench_fabric_channel_send(fd, BENCH_FABRIC_DONE, NULL, NULL, 0);
    }
    if (status >= 0) {
        status = bench_fabric_channel_receive(fd, ANSWER_MS, &message);
    }
    if (status >= 0) {
        status = dress_links(options, TARGET_HOST, diag);
    }
    weft_buffer_free(&message.bytes);
    *host_out = TARGET_HOST;
    return status < 0 ? status : bench_fabric_channel_send(fd, BENCH_FABRIC_DONE, NULL, NULL, 0);
}

/* Whether the target says it got so far. */
static weft_status_t meet(int fd, weft_diag_t *diag)
{
    bench_fabric_message_t message = {0};
    weft_status_t status = bench_fabric_channel_receive(fd, ANSWER_MS, &message);
    if (status < 0) {
        status = weft_diag(diag, status, "--netns: the target: %s", weft_strerror(status));
    } else if (message.type != BENCH_FABRIC_DONE) {
        status = weft_diag(diag, WEFT_ERR_IO, "%.*s", (int)message.bytes.length,
                           message.bytes.length > 0 ? message.bytes.data : "");
    }
    weft_buffer_free(&message.bytes);
    return status;
}

weft_status_t bench_fabric_netns_make(const bench_fabric_options_t *options, int fd, pid_t target,
                                      const char **host_out, weft_diag_t *diag)
{
    weft_status_t status = meet(fd, diag);
    if (status >= 0) {
        status = leave_host(diag);
    }
    if (status >= 0) {
        status = make_links(options, target, diag);
    }
    if (status >= 0) {
        status = dress_links(options, INITIATOR_HOST, diag);
    }
    if (status >= 0) {
        status = bench_fabric_channel_send(fd, BENCH_FABRIC_DONE, NULL, NULL, 0);
    }
    *host_out = INITIATOR_HOST;
    return status < 0 ? status : meet(fd, diag);
}
