/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda_loader.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/alloc.h"
#include "base/device_cuda.h"
#include "kernels/cuda/cuda_recode.h"
#include "kernels/dtypes.h"
#include "kernels/k_cores.h"

#define WEFT_LOG_MODULE "kernels"
#include "base/log.h"

#define MAX_JOBS     64
#define ROWS_AT_ONCE 128 /* runs of rows are whole tiles of packed weights, but for the last */
#define PAGE_BYTES   ((uintptr_t)4096)

/* A run of rows of one part. */
typedef struct job {
    k_cuda_weight_t weight;
    k_dtype_t dtype;  /* of the source */
    const char *rows; /* in the mapped file */
    uint32_t first;   /* row of the weight */
    uint32_t n;
    size_t row_bytes;
    size_t stride;     /* from one row to the next */
    size_t sent_bytes; /* of a row as it is packed: more than row_bytes where it is recoded */
} job_t;

typedef struct buffer {
    weft_mem_t host;
    weft_mem_t device;
    size_t bytes;         /* of each */
    weft_event_t *packed; /* NULL: not used yet */
} buffer_t;

typedef struct reader {
    cuda_loader_t *loader;
    weft_queue_t *queue;
    buffer_t buffers[CUDA_LOADER_BUFFERS];
    uint32_t next;
    pthread_t thread;
    bool is_started;
} reader_t;

struct cuda_loader {
    weft_device_t *device;
    reader_t readers[CUDA_LOADER_READERS];
    uint32_t n_readers;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* any of: */
    job_t jobs[MAX_JOBS];   /* guarded by lock, so for the next */
    uint64_t posted;        /* changed by the caller alone */
    uint64_t taken;
    uint64_t done;
    uint64_t finished;           /* the caller's: posted, when it last called finish */
    bool is_told[K_DTYPE_COUNT]; /* the caller's: that weights of the type are recoded */
    bool is_stopping;
    weft_status_t status; /* the first failure */
};

/* ---- readers ------------------------------------------------------------------------------- */

static weft_status_t grow(reader_t *reader, buffer_t *buffer, size_t bytes)
{
    weft_device_t *device = reader->loader->device;
    if (bytes <= buffer->bytes) {
        return WEFT_OK;
    }
    device->ops->free(device, &buffer->host);
    device->ops->free(device, &buffer->device);
    buffer->bytes = 0;
    weft_status_t status = device->ops->alloc(device, bytes, WEFT_MEM_HOST, &buffer->host);
    if (status >= 0) {
        status = device->ops->alloc(device, bytes, 0, &buffer->device);
    }
    buffer->bytes = status >= 0 ? bytes : 0;
    return status;
}

/* Faults a run of the mapping in with one call rather than page by page; advice. */
static void populate(const char *data, size_t bytes)
{
#ifdef MADV_POPULATE_READ
    const uintptr_t begin = (uintptr_t)data & ~(PAGE_BYTES - 1);
    (void)madvise((void *)begin, (uintptr_t)data + bytes - begin, MADV_POPULATE_READ);
#else
    (void)data;
    (void)bytes;
#endif
}

static void read_rows(const job_t *job, char *to)
{
    const bool is_recoded = job->dtype != job->weight.dtype;
    populate(job->rows, (job->n - 1) * job->stride + job->row_bytes);
    if (!is_recoded && job->stride == job->row_bytes) {
        memcpy(to, job->rows, job->n * job->row_bytes);
        return;
    }
    for (uint32_t i = 0; i < job->n; i++) {
        const char *row = job->rows + i * job->stride;
        if (is_recoded) {
            cuda_recode(job->dtype, row, to + i * job->sent_bytes, job->weight.columns);
        } else {
            memcpy(to + i * job->row_bytes, row, job->row_bytes);
        }
    }
}

static weft_status_t load(reader_t *reader, const job_t *job)
{
    weft_device_t *device = reader->loader->device;
    buffer_t *buffer = &reader->buffers[reader->next++ % CUDA_LOADER_BUFFERS];
    const size_t bytes = job->n * job->sent_bytes;
    weft_status_t status = buffer->packed == NULL ? WEFT_OK : device->ops->wait(buffer->packed);
    if (status >= 0) {
        status = grow(reader, buffer, bytes > CUDA_LOADER_BUFFER ? bytes : CUDA_LOADER_BUFFER);
    }
    if (status < 0) {
        return status;
    }
    read_rows(job, buffer->host.addr);
    device->ops->copy(reader->queue, buffer->device.addr, buffer->host.addr, bytes);
    const int error = k_cuda_weight_pack_rows(&job->weight, buffer->device.addr, job->first, job->n,
                                              weft_device_cuda_stream(reader->queue));
    buffer->packed = device->ops->record(reader->queue);
    return weft_device_cuda_note(device, error, "kernel weight_pack") ? WEFT_OK : WEFT_ERR_DEVICE;
}

/* False: there will be no more. */
static bool take(cuda_loader_t *loader, job_t *job_out)
{
    pthread_mutex_lock(&loader->lock);
    while (loader->taken == loader->posted && !loader->is_stopping) {
        pthread_cond_wait(&loader->changed, &loader->lock);
    }
    const bool has_job = loader->taken < loader->posted;
    if (has_job) {
        *job_out = loader->jobs[loader->taken++ % MAX_JOBS];
    }
    pthread_mutex_unlock(&loader->lock);
    return has_job;
}

static void report(cuda_loader_t *loader, weft_status_t status)
{
    pthread_mutex_lock(&loader->lock);
    loader->done++;
    if (status < 0 && loader->status >= 0) {
        loader->status = status;
    }
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->lock);
}

static void *read_all(void *arg)
{
    reader_t *reader = arg;
    job_t job;
    while (take(reader->loader, &job)) {
        report(reader->loader, load(reader, &job));
    }
    return NULL;
}

/* ---- life ---------------------------------------------------------------------------------- */

static weft_status_t start_reader(cuda_loader_t *loader, reader_t *reader)
{
    reader->loader = loader;
    const weft_status_t status = loader->device->ops->open_queue(loader->device, &reader->queue);
    if (status < 0) {
        return status;
    }
    reader->is_started = pthread_create(&reader->thread, NULL, read_all, reader) == 0;
    return reader->is_started ? WEFT_OK : WEFT_ERR_NO_MEMORY;
}

weft_status_t cuda_loader_create(weft_device_t *device, cuda_loader_t **loader_out)
{
    cuda_loader_t *loader = weft_zalloc(sizeof(*loader), "kernels.loader");
    if (loader == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    loader->device = device;
    (void)pthread_mutex_init(&loader->lock, NULL); /* these two cannot fail without attributes */
    (void)pthread_cond_init(&loader->changed, NULL);
    const uint32_t cores = k_cores_usable();
    const uint32_t wanted = cores < CUDA_LOADER_READERS ? cores : CUDA_LOADER_READERS;
    weft_status_t status = WEFT_OK;
    while (status >= 0 && loader->n_readers < wanted) {
        status = start_reader(loader, &loader->readers[loader->n_readers++]);
    }
    if (status < 0) {
        cuda_loader_destroy(loader);
        return status;
    }
    *loader_out = loader;
    return WEFT_OK;
}

static void stop_reader(weft_device_t *device, reader_t *reader)
{
    if (reader->is_started) {
        pthread_join(reader->thread, NULL);
    }
    if (reader->queue != NULL) {
        device->ops->close_queue(reader->queue);
    }
    for (uint32_t i = 0; i < CUDA_LOADER_BUFFERS; i++) {
        device->ops->free(device, &reader->buffers[i].host);
        device->ops->free(device, &reader->buffers[i].device);
    }
}

void cuda_loader_destroy(cuda_loader_t *loader)
{
    if (loader == NULL) {
        return;
    }
    pthread_mutex_lock(&loader->lock);
    loader->is_stopping = true;
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->lock);
    for (uint32_t i = 0; i < loader->n_readers; i++) {
        stop_reader(loader->device, &loader->readers[i]);
    }
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->lock);
    weft_free(loader);
}

/* ---- posting ------------------------------------------------------------------------------- */

static void post(cuda_loader_t *loader, const job_t *job)
{
    pthread_mutex_lock(&loader->lock);
    while (loader->posted - loader->done == MAX_JOBS) {
        pthread_cond_wait(&loader->changed, &loader->lock);
    }
    loader->jobs[loader->posted++ % MAX_JOBS] = *job;
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->lock);
}

/* As many rows as a buffer holds, in whole tiles; one tile at least. */
static uint32_t rows_of_run(size_t row_bytes)
{
    const size_t rows = CUDA_LOADER_BUFFER / row_bytes / ROWS_AT_ONCE * ROWS_AT_ONCE;
    return rows == 0 ? ROWS_AT_ONCE : rows < UINT32_MAX ? (uint32_t)rows : UINT32_MAX;
}

static void tell_recoded(cuda_loader_t *loader, k_dtype_t dtype, k_dtype_t kept_as)
{
    if (dtype != kept_as && !loader->is_told[dtype]) {
        loader->is_told[dtype] = true;
        weft_log_info("no kernel multiplies weights of type %s: kept as %s",
                      k_dtype_info(dtype)->name, k_dtype_info(kept_as)->name);
    }
}

void cuda_loader_post(cuda_loader_t *loader, const k_cuda_weight_t *weight, k_dtype_t dtype,
                      const k_weight_part_t *parts, uint32_t n_parts)
{
    size_t row_bytes = 0;
    size_t sent_bytes = 0;
    uint32_t first = 0;
    if (k_dtype_row_bytes(dtype, weight->columns, &row_bytes) < 0 ||
        k_dtype_row_bytes(weight->dtype, weight->columns, &sent_bytes) < 0) {
        return; /* the source was checked: cannot be */
    }
    tell_recoded(loader, dtype, weight->dtype);
    const uint32_t most = rows_of_run(sent_bytes);
    for (uint32_t i = 0; i < n_parts; i++) {
        const size_t stride = parts[i].stride > 0 ? parts[i].stride : row_bytes;
        for (uint32_t row = 0; row < parts[i].rows; row += most) {
            const uint32_t left = parts[i].rows - row;
            const job_t job = {
                .weight = *weight,
                .dtype = dtype,
                .rows = (const char *)parts[i].data + row * stride,
                .first = first + row,
                .n = left < most ? left : most,
                .row_bytes = row_bytes,
                .stride = stride,
                .sent_bytes = sent_bytes,
            };
            post(loader, &job);
        }
        first += parts[i].rows;
    }
}

bool cuda_loader_is_idle(const cuda_loader_t *loader)
{
    return loader->finished == loader->posted; /* only the caller changes either */
}

weft_status_t cuda_loader_finish(cuda_loader_t *loader)
{
    loader->finished = loader->posted;
    pthread_mutex_lock(&loader->lock);
    while (loader->done < loader->posted) {
        pthread_cond_wait(&loader->changed, &loader->lock);
    }
    weft_status_t status = loader->status;
    pthread_mutex_unlock(&loader->lock);
    for (uint32_t i = 0; i < loader->n_readers && status >= 0; i++) {
        status = loader->device->ops->sync(loader->readers[i].queue);
    }
    return status;
}
