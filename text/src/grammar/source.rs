// SPDX-License-Identifier: Apache-2.0
//! What a request gives as its grammar, made into llguidance's own kinds.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{json, Value};

use super::{gbnf, GrammarKind, Options};
use crate::error::{fail, Error, Result, Status};

const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Parsers recurse at open brackets.
const MAX_NESTING: usize = 200;

pub fn read(kind: GrammarKind, source: &str, options: &Options) -> Result<TopLevelGrammar> {
    if source.len() > MAX_SOURCE_BYTES {
        return fail!(
            TooLarge,
            "grammar: {} bytes, at most {MAX_SOURCE_BYTES} are taken",
            source.len()
        );
    }
    let grammar = match kind {
        GrammarKind::JsonObject => {
            GrammarWithLexer::from_json_schema(spaced(json!({"type": "object"}), options)?)
        }
        GrammarKind::JsonSchema => {
            let mut schema = parse_json(source)?;
            if options.is_closed {
                close_objects(&mut schema);
            }
            GrammarWithLexer::from_json_schema(spaced(schema, options)?)
        }
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

/// One line end and its indentation, or blanks alone: a small model that starts on a run of line ends
/// seldom stops.
const BLANKS: &str = r"\x0D?\x0A[\x20\x09]{0,32}|[\x20\x09]{1,32}";

/// Says where blanks may stand: as the options say, else as the schema itself does, else BLANKS.
fn spaced(mut schema: Value, options: &Options) -> Result<Value> {
    let blanks = match options.whitespace {
        Some("") => Some(json!({"whitespace_flexible": false})),
        Some(pattern) => {
            check_nesting(pattern)?;
            Some(json!({"whitespace_pattern": pattern}))
        }
        None if options.is_compact => Some(json!({"whitespace_flexible": false})),
        None => None,
    };
    if let Value::Object(members) = &mut schema {
        match blanks {
            Some(blanks) => {
                members.insert("x-guidance".to_owned(), blanks);
            }
            None => {
                members
                    .entry("x-guidance")
                    .or_insert_with(|| json!({"whitespace_pattern": BLANKS}));
            }
        }
    }
    Ok(schema)
}

/// "additionalProperties": false for every object that lists properties and does not say.
fn close_objects(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            for (key, value) in members.iter_mut() {
                match (key.as_str(), value) {
                    ("enum" | "const" | "default" | "examples", _) => {}
                    ("properties" | "patternProperties" | "$defs" | "definitions", map) => {
                        let schemas = map.as_object_mut().into_iter().flatten();
                        schemas.for_each(|(_, schema)| close_objects(schema));
                    }
                    (_, value) => close_objects(value),
                }
            }
            let lists = |name| members.get(name).is_some_and(Value::is_object);
            if lists("properties") || lists("patternProperties") {
                members.entry("additionalProperties").or_insert(Value::Bool(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close_objects),
        _ => {}
    }
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
