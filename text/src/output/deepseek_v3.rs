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
        &['>', '{']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        match head(&text[BEGIN.len()..]) {
            Ok((at, name)) => return Step::Begin(BEGIN.len() + at, name, Some(behind)),
            Err(true) if !is_last => return Step::More,
            Err(_) => {}
        }
        let (body_end, end) = match text.find(END) {
            Some(at) => (at, at + END.len()),
            None if is_last => (text.len(), text.len()),
            None => return Step::More,
        };
        let written = text[BEGIN.len()..body_end].split(CALL_BEGIN).skip(1);
        match written.map(call).collect::<Option<Vec<Call>>>() {
            Some(calls) if !calls.is_empty() => Step::Calls(end, calls, None),
            _ => Step::Text(end),
        }
    }
}

/// Name and place of the arguments' object. Err(true): only the end is missing.
fn head(text: &str) -> Result<(usize, String), bool> {
    let rest = calls::expect(text, CALL_BEGIN)?;
    let kind = rest.find(|c| !calls::is_name_char(c)).unwrap_or(rest.len());
    let rest = calls::expect(&rest[kind..], SEPARATOR)?;
    let Some((name, rest)) = rest.split_once('\n') else {
        let may_come = rest.trim().chars().all(calls::is_name_char);
        return Err(may_come);
    };
    let rest = calls::expect(rest, "```json")?.trim_start();
    calls::expect(rest, "{")?;
    match calls::is_name(name.trim()) {
        true => Ok((text.len() - rest.len(), name.trim().to_owned())),
        false => Err(false),
    }
}

fn behind(text: &str, is_last: bool) -> Step {
    let after = calls::expect(text, "```").and_then(|rest| calls::expect(rest, CALL_END));
    match after {
        Ok(rest) => next(rest, is_last).behind(text.len() - rest.len()),
        Err(true) if is_last => Step::end(text.len()),
        Err(true) => Step::More,
        Err(false) => Step::end(0),
    }
}

/// Another call, or the end mark; what is neither is content.
fn next(text: &str, is_last: bool) -> Step {
    match (calls::expect(text, END), head(text)) {
        (Ok(rest), _) => Step::end(text.len() - rest.len()),
        (_, Ok((at, name))) => Step::Begin(at, name, Some(behind)),
        (Err(true), _) if is_last => Step::end(text.len()),
        (Err(true), _) | (_, Err(true)) if !is_last => Step::More,
        _ => Step::end(0),
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
