/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_disk_format: what lies in a disk tier's files, byte for byte.
 *
 * blocks.kv  slots of one size: a page with the slot's header, then the content, padded with zeros to
 *            whole pages. Two XXH3-64 cover every byte of it.
 * journal    a header, then records: which slot holds what. Each carries its length and an XXH3-64.
 *
 * Numbers are little-endian. Content is as the machine had it in memory; a fingerprint that says what
 * it is keeps others from reading it. Whatever is decoded may be anything: torn, flipped, hostile.
 *
 * Threads  any
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kvstore/hash/kv_hash.h"
#include "kvstore/tiers/kv_tier.h"

#define KV_DISK_VERSION           1
#define KV_DISK_PAGE_BYTES        4096
#define KV_DISK_FINGERPRINT_BYTES 32
#define KV_DISK_TOKENS_MAX        65536 /* of a block */

/* Whose blocks these are; equal in both files and in who opens them. */
typedef struct kv_disk_identity {
    uint8_t fingerprint[KV_DISK_FINGERPRINT_BYTES];
    uint32_t block_tokens;
    uint64_t block_bytes;
} kv_disk_identity_t;

/* ---- a slot ---- */

typedef struct kv_disk_slot_name {
    uint32_t slot;
    uint64_t generation; /* of this write: the journal's and the slot's agree, or one is stale */
    kv_hash_t hash;
} kv_disk_slot_name_t;

size_t kv_disk_slot_bytes(uint64_t block_bytes); /* whole pages */

/* data [slot_bytes], content in place behind the first page: writes header and padding. */
void kv_disk_slot_seal(const kv_disk_identity_t *identity, const kv_disk_slot_name_t *name,
                       uint8_t *data);
/* Whether data [slot_bytes] is what seal made for this name, to the last bit. */
bool kv_disk_slot_is_whole(const kv_disk_identity_t *identity, const kv_disk_slot_name_t *name,
                           const uint8_t *data);

/* ---- the journal ---- */

#define KV_DISK_JOURNAL_HEADER_BYTES 72

typedef struct kv_disk_journal_header {
    kv_disk_identity_t identity;
    uint64_t next_generation; /* above every one that was given out when this journal began */
} kv_disk_journal_header_t;

void kv_disk_journal_header_encode(const kv_disk_journal_header_t *header,
                                   uint8_t out[KV_DISK_JOURNAL_HEADER_BYTES]);
/* WEFT_ERR_MALFORMED: not a journal, or damaged. WEFT_ERR_UNSUPPORTED: of another version, which is
 * in *version_out. */
weft_status_t kv_disk_journal_header_decode(const uint8_t *data, size_t size,
                                            kv_disk_journal_header_t *header_out,
                                            uint32_t *version_out);

typedef enum kv_disk_record_type {
    KV_DISK_BEGIN = 1, /* slot is about to be overwritten: holds nothing */
    KV_DISK_STORED,    /* slot holds the named block */
    KV_DISK_REMOVED,   /* slot holds nothing */
    KV_DISK_CLEARED,   /* nothing below generation is there, whenever it is said to be stored */
} kv_disk_record_type_t;

/* Pointers are into what was decoded. */
typedef struct kv_disk_record {
    kv_disk_record_type_t type;
    uint32_t slot;
    uint64_t generation;
    /* STORED only: */
    bool is_first;
    kv_hash_t hash;
    kv_hash_t parent;
    const uint8_t *tokens; /* [block_tokens] little-endian; see kv_disk_tokens_decode */
    const char *salt;      /* NULL: none; so for each */
    const char *lora_name;
    const char *lora_path;
} kv_disk_record_t;

size_t kv_disk_record_bytes_max(uint32_t block_tokens);
size_t kv_disk_record_bytes_plain(uint32_t block_tokens); /* STORED without salt and adapter */

/* name: of STORED; else NULL. out [record_bytes_max]. Returns how many bytes it took. */
size_t kv_disk_record_encode(kv_disk_record_type_t type, uint32_t slot, uint64_t generation,
                             const kv_name_t *name, uint32_t block_tokens, uint8_t *out);
/*
 * The record at data's beginning and its length. WEFT_PENDING: data ends before it does.
 * WEFT_ERR_MALFORMED: no record. What is accepted is what encode would write for it.
 */
weft_status_t kv_disk_record_decode(const uint8_t *data, size_t size, uint32_t block_tokens,
                                    kv_disk_record_t *record_out, size_t *bytes_out);
/* Puts the right checksum into the record at data's beginning, whatever else it says. False: data
 * [size] holds none. For tests, which look behind the checksum. */
bool kv_disk_record_reseal(uint8_t *data, size_t size);
void kv_disk_tokens_decode(const uint8_t *tokens, uint32_t n, int32_t *tokens_out);
