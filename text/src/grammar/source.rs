// SPDX-License-Identifier: Apache-2.0
//! What a request gives as its grammar, made into llguidance's own kinds.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{json, Value};

use super::{gbnf, GrammarKind};
use crate::error::{fail, Error, Result, Status};

const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Parsers recurse at open brackets.
const MAX_NESTING: usize = 200;

pub fn read(kind: GrammarKind, source: &str) -> Result<TopLevelGrammar> {
    if source.len() > MAX_SOURCE_BYTES {
        return fail!(
            TooLarge,
            "grammar: {} bytes, at most {MAX_SOURCE_BYTES} are taken",
            source.len()
        );
    }
    let grammar = match kind {
        GrammarKind::JsonObject => {
            GrammarWithLexer::from_json_schema(bounded(json!({"type": "object"})))
        }
        GrammarKind::JsonSchema => GrammarWithLexer::from_json_schema(bounded(parse_json(source)?)),
        GrammarKind::Choice => GrammarWithLexer::from_regex(&choice(&parse_json(source)?)?),
        GrammarKind::Regex => {
            check_nesting(source)?;
            GrammarWithLexer::from_regex(unanchored(source))
        }
        GrammarKind::Lark => {
            check_nesting(source)?;
            GrammarWithLexer::from_lark(match gbnf::is_gbnf(source) {
                true => gbnf::to_lark(source)?,
                false => source.to_owned(),
            })
        }
    };
    Ok(TopLevelGrammar::from_grammar(grammar))
}

fn parse_json(source: &str) -> Result<Value> {
    match serde_json::from_str(source) {
        Ok(value) => Ok(value),
        Err(e) => fail!(Invalid, "grammar: not JSON: {e}"),
    }
}

/// Indentation is taken, a run of line ends is not: a small model that starts one seldom stops.
fn bounded(mut schema: Value) -> Value {
    if let Value::Object(members) = &mut schema {
        members
            .entry("x-guidance")
            .or_insert_with(|| json!({"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}));
    }
    schema
}

fn choice(choices: &Value) -> Result<String> {
    let invalid = || Error::new(Status::Invalid, "grammar: choices are an array of strings");
    let items = choices.as_array().filter(|items| !items.is_empty()).ok_or_else(invalid)?;
    let texts: Option<Vec<String>> =
        items.iter().map(|item| item.as_str().map(gbnf::escape)).collect();
    Ok(texts.ok_or_else(invalid)?.join("|"))
}

/// A whole answer is matched anyway.
fn unanchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

fn check_nesting(source: &str) -> Result<()> {
    let mut depth: usize = 0;
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            return fail!(Invalid, "grammar: brackets nest deeper than {MAX_NESTING}");
        }
    }
    Ok(())
}
