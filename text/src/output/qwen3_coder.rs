// SPDX-License-Identifier: Apache-2.0
//! Qwen3-Coder: <tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>.
//! A value that is JSON but not a JSON string is taken as that; every other is a string.

use serde_json::{Map, Value};

use super::calls;
use super::tools::{Call, Step, ToolFormat};

const BEGIN: &str = "<tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const END: &str = "</tool_call>";

pub struct Qwen3Coder;

impl ToolFormat for Qwen3Coder {
    fn marks(&self) -> &'static [&'static str] {
        &[BEGIN, FUNCTION]
    }

    fn ends(&self) -> &'static [char] {
        &['>']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        let is_wrapped = text.starts_with(BEGIN);
        let inside = if is_wrapped { text[BEGIN.len()..].trim_start() } else { text };
        let begin = text.len() - inside.len();
        if !inside.starts_with(FUNCTION) {
            let may_come = FUNCTION.starts_with(inside) && !is_last;
            return if may_come { Step::More } else { Step::Text(begin) };
        }
        // What belongs to the call ends with the end mark, which a function without wrapper lacks.
        let end_mark = if is_wrapped { END } else { FUNCTION_END };
        let (body_end, end) = match (inside.find(FUNCTION_END), inside.find(end_mark)) {
            (Some(body), Some(end)) => (body, end + end_mark.len()),
            (Some(body), None) if is_last => (body, inside.len()),
            _ if is_last => return Step::Text(text.len()),
            _ => return Step::More,
        };
        match function(&inside[FUNCTION.len()..body_end]) {
            Some(call) => Step::Calls(begin + end, vec![call], None),
            None => Step::Text(begin + end),
        }
    }
}

fn function(text: &str) -> Option<Call> {
    let (name, mut rest) = text.split_once('>')?;
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            break;
        }
        let (key, after) = rest.strip_prefix("<parameter=")?.split_once('>')?;
        let (value, after) = after.split_once("</parameter>")?;
        arguments.insert(key.trim().to_owned(), value_of(value));
        rest = after;
    }
    let name = name.trim();
    let arguments = Value::Object(arguments).to_string();
    calls::is_name(name).then(|| Call { name: name.to_owned(), arguments })
}

fn value_of(text: &str) -> Value {
    let text = text.strip_prefix('\n').unwrap_or(text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    match serde_json::from_str(text) {
        Ok(Value::String(_)) | Err(_) => Value::String(text.to_owned()),
        Ok(value) => value,
    }
}
