// SPDX-License-Identifier: Apache-2.0
//! Mistral: [TOOL_CALLS] before a JSON array of calls (up to version 7 of its tokenizer), or before
//! each name{arguments} (from version 11), perhaps with [CALL_ID]… and [ARGS] after the name.

use super::calls;
use super::tools::{Call, Step, ToolFormat};

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
        let step = if rest.starts_with('[') { array(rest) } else { named(rest) };
        match step {
            Step::More if is_last => Step::Text(text.len()),
            Step::More => Step::More,
            Step::Calls(length, calls) => Step::Calls(begin + length, calls),
            Step::Text(length) => Step::Text(begin + length),
        }
    }
}

fn array(text: &str) -> Step {
    match calls::end_of_value(text) {
        None => Step::More,
        Some(end) => match calls::from_array(&text[..end]) {
            Some(calls) => Step::Calls(end, calls),
            None => Step::Text(end),
        },
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
    match calls::end_of_value(&text[begin..]) {
        None => Step::More,
        Some(end) if calls::is_object(&text[begin..begin + end]) => {
            let arguments = text[begin..begin + end].to_owned();
            Step::Calls(begin + end, vec![Call { name: name.to_owned(), arguments }])
        }
        Some(end) => Step::Text(begin + end),
    }
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
