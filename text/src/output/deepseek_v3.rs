// SPDX-License-Identifier: Apache-2.0
//! DeepSeek V3 and R1: between <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>, for each call
//! <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME, a fence with the JSON, <｜tool▁call▁end｜>.

use super::calls;
use super::tools::{Call, Step, ToolFormat};

const BEGIN: &str = "<｜tool▁calls▁begin｜>";
const END: &str = "<｜tool▁calls▁end｜>";
const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
const CALL_END: &str = "<｜tool▁call▁end｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";

pub struct DeepSeekV3;

impl ToolFormat for DeepSeekV3 {
    fn marks(&self) -> &'static [&'static str] {
        &[BEGIN]
    }

    fn ends(&self) -> &'static [char] {
        &['>']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        let (body_end, end) = match text.find(END) {
            Some(at) => (at, at + END.len()),
            None if is_last => (text.len(), text.len()),
            None => return Step::More,
        };
        let written = text[BEGIN.len()..body_end].split(CALL_BEGIN).skip(1);
        match written.map(call).collect::<Option<Vec<Call>>>() {
            Some(calls) if !calls.is_empty() => Step::Calls(end, calls),
            _ => Step::Text(end),
        }
    }
}

fn call(text: &str) -> Option<Call> {
    let (_, text) = text.split_once(SEPARATOR)?;
    let (name, text) = text.split_once('\n')?;
    let text = text.split_once(CALL_END).map_or(text, |(text, _)| text);
    let json = text.trim().strip_prefix("```json")?.strip_suffix("```")?.trim();
    let is_call = calls::is_name(name.trim()) && calls::is_object(json);
    is_call.then(|| Call { name: name.trim().to_owned(), arguments: json.to_owned() })
}
