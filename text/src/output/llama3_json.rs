// SPDX-License-Identifier: Apache-2.0
//! Llama 3.1 and 3.2: an answer that is {"name": …, "parameters": {…}}, several with ";" or ","
//! between them, after <|python_tag|> or without it.

use super::calls;
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
        &['}']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        let mut found = Vec::new();
        let mut taken = 0;
        let mut rest = skip(text, &[TAG]);
        loop {
            let at = text.len() - rest.len();
            let Some(end) = calls::end_of_value(rest).filter(|_| rest.starts_with('{')) else {
                let may_come = rest.is_empty() || rest.starts_with('{');
                return match found.is_empty() {
                    _ if may_come && !is_last => Step::More,
                    true if may_come => Step::Text(text.len()),
                    true => Step::Text(at.max(1)),
                    false => Step::Calls(taken, found),
                };
            };
            match calls::from_bare_json(&rest[..end]) {
                Some(call) => found.push(call),
                None if found.is_empty() => return Step::Text(at + end),
                None => return Step::Calls(taken, found),
            }
            taken = at + end;
            rest = skip(&rest[end..], &[";", ","]);
        }
    }
}

/// Blanks, then one of the words if there is one, then blanks.
fn skip<'a>(text: &'a str, words: &[&str]) -> &'a str {
    let text = text.trim_start();
    words.iter().find_map(|word| text.strip_prefix(word)).unwrap_or(text).trim_start()
}
