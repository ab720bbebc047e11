// SPDX-License-Identifier: Apache-2.0
//! Hermes 2 Pro, Qwen2.5, Qwen3: <tool_call>{"name": …, "arguments": {…}}</tool_call>.

use super::calls;
use super::tools::{Step, ToolFormat};

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

pub struct Hermes;

impl ToolFormat for Hermes {
    fn marks(&self) -> &'static [&'static str] {
        &[BEGIN]
    }

    fn ends(&self) -> &'static [char] {
        &['>']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        // The end mark may also stand in a string of the JSON: then that is not finished there.
        for (end, _) in text.match_indices(END) {
            match calls::from_json(&text[BEGIN.len()..end]) {
                Ok(call) => return Step::Calls(end + END.len(), vec![call]),
                Err(true) => {}
                Err(false) => return Step::Text(end + END.len()),
            }
        }
        if !is_last {
            return Step::More;
        }
        match calls::from_json(&text[BEGIN.len()..]) {
            Ok(call) => Step::Calls(text.len(), vec![call]),
            Err(_) => Step::Text(text.len()),
        }
    }
}
