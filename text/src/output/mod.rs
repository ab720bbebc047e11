// SPDX-License-Identifier: Apache-2.0
//! What a model said, taken apart while it says it: reasoning, content, tool calls. The answer does
//! not depend on where the pieces of text end. A tool call that is malformed before its arguments
//! begin is content.

mod calls;
mod deepseek_v3;
mod hermes;
mod llama3_json;
mod mistral;
mod pythonic;
mod qwen3_coder;
mod reasoning;
mod tools;

use std::ffi::CStr;

use crate::error::{fail, Result};
use reasoning::{Reasoning, ReasoningRow};
use tools::{ToolFormat, Tools};

/// text_delta_kind_t.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeltaKind {
    Content,
    Reasoning,
    ToolBegin,
    ToolArguments,
}

#[derive(Debug)]
pub struct Delta {
    pub kind: DeltaKind,
    pub tool: u32,
    pub text: String,
}

/// signs: a chat template that has all of one group was made for this format. Earlier rows win.
struct ToolRow {
    name: &'static CStr,
    signs: &'static [&'static [&'static str]],
    format: &'static dyn ToolFormat,
}

static TOOLS: &[ToolRow] = &[
    ToolRow {
        name: c"qwen3_coder",
        signs: &[&["<function=", "<parameter="]],
        format: &qwen3_coder::Qwen3Coder,
    },
    ToolRow { name: c"qwen3_xml", signs: &[], format: &qwen3_coder::Qwen3Coder },
    ToolRow { name: c"hermes", signs: &[&["<tool_call>"]], format: &hermes::Hermes },
    ToolRow { name: c"mistral", signs: &[&["[TOOL_CALLS]"]], format: &mistral::Mistral },
    ToolRow {
        name: c"llama3_json",
        signs: &[&["<|python_tag|>"], &["{\"name\": function name, \"parameters\""]],
        format: &llama3_json::Llama3Json,
    },
    ToolRow {
        name: c"deepseek_v3",
        signs: &[&["<｜tool▁call▁begin｜>", "```json"]],
        format: &deepseek_v3::DeepSeekV3,
    },
    ToolRow {
        name: c"pythonic",
        signs: &[&["[func_name1(params_name1=params_value1"]],
        format: &pythonic::Pythonic,
    },
];

pub struct Output {
    reasoning: Option<Reasoning>,
    tools: Option<Tools>,
}

impl Output {
    pub fn new(tools: Option<&str>, reasoning: Option<&str>, starts_inside: bool) -> Result<Self> {
        let tools = match tools {
            Some(name) => match TOOLS.iter().find(|row| row.name.to_bytes() == name.as_bytes()) {
                Some(row) => Some(Tools::new(row.format)),
                None => return unknown("tool", name, TOOLS.iter().map(|row| row.name)),
            },
            None => None,
        };
        let rows = reasoning::ROWS;
        let reasoning = match reasoning {
            Some(name) => match rows.iter().find(|row| row.name.to_bytes() == name.as_bytes()) {
                Some(row) => Some(Reasoning::new(row, starts_inside)),
                None => return unknown("reasoning", name, rows.iter().map(|row| row.name)),
            },
            None => None,
        };
        Ok(Output { reasoning, tools })
    }

    pub fn push(&mut self, text: &str, is_last: bool) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let content = match &mut self.reasoning {
            Some(reasoning) => reasoning.push(text, is_last, &mut deltas),
            None => text.to_owned(),
        };
        match &mut self.tools {
            Some(tools) => tools.push(&content, is_last, &mut deltas),
            None => push_delta(&mut deltas, DeltaKind::Content, 0, &content),
        }
        deltas
    }
}

fn push_delta(deltas: &mut Vec<Delta>, kind: DeltaKind, tool: u32, text: &str) {
    if !text.is_empty() {
        deltas.push(Delta { kind, tool, text: text.to_owned() });
    }
}

fn unknown<T>(what: &str, name: &str, known: impl Iterator<Item = &'static CStr>) -> Result<T> {
    let known: Vec<_> = known.map(CStr::to_string_lossy).collect();
    fail!(NotFound, "{what} parser {name:?} does not exist (known: {})", known.join(", "))
}

pub fn guess_tools(template: &str) -> Option<&'static CStr> {
    let fits = |row: &&ToolRow| {
        row.signs.iter().any(|group| group.iter().all(|sign| template.contains(sign)))
    };
    TOOLS.iter().find(fits).map(|row| row.name)
}

pub fn guess_reasoning(template: &str) -> Option<&'static CStr> {
    let fits = |row: &&ReasoningRow| row.signs.iter().any(|sign| template.contains(sign));
    reasoning::ROWS.iter().find(fits).map(|row| row.name)
}

/// How many of the last bytes may be the beginning of one of the marks.
fn held(text: &str, marks: &[&str]) -> usize {
    let longest = marks.iter().map(|mark| mark.len() - 1).max().unwrap_or(0).min(text.len());
    (1..=longest)
        .rev()
        .find(|&length| {
            let tail = &text.as_bytes()[text.len() - length..];
            marks.iter().any(|mark| mark.len() > length && mark.as_bytes().starts_with(tail))
        })
        .unwrap_or(0)
}
