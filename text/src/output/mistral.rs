// SPDX-License-Identifier: Apache-2.0
//! Mistral: [TOOL_CALLS] before a JSON array of calls (up to version 7 of its tokenizer), or before
//! each name{arguments} (from version 11), perhaps with [CALL_ID]… and [ARGS] after the name.

use super::calls::{self, Head};
use super::tools::{Step, ToolFormat};

const MARK: &str = "[TOOL_CALLS]";

pub struct Mistral;

impl ToolFormat for Mistral {
    fn marks(&self) -> &'static [&'static str] {
        &[MARK]
    }

    fn ends(&self) -> &'static [char] {
        &[']', '}', '{']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        let rest = text[MARK.len()..].trim_start();
        let begin = text.len() - rest.len();
        let step = match rest.strip_prefix('[') {
            Some(array) => first(array, is_last).behind(1),
            None => named(rest),
        };
        match step {
            Step::More if is_last => Step::Text(text.len()),
            step => step.behind(begin),
        }
    }
}

fn first(text: &str, is_last: bool) -> Step {
    match calls::expect(text, "]") {
        Ok(rest) => Step::end(text.len() - rest.len()),
        Err(true) => Step::More,
        Err(false) => object(text, is_last),
    }
}

fn object(text: &str, is_last: bool) -> Step {
    match calls::head(text) {
        Head::Begun(at, name) => return Step::Begin(at, name, Some(behind)),
        Head::More if !is_last => return Step::More,
        _ => {}
    }
    match calls::end_of_value(text) {
        None => Step::More,
        Some(end) => match calls::from_json(&text[..end]) {
            Ok(call) => Step::Calls(end, vec![call], Some(separator)),
            Err(_) => Step::Text(end),
        },
    }
}

fn behind(text: &str, is_last: bool) -> Step {
    match calls::behind_object(text) {
        Ok("") if is_last => Step::end(text.len()),
        Ok(rest) => separator(rest, is_last).behind(text.len() - rest.len()),
        Err(true) if is_last => Step::end(text.len()),
        Err(true) => Step::More,
        Err(false) => Step::end(0),
    }
}

/// The array goes on or ends; what is no call is content.
fn separator(text: &str, is_last: bool) -> Step {
    let next = match (calls::expect(text, "]"), calls::expect(text, ",")) {
        (Ok(rest), _) => return Step::end(text.len() - rest.len()),
        (_, Ok(next)) => next,
        (Err(true), _) if is_last => return Step::end(text.len()),
        (Err(true), _) => return Step::More,
        _ => return Step::end(0),
    };
    match object(next, is_last) {
        Step::More if is_last && next.trim().is_empty() => Step::end(text.len()),
        Step::More if is_last => Step::end(0),
        Step::Text(_) => Step::end(0),
        step => step.behind(text.len() - next.len()),
    }
}

fn named(text: &str) -> Step {
    let length = text.find(|c| !calls::is_name_char(c)).unwrap_or(text.len());
    let name = &text[..length];
    let Some(begin) = text.find('{') else {
        // Until the arguments come there may only be the name and bracketed words.
        let is_possible = length == text.len() || text[length..].trim_start().starts_with('[');
        return if is_possible || text[length..].trim().is_empty() {
            Step::More
        } else {
            Step::Text(length)
        };
    };
    if !calls::is_name(name) || !are_marks(&text[length..begin]) {
        return Step::Text(length);
    }
    Step::Begin(begin, name.to_owned(), None)
}

/// What may stand between name and arguments: nothing, [ARGS], or [CALL_ID] with its id.
fn are_marks(text: &str) -> bool {
    let text = text.trim();
    let text = text.strip_suffix("[ARGS]").unwrap_or(text);
    match text.strip_prefix("[CALL_ID]") {
        Some(id) => id.chars().all(calls::is_name_char),
        None => text.is_empty(),
    }
}
