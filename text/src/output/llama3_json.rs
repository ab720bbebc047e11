// SPDX-License-Identifier: Apache-2.0
//! Llama 3.1 and 3.2: an answer that is {"name": …, "parameters": {…}}, several with ";" or ","
//! between them, after <|python_tag|> or without it.

use super::calls::{self, Head};
use super::tools::{Step, ToolFormat};

const TAG: &str = "<|python_tag|>";

pub struct Llama3Json;

impl ToolFormat for Llama3Json {
    fn marks(&self) -> &'static [&'static str] {
        &[TAG]
    }

    fn first_marks(&self) -> &'static [&'static str] {
        &["{"]
    }

    fn ends(&self) -> &'static [char] {
        &['}', '{']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        let call = skip(text, &[TAG]);
        let front = text.len() - call.len();
        if call.is_empty() && !is_last {
            return Step::More;
        }
        if call.starts_with('{') {
            return object(call, is_last).behind(front);
        }
        Step::Text(front.max(1))
    }
}

fn object(text: &str, is_last: bool) -> Step {
    match calls::head(text) {
        Head::Begun(at, name) => return Step::Begin(at, name, Some(behind)),
        Head::More if !is_last => return Step::More,
        _ => {}
    }
    match calls::end_of_value(text) {
        None if is_last => Step::Text(text.len()),
        None => Step::More,
        Some(end) => match calls::from_bare_json(&text[..end]) {
            Some(call) => Step::Calls(end, vec![call], Some(separator)),
            None => Step::Text(end),
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

/// What is no further call is content, the separator too.
fn separator(text: &str, is_last: bool) -> Step {
    let next = skip(text, &[";", ","]);
    if next.is_empty() && !is_last {
        return Step::More;
    }
    if !next.starts_with('{') {
        return Step::end(0);
    }
    match object(next, is_last) {
        Step::Text(_) => Step::end(0),
        step => step.behind(text.len() - next.len()),
    }
}

/// Blanks, then one of the words if there is one, then blanks.
fn skip<'a>(text: &'a str, words: &[&str]) -> &'a str {
    let text = text.trim_start();
    words.iter().find_map(|word| text.strip_prefix(word)).unwrap_or(text).trim_start()
}
