/* SPDX-License-Identifier: Apache-2.0 */
/* Masks are walked at random: whatever they allow has to follow the grammar. */
#include <regex.h>

#include "base/compiler.h"
#include "tests/support/random.h"
#include "tests/support/text_check.h"

#define VOCAB      320
#define WORDS      ((VOCAB + 31) / 32)
#define EOS        2
#define MAX_TOKENS 400
#define MAX_TEXT   8192

typedef struct fixture {
    text_tokenizer_t *tokenizer;
    text_grammar_factory_t *factory;
    test_random_t random;
} fixture_t;

/* Whether a whole text follows the grammar that is tested. */
typedef bool (*follows_fn)(const char *text, size_t length);

static int set_up(void **state)
{
    static fixture_t fixture;
    size_t length;
    char *json = read_vector("text/byte-level/tokenizer.json", &length);
    const int32_t eos = EOS;
    weft_diag_t diag = {0};
    assert_status(text_tokenizer_from_json(json, length, NULL, 0, VOCAB, &diag, &fixture.tokenizer),
                  WEFT_OK);
    weft_free(json);
    assert_status(
        text_grammar_factory_create(fixture.tokenizer, VOCAB, &eos, 1, &diag, &fixture.factory),
        WEFT_OK);
    fixture.random.state = test_seed(1);
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    fixture_t *fixture = *state;
    text_grammar_factory_destroy(fixture->factory);
    text_tokenizer_destroy(fixture->tokenizer);
    return 0;
}

static text_grammar_t *compile(const fixture_t *fixture, text_grammar_kind_t kind,
                               const char *source)
{
    weft_diag_t diag = {0};
    text_grammar_t *grammar = NULL;
    weft_status_t status =
        text_grammar_create(fixture->factory, kind, source, strlen(source), NULL, &diag, &grammar);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    return grammar;
}

static bool is_allowed(const uint32_t *mask, int32_t id)
{
    return (mask[id / 32] >> (id % 32) & 1) != 0;
}

/* One of the allowed ids; -1 when there is none. */
static int32_t choose(test_random_t *random, const uint32_t *mask)
{
    int32_t allowed[VOCAB];
    uint32_t count = 0;
    for (int32_t id = 0; id < VOCAB; id++) {
        if (is_allowed(mask, id)) {
            allowed[count++] = id;
        }
    }
    return count == 0 ? -1 : allowed[test_random_below(random, count)];
}

static size_t append_token(const fixture_t *fixture, int32_t id, char *text, size_t length)
{
    text_bytes_t bytes = {0};
    assert_status(text_tokenizer_token_bytes(fixture->tokenizer, id, &bytes), WEFT_OK);
    assert_true(length + bytes.length < MAX_TEXT);
    memcpy(text + length, bytes.data, bytes.length);
    length += bytes.length;
    text[length] = '\0';
    text_bytes_free(bytes);
    return length;
}

/* Walks until the end token is drawn (true) or MAX_TOKENS were taken (false). */
static bool walk(fixture_t *fixture, const text_grammar_t *grammar, follows_fn follows)
{
    static char text[MAX_TEXT];
    size_t length = 0;
    bool is_ended = false;
    weft_diag_t diag = {0};
    text_matcher_t *matcher = NULL;
    text[0] = '\0';
    assert_status(text_matcher_create(grammar, &matcher), WEFT_OK);
    for (int step = 0; step < MAX_TOKENS && !is_ended; step++) {
        uint32_t mask[WORDS];
        assert_status(text_matcher_mask(matcher, mask, WORDS, &diag), WEFT_OK);
        if (is_allowed(mask, EOS) && !follows(text, length)) {
            fail_msg("the end is allowed after: %s", text);
        }
        int32_t id = choose(&fixture->random, mask);
        if (id < 0) {
            fail_msg("nothing is allowed after: %s", text);
        }
        assert_status(text_matcher_advance(matcher, id, &diag), WEFT_OK);
        is_ended = id == EOS;
        length = is_ended ? length : append_token(fixture, id, text, length);
    }
    assert_true(!is_ended || text_matcher_is_finished(matcher));
    text_matcher_destroy(matcher);
    return is_ended;
}

static void walk_often(fixture_t *fixture, text_grammar_kind_t kind, const char *source,
                       follows_fn follows)
{
    text_grammar_t *grammar = compile(fixture, kind, source);
    uint32_t rounds = test_rounds(2000);
    uint32_t ended = 0;
    for (uint32_t round = 0; round < rounds; round++) {
        ended += walk(fixture, grammar, follows);
    }
    print_message("%u of %u walks ended\n", ended, rounds);
    assert_true(ended > 0 || rounds == 1);
    text_grammar_destroy(grammar);
}

static const char person_schema[] =
    "{\"type\":\"object\",\"properties\":{"
    "\"name\":{\"type\":\"string\",\"maxLength\":12},"
    "\"age\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":150},"
    "\"tags\":{\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"bc\",\"d\\\"e\"]},\"maxItems\":3}},"
    "\"required\":[\"name\",\"age\"],\"additionalProperties\":false}";

static bool are_tags(const json_t *tags)
{
    size_t index;
    const json_t *tag;
    if (!json_is_array(tags) || json_array_size(tags) > 3) {
        return false;
    }
    json_array_foreach(tags, index, tag)
    {
        const char *text = json_string_value(tag);
        if (text == NULL ||
            (strcmp(text, "a") != 0 && strcmp(text, "bc") != 0 && strcmp(text, "d\"e") != 0)) {
            return false;
        }
    }
    return true;
}

static bool is_person(const char *text, size_t length)
{
    json_error_t error;
    json_t *person = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    const json_t *age = json_object_get(person, "age");
    const json_t *tags = json_object_get(person, "tags");
    bool result = json_is_object(person) && json_is_string(json_object_get(person, "name")) &&
                  json_is_integer(age) && json_integer_value(age) >= 0 &&
                  json_integer_value(age) <= 150 && (tags == NULL || are_tags(tags)) &&
                  json_object_size(person) == (tags == NULL ? 2u : 3u);
    json_decref(person);
    return result;
}

static void json_schema_walks_validate(void **state)
{
    walk_often(*state, TEXT_GRAMMAR_JSON_SCHEMA, person_schema, is_person);
}

static bool is_json_object(const char *text, size_t length)
{
    json_error_t error;
    json_t *value = json_loadb(text, length, JSON_ALLOW_NUL, &error);
    bool result = value == NULL ? json_error_code(&error) == json_error_numeric_overflow
                                : json_is_object(value);
    json_decref(value);
    return result;
}

static void json_object_walks_parse(void **state)
{
    walk_often(*state, TEXT_GRAMMAR_JSON_OBJECT, "", is_json_object);
}

static bool is_date(const char *text, size_t length)
{
    regex_t regex;
    assert_int_equal(regcomp(&regex, "^[0-9]{4}-(0[1-9]|1[0-2])(-[0-3][0-9])?$", REG_EXTENDED), 0);
    bool result = strlen(text) == length && regexec(&regex, text, 0, NULL, 0) == 0;
    regfree(&regex);
    return result;
}

static void regex_walks_match(void **state)
{
    walk_often(*state, TEXT_GRAMMAR_REGEX, "^[0-9]{4}-(0[1-9]|1[0-2])(-[0-3][0-9])?$", is_date);
}

static bool is_chosen(const char *text, size_t length)
{
    (void)length;
    return strcmp(text, "yes") == 0 || strcmp(text, "yes, if (a|b)") == 0 || strcmp(text, "é") == 0;
}

static void choice_walks_choose(void **state)
{
    walk_often(*state, TEXT_GRAMMAR_CHOICE, "[\"yes\", \"yes, if (a|b)\", \"é\"]", is_chosen);
}

/* a^n c b^n */
static bool is_nested(const char *text, size_t length)
{
    size_t depth = strspn(text, "a");
    return length == 2 * depth + 1 && text[depth] == 'c' && strspn(text + depth + 1, "b") == depth;
}

static void lark_walks_parse(void **state)
{
    walk_often(*state, TEXT_GRAMMAR_LARK, "start: \"a\" start \"b\" | \"c\"", is_nested);
}

static bool is_number_list(const char *text, size_t length)
{
    json_error_t error;
    json_t *value = json_loadb(text, length, 0, &error);
    bool result = json_is_array(value);
    json_decref(value);
    return result;
}

static void gbnf_walks_parse(void **state)
{
    walk_often(*state, TEXT_GRAMMAR_LARK,
               "# lists of lists\n"
               "root ::= \"[\" ws (item (\",\" ws item)*)? \"]\" ws\n"
               "item ::= number ws\n"
               "  | root\n"
               "number ::= \"0\" | [1-9] [0-9]{0,3}\n"
               "ws ::= [ \\t\\n]?\n",
               is_number_list);
}

static bool is_query(const char *text, size_t length)
{
    (void)length;
    return strcmp(text, "SELECT col_1 from table-1") == 0 ||
           strcmp(text, "SELECT col_2 from table-1") == 0;
}

static void gbnf_without_recursion_is_exact(void **state)
{
    walk_often(*state, TEXT_GRAMMAR_LARK,
               "root ::= \"SELECT \" column \"from \" table\n"
               "column ::= \"col_1 \" | \"col_2 \"\n"
               "table ::= \"table\" [-] \"\\x31\"\n",
               is_query);
}

static void a_token_that_is_not_allowed_is_refused_and_changes_nothing(void **state)
{
    fixture_t *fixture = *state;
    text_grammar_t *grammar = compile(fixture, TEXT_GRAMMAR_REGEX, "ab");
    text_matcher_t *matcher = NULL;
    weft_diag_t diag = {0};
    uint32_t before[WORDS];
    uint32_t after[WORDS];
    assert_status(text_matcher_create(grammar, &matcher), WEFT_OK);
    assert_status(text_matcher_mask(matcher, before, WORDS, &diag), WEFT_OK);
    assert_status(text_matcher_advance(matcher, EOS, &diag), WEFT_ERR_INVALID);
    assert_status(text_matcher_advance(matcher, VOCAB, &diag), WEFT_ERR_INVALID);
    assert_status(text_matcher_advance(matcher, -1, &diag), WEFT_ERR_INVALID);
    assert_string_not_equal(diag.text, "");
    assert_status(text_matcher_mask(matcher, after, WORDS, &diag), WEFT_OK);
    assert_memory_equal(before, after, sizeof(before));
    assert_status(text_matcher_mask(matcher, after, WORDS - 1, &diag), WEFT_ERR_INVALID);
    text_matcher_destroy(matcher);
    text_grammar_destroy(grammar);
}

static void unusable_grammars_are_refused_with_a_line(void **state)
{
    static const struct {
        text_grammar_kind_t kind;
        const char *source;
        const char *line;
    } cases[] = {
        {TEXT_GRAMMAR_JSON_SCHEMA, "{\"type\":", "not JSON"},
        {TEXT_GRAMMAR_JSON_SCHEMA, "{\"type\":\"nothing\"}", "nothing"},
        {TEXT_GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"pattern\":\"(\"}", "regex"},
        {TEXT_GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"#/$defs/none\"}", "none"},
        {TEXT_GRAMMAR_REGEX, "(", "regex"},
        {TEXT_GRAMMAR_REGEX, "a(?=b)", "look"},
        {TEXT_GRAMMAR_CHOICE, "[]", "choices"},
        {TEXT_GRAMMAR_CHOICE, "[1]", "choices"},
        {TEXT_GRAMMAR_LARK, "start: nowhere", "nowhere"},
        {TEXT_GRAMMAR_LARK, "root ::= nowhere", "nowhere"},
        {TEXT_GRAMMAR_LARK, "other ::= \"a\"", "root"},
        {TEXT_GRAMMAR_LARK, "root ::= \"a", "line 1"},
        {TEXT_GRAMMAR_LARK, "root ::= (\"a\"\n", "\")\""},
        {TEXT_GRAMMAR_LARK, "start: start", "grammar"},
        {TEXT_GRAMMAR_LARK, "root ::= root", "grammar"},
        {TEXT_GRAMMAR_REGEX, "[^\\s\\S]", "grammar"},
        {TEXT_GRAMMAR_JSON_SCHEMA,
         "{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"$ref\":\"#/$defs/a\"}}}", "grammar"},
    };
    const fixture_t *fixture = *state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(cases); i++) {
        weft_diag_t diag = {0};
        text_grammar_t *grammar = NULL;
        weft_status_t status = text_grammar_create(fixture->factory, cases[i].kind, cases[i].source,
                                                   strlen(cases[i].source), NULL, &diag, &grammar);
        print_message("%s: %s\n", cases[i].source, diag.text);
        assert_status(status, WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, cases[i].line));
        assert_null(grammar);
    }
}

/* Whether a grammar takes text from its first token to its end, a token a byte. */
static bool takes(const fixture_t *fixture, const text_grammar_t *grammar, const char *text)
{
    weft_diag_t diag = {0};
    text_matcher_t *matcher = NULL;
    uint32_t mask[WORDS];
    bool is_taken = true;
    assert_status(text_matcher_create(grammar, &matcher), WEFT_OK);
    for (const char *at = text; is_taken && *at != '\0'; at++) {
        text_ids_t ids = {0};
        assert_status(text_tokenizer_encode(fixture->tokenizer, at, 1, false, false, &diag, &ids),
                      WEFT_OK);
        assert_int_equal(ids.length, 1);
        is_taken = text_matcher_advance(matcher, ids.data[0], &diag) == WEFT_OK;
        text_ids_free(ids);
    }
    is_taken = is_taken && text_matcher_mask(matcher, mask, WORDS, &diag) == WEFT_OK &&
               is_allowed(mask, EOS);
    text_matcher_destroy(matcher);
    return is_taken;
}

static void options_say_where_blanks_and_other_properties_may_be(void **state)
{
    static const char schema[] =
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"object\",\"properties\":{"
        "\"enum\":{\"type\":\"integer\"}}}},\"required\":[\"a\"]}";
    static const struct {
        const char *source;
        text_grammar_options_t options;
        const char *taken[3];
        const char *refused[3];
    } cases[] = {
        {schema,
         {0},
         {"{\"a\":{\"enum\":1}}", "{ \"a\" : {\n\"enum\": 1} }", "{\"a\":{\"b\":2},\"c\":3}"},
         {"{}", "{\n\n\"a\":{}}", "{\"a\": \n{}}"}},
        {schema,
         {0},
         {"{\r\n\t\"a\": {}}", "{\n    \"a\": {\n\t\t\"enum\": 1\n    }\n}"},
         {"{\r\n\r\n\"a\":{}}", "{\"a\":{\n \n}}", "{\"a\":{}}\n\n"}},
        {schema,
         {.disable_any_whitespace = true},
         {"{\"a\":{\"enum\":1}}", "{\"a\":{\"b\":2},\"c\":3}"},
         {"{ \"a\":{\"enum\":1}}", "{\"a\": {\"enum\":1}}", "{\"a\":{\"enum\":1} }"}},
        {schema,
         {.disable_additional_properties = true},
         {"{\"a\":{\"enum\":1}}", "{\"a\": {}}"},
         {"{\"a\":{\"b\":2}}", "{\"a\":{},\"c\":3}"}},
        {schema,
         {.whitespace_pattern = "[ ]{0,2}"},
         {"{\"a\":{\"enum\":1}}", "{  \"a\": {\"enum\":  1}}"},
         {"{   \"a\":{}}", "{\n\"a\":{}}"}},
        {schema, {.whitespace_pattern = ""}, {"{\"a\":{\"enum\":1}}"}, {"{ \"a\":{\"enum\":1}}"}},
        {"{\"properties\":{\"a\":{\"const\":{\"properties\":{}}}},\"additionalProperties\":true,"
         "\"type\":\"object\"}",
         {.disable_additional_properties = true},
         {"{\"a\":{\"properties\":{}}}", "{\"b\":1}"},
         {"{\"a\":{\"properties\":{},\"additionalProperties\":false}}"}},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#/$defs/d\"}},\"$defs\":{\"d\":{"
         "\"anyOf\":[{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"null\"}}}]}}}",
         {.disable_additional_properties = true, .disable_any_whitespace = true},
         {"{\"a\":{\"x\":null}}"},
         {"{\"a\":{\"y\":1}}", "{\"a\":{\"x\": null}}"}},
    };
    const fixture_t *fixture = *state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(cases); i++) {
        weft_diag_t diag = {0};
        text_grammar_t *grammar = NULL;
        if (text_grammar_create(fixture->factory, TEXT_GRAMMAR_JSON_SCHEMA, cases[i].source,
                                strlen(cases[i].source), &cases[i].options, &diag, &grammar) < 0) {
            fail_msg("case %zu: %s", i, diag.text);
        }
        for (size_t k = 0; k < 3; k++) {
            if (cases[i].taken[k] != NULL && !takes(fixture, grammar, cases[i].taken[k])) {
                fail_msg("case %zu: %s is not taken", i, cases[i].taken[k]);
            }
            if (cases[i].refused[k] != NULL && takes(fixture, grammar, cases[i].refused[k])) {
                fail_msg("case %zu: %s is taken", i, cases[i].refused[k]);
            }
        }
        text_grammar_destroy(grammar);
    }
}

/* prefix, then n times middle, then n times end. */
static char *nest(const char *prefix, const char *middle, const char *end, size_t n)
{
    size_t length = strlen(prefix) + n * (strlen(middle) + strlen(end));
    char *source = weft_alloc(length + 1, "test.source");
    char *at = source + sprintf(source, "%s", prefix);
    for (size_t i = 0; i < n; i++) {
        at += sprintf(at, "%s", middle);
    }
    for (size_t i = 0; i < n; i++) {
        at += sprintf(at, "%s", end);
    }
    return source;
}

static char *chain_of_references(size_t n)
{
    char *source = weft_alloc(n * 64 + 256, "test.source");
    char *at = source + sprintf(source, "{\"$ref\":\"#/$defs/a0\",\"$defs\":{");
    for (size_t i = 0; i < n; i++) {
        at += sprintf(at, "\"a%zu\":{\"allOf\":[{\"$ref\":\"#/$defs/a%zu\"}]},", i, i + 1);
    }
    sprintf(at, "\"a%zu\":{\"type\":\"string\"}}}", n);
    return source;
}

static char *chain_of_rules(size_t n)
{
    char *source = weft_alloc(n * 32 + 256, "test.source");
    char *at = source + sprintf(source, "root ::= r0\n");
    for (size_t i = 0; i < n; i++) {
        at += sprintf(at, "r%zu ::= r%zu\n", i, i + 1);
    }
    sprintf(at, "r%zu ::= \"a\"\n", n);
    return source;
}

static void answer_or_refuse(const fixture_t *fixture, text_grammar_kind_t kind, char *source)
{
    weft_diag_t diag = {0};
    text_grammar_t *grammar = NULL;
    text_matcher_t *matcher = NULL;
    uint32_t mask[WORDS];
    weft_status_t status =
        text_grammar_create(fixture->factory, kind, source, strlen(source), NULL, &diag, &grammar);
    if (status == WEFT_OK) {
        assert_status(text_matcher_create(grammar, &matcher), WEFT_OK);
        status = text_matcher_mask(matcher, mask, WORDS, &diag);
    }
    print_message("%.40s... %s %s\n", source, weft_status_name(status), diag.text);
    assert_true(status == WEFT_OK || status == WEFT_ERR_INVALID || status == WEFT_ERR_TOO_LARGE);
    assert_true(status == WEFT_OK || diag.text[0] != '\0');
    text_matcher_destroy(matcher);
    text_grammar_destroy(grammar);
    weft_free(source);
}

static void hostile_grammars_are_answered_or_refused(void **state)
{
    static const char *const regexes[] = {
        "((a{1000}){1000}){1000}",
        ".{1000000}",
        "(a|aa)*b",
        "(.*a){50}",
        "(?:(?:(?:\\p{L}{1,200}){1,200}){1,200})",
        "(a?){5000}a{5000}",
    };
    const fixture_t *fixture = *state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(regexes); i++) {
        answer_or_refuse(fixture, TEXT_GRAMMAR_REGEX, weft_strdup(regexes[i], "test.source"));
    }
    answer_or_refuse(fixture, TEXT_GRAMMAR_REGEX, nest("", "(", "a)", 100000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_REGEX, nest("a", "b?", "c?", 50000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_LARK, nest("start: ", "(", "\"a\")", 100000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_LARK, nest("start: \"a\"", "?", "*", 100000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_LARK, nest("root ::= ", "(", "\"a\")", 100000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_LARK, nest("root ::= \"a\"", "?", "*", 100000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_JSON_SCHEMA,
                     nest("", "{\"type\":\"array\",\"items\":", "}", 10000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_JSON_SCHEMA,
                     nest("{\"items\":{}", ",\"not\":{\"type\":\"string\"}", "", 5000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_LARK, chain_of_rules(10));
    answer_or_refuse(fixture, TEXT_GRAMMAR_LARK, chain_of_rules(30000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_JSON_SCHEMA, chain_of_references(10));
    answer_or_refuse(fixture, TEXT_GRAMMAR_JSON_SCHEMA, chain_of_references(9000));
    answer_or_refuse(fixture, TEXT_GRAMMAR_JSON_SCHEMA,
                     weft_strdup("{\"type\":\"string\",\"minLength\":1000000000}", "test.source"));
    answer_or_refuse(fixture, TEXT_GRAMMAR_JSON_SCHEMA,
                     weft_strdup("{\"type\":\"array\",\"minItems\":100000000}", "test.source"));
    answer_or_refuse(fixture, TEXT_GRAMMAR_LARK,
                     weft_strdup("root ::= a a\na ::= b b b b\nb ::= c c c c\nc ::= d d d d\n"
                                 "d ::= e e e e\ne ::= f f f f\nf ::= g g g g\ng ::= h h h h\n"
                                 "h ::= i i i i\ni ::= j j j j\nj ::= k k k k\nk ::= \"xxxx\"\n",
                                 "test.source"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_schema_walks_validate),
        cmocka_unit_test(json_object_walks_parse),
        cmocka_unit_test(regex_walks_match),
        cmocka_unit_test(choice_walks_choose),
        cmocka_unit_test(lark_walks_parse),
        cmocka_unit_test(gbnf_walks_parse),
        cmocka_unit_test(gbnf_without_recursion_is_exact),
        cmocka_unit_test(a_token_that_is_not_allowed_is_refused_and_changes_nothing),
        cmocka_unit_test(unusable_grammars_are_refused_with_a_line),
        cmocka_unit_test(options_say_where_blanks_and_other_properties_may_be),
        cmocka_unit_test(hostile_grammars_are_answered_or_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
