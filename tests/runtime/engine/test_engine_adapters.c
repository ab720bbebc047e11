/* SPDX-License-Identifier: Apache-2.0 */
/* The memory that adapters are planned to take. */
#include "runtime/engine/engine_priv.h"
#include "runtime/model/adapter_priv.h"
#include "tests/support/adapter_folder.h"
#include "tests/support/engine_rig.h"
#include "tests/support/scratch_folder.h"

enum { RANK = 5, MAX_RANK = 8 };

static const char *const models[] = {"llama", "mixtral", "deepseek-v3", "phi3"};

static engine_options_t lora_options(void)
{
    engine_options_t options = engine_rig_options();
    options.enable_lora = true;
    options.max_lora_rank = MAX_RANK;
    options.max_loras = 1;
    return options;
}

static void make_folder(const char *model, char *folder, size_t size)
{
    char path[512];
    model_source_t *source = NULL;
    weft_diag_t diag = {0};
    engine_rig_path(model, path, sizeof(path));
    assert_status(model_source_open(path, &diag, &source), WEFT_OK);
    scratch_folder_make(folder, size);
    adapter_folder_write(folder, model_source_config(source), "", RANK, 0.1f, 1);
    model_source_close(source);
}

static void what_is_measured_is_what_loading_takes(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(models); i++) {
        engine_rig_t rig;
        char folder[64];
        weft_diag_t diag = {0};
        adapter_t *adapter = NULL;
        size_t bytes = 0;
        const engine_options_t options = lora_options();
        make_folder(models[i], folder, sizeof(folder));
        engine_rig_open(&rig, models[i], &options);
        const adapter_model_t model = {.config = model_source_config(rig.source),
                                       .cut = model_cut(rig.engine->model),
                                       .device = rig.engine->device,
                                       .max_rank = MAX_RANK};
        assert_status(adapter_measure(&model, folder, &diag, &bytes), WEFT_OK);
        assert_status(adapter_load(&model, folder, &diag, &adapter), WEFT_OK);
        assert_true(adapter->memory.bytes >= bytes && adapter->memory.bytes < bytes + 4096);
        adapter_destroy(adapter);
        engine_rig_close(&rig);
        scratch_folder_remove(folder);
    }
}

/* Beside a plan for one adapter of the largest rank that adds to no expert. */
static void the_plan_counts_what_is_in_a_named_one(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(models); i++) {
        engine_rig_t rig;
        char folder[64];
        char module[80];
        const char *modules[] = {module};
        weft_diag_t diag = {0};
        size_t bytes = 0;
        engine_options_t options = lora_options();
        make_folder(models[i], folder, sizeof(folder));
        engine_rig_open(&rig, models[i], &options);
        const size_t without = rig.engine->plan.needs_bytes;
        const adapter_model_t model = {.config = model_source_config(rig.source),
                                       .cut = model_cut(rig.engine->model),
                                       .max_rank = MAX_RANK};
        const size_t any = adapter_bytes(model_local_config(rig.engine->model), MAX_RANK);
        assert_status(adapter_measure(&model, folder, &diag, &bytes), WEFT_OK);
        engine_rig_close(&rig);

        snprintf(module, sizeof(module), "a=%s", folder);
        options.lora_modules.items = modules;
        options.lora_modules.count = 1;
        engine_rig_open(&rig, models[i], &options);
        assert_int_equal(rig.engine->plan.needs_bytes, without - any + bytes);
        engine_rig_close(&rig);
        scratch_folder_remove(folder);
    }
}

static void a_named_one_that_is_not_there_is_refused(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"a=/nowhere", "--lora-modules: /nowhere is no folder of an adapter: "},
        {"a=/", "--lora-modules: / is no folder of an adapter: "},
        {"a", "--lora-modules: \"a\" is not NAME=FOLDER"},
        {"{\"name\":\"a\"}", "--lora-modules: {\"name\":\"a\"} has no \"path\""},
        {"{\"path\":\"/\"}", "--lora-modules: {\"path\":\"/\"} has no \"name\""},
    };
    char path[512];
    model_source_t *source = NULL;
    engine_rig_path("llama", path, sizeof(path));
    assert_status(model_source_open(path, NULL, &source), WEFT_OK);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        const char *modules[] = {rows[i][0]};
        engine_t *engine = NULL;
        weft_diag_t diag = {0};
        engine_options_t options = lora_options();
        options.lora_modules = (weft_list_t){modules, 1};
        assert_true(engine_create(&options, source, NULL, NULL, &diag, &engine) < 0);
        assert_memory_equal(diag.text, rows[i][1], strlen(rows[i][1]));
    }
    model_source_close(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_measured_is_what_loading_takes),
        cmocka_unit_test(the_plan_counts_what_is_in_a_named_one),
        cmocka_unit_test(a_named_one_that_is_not_there_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
