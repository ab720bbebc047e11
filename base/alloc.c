/* SPDX-License-Identifier: Apache-2.0 */
#include "base/alloc.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/*
 * Every block carries a header just below the pointer handed out. Accounts are found by the name's
 * address first, so that the usual case compares no strings.
 */
#define MAX_ACCOUNTS 1024
#define MIN_ALIGN    16

typedef struct account {
    _Atomic(const char *) name; /* set once by account_of(), then read without the lock */
    atomic_size_t bytes;
    atomic_size_t count;
} account_t;

typedef struct header {
    size_t size;
    uint32_t account;
    uint32_t offset; /* from the start of the malloc block to the user's pointer */
} header_t;

static_assert(sizeof(header_t) == MIN_ALIGN, "the header keeps malloc's alignment");

static account_t accounts[MAX_ACCOUNTS]; /* the last one collects what does not fit */
static pthread_mutex_t accounts_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_size_t live_bytes;
static atomic_uint_fast64_t allocations;
static atomic_uint_fast64_t fail_at;

static uint32_t account_add(const char *name)
{
    uint32_t i = 0;
    pthread_mutex_lock(&accounts_lock);
    for (; i < MAX_ACCOUNTS - 1; i++) {
        const char *known = atomic_load_explicit(&accounts[i].name, memory_order_relaxed);
        if (known == NULL) {
            atomic_store_explicit(&accounts[i].name, name, memory_order_release);
            break;
        }
        if (known == name || strcmp(known, name) == 0) {
            break;
        }
    }
    pthread_mutex_unlock(&accounts_lock);
    return i;
}

static uint32_t account_of(const char *name)
{
    for (uint32_t i = 0; i < MAX_ACCOUNTS - 1; i++) {
        const char *known = atomic_load_explicit(&accounts[i].name, memory_order_acquire);
        if (known == name) {
            return i;
        }
        if (known == NULL) {
            break;
        }
    }
    return account_add(name);
}

static bool is_made_to_fail(void)
{
    const uint64_t n = atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed) + 1;
    return WEFT_UNLIKELY(n == atomic_load_explicit(&fail_at, memory_order_relaxed));
}

static void account_change(uint32_t account, size_t old_size, size_t new_size)
{
    atomic_fetch_add_explicit(&accounts[account].bytes, new_size - old_size, memory_order_relaxed);
    atomic_fetch_add_explicit(&live_bytes, new_size - old_size, memory_order_relaxed);
}

static void *finish(char *block, size_t offset, size_t size, const char *name)
{
    char *user = block + offset;
    header_t *header = (header_t *)(void *)(user - sizeof(header_t));
    header->size = size;
    header->account = account_of(name);
    header->offset = (uint32_t)offset;
    account_change(header->account, 0, size);
    atomic_fetch_add_explicit(&accounts[header->account].count, 1, memory_order_relaxed);
    return user;
}

static header_t *header_of(void *ptr)
{
    return (header_t *)(void *)((char *)ptr - sizeof(header_t));
}

void *weft_alloc(size_t size, const char *name)
{
    if (is_made_to_fail() || size > SIZE_MAX - sizeof(header_t)) {
        return NULL;
    }
    char *block = malloc(size + sizeof(header_t));
    return block == NULL ? NULL : finish(block, sizeof(header_t), size, name);
}

void *weft_zalloc(size_t size, const char *name)
{
    if (is_made_to_fail() || size > SIZE_MAX - sizeof(header_t)) {
        return NULL;
    }
    char *block = calloc(1, size + sizeof(header_t));
    return block == NULL ? NULL : finish(block, sizeof(header_t), size, name);
}

void *weft_calloc(size_t count, size_t size, const char *name)
{
    if (size != 0 && count > SIZE_MAX / size) {
        return NULL;
    }
    return weft_zalloc(count * size, name);
}

void *weft_alloc_aligned(size_t alignment, size_t size, const char *name)
{
    const size_t align = alignment < MIN_ALIGN ? MIN_ALIGN : alignment;
    if (is_made_to_fail() || align > UINT32_MAX || size > SIZE_MAX - 2 * align) {
        return NULL;
    }
    char *block = aligned_alloc(align, (size + 2 * align - 1) / align * align);
    return block == NULL ? NULL : finish(block, align, size, name);
}

void *weft_realloc(void *ptr, size_t size, const char *name)
{
    if (ptr == NULL) {
        return weft_alloc(size, name);
    }
    if (is_made_to_fail() || size > SIZE_MAX - sizeof(header_t)) {
        return NULL;
    }
    const header_t before = *header_of(ptr);
    char *block = realloc((char *)ptr - before.offset, size + sizeof(header_t));
    if (block == NULL) {
        return NULL;
    }
    account_change(before.account, before.size, size);
    ((header_t *)(void *)block)->size = size;
    return block + sizeof(header_t);
}

char *weft_strdup(const char *text, const char *name)
{
    return weft_strndup(text, strlen(text), name);
}

char *weft_strndup(const char *text, size_t length, const char *name)
{
    char *copy = weft_alloc(length + 1, name);
    if (copy != NULL) {
        memcpy(copy, text, length);
        copy[length] = '\0';
    }
    return copy;
}

void weft_free(void *ptr)
{
    if (ptr == NULL) {
        return;
    }
    const header_t *header = header_of(ptr);
    account_change(header->account, header->size, 0);
    atomic_fetch_sub_explicit(&accounts[header->account].count, 1, memory_order_relaxed);
    free((char *)ptr - header->offset);
}

uint64_t weft_alloc_fail_nth(uint64_t n)
{
    const uint64_t since = atomic_exchange(&allocations, 0);
    atomic_store(&fail_at, n);
    return since;
}

size_t weft_alloc_live_bytes(void)
{
    return atomic_load_explicit(&live_bytes, memory_order_relaxed);
}

static int larger_account_first(const void *a, const void *b)
{
    const size_t x = atomic_load(&(*(account_t *const *)a)->bytes);
    const size_t y = atomic_load(&(*(account_t *const *)b)->bytes);
    return x < y ? 1 : x > y ? -1 : 0;
}

void weft_alloc_report(FILE *file)
{
    account_t *order[MAX_ACCOUNTS];
    size_t n = 0;
    for (size_t i = 0; i < MAX_ACCOUNTS; i++) {
        if (atomic_load(&accounts[i].count) > 0) {
            order[n++] = &accounts[i];
        }
    }
    qsort(order, n, sizeof(order[0]), larger_account_first);
    for (size_t i = 0; i < n; i++) {
        const char *name = atomic_load(&order[i]->name);
        fprintf(file, "%12zu bytes %8zu blocks  %s\n", atomic_load(&order[i]->bytes),
                atomic_load(&order[i]->count), name == NULL ? "(other)" : name);
    }
}
