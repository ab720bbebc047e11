// SPDX-License-Identifier: Apache-2.0
//! Hermes 2 Pro, Qwen2.5, Qwen3: <tool_call>{"name": …, "arguments": {…}}</tool_call>.

use super::calls::{self, Head};
use super::tools::{Step, ToolFormat};

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

pub struct Hermes;

impl ToolFormat for Hermes {
    fn marks(&self) -> &'static [&'static str] {
        &[BEGIN]
    }

    fn ends(&self) -> &'static [char] {
        &['>', '{']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        match calls::head(&text[BEGIN.len()..]) {
            Head::Begun(at, name) => return Step::Begin(BEGIN.len() + at, name, Some(behind)),
            Head::More if !is_last => return Step::More,
            _ => {}
        }
        // The end mark may also stand in a string of the JSON: then that is not finished there.
        for (end, _) in text.match_indices(END) {
            match calls::from_json(&text[BEGIN.len()..end]) {
                Ok(call) => return Step::Calls(end + END.len(), vec![call], None),
                Err(true) => {}
                Err(false) => return Step::Text(end + END.len()),
            }
        }
        if !is_last {
            return Step::More;
        }
        match calls::from_json(&text[BEGIN.len()..]) {
            Ok(call) => Step::Calls(text.len(), vec![call], None),
            Err(_) => Step::Text(text.len()),
        }
    }
}

/// The rest of the object, which may be missing, and the end mark, which may be too.
fn behind(text: &str, is_last: bool) -> Step {
    let rest = match calls::behind_object(text) {
        Ok(rest) => rest,
        Err(true) if is_last => return Step::end(text.len()),
        Err(true) => return Step::More,
        Err(false) => text,
    };
    match calls::expect(rest, END) {
        Ok(rest) => Step::end(text.len() - rest.len()),
        Err(true) if is_last => Step::end(text.len()),
        Err(true) => Step::More,
        Err(false) => Step::end(text.len() - rest.len()),
    }
}
