/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_kv_journal: a journal's bytes; what is accepted is what would be written for it again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kvstore/disk/kv_disk_format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

static void check_record(const kv_disk_record_t *record, const uint8_t *data, size_t bytes,
                         uint32_t block_tokens)
{
    int32_t *tokens = malloc(sizeof(*tokens) * (block_tokens + 1));
    uint8_t *again = malloc(kv_disk_record_bytes_max(block_tokens));
    kv_name_t name = {.is_first = record->is_first, .tokens = tokens};
    require(tokens != NULL && again != NULL);
    if (record->type == KV_DISK_STORED) {
        name.hash = record->hash;
        name.parent = record->parent;
        kv_disk_tokens_decode(record->tokens, block_tokens, tokens);
        require(kv_extra_create(record->salt, record->lora_name, record->lora_path, &name.extra) ==
                WEFT_OK);
    }
    require(kv_disk_record_encode(record->type, record->slot, record->generation,
                                  record->type == KV_DISK_STORED ? &name : NULL, block_tokens,
                                  again) == bytes);
    require(memcmp(again, data, bytes) == 0);
    kv_extra_release(name.extra);
    free(again);
    free(tokens);
}

/* A mutated record has a wrong checksum; with the right one the fields behind it are seen as well. */
static void check_resealed(const uint8_t *data, size_t size, uint32_t block_tokens)
{
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    kv_disk_record_t record;
    size_t bytes = 0;
    require(copy != NULL);
    memcpy(copy, data, size);
    if (kv_disk_record_reseal(copy, size) &&
        kv_disk_record_decode(copy, size, block_tokens, &record, &bytes) == WEFT_OK) {
        check_record(&record, copy, bytes, block_tokens);
    }
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kv_disk_journal_header_t header;
    uint32_t version = 0;
    uint32_t block_tokens = 4;
    size_t at = 0;
    if (kv_disk_journal_header_decode(data, size, &header, &version) == WEFT_OK) {
        uint8_t again[KV_DISK_JOURNAL_HEADER_BYTES];
        kv_disk_journal_header_encode(&header, again);
        require(memcmp(again, data, sizeof(again)) == 0);
        block_tokens = header.identity.block_tokens % 64;
        at = sizeof(again);
    }
    check_resealed(data + at, size - at, block_tokens);
    for (;;) {
        kv_disk_record_t record;
        size_t bytes = 0;
        if (kv_disk_record_decode(data + at, size - at, block_tokens, &record, &bytes) != WEFT_OK) {
            break;
        }
        require(bytes > 0 && bytes <= size - at);
        check_record(&record, data + at, bytes, block_tokens);
        at += bytes;
    }
    return 0;
}
