/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/option_priv.h"

#define LINE_COLUMNS 96
#define DOC_COLUMN   34

static const char *value_name(weft_option_type_t type)
{
    switch (type) {
    case WEFT_OPTION_BOOL:
        return "";
    case WEFT_OPTION_U32:
    case WEFT_OPTION_AUTO:
    case WEFT_OPTION_U64:
    case WEFT_OPTION_I64:
        return "N";
    case WEFT_OPTION_F64:
        return "X";
    case WEFT_OPTION_BYTES:
        return "BYTES";
    case WEFT_OPTION_STR:
        return "TEXT";
    case WEFT_OPTION_LIST:
        return "TEXT...";
    }
    return "";
}

static bool is_short(const char *name)
{
    return strlen(name) <= OPTION_SHORT_NAME;
}

/* The doc with its default, broken at blanks; every line but the first is indented. */
static void print_wrapped(const char *text, FILE *file)
{
    const size_t width = LINE_COLUMNS - DOC_COLUMN;
    while (strlen(text) > width) {
        size_t end = width;
        while (end > 0 && text[end] != ' ') {
            end--;
        }
        end = end == 0 ? strcspn(text, " ") : end; /* one word wider than a line */
        fprintf(file, "%.*s\n%*s", (int)end, text, DOC_COLUMN, "");
        text += end + (text[end] == ' ');
    }
    fprintf(file, "%s\n", text);
}

/* "-p, " when the option has a name of up to three letters. */
static int print_short_name(const weft_option_spec_t *spec, const char *flag, FILE *file)
{
    for (size_t i = 0; i < spec->n_flags; i++) {
        if (strcmp(spec->flags[i].flag, flag) == 0 && is_short(spec->flags[i].name)) {
            return fprintf(file, "-%s, ", spec->flags[i].name);
        }
    }
    return 0;
}

static void print_row(const weft_option_spec_t *spec, const weft_option_t *row, FILE *file)
{
    const bool is_bool = row->type == WEFT_OPTION_BOOL;
    int length = fprintf(file, "  ");
    length += print_short_name(spec, row->flag, file);
    length += fprintf(file, "--%s%s%s%s", is_bool ? "[no-]" : "", row->flag, is_bool ? "" : " ",
                      value_name(row->type));
    fprintf(file, "%*s", length < DOC_COLUMN - 1 ? DOC_COLUMN - length : 1, "");
    if (length >= DOC_COLUMN - 1) {
        fprintf(file, "\n%*s", DOC_COLUMN, "");
    }
    char doc[1024];
    if (row->fallback[0] == '\0') {
        snprintf(doc, sizeof(doc), "%s", row->doc);
    } else {
        snprintf(doc, sizeof(doc), "%s [%s]", row->doc, row->fallback);
    }
    print_wrapped(doc, file);
}

void weft_option_print_help(const weft_option_spec_t *spec, FILE *file)
{
    fprintf(file, "usage: %s\n\n%s\n", spec->usage, spec->about);
    for (size_t g = 0; g < spec->n_groups; g++) {
        const weft_option_group_t *group = &spec->groups[g];
        fprintf(file, "\n%s:\n", group->title);
        for (size_t i = 0; i < group->n_rows; i++) {
            print_row(spec, &group->rows[i], file);
        }
    }
    fputs("\nGeneral:\n", file);
    if (spec->has_config_file) {
        fprintf(file, "%-*sYAML file of `flag: value` lines.\n", DOC_COLUMN, "  --config FILE");
    }
    fprintf(file, "%-*sPrint this.\n", DOC_COLUMN, "  -h, --help");
    fputs("\nIn [ ]: the default. --some-flag is also the variable WEFT_SOME_FLAG.\n", file);
}

/* A '|' would end the cell. */
static void print_cell(const char *text, FILE *file)
{
    for (; *text != '\0'; text++) {
        fputs(*text == '|' ? "\\|" : (const char[2]){*text, '\0'}, file);
    }
}

static void print_markdown_row(const weft_option_t *row, FILE *file)
{
    const bool is_bool = row->type == WEFT_OPTION_BOOL;
    fprintf(file, "| `--%s%s%s%s` | ", is_bool ? "[no-]" : "", row->flag, is_bool ? "" : " ",
            value_name(row->type));
    if (row->fallback[0] != '\0') {
        fputc('`', file);
        print_cell(row->fallback, file);
        fputc('`', file);
    }
    fputs(" | ", file);
    print_cell(row->doc, file);
    fputs(" |\n", file);
}

static void print_markdown_aliases(const char *title, bool is_flag,
                                   const weft_option_alias_t *aliases, size_t n, FILE *file)
{
    if (n == 0) {
        return;
    }
    fprintf(file, "### %s\n\n| name | stands for |\n|---|---|\n", title);
    for (size_t i = 0; i < n; i++) {
        const char *dashes = !is_flag ? "" : is_short(aliases[i].name) ? "-" : "--";
        fprintf(file, "| `%s%s` | `--%s` |\n", dashes, aliases[i].name, aliases[i].flag);
    }
    fputc('\n', file);
}

static void print_markdown_ignored(const weft_option_spec_t *spec, FILE *file)
{
    if (spec->n_ignored == 0) {
        return;
    }
    fputs("### Taken and ignored\n\n| flag | why |\n|---|---|\n", file);
    for (size_t i = 0; i < spec->n_ignored; i++) {
        fprintf(file, "| `--%s` | ", spec->ignored[i].flag);
        print_cell(spec->ignored[i].reason, file);
        fputs(" |\n", file);
    }
    fputc('\n', file);
}

void weft_option_print_markdown(const weft_option_spec_t *spec, FILE *file)
{
    fprintf(file, "## %s\n\n%s\n\n", spec->usage, spec->about);
    for (size_t g = 0; g < spec->n_groups; g++) {
        const weft_option_group_t *group = &spec->groups[g];
        fprintf(file, "### %s\n\n| flag | default | meaning |\n|---|---|---|\n", group->title);
        for (size_t i = 0; i < group->n_rows; i++) {
            print_markdown_row(&group->rows[i], file);
        }
        fputc('\n', file);
    }
    print_markdown_aliases("Other names", true, spec->flags, spec->n_flags, file);
    print_markdown_aliases("Variables of other programs", false, spec->variables, spec->n_variables,
                           file);
    print_markdown_ignored(spec, file);
}
