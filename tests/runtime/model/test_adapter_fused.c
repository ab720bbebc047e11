/* SPDX-License-Identifier: Apache-2.0 */
/* Adapters of fused projections are those of what was fused, one by one. */
#include "runtime/model/adapter_priv.h"
#include "runtime/model/model_source.h"
#include "tests/support/adapter_folder.h"
#include "tests/support/engine_rig.h"
#include "tests/support/scratch_folder.h"

enum { RANK = 5, MAX_RANK = 8, MODULES = 5 };

typedef struct module {
    const char *name;
    uint32_t fused; /* which fused matrices its own are of: their a, and rows of their b */
    uint32_t first; /* row */
    uint32_t n;
} module_t;

typedef struct rig {
    weft_device_t *device;
    model_source_t *source;
    const model_config_t *config;
    char folder[64];
} rig_t;

static void open_rig(rig_t *rig, const char *model)
{
    char path[512];
    weft_diag_t diag = {0};
    engine_rig_path(model, path, sizeof(path));
    assert_status(model_source_open(path, &diag, &rig->source), WEFT_OK);
    assert_status(weft_device_open("cpu", 0, &diag, &rig->device), WEFT_OK);
    rig->config = model_source_config(rig->source);
    scratch_folder_make(rig->folder, sizeof(rig->folder));
}

static void close_rig(rig_t *rig)
{
    scratch_folder_remove(rig->folder);
    weft_device_close(rig->device);
    model_source_close(rig->source);
}

/* ---- folders --------------------------------------------------------------------------------- */

static void write_matrix(FILE *file, uint32_t layer, const module_t *module, char side,
                         model_range_t rows, uint32_t columns)
{
    for (uint32_t row = rows.first; row < rows.first + rows.n; row++) {
        test_random_t random = {(((uint64_t)layer * 2 + module->fused) * 2 + (side == 'B')) << 32 |
                                row};
        for (uint32_t i = 0; i < columns; i++) {
            const float weight = (float)((double)(int64_t)test_random_u64(&random) * 0x1p-63);
            fwrite(&weight, sizeof(weight), 1, file);
        }
    }
}

/* Weights are those of their places in the fused matrices, however these are cut into modules. */
static void write_folder(const rig_t *rig, const module_t *modules, uint32_t n)
{
    const uint32_t hidden = rig->config->hidden;
    char *text = NULL;
    size_t length = 0;
    size_t at = 0;
    FILE *header = open_memstream(&text, &length);
    for (uint32_t i = 0; i < rig->config->layers * n; i++) {
        const module_t *m = &modules[i % n];
        at = adapter_folder_entry(header, i / n, m->name, 'A', RANK, hidden, at);
        at = adapter_folder_entry(header, i / n, m->name, 'B', m->n, RANK, at);
    }
    fputc('}', header);
    fclose(header);
    FILE *file = adapter_folder_begin(rig->folder, rig->config, RANK, text, length);
    for (uint32_t i = 0; i < rig->config->layers * n; i++) {
        const module_t *m = &modules[i % n];
        write_matrix(file, i / n, m, 'A', (model_range_t){0, RANK}, hidden);
        write_matrix(file, i / n, m, 'B', (model_range_t){m->first, m->n}, RANK);
    }
    fclose(file);
    free(text);
}

static uint32_t name_fused(const model_config_t *config, module_t modules[MODULES])
{
    const uint32_t q = config->heads * config->head_dim;
    const uint32_t kv = config->kv_heads * config->head_dim;
    modules[0] = (module_t){"self_attn.qkv_proj", 0, 0, q + 2 * kv};
    modules[1] = (module_t){"mlp.gate_up_proj", 1, 0, 2 * config->intermediate};
    return 2;
}

static uint32_t name_split(const model_config_t *config, module_t modules[MODULES])
{
    const uint32_t q = config->heads * config->head_dim;
    const uint32_t kv = config->kv_heads * config->head_dim;
    const uint32_t ffn = config->intermediate;
    modules[0] = (module_t){"self_attn.q_proj", 0, 0, q};
    modules[1] = (module_t){"self_attn.k_proj", 0, q, kv};
    modules[2] = (module_t){"self_attn.v_proj", 0, q + kv, kv};
    modules[3] = (module_t){"mlp.gate_proj", 1, 0, ffn};
    modules[4] = (module_t){"mlp.up_proj", 1, ffn, ffn};
    return 5;
}

/* ---- the same ---------------------------------------------------------------------------------- */

static weft_status_t load(const rig_t *rig, const model_cut_t *cut, weft_diag_t *diag,
                          adapter_t **adapter_out)
{
    const adapter_model_t model = {
        .config = rig->config,
        .cut = cut,
        .device = rig->device,
        .is_gguf = strcmp(model_source_format(rig->source), "gguf") == 0,
        .max_rank = MAX_RANK,
    };
    size_t bytes = 0;
    const weft_status_t measured = adapter_measure(&model, rig->folder, diag, &bytes);
    const weft_status_t status = adapter_load(&model, rig->folder, diag, adapter_out);
    if (status >= 0) {
        assert_status(measured, WEFT_OK);
        assert_in_range(bytes, 1, (*adapter_out)->memory.bytes);
    }
    return status;
}

static adapter_t *load_modules(const rig_t *rig, const model_cut_t *cut, const module_t *modules,
                               uint32_t n)
{
    weft_diag_t diag = {0};
    adapter_t *adapter = NULL;
    write_folder(rig, modules, n);
    if (load(rig, cut, &diag, &adapter) < 0) {
        fail_msg("%s", diag.text);
    }
    return adapter;
}

static void assert_same_pair(const k_lora_t *one, const k_lora_t *other, const adapter_part_t *part)
{
    assert_int_equal(one->rank, other->rank);
    assert_true(one->scale == other->scale);
    assert_true((one->a == NULL) == (other->a == NULL));
    if (one->a != NULL) {
        assert_memory_equal(one->a, other->a, sizeof(float) * RANK * part->in.n);
        assert_memory_equal(one->b, other->b, sizeof(float) * RANK * part->out.n);
    }
}

static void check_cut(const rig_t *rig, const model_shard_t *shard)
{
    module_t modules[MODULES];
    model_cut_t cut;
    weft_diag_t diag = {0};
    assert_status(model_source_cut(rig->source, shard, &diag, &cut), WEFT_OK);
    const adapter_model_t model = {.config = rig->config, .cut = &cut};
    adapter_t *fused = load_modules(rig, &cut, modules, name_fused(rig->config, modules));
    adapter_t *split = load_modules(rig, &cut, modules, name_split(rig->config, modules));
    uint32_t n = 0;
    for (uint32_t i = 0; i < fused->layers * fused->of_layer.n; i++) {
        const adapter_target_t target = adapter_target_of(&fused->of_layer, i % fused->of_layer.n);
        const adapter_part_t part = adapter_part(&model, target);
        assert_same_pair(&fused->pairs[i], &split->pairs[i], &part);
        n += fused->pairs[i].a != NULL;
    }
    assert_int_equal(n, fused->layers * MODULES);
    assert_true(fused->memory.bytes < split->memory.bytes); /* a is there once */
    adapter_destroy(fused);
    adapter_destroy(split);
}

static void fused_matrices_are_those_of_their_parts(void **state)
{
    rig_t rig;
    open_rig(&rig, *state);
    check_cut(&rig, NULL);
    for (uint32_t ranks = 2; ranks <= 4; ranks++) { /* three have uneven parts, four share keys */
        for (uint32_t rank = 0; rank < ranks; rank++) {
            check_cut(&rig, &(model_shard_t){.tensor_rank = rank, .tensor_size = ranks});
        }
    }
    check_cut(&rig, &(model_shard_t){.stage = 1, .stages = 2});
    close_rig(&rig);
}

/* ---- refused ----------------------------------------------------------------------------------- */

static void assert_refused(const rig_t *rig, const module_t *modules, uint32_t n,
                           weft_status_t expected, const char *said)
{
    model_cut_t cut;
    weft_diag_t diag = {0};
    adapter_t *adapter = NULL;
    assert_status(model_source_cut(rig->source, NULL, &diag, &cut), WEFT_OK);
    write_folder(rig, modules, n);
    assert_status(load(rig, &cut, &diag, &adapter), expected);
    if (strstr(diag.text, said) == NULL) {
        fail_msg("\"%s\" is not in: %s", said, diag.text);
    }
}

static void what_does_not_fit_is_refused_with_its_sizes(void **state)
{
    (void)state;
    rig_t rig;
    module_t modules[MODULES];
    open_rig(&rig, "phi3");
    (void)name_fused(rig.config, modules);
    modules[0].n -= 1;
    assert_refused(
        &rig, modules, 1, WEFT_ERR_MALFORMED,
        "self_attn.qkv_proj.lora_B.weight: its shape is [127, 5], the model's [128, rank]");
    close_rig(&rig);
}

static void a_part_beside_the_whole_is_refused(void **state)
{
    (void)state;
    rig_t rig;
    module_t modules[MODULES];
    module_t more[MODULES];
    open_rig(&rig, "phi3");
    (void)name_split(rig.config, more);
    const uint32_t n = name_fused(rig.config, modules);
    modules[n] = more[1];
    assert_refused(&rig, modules, n + 1, WEFT_ERR_MALFORMED,
                   "another tensor is for the same linear");
    close_rig(&rig);
}

static void models_without_fused_projections_have_no_such_targets(void **state)
{
    (void)state;
    rig_t rig;
    module_t modules[MODULES];
    open_rig(&rig, "llama");
    const uint32_t n = name_fused(rig.config, modules);
    assert_refused(&rig, modules, n, WEFT_ERR_UNSUPPORTED, "that the layer has");
    close_rig(&rig);
}

#define OF(test, model) {#test " of " model, test, NULL, NULL, (void *)(uintptr_t)model}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OF(fused_matrices_are_those_of_their_parts, "phi3"),
        OF(fused_matrices_are_those_of_their_parts, "phi3-longrope-gguf"),
        cmocka_unit_test(what_does_not_fit_is_refused_with_its_sizes),
        cmocka_unit_test(a_part_beside_the_whole_is_refused),
        cmocka_unit_test(models_without_fused_projections_have_no_such_targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
