/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/synth/model_synth.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "kernels/k_cores.h"
#include "kernels/k_team.h"
#include "runtime/model/synth/synth_priv.h"
#include "runtime/model/synth/synth_vocab.h"

#define GGUF_ALIGNMENT 32
#define ITEM_BYTES     ((size_t)4 << 20) /* filled and written at once */
#define F8_DEVIATION   32.0              /* of E4M3 codes, which end at 448 */
#define INT4_DEVIATION 4.6               /* of 0 to 15, all as likely */
#define INT4_WORD      8                 /* numbers */
#define INT4_BLOCK     32                /* columns that a matrix has whole ones of */
#define MAX_PARTS      3

/* ---- shapes -------------------------------------------------------------------------------- */

static const synth_shape_t shapes[] = {
#define SHAPE(family, ...) {#family, __VA_ARGS__},
#include "runtime/model/synth/synth_shapes.def"
#undef SHAPE
};

/* Lists what the family has; without any, the families. */
static weft_status_t refuse_shape(const model_synth_options_t *options, weft_diag_t *diag)
{
    char known[512] = "";
    size_t used = 0;
    bool has_family = false;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(shapes); i++) {
        has_family = has_family || strcmp(shapes[i].family, options->family) == 0;
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(shapes) && used < sizeof(known); i++) {
        const bool is_listed = has_family
                                   ? strcmp(shapes[i].family, options->family) == 0
                                   : i == 0 || strcmp(shapes[i].family, shapes[i - 1].family) != 0;
        if (is_listed) {
            used +=
                (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", used == 0 ? "" : ", ",
                                 has_family ? shapes[i].name : shapes[i].family);
        }
    }
    return has_family
               ? weft_diag(diag, WEFT_ERR_NOT_FOUND, "no shape \"%.64s\" of family %s (known: %s)",
                           options->shape, options->family, known)
               : weft_diag(diag, WEFT_ERR_NOT_FOUND, "no shapes of family \"%.64s\" (known: %s)",
                           options->family, known);
}

/* By way of the config.json that the model will have. */
static weft_status_t configure(synth_t *synth, weft_diag_t *diag)
{
    weft_buffer_t json = {0};
    synth_config_json(synth, &json);
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (!json.is_failed) {
        status = model_config_from_json(json.data, json.length, NULL, 0, diag, &synth->config);
    }
    weft_buffer_free(&json);
    return status;
}

static weft_status_t find_shape(synth_t *synth, weft_diag_t *diag)
{
    const model_synth_options_t *options = synth->options;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(shapes); i++) {
        if (strcmp(shapes[i].family, options->family) == 0 &&
            strcmp(shapes[i].name, options->shape) == 0) {
            synth->shape = &shapes[i];
            return configure(synth, diag);
        }
    }
    return refuse_shape(options, diag);
}

/* Tiles and groups of 128 as DeepSeek's, Qwen's and most AWQ and GPTQ checkpoints have them. */
static const synth_form_t forms[] = {
    {"fp8", "fp8", K_F8, K_BF16, 0, MODEL_INT4_NONE},
    {"fp8_block", "fp8", K_F8, K_BF16, 128, MODEL_INT4_NONE},
    {"awq", "awq", K_I4_32, K_F16, 128, MODEL_INT4_AWQ},
    {"gptq", "gptq", K_I4_32, K_F16, 128, MODEL_INT4_GPTQ},
};

/* Whether there are weights of that name, which may be the dtype's own. */
static bool parse_dtype(synth_t *synth, const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(forms); i++) {
        if (strcmp(forms[i].name, name) == 0 ||
            strcmp(k_dtype_info(forms[i].dtype)->name, name) == 0) {
            synth->form = &forms[i];
            synth->dtype = forms[i].dtype;
            return true;
        }
    }
    return k_dtype_from_name(name, &synth->dtype) >= 0 && synth_values_has(synth->dtype);
}

static bool has_format(const synth_t *synth)
{
    const k_dtype_info_t *info = k_dtype_info(synth->dtype);
    return synth->kind == MODEL_FILE_GGUF ? info->gguf_type >= 0
                                          : synth->form != NULL || info->safetensors[0] != '\0';
}

static weft_status_t find_dtype(synth_t *synth, weft_diag_t *diag)
{
    const char *usual = synth->kind == MODEL_FILE_GGUF ? "q4_0" : "bf16";
    const bool is_auto = strcmp(synth->options->dtype, "auto") == 0;
    const char *name = is_auto ? usual : synth->options->dtype;
    if (!parse_dtype(synth, name)) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "weights of type \"%.64s\" cannot be made",
                         name);
    }
    if (has_format(synth)) {
        return WEFT_OK;
    }
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "%s has no type \"%.64s\"%s",
                     synth->kind == MODEL_FILE_GGUF ? "GGUF" : "safetensors", name,
                     synth->kind == MODEL_FILE_GGUF
                         ? ": write a folder, or take another"
                         : ": take f32, f16, bf16, fp8, fp8_block, awq or gptq, or write a .gguf "
                           "file");
}

/* ---- tensors ------------------------------------------------------------------------------- */

static bool is_whole(k_dtype_t dtype, uint64_t columns)
{
    return columns % k_dtype_info(dtype)->block_elements == 0;
}

/* Whether a matrix takes the model's form: checkpoints leave the rest in 16 bits. */
static bool has_form(const synth_form_t *form, const model_tensor_want_t *want)
{
    const model_tensor_id_t id = want->key.id;
    const bool fits = form->int4 == MODEL_INT4_NONE
                          ? is_whole(K_F8_32, want->columns)
                          : want->columns % INT4_BLOCK == 0 && want->rows % INT4_WORD == 0;
    return fits && want->rows > 1 && id != MODEL_TENSOR_EMBEDDING && id != MODEL_TENSOR_OUTPUT &&
           id != MODEL_TENSOR_ROUTER;
}

static k_dtype_t dtype_of(const synth_t *synth, const model_tensor_want_t *want)
{
    if (synth->kind == MODEL_FILE_HF) {
        return synth->form != NULL ? synth->form->others : synth->dtype;
    }
    if (want->rows == 1) {
        return K_F32;
    }
    if (is_whole(synth->dtype, want->columns)) {
        return synth->dtype;
    }
    return is_whole(K_Q8_0, want->columns) ? K_Q8_0 : K_F16;
}

/* Blocks of an item: whole ones, the last item of a tensor may have fewer. */
static uint64_t item_blocks(const synth_tensor_t *tensor)
{
    return ITEM_BYTES / k_dtype_info(tensor->dtype)->block_bytes;
}

static weft_status_t count_tensor(void *context, const model_tensor_want_t *want)
{
    (void)want;
    ++*(uint32_t *)context;
    return WEFT_OK;
}

/* Whether the matrix is only a part of a tensor of checkpoints: another has its name. */
static bool is_part(const synth_t *synth, const model_tensor_want_t *want)
{
    static const model_tensor_id_t pairs[][2] = {
        {MODEL_TENSOR_EXPERT_GATE, MODEL_TENSOR_EXPERT_UP},
        {MODEL_TENSOR_MLA_K_B, MODEL_TENSOR_MLA_V_B},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(pairs); i++) {
        char name[SYNTH_NAME_BYTES];
        char other[SYNTH_NAME_BYTES];
        const model_tensor_key_t key = {pairs[i][1], want->key.layer, want->key.expert};
        model_tensor_name(&synth->config, synth->kind, want->key, name, sizeof(name));
        model_tensor_name(&synth->config, synth->kind, key, other, sizeof(other));
        if (want->key.id == pairs[i][0] && strcmp(name, other) == 0) {
            return true;
        }
    }
    return false;
}

/* A tensor of rows x columns numbers. */
static void add_tensor(synth_t *synth, const model_tensor_want_t *want, synth_part_t part,
                       k_dtype_t dtype, uint64_t rows, uint64_t columns)
{
    const uint64_t items = synth->n_tensors == 0 ? 0 : synth->tensors[synth->n_tensors - 1].items;
    synth_tensor_t *tensor = &synth->tensors[synth->n_tensors++];
    tensor->want = *want;
    tensor->want.rows = rows;
    tensor->want.columns = columns;
    tensor->part = part;
    tensor->dtype = dtype;
    tensor->fan_in = want->columns;
    const k_dtype_info_t *info = k_dtype_info(tensor->dtype);
    tensor->blocks = rows * columns / info->block_elements;
    tensor->bytes = tensor->blocks * info->block_bytes;
    tensor->items = items + (tensor->blocks + item_blocks(tensor) - 1) / item_blocks(tensor);
    tensor->offset = synth->data_bytes;
    synth->data_bytes += tensor->bytes;
    if (synth->kind == MODEL_FILE_GGUF) {
        synth->data_bytes =
            (synth->data_bytes + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
    }
}

static uint64_t tiles(const synth_form_t *form, uint64_t extent)
{
    return form->tile == 0 ? 1 : (extent + form->tile - 1) / form->tile;
}

static void place_f8(synth_t *synth, const model_tensor_want_t *want)
{
    add_tensor(synth, want, SYNTH_WHOLE, K_F8, want->rows, want->columns);
    add_tensor(synth, want, SYNTH_F8_SCALES, K_F32, tiles(synth->form, want->rows),
               tiles(synth->form, want->columns));
}

/* As model_source_int4.c reads them. */
static void place_int4(synth_t *synth, const model_tensor_want_t *want)
{
    const bool is_awq = synth->form->int4 == MODEL_INT4_AWQ;
    const uint64_t groups = tiles(synth->form, want->columns);
    add_tensor(synth, want, SYNTH_INT4_WORDS, K_I32, want->columns / (is_awq ? 1 : INT4_WORD),
               want->rows / (is_awq ? INT4_WORD : 1));
    add_tensor(synth, want, SYNTH_INT4_ZEROS, K_I32, groups, want->rows / INT4_WORD);
    add_tensor(synth, want, SYNTH_INT4_SCALES, K_F16, groups, want->rows);
}

static weft_status_t place_tensor(void *context, const model_tensor_want_t *want)
{
    synth_t *synth = context;
    if (synth->kind == MODEL_FILE_HF && is_part(synth, want)) {
        return WEFT_ERR_UNSUPPORTED;
    }
    if (synth->form == NULL || !has_form(synth->form, want)) {
        add_tensor(synth, want, SYNTH_WHOLE, dtype_of(synth, want), want->rows, want->columns);
    } else if (synth->form->int4 != MODEL_INT4_NONE) {
        place_int4(synth, want);
    } else {
        place_f8(synth, want);
    }
    return WEFT_OK;
}

static weft_status_t place_tensors(synth_t *synth, weft_diag_t *diag)
{
    uint32_t n = 0;
    model_tensors_visit(&synth->config, synth->kind, count_tensor, &n);
    n *= synth->form != NULL ? MAX_PARTS : 1;
    synth->tensors = weft_calloc(n, sizeof(*synth->tensors), "synth.tensors");
    if (synth->tensors == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status =
        model_tensors_visit(&synth->config, synth->kind, place_tensor, synth);
    return status >= 0
               ? status
               : weft_diag(diag, status,
                           "models of family %s are written as GGUF alone: name a .gguf file",
                           synth->config.family);
}

/* ---- filling ------------------------------------------------------------------------------- */

/* What a thread of the team works in. */
typedef struct bench {
    synth_values_t values;
    char bytes[ITEM_BYTES];
} bench_t;

typedef struct job {
    const synth_t *synth;
    synth_normal_t normal;
    bench_t *benches; /* [threads] */
    int fd;
    uint64_t data_start; /* in the file */
    atomic_int error;    /* errno of a failed write; set by any thread, read after the team's run */
} job_t;

static const synth_tensor_t *tensor_of_item(const synth_t *synth, uint32_t item)
{
    uint32_t low = 0;
    uint32_t high = synth->n_tensors - 1;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (item < synth->tensors[middle].items) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return &synth->tensors[low];
}

/* Norms are near 1, biases near 0, matrices keep the size of what they multiply. */
static void init_values(const synth_t *synth, const synth_tensor_t *tensor,
                        const synth_normal_t *normal, synth_values_t *values)
{
    const model_tensor_want_t *want = &tensor->want;
    const uint64_t key = synth_mix(synth_mix(synth->options->seed, want->key.id), want->key.layer);
    const double size = 1 / sqrt((double)tensor->fan_in);
    double mean = 0;
    double deviation = want->rows == 1 ? 0.02 : size;
    if (tensor->part == SYNTH_F8_SCALES || tensor->part == SYNTH_INT4_SCALES) {
        mean = size / (tensor->part == SYNTH_F8_SCALES ? F8_DEVIATION : INT4_DEVIATION);
        deviation = mean / 10;
    } else if (tensor->part == SYNTH_INT4_WORDS) {
        synth_values_init_words(values, key, UINT32_MAX, 0);
        return;
    } else if (tensor->part == SYNTH_INT4_ZEROS) { /* 7 or 8, about the middle of 0 to 15 */
        const uint32_t least = synth->form->int4 == MODEL_INT4_AWQ ? 0x77777777 : 0x66666666;
        synth_values_init_words(values, key, 0x11111111, least);
        return;
    } else if (tensor->dtype == K_F8) {
        deviation = F8_DEVIATION;
    } else if (model_tensor_is_scale(want->key.id)) {
        mean = synth->kind == MODEL_FILE_GGUF ? 1 : 1 - (double)synth->config.norm_offset;
        deviation = 0.1;
    }
    synth_values_init(values, normal, tensor->dtype, key, mean, deviation);
}

static int write_at(int fd, const char *bytes, size_t length, uint64_t offset)
{
    while (length > 0) {
        const ssize_t n = pwrite(fd, bytes, length, (off_t)offset);
        if (n < 0 && errno != EINTR) {
            return errno;
        }
        const size_t written = n < 0 ? 0 : (size_t)n;
        bytes += written;
        length -= written;
        offset += written;
    }
    return 0;
}

static void fill_item(const void *arg, uint32_t item, uint32_t member)
{
    job_t *job = *(job_t *const *)arg;
    bench_t *bench = &job->benches[member];
    const synth_tensor_t *tensor = tensor_of_item(job->synth, item);
    const uint64_t whole = item_blocks(tensor);
    const uint64_t items = (tensor->blocks + whole - 1) / whole;
    const uint64_t first = (item - (tensor->items - items)) * whole;
    const uint64_t n = tensor->blocks - first < whole ? tensor->blocks - first : whole;
    const size_t block_bytes = k_dtype_info(tensor->dtype)->block_bytes;
    if (atomic_load(&job->error) != 0) {
        return;
    }
    init_values(job->synth, tensor, &job->normal, &bench->values);
    /* Experts are one stream of values, whether they share a tensor or not. */
    const uint64_t before = tensor->want.key.expert * tensor->blocks;
    synth_values_fill(&bench->values, before + first, (size_t)n, bench->bytes);
    const int error = write_at(job->fd, bench->bytes, (size_t)n * block_bytes,
                               job->data_start + tensor->offset + first * block_bytes);
    if (error != 0) {
        atomic_store(&job->error, error);
    }
}

static weft_status_t fill_tensors(const synth_t *synth, int fd, uint64_t data_start, int *error_out)
{
    const uint32_t threads =
        synth->options->threads > 0 ? synth->options->threads : k_cores_usable();
    k_team_t *team = NULL;
    job_t *job = weft_zalloc(sizeof(*job), "synth.job");
    weft_status_t status = job == NULL ? WEFT_ERR_NO_MEMORY : k_team_create(threads, &team);
    if (status >= 0) {
        job->synth = synth;
        job->fd = fd;
        job->data_start = data_start;
        job->benches = weft_calloc(threads, sizeof(*job->benches), "synth.benches");
        status = job->benches == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    if (status >= 0) {
        synth_normal_init(&job->normal);
        k_team_run(team, (uint32_t)synth->tensors[synth->n_tensors - 1].items, fill_item, &job);
        *error_out = atomic_load(&job->error);
    }
    k_team_destroy(team);
    if (job != NULL) {
        weft_free(job->benches);
    }
    weft_free(job);
    return status;
}

/* ---- files --------------------------------------------------------------------------------- */

weft_status_t synth_write_file(const char *path, const weft_buffer_t *bytes, weft_diag_t *diag)
{
    if (bytes->is_failed) {
        return WEFT_ERR_NO_MEMORY;
    }
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int error = fd < 0 ? errno : write_at(fd, bytes->data, bytes->length, 0);
    if (fd >= 0 && close(fd) != 0 && error == 0) {
        error = errno;
    }
    return error == 0 ? WEFT_OK : weft_diag(diag, WEFT_ERR_IO, "%s: %s", path, strerror(error));
}

/* The file under a name that nobody takes for a model, until it is whole. */
static weft_status_t write_tensors(const synth_t *synth, const weft_buffer_t *header,
                                   const char *path, weft_diag_t *diag)
{
    char part[PATH_MAX];
    snprintf(part, sizeof(part), "%s.part", path);
    weft_status_t status = synth_write_file(part, header, diag);
    if (status < 0) {
        return status;
    }
    const int fd = open(part, O_WRONLY | O_CLOEXEC);
    int error = fd < 0 ? errno : 0;
    if (error == 0 && ftruncate(fd, (off_t)(header->length + synth->data_bytes)) != 0) {
        error = errno;
    }
    if (error == 0) {
        status = fill_tensors(synth, fd, header->length, &error);
    }
    if (fd >= 0 && close(fd) != 0 && error == 0) {
        error = errno;
    }
    if (status >= 0 && error == 0 && rename(part, path) != 0) {
        error = errno;
    }
    if (status < 0 || error != 0) {
        unlink(part);
    }
    return error == 0 ? status : weft_diag(diag, WEFT_ERR_IO, "%s: %s", path, strerror(error));
}

static weft_status_t write_gguf(const synth_t *synth, const char *path, weft_diag_t *diag)
{
    weft_buffer_t header = {0};
    synth_gguf_header(synth, &header);
    const weft_status_t status = write_tensors(synth, &header, path, diag);
    weft_buffer_free(&header);
    return status;
}

static weft_status_t write_folder(const synth_t *synth, const char *folder, weft_diag_t *diag)
{
    char path[PATH_MAX];
    weft_buffer_t header = {0};
    if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: %s", folder, strerror(errno));
    }
    weft_status_t status = synth_write_side_files(synth, folder, diag);
    if (status >= 0) {
        snprintf(path, sizeof(path), "%s/model.safetensors", folder);
        synth_safetensors_header(synth, &header);
        status = write_tensors(synth, &header, path, diag);
    }
    weft_buffer_free(&header);
    return status;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text);
    const size_t end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

weft_status_t model_synth_write(const model_synth_options_t *options, const char *path,
                                weft_diag_t *diag, uint64_t *bytes_out)
{
    synth_t synth = {.options = options};
    synth.kind = ends_with(path, ".gguf") ? MODEL_FILE_GGUF : MODEL_FILE_HF;
    if (strlen(path) > PATH_MAX - 64) {
        return weft_diag(diag, WEFT_ERR_INVALID, "the path is too long");
    }
    weft_status_t status = find_dtype(&synth, diag);
    if (status >= 0) {
        status = find_shape(&synth, diag);
    }
    if (status >= 0) {
        status = place_tensors(&synth, diag);
    }
    if (status >= 0) {
        status = synth.kind == MODEL_FILE_GGUF ? write_gguf(&synth, path, diag)
                                               : write_folder(&synth, path, diag);
    }
    weft_free(synth.tensors);
    if (status == WEFT_ERR_NO_MEMORY) {
        weft_diag(diag, status, "%s: out of memory", path);
    }
    if (status >= 0) {
        *bytes_out = synth.data_bytes;
    }
    return status;
}
