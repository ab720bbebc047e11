/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"

#define BUFFER_BYTES ((size_t)256 << 10)
/* Tidied when it has grown to so many times what it was after the last time, and by this much. */
#define GROWTH       3
#define GROWTH_BYTES ((uint64_t)256 << 10)

static const char file_name[] = "journal";
static const char new_name[] = "journal.new";

/* Of a slot, in place of a generation. */
#define HOLDS_NOTHING UINT64_C(0)
#define BEING_WRITTEN UINT64_MAX

struct kv_journal {
    int dir_fd;
    int fd;
    int error; /* the first errno; nothing is written after it */
    kv_disk_identity_t identity;
    uint32_t n_slots;
    uint64_t *slots; /* [n_slots] generation, or one of the two above */
    uint64_t next_generation;
    uint64_t cleared_below;
    uint64_t end; /* of what is in the file */
    uint64_t tidy_at;
    size_t buffer_bytes; /* of each; at least two records */
    uint8_t *pending;    /* [pending_bytes] goes to end */
    size_t pending_bytes;
    uint8_t *reading;
};

/* ---- reading -------------------------------------------------------------------------------- */

/* Returns false to stop. bytes: of the record, whose encoded form is at data. */
typedef bool (*record_fn)(kv_journal_t *journal, void *user, const kv_disk_record_t *record,
                          const uint8_t *data, size_t bytes);

/* How many bytes of buffer [size] are from file offset on; fewer at its end; -1: errno. */
static ssize_t read_at(int fd, uint8_t *buffer, size_t size, uint64_t offset)
{
    size_t done = 0;
    while (done < size) {
        const ssize_t n = pread(fd, buffer + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -1;
        }
        if (n == 0) {
            break;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

/*
 * Calls fn with each record of the file from the header on. *end_out: where the last whole one ends. False: the
 * file could not be read (errno).
 */
static bool walk(kv_journal_t *journal, int fd, record_fn fn, void *user, uint64_t *end_out)
{
    uint64_t offset = KV_DISK_JOURNAL_HEADER_BYTES;
    const size_t size = journal->buffer_bytes;
    for (;;) {
        const ssize_t have = read_at(fd, journal->reading, size, offset);
        size_t used = 0;
        weft_status_t status = WEFT_PENDING;
        while (have > 0) {
            kv_disk_record_t record;
            size_t bytes = 0;
            status = kv_disk_record_decode(journal->reading + used, (size_t)have - used,
                                           journal->identity.block_tokens, &record, &bytes);
            if (status != WEFT_OK) {
                break;
            }
            if (!fn(journal, user, &record, journal->reading + used, bytes)) {
                return false;
            }
            used += bytes;
        }
        offset += used;
        *end_out = offset;
        /* A full buffer that ends within a record holds at least one before it. */
        if (have < 0 || status < 0 || (size_t)have < size) {
            return have >= 0;
        }
    }
}

/* ---- writing -------------------------------------------------------------------------------- */

static void fail(kv_journal_t *journal)
{
    if (journal->error == 0) {
        journal->error = errno == 0 ? EIO : errno;
    }
}

static void spill(kv_journal_t *journal)
{
    size_t done = 0;
    while (done < journal->pending_bytes && journal->error == 0) {
        const ssize_t n = pwrite(journal->fd, journal->pending + done,
                                 journal->pending_bytes - done, (off_t)(journal->end + done));
        if (n < 0 && errno != EINTR) {
            fail(journal);
        } else if (n > 0) {
            done += (size_t)n;
        }
    }
    journal->end += done;
    journal->pending_bytes = 0;
}

/* Where the next record's bytes go; there is room for any. */
static uint8_t *reserve(kv_journal_t *journal, size_t bytes)
{
    if (journal->buffer_bytes - journal->pending_bytes < bytes) {
        spill(journal);
    }
    return journal->pending + journal->pending_bytes;
}

static void append(kv_journal_t *journal, kv_disk_record_type_t type, uint32_t slot,
                   uint64_t generation, const kv_name_t *name)
{
    const uint32_t tokens = journal->identity.block_tokens;
    uint8_t *out = reserve(journal, kv_disk_record_bytes_max(tokens));
    journal->pending_bytes += kv_disk_record_encode(type, slot, generation, name, tokens, out);
}

/* ---- a new file with what is live ------------------------------------------------------------ */

static bool is_live(const kv_journal_t *journal, const kv_disk_record_t *record)
{
    return record->type == KV_DISK_STORED && record->slot < journal->n_slots &&
           record->generation != HOLDS_NOTHING &&
           journal->slots[record->slot] == record->generation;
}

static bool copy_if_live(kv_journal_t *journal, void *user, const kv_disk_record_t *record,
                         const uint8_t *data, size_t bytes)
{
    (void)user;
    if (is_live(journal, record)) {
        memcpy(reserve(journal, bytes), data, bytes);
        journal->pending_bytes += bytes;
    }
    return journal->error == 0;
}

/* Into the new file, which is journal's for now. old_fd: -1 when there is none. */
static void rewrite_from(kv_journal_t *journal, int old_fd)
{
    const kv_disk_journal_header_t header = {.identity = journal->identity,
                                             .next_generation = journal->next_generation};
    uint64_t old_end;
    kv_disk_journal_header_encode(&header, reserve(journal, KV_DISK_JOURNAL_HEADER_BYTES));
    journal->pending_bytes += KV_DISK_JOURNAL_HEADER_BYTES;
    if (old_fd >= 0 && !walk(journal, old_fd, copy_if_live, NULL, &old_end)) {
        fail(journal);
    }
    for (uint32_t slot = 0; slot < journal->n_slots; slot++) {
        if (journal->slots[slot] == BEING_WRITTEN) {
            append(journal, KV_DISK_BEGIN, slot, 0, NULL);
        }
    }
    spill(journal);
}

/* Nothing is pending. Leaves the old file in place, and the error in journal, when it fails. */
static void rewrite_file(kv_journal_t *journal)
{
    const int old_fd = journal->fd;
    const uint64_t old_end = journal->end;
    const int flags = O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW;
    const int new_fd = openat(journal->dir_fd, new_name, flags, 0600);
    if (new_fd < 0) {
        fail(journal);
        return;
    }
    journal->fd = new_fd;
    journal->end = 0;
    rewrite_from(journal, old_fd);
    /* Its bytes are on disk before its name is: a power cut leaves the old one or all of this. */
    if (journal->error == 0 &&
        (fdatasync(new_fd) != 0 ||
         renameat(journal->dir_fd, new_name, journal->dir_fd, file_name) != 0)) {
        fail(journal);
    }
    if (journal->error != 0) {
        unlinkat(journal->dir_fd, new_name, 0);
        close(new_fd);
        journal->fd = old_fd;
        journal->end = old_end;
        return;
    }
    (void)fsync(
        journal->dir_fd); /* else the old one is found again, whose slots fail their check */
    if (old_fd >= 0) {
        close(old_fd);
    }
    journal->tidy_at = GROWTH * journal->end + GROWTH_BYTES;
}

/* ---- open ----------------------------------------------------------------------------------- */

static bool replay_record(kv_journal_t *journal, void *user, const kv_disk_record_t *record,
                          const uint8_t *data, size_t bytes)
{
    (void)data;
    (void)bytes;
    kv_journal_found_t *found = user;
    if (record->type == KV_DISK_CLEARED) {
        journal->cleared_below = record->generation;
    } else if (record->slot >= journal->n_slots) {
        found->beyond += record->type == KV_DISK_STORED;
    } else if (record->type == KV_DISK_BEGIN) {
        journal->slots[record->slot] = BEING_WRITTEN;
    } else if (record->type == KV_DISK_REMOVED) {
        journal->slots[record->slot] = HOLDS_NOTHING;
    } else {
        journal->slots[record->slot] = record->generation;
    }
    if (record->generation < BEING_WRITTEN - 1 && record->generation >= journal->next_generation) {
        journal->next_generation = record->generation + 1;
    }
    return true;
}

/* What the records come to, once all are read. */
static void settle(kv_journal_t *journal, kv_journal_found_t *found)
{
    for (uint32_t slot = 0; slot < journal->n_slots; slot++) {
        uint64_t *generation = &journal->slots[slot];
        if (*generation == BEING_WRITTEN) {
            found->torn++;
            *generation = HOLDS_NOTHING;
        } else if (*generation < journal->cleared_below) {
            *generation = HOLDS_NOTHING;
        }
        found->live += *generation != HOLDS_NOTHING;
    }
    found->next_generation = journal->next_generation;
}

static weft_status_t refuse(weft_diag_t *diag, const char *path, const char *what)
{
    return weft_diag(diag, WEFT_ERR_EXISTS,
                     "%s: holds %s; name another folder (--kv-disk-path), or remove this one", path,
                     what);
}

static weft_status_t check_header(const kv_journal_t *journal, const char *path,
                                  const uint8_t *data, size_t size, weft_diag_t *diag,
                                  kv_disk_journal_header_t *header_out)
{
    uint32_t version = 0;
    const weft_status_t status = kv_disk_journal_header_decode(data, size, header_out, &version);
    if (status == WEFT_ERR_UNSUPPORTED) {
        return weft_diag(diag, WEFT_ERR_EXISTS,
                         "%s: holds blocks in format %u, this is format %u; name another folder "
                         "(--kv-disk-path), or remove this one",
                         path, version, KV_DISK_VERSION);
    }
    if (status < 0) {
        return refuse(diag, path, "a journal that is damaged from its start");
    }
    const kv_disk_identity_t *theirs = &header_out->identity;
    const kv_disk_identity_t *ours = &journal->identity;
    if (theirs->block_tokens != ours->block_tokens || theirs->block_bytes != ours->block_bytes ||
        memcmp(theirs->fingerprint, ours->fingerprint, sizeof(ours->fingerprint)) != 0) {
        return refuse(diag, path,
                      "blocks of another model, layout, hash algorithm, PYTHONHASHSEED or version");
    }
    return WEFT_OK;
}

static weft_status_t say(weft_diag_t *diag, const char *path, const char *what, int cause)
{
    const bool is_right = cause == EACCES || cause == EPERM || cause == EROFS;
    return weft_diag(diag, is_right ? WEFT_ERR_DENIED : WEFT_ERR_IO, "%s: %s: %s", path, what,
                     strerror(cause));
}

/* No journal: nothing is stored, whatever blocks.kv holds. */
static weft_status_t replay_file(kv_journal_t *journal, const char *path, weft_diag_t *diag,
                                 kv_journal_found_t *found)
{
    uint8_t data[KV_DISK_JOURNAL_HEADER_BYTES];
    kv_disk_journal_header_t header;
    struct stat info;
    journal->fd = openat(journal->dir_fd, file_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (journal->fd < 0) {
        return errno == ENOENT ? WEFT_OK : say(diag, path, "cannot open the journal", errno);
    }
    const ssize_t have = read_at(journal->fd, data, sizeof(data), 0);
    if (have < 0 || fstat(journal->fd, &info) != 0) {
        return say(diag, path, "cannot read the journal", errno);
    }
    const weft_status_t status = check_header(journal, path, data, (size_t)have, diag, &header);
    if (status < 0) {
        return status;
    }
    uint64_t end;
    journal->next_generation = header.next_generation;
    if (!walk(journal, journal->fd, replay_record, found, &end)) {
        return say(diag, path, "cannot read the journal", errno);
    }
    found->unread_bytes = (uint64_t)info.st_size > end ? (uint64_t)info.st_size - end : 0;
    return WEFT_OK;
}

static weft_status_t allocate(kv_journal_t *journal)
{
    const size_t two = 2 * kv_disk_record_bytes_max(journal->identity.block_tokens);
    journal->buffer_bytes = two > BUFFER_BYTES ? two : BUFFER_BYTES;
    journal->slots = weft_calloc(journal->n_slots, sizeof(*journal->slots), "kv_journal.slots");
    journal->pending = weft_alloc(journal->buffer_bytes, "kv_journal.pending");
    journal->reading = weft_alloc(journal->buffer_bytes, "kv_journal.reading");
    return journal->slots == NULL || journal->pending == NULL || journal->reading == NULL
               ? WEFT_ERR_NO_MEMORY
               : WEFT_OK;
}

weft_status_t kv_journal_open(const kv_journal_config_t *config, weft_diag_t *diag,
                              kv_journal_found_t *found_out, kv_journal_t **journal_out)
{
    kv_journal_found_t found = {0};
    kv_journal_t *journal = weft_zalloc(sizeof(*journal), "kv_journal.journal");
    if (journal == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    journal->dir_fd = config->dir_fd;
    journal->fd = -1;
    journal->identity = config->identity;
    journal->n_slots = config->n_slots;
    journal->next_generation = 1;
    weft_status_t status = allocate(journal);
    if (status == WEFT_OK) {
        status = replay_file(journal, config->path, diag, &found);
    }
    if (status == WEFT_OK) {
        settle(journal, &found);
        rewrite_file(journal);
        if (journal->error != 0) {
            status = say(diag, config->path, "cannot write the journal", journal->error);
        }
    }
    if (status < 0) {
        kv_journal_close(journal);
        return status;
    }
    *found_out = found;
    *journal_out = journal;
    return WEFT_OK;
}

void kv_journal_close(kv_journal_t *journal)
{
    if (journal == NULL) {
        return;
    }
    if (journal->fd >= 0) {
        spill(journal);
        close(journal->fd);
    }
    weft_free(journal->reading);
    weft_free(journal->pending);
    weft_free(journal->slots);
    weft_free(journal);
}

/* ---- use ------------------------------------------------------------------------------------ */

uint64_t kv_journal_generation(const kv_journal_t *journal, uint32_t slot)
{
    assert(slot < journal->n_slots);
    const uint64_t generation = journal->slots[slot];
    return generation == BEING_WRITTEN ? HOLDS_NOTHING : generation;
}

typedef struct visit {
    kv_journal_fn fn;
    void *user;
} visit_t;

static bool visit_record(kv_journal_t *journal, void *user, const kv_disk_record_t *record,
                         const uint8_t *data, size_t bytes)
{
    (void)data;
    (void)bytes;
    const visit_t *visit = user;
    if (is_live(journal, record)) {
        visit->fn(visit->user, record);
    }
    return true;
}

weft_status_t kv_journal_visit(kv_journal_t *journal, kv_journal_fn fn, void *user)
{
    visit_t visit = {.fn = fn, .user = user};
    uint64_t end;
    weft_status_t status = kv_journal_flush(journal);
    if (status == WEFT_OK && !walk(journal, journal->fd, visit_record, &visit, &end)) {
        fail(journal);
        status = WEFT_ERR_IO;
    }
    return status;
}

void kv_journal_begin(kv_journal_t *journal, uint32_t slot)
{
    journal->slots[slot] = BEING_WRITTEN;
    append(journal, KV_DISK_BEGIN, slot, 0, NULL);
}

void kv_journal_stored(kv_journal_t *journal, uint32_t slot, uint64_t generation,
                       const kv_name_t *name)
{
    if (generation < journal->cleared_below) {
        kv_journal_removed(journal, slot);
        return;
    }
    journal->slots[slot] = generation;
    if (generation >= journal->next_generation) {
        journal->next_generation = generation + 1;
    }
    append(journal, KV_DISK_STORED, slot, generation, name);
}

void kv_journal_removed(kv_journal_t *journal, uint32_t slot)
{
    journal->slots[slot] = HOLDS_NOTHING;
    append(journal, KV_DISK_REMOVED, slot, 0, NULL);
}

void kv_journal_clear(kv_journal_t *journal, uint64_t below_generation)
{
    journal->cleared_below = below_generation;
    if (below_generation > journal->next_generation) {
        journal->next_generation = below_generation;
    }
    for (uint32_t slot = 0; slot < journal->n_slots; slot++) {
        if (journal->slots[slot] < below_generation) {
            journal->slots[slot] = HOLDS_NOTHING;
        }
    }
    append(journal, KV_DISK_CLEARED, 0, below_generation, NULL);
}

weft_status_t kv_journal_flush(kv_journal_t *journal)
{
    spill(journal);
    return journal->error == 0 ? WEFT_OK : WEFT_ERR_IO;
}

weft_status_t kv_journal_tidy(kv_journal_t *journal)
{
    if (journal->end + journal->pending_bytes > journal->tidy_at) {
        spill(journal);
        if (journal->error == 0) {
            rewrite_file(journal);
        }
    }
    return journal->error == 0 ? WEFT_OK : WEFT_ERR_IO;
}

int kv_journal_errno(const kv_journal_t *journal)
{
    return journal->error;
}

uint64_t kv_journal_bytes(const kv_journal_t *journal)
{
    return journal->end + journal->pending_bytes;
}

size_t kv_journal_bytes_per_slot(uint32_t block_tokens)
{
    return (GROWTH + 1) * kv_disk_record_bytes_plain(block_tokens);
}
