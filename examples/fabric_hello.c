/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fabric_hello: two processes, a shelf with blocks of text and a reader that takes some of them.
 *
 *     cc fabric_hello.c $(pkg-config --cflags --libs weft-fabric) && ./a.out
 *
 * What the reader needs to know of the shelf is a blob of some hundred bytes, which goes through a
 * pipe here: in life, through whatever the two have to talk with. The shelf then does nothing for
 * a read but wait; a notification tells it, after the bytes have moved, that they were taken.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <weft/transport/xfer/xfer.h>

#define BLOCK_BYTES 4096
#define BLOCKS      8

static weft_diag_t diag; /* says what was wrong, for people */

static void must(weft_status_t status, const char *what)
{
    if (status < 0) {
        fprintf(stderr, "%s: %s %s\n", what, weft_strerror(status), diag.text);
        exit(1);
    }
}

/* An agent and memory that peers may use. A memfd that cannot shrink is mapped by peers on this host:
 * no call, no copy but the one that is wanted. Other memory (fd = -1) is as good, but slower. */
static xfer_agent_t *make_agent(const char *name, char **blocks_out)
{
    xfer_agent_t *agent;
    xfer_region_t *region;
    const xfer_agent_config_t config = {.name = name, .has_thread = false};
    const size_t bytes = (size_t)BLOCKS * BLOCK_BYTES;
    const int fd = memfd_create("blocks", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
        must(WEFT_ERR_IO, "memfd");
    }
    char *blocks = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (blocks == MAP_FAILED) {
        must(WEFT_ERR_NO_MEMORY, "mmap");
    }
    const xfer_memory_t memory = {
        .space = XFER_DRAM, .addr = (uint64_t)(uintptr_t)blocks, .bytes = bytes, .fd = fd};
    must(xfer_agent_create(&config, &diag, &agent), "agent");
    must(xfer_register(agent, &memory, &diag, &region), "register");
    close(fd); /* the agent has its own */
    *blocks_out = blocks;
    return agent;
}

/* ---- the shelf ------------------------------------------------------------------------------- */

static void be_shelf(int to_reader)
{
    char *blocks;
    xfer_agent_t *agent = make_agent("shelf", &blocks);
    for (int i = 0; i < BLOCKS; i++) {
        snprintf(blocks + (size_t)i * BLOCK_BYTES, BLOCK_BYTES, "this is block %d", i);
    }
    weft_buffer_t blob = {0};
    must(xfer_export(agent, NULL, 0, true, &blob), "export");
    const uint64_t about[2] = {(uint64_t)(uintptr_t)blocks, blob.length};
    if (write(to_reader, about, sizeof(about)) != sizeof(about) ||
        write(to_reader, blob.data, blob.length) != (ssize_t)blob.length) {
        must(WEFT_ERR_IO, "pipe");
    }
    weft_buffer_free(&blob);

    xfer_notification_t *notification = NULL;
    while ((notification = xfer_next_notification(agent)) == NULL) {
        xfer_progress(agent, -1); /* sleeps until there is something to do */
    }
    printf("shelf: %s says: %.*s\n", notification->peer, (int)notification->bytes,
           (const char *)notification->data);
    xfer_notification_free(notification);
    xfer_agent_destroy(agent);
}

/* ---- the reader ------------------------------------------------------------------------------ */

static xfer_peer_t *meet_shelf(xfer_agent_t *agent, int from_shelf, uint64_t *blocks_out)
{
    uint64_t about[2];
    char blob[65536];
    xfer_peer_t *shelf;
    if (read(from_shelf, about, sizeof(about)) != sizeof(about) || about[1] > sizeof(blob) ||
        read(from_shelf, blob, about[1]) != (ssize_t)about[1]) {
        must(WEFT_ERR_IO, "pipe");
    }
    must(xfer_import(agent, blob, about[1], &diag, &shelf), "import");
    *blocks_out = about[0];
    return shelf;
}

static void be_reader(int from_shelf)
{
    char *blocks;
    uint64_t theirs;
    xfer_agent_t *agent = make_agent("reader", &blocks);
    xfer_peer_t *shelf = meet_shelf(agent, from_shelf, &theirs);

    /* All blocks of either side, described once: no matter how many there are, it is one run. */
    xfer_list_t *here;
    xfer_list_t *there;
    xfer_run_t run = {.addr = (uint64_t)(uintptr_t)blocks,
                      .bytes = BLOCK_BYTES,
                      .stride = BLOCK_BYTES,
                      .count = BLOCKS};
    must(xfer_list_create(agent, NULL, XFER_DRAM, &run, 1, &diag, &here), "our list");
    run.addr = theirs;
    must(xfer_list_create(agent, shelf, XFER_DRAM, &run, 1, &diag, &there), "their list");

    const uint32_t wanted[] = {6, 2, 3};
    const uint32_t places[] = {0, 1, 2};
    xfer_request_t *request;
    const xfer_request_config_t config = {
        .direction = XFER_READ,
        .local = here,
        .peer = there,
        .local_ids = places,
        .peer_ids = wanted,
        .n = 3,
        .notification = "took three",
        .notification_bytes = strlen("took three"),
    };
    must(xfer_request_create(agent, &config, &diag, &request), "request");
    must(xfer_post(request), "post");
    while (xfer_poll(request) == WEFT_PENDING) {
        xfer_progress(agent, -1);
    }
    must(xfer_poll(request), "read");
    for (int i = 0; i < 3; i++) {
        printf("reader: %s\n", blocks + (size_t)i * BLOCK_BYTES);
    }
    const xfer_request_stats_t stats = xfer_request_stats(request);
    printf("reader: %llu bytes by %s in %llu pieces\n", (unsigned long long)stats.bytes,
           stats.backend, (unsigned long long)stats.extents);

    xfer_request_destroy(request);
    xfer_list_destroy(here);
    xfer_list_destroy(there);
    xfer_agent_destroy(agent);
}

int main(void)
{
    int ends[2];
    if (pipe(ends) != 0) {
        return 1;
    }
    const pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        be_shelf(ends[1]);
        return 0;
    }
    close(ends[1]);
    be_reader(ends[0]);
    int result = 1;
    waitpid(child, &result, 0);
    return result == 0 ? 0 : 1;
}
