/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/disk_rig.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/random.h"

static const uint8_t fingerprint[32] = "rig";

kv_hash_t disk_rig_hash(uint32_t block)
{
    test_random_t random = {block};
    kv_hash_t hash;
    for (int i = 0; i < 4; i++) {
        const uint64_t word = test_random_u64(&random);
        memcpy(hash.bytes + 8 * i, &word, sizeof(word));
    }
    memcpy(hash.bytes, &block, sizeof(block)); /* and back, for the events */
    return hash;
}

static uint32_t block_of(const kv_hash_t *hash)
{
    uint32_t block;
    memcpy(&block, hash->bytes, sizeof(block));
    assert_true(block < RIG_NAMES);
    const kv_hash_t expected = disk_rig_hash(block);
    assert_memory_equal(hash, &expected, sizeof(expected));
    return block;
}

void disk_rig_content(uint32_t block, uint8_t out[RIG_BLOCK_BYTES])
{
    test_random_t random = {UINT64_C(1) << 32 | block};
    for (size_t at = 0; at + 8 <= RIG_BLOCK_BYTES; at += 8) {
        const uint64_t word = test_random_u64(&random);
        memcpy(out + at, &word, sizeof(word));
    }
}

static bool is_first(uint32_t block)
{
    return block % RIG_CHAIN == 0;
}

static const char *salt_of(uint32_t block)
{
    return block % 3 == 0 ? "tenant" : NULL;
}

static const char *lora_of(uint32_t block)
{
    return block % 5 == 0 ? "adapter" : NULL;
}

static void assert_text(const char *text, const char *expected)
{
    assert_true((text == NULL) == (expected == NULL));
    if (expected != NULL) {
        assert_string_equal(text, expected);
    }
}

static void on_stored(void *user, const kv_name_t *name)
{
    disk_rig_t *rig = user;
    const uint32_t block = block_of(&name->hash);
    assert_false(rig->is_there[block]);
    assert_int_equal(name->is_first, is_first(block));
    if (!is_first(block)) {
        assert_int_equal(block_of(&name->parent), block - 1);
    }
    for (uint32_t i = 0; i < RIG_TOKENS; i++) {
        assert_int_equal(name->tokens[i], block * RIG_TOKENS + i);
    }
    assert_text(kv_extra_salt(name->extra), salt_of(block));
    assert_text(kv_extra_lora_name(name->extra), lora_of(block));
    assert_text(kv_extra_lora_path(name->extra), lora_of(block));
    if (block + 1 < RIG_NAMES && !is_first(block + 1) && rig->is_there[block + 1]) {
        rig->is_orphan_told = true;
    }
    rig->is_there[block] = true;
    rig->n_stored++;
}

static void on_removed(void *user, const kv_hash_t *hash)
{
    disk_rig_t *rig = user;
    const uint32_t block = block_of(hash);
    assert_true(rig->is_there[block]);
    rig->is_there[block] = false;
    rig->n_removed++;
}

static void wake(void *user)
{
    tally_add(&((disk_rig_t *)user)->woken);
}

void disk_rig_init(disk_rig_t *rig, uint32_t n_slots)
{
    *rig = (disk_rig_t){.path = "/tmp/weft-kv-disk-XXXXXX", .woken = TALLY_INIT};
    assert_int_equal(kv_disk_slot_bytes(RIG_BLOCK_BYTES), RIG_SLOT_BYTES);
    assert_non_null(mkdtemp(rig->path));
    rig->memory = malloc(RIG_BLOCK_BYTES);
    assert_non_null(rig->memory);
    rig->config = (kv_tier_config_t){
        .block_tokens = RIG_TOKENS,
        .block_bytes = RIG_BLOCK_BYTES,
        .budget_bytes = n_slots * (RIG_SLOT_BYTES + kv_journal_bytes_per_slot(RIG_TOKENS)),
        .path = rig->path,
        .fingerprint = fingerprint,
        .on_stored = on_stored,
        .on_removed = on_removed,
        .user = rig,
        .wake = wake,
        .wake_user = rig,
    };
    assert_status(weft_device_open("cpu", 0, NULL, &rig->config.device), WEFT_OK);
}

static void remove_file(const disk_rig_t *rig, const char *name)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", rig->path, name);
    unlink(path);
}

void disk_rig_fini(disk_rig_t *rig)
{
    disk_rig_close(rig);
    weft_device_close(rig->config.device);
    remove_file(rig, "blocks.kv");
    remove_file(rig, "journal");
    assert_int_equal(rmdir(rig->path), 0); /* and nothing else was left there */
    free(rig->memory);
}

weft_status_t disk_rig_open(disk_rig_t *rig, const kv_io_ops_t *io)
{
    memset(rig->is_there, 0, sizeof(rig->is_there));
    rig->is_orphan_told = false;
    rig->n_stored = 0;
    rig->n_removed = 0;
    rig->config.io = io;
    return kv_tier_disk.open(&rig->config, &rig->diag, &rig->tier);
}

void disk_rig_close(disk_rig_t *rig)
{
    kv_tier_disk.close(rig->tier);
    rig->tier = NULL;
}

bool disk_rig_has(const disk_rig_t *rig, uint32_t block)
{
    const kv_hash_t hash = disk_rig_hash(block);
    return kv_tier_disk.has(rig->tier, &hash);
}

weft_status_t disk_rig_put(disk_rig_t *rig, uint32_t block)
{
    uint8_t content[RIG_BLOCK_BYTES] = {0};
    int32_t tokens[RIG_TOKENS];
    kv_extra_t *extra = NULL;
    for (uint32_t i = 0; i < RIG_TOKENS; i++) {
        tokens[i] = (int32_t)(block * RIG_TOKENS + i);
    }
    disk_rig_content(block, content);
    assert_status(kv_extra_create(salt_of(block), lora_of(block), lora_of(block), &extra), WEFT_OK);
    kv_name_t name = {.hash = disk_rig_hash(block),
                      .is_first = is_first(block),
                      .tokens = tokens,
                      .extra = extra};
    if (!is_first(block)) {
        name.parent = disk_rig_hash(block - 1);
    }
    const weft_status_t status = kv_tier_disk.put(rig->tier, &name, content);
    kv_extra_release(extra);
    memset(tokens, 0xff, sizeof(tokens)); /* borrowed for the call only */
    return status;
}

void disk_rig_settle(disk_rig_t *rig)
{
    kv_tier_done_t done[4];
    assert_int_equal(kv_tier_disk.poll(rig->tier, done, 4), 0);
    while (kv_tier_disk.stats(rig->tier).in_flight > 0) {
        tally_take(&rig->woken);
        assert_int_equal(kv_tier_disk.poll(rig->tier, done, 4), 0);
    }
}

void disk_rig_store(disk_rig_t *rig, uint32_t block)
{
    weft_status_t status;
    while ((status = disk_rig_put(rig, block)) == WEFT_ERR_QUEUE_FULL) {
        disk_rig_settle(rig);
    }
    assert_status(status, WEFT_OK);
    disk_rig_settle(rig);
    assert_true(disk_rig_has(rig, block));
}

weft_status_t disk_rig_get(disk_rig_t *rig, uint32_t block)
{
    const kv_hash_t hash = disk_rig_hash(block);
    kv_tier_done_t done;
    const weft_status_t status = kv_tier_disk.get(rig->tier, &hash, rig->memory, rig);
    if (status != WEFT_PENDING) {
        return status;
    }
    while (kv_tier_disk.poll(rig->tier, &done, 1) == 0) {
        tally_take(&rig->woken);
    }
    assert_ptr_equal(done.tag, rig);
    if (done.status == WEFT_OK) {
        uint8_t expected[RIG_BLOCK_BYTES] = {0};
        disk_rig_content(block, expected);
        assert_memory_equal(rig->memory, expected, RIG_BLOCK_BYTES);
    }
    return done.status;
}

uint32_t disk_rig_blocks(const disk_rig_t *rig)
{
    return (uint32_t)kv_tier_disk.stats(rig->tier).blocks;
}

int disk_rig_file(const disk_rig_t *rig, const char *name)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", rig->path, name);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}
