/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/fabric_rig.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"

/* ---- ends ------------------------------------------------------------------------------------ */

static void map_memory(const fabric_config_t *config, fabric_end_t *end)
{
    end->bytes = config->bytes;
    end->fd = -1;
    if (!config->is_private) {
        end->fd = memfd_create("fabric", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_true(end->fd >= 0);
        assert_int_equal(ftruncate(end->fd, (off_t)end->bytes), 0);
        assert_int_equal(fcntl(end->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    }
    end->memory = mmap(NULL, end->bytes, PROT_READ | PROT_WRITE,
                       end->fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, end->fd, 0);
    assert_true(end->memory != MAP_FAILED);
}

static weft_status_t open_vram(const fabric_config_t *config, fabric_end_t *end)
{
    if (weft_device_open("cuda", 0, NULL, &end->gpu) < 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    const weft_device_ops_t *ops = end->gpu->ops;
    assert_status(ops->open_queue(end->gpu, &end->queue), WEFT_OK);
    assert_status(ops->alloc(end->gpu, config->vram_bytes,
                             config->is_private ? 0 : WEFT_MEM_EXPORTABLE, &end->vram),
                  WEFT_OK);
    const xfer_memory_t memory = {.space = XFER_VRAM,
                                  .addr = (uint64_t)(uintptr_t)end->vram.addr,
                                  .bytes = end->vram.bytes,
                                  .fd = end->vram.fd};
    const weft_status_t status = xfer_register(end->agent, &memory, NULL, &end->vram_region);
    assert_true(status == WEFT_OK || status == WEFT_ERR_UNSUPPORTED);
    return status;
}

static void close_vram(fabric_end_t *end)
{
    if (end->gpu != NULL) {
        end->gpu->ops->free(end->gpu, &end->vram);
        end->gpu->ops->close_queue(end->queue);
        weft_device_close(end->gpu);
    }
}

static void unmap_memory(fabric_end_t *end)
{
    munmap(end->memory, end->bytes);
    if (end->fd >= 0) {
        close(end->fd);
    }
}

weft_status_t fabric_end_try_open(const fabric_config_t *config, const char *name,
                                  fabric_end_t *end_out)
{
    fabric_end_t end = {.has_thread = config->has_thread};
    const xfer_agent_config_t agent_config = {.name = name,
                                              .backends = config->backends,
                                              .params = config->params,
                                              .has_thread = config->has_thread};
    weft_diag_t diag = {0};
    weft_status_t status = xfer_agent_open(
        &agent_config, config->table == NULL ? xfer_backends : config->table, &diag, &end.agent);
    if (status == WEFT_ERR_UNSUPPORTED) {
        print_message("not to be had here: %s\n", diag.text);
        return status;
    }
    if (status < 0) {
        fail_msg("agent %s: %s: %s", name, weft_status_name(status), diag.text);
    }
    map_memory(config, &end);
    const xfer_memory_t memory = {.space = XFER_DRAM,
                                  .addr = (uint64_t)(uintptr_t)end.memory,
                                  .bytes = end.bytes,
                                  .fd = end.fd};
    status = xfer_register(end.agent, &memory, &diag, &end.region);
    if (status < 0) {
        print_message("memory is refused: %s\n", diag.text);
        unmap_memory(&end);
        xfer_agent_destroy(end.agent);
        assert_status(status, WEFT_ERR_UNSUPPORTED);
        return status;
    }
    if (config->vram_bytes > 0 && open_vram(config, &end) < 0) {
        fabric_end_close(&end);
        return WEFT_ERR_UNSUPPORTED;
    }
    *end_out = end;
    return WEFT_OK;
}

void fabric_end_open(const fabric_config_t *config, const char *name, fabric_end_t *end_out)
{
    assert_status(fabric_end_try_open(config, name, end_out), WEFT_OK);
}

void fabric_end_close(fabric_end_t *end)
{
    xfer_agent_destroy(end->agent);
    close_vram(end);
    unmap_memory(end);
}

uint64_t fabric_addr(const fabric_end_t *end, uint64_t offset)
{
    return (uint64_t)(uintptr_t)end->memory + offset;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

/* Memory repeats after a prime number of bytes, so no two blocks of a usual size are alike. */
#define PERIOD ((size_t)65521)

static uint8_t pattern[2 * PERIOD];
static pthread_once_t pattern_once = PTHREAD_ONCE_INIT;

static void make_pattern(void)
{
    for (size_t i = 0; i < sizeof(pattern); i++) {
        const uint64_t z = (i % PERIOD + 1) * UINT64_C(0xbf58476d1ce4e5b9);
        pattern[i] = (uint8_t)(z >> 56 ^ z >> 32);
    }
}

/* The bytes from offset on; PERIOD of them can be had at least. */
static const uint8_t *pattern_at(uint64_t seed, uint64_t offset)
{
    pthread_once(&pattern_once, make_pattern);
    return pattern + (offset + seed * 7919) % PERIOD;
}

static size_t part_of(uint64_t n)
{
    return n < PERIOD ? (size_t)n : PERIOD;
}

void fabric_fill(fabric_end_t *end, uint64_t seed)
{
    for (size_t done = 0; done < end->bytes; done += PERIOD) {
        memcpy(end->memory + done, pattern_at(seed, done), part_of(end->bytes - done));
    }
}

void fabric_vram_fill(fabric_end_t *end, uint64_t seed)
{
    for (size_t done = 0; done < end->vram.bytes; done += PERIOD) {
        end->gpu->ops->copy(end->queue, (char *)end->vram.addr + done, pattern_at(seed, done),
                            part_of(end->vram.bytes - done));
    }
    assert_status(end->gpu->ops->sync(end->queue), WEFT_OK);
}

bool fabric_vram_is_filled(fabric_end_t *end, uint64_t n, uint64_t seed, uint64_t offset,
                           uint64_t pattern_offset)
{
    uint8_t *bytes = test_malloc(n);
    end->gpu->ops->copy(end->queue, bytes, (char *)end->vram.addr + offset, n);
    assert_status(end->gpu->ops->sync(end->queue), WEFT_OK);
    const bool is_filled = fabric_is_filled(bytes, n, seed, pattern_offset);
    test_free(bytes);
    return is_filled;
}

bool fabric_is_filled(const uint8_t *bytes, uint64_t n, uint64_t seed, uint64_t offset)
{
    for (uint64_t done = 0; done < n; done += PERIOD) {
        const uint8_t *expected = pattern_at(seed, offset + done);
        const size_t part = part_of(n - done);
        if (memcmp(bytes + done, expected, part) != 0) {
            size_t i = 0;
            while (bytes[done + i] == expected[i]) {
                i++;
            }
            print_message("byte %llu differs\n", (unsigned long long)(offset + done + i));
            return false;
        }
    }
    return true;
}

/* ---- peers ----------------------------------------------------------------------------------- */

void fabric_export(fabric_end_t *end, weft_buffer_t *out)
{
    assert_status(xfer_export(end->agent, NULL, 0, true, out), WEFT_OK);
}

xfer_peer_t *fabric_import(fabric_end_t *who, const weft_buffer_t *blob)
{
    weft_diag_t diag = {0};
    xfer_peer_t *peer = NULL;
    weft_status_t status = xfer_import(who->agent, blob->data, blob->length, &diag, &peer);
    if (status < 0) {
        fail_msg("import: %s", diag.text);
    }
    return peer;
}

xfer_peer_t *fabric_introduce(fabric_end_t *who, fabric_end_t *to)
{
    weft_buffer_t blob = {0};
    fabric_export(to, &blob);
    xfer_peer_t *peer = fabric_import(who, &blob);
    weft_buffer_free(&blob);
    return peer;
}

/* ---- requests -------------------------------------------------------------------------------- */

xfer_list_t *fabric_list(fabric_end_t *end, xfer_peer_t *peer, const xfer_run_t *runs, size_t n)
{
    weft_diag_t diag = {0};
    xfer_list_t *list = NULL;
    weft_status_t status = xfer_list_create(end->agent, peer, XFER_DRAM, runs, n, &diag, &list);
    if (status < 0) {
        fail_msg("list: %s", diag.text);
    }
    return list;
}

xfer_request_t *fabric_request(fabric_end_t *end, const xfer_request_config_t *config)
{
    weft_diag_t diag = {0};
    xfer_request_t *request = NULL;
    weft_status_t status = xfer_request_create(end->agent, config, &diag, &request);
    if (status < 0) {
        fail_msg("request: %s: %s", weft_status_name(status), diag.text);
    }
    return request;
}

xfer_request_t *fabric_copy(fabric_end_t *end, xfer_peer_t *peer, xfer_direction_t direction,
                            uint64_t local, uint64_t peer_addr, uint64_t n)
{
    const xfer_run_t here = {.addr = fabric_addr(end, local), .bytes = n, .count = 1};
    const xfer_run_t there = {.addr = peer_addr, .bytes = n, .count = 1};
    xfer_list_t *local_list = fabric_list(end, NULL, &here, 1);
    xfer_list_t *peer_list = fabric_list(end, peer, &there, 1);
    const xfer_request_config_t config = {
        .direction = direction, .local = local_list, .peer = peer_list};
    xfer_request_t *request = fabric_request(end, &config);
    xfer_list_destroy(local_list);
    xfer_list_destroy(peer_list);
    return request;
}

/* ---- waiting --------------------------------------------------------------------------------- */

void fabric_check_deadline(uint64_t start_ns, const char *what)
{
    if (weft_clock_ns() - start_ns > FABRIC_DEADLINE_S * WEFT_NS_PER_SECOND) {
        fail_msg("%s took longer than %d s", what, FABRIC_DEADLINE_S);
    }
}

void fabric_progress(fabric_end_t *const *ends, size_t n)
{
    bool has_moved = false;
    for (size_t i = 0; i < n; i++) {
        if (ends[i] != NULL && !ends[i]->has_thread) {
            has_moved |= xfer_progress(ends[i]->agent, 0);
        }
    }
    if (!has_moved) {
        usleep(20); /* polls beside whoever has the work */
    }
}

weft_status_t fabric_wait(xfer_request_t *request, fabric_end_t *const *ends, size_t n)
{
    const uint64_t start = weft_clock_ns();
    weft_status_t status;
    while ((status = xfer_poll(request)) == WEFT_PENDING) {
        fabric_progress(ends, n);
        fabric_check_deadline(start, "a request");
    }
    return status;
}

weft_status_t fabric_run(xfer_request_t *request, fabric_end_t *const *ends, size_t n)
{
    assert_status(xfer_post(request), WEFT_OK);
    return fabric_wait(request, ends, n);
}

xfer_notification_t *fabric_wait_notification(fabric_end_t *end, fabric_end_t *const *ends,
                                              size_t n)
{
    const uint64_t start = weft_clock_ns();
    xfer_notification_t *notification;
    while ((notification = xfer_next_notification(end->agent)) == NULL) {
        fabric_progress(ends, n);
        fabric_check_deadline(start, "a notification");
    }
    return notification;
}
