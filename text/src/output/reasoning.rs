// SPDX-License-Identifier: Apache-2.0
//! The thinking block at the beginning of an answer.

use std::ffi::CStr;

use super::{held, push_delta, Delta, DeltaKind};

pub struct ReasoningRow {
    pub name: &'static CStr,
    /// Any of these in a chat template speaks for the row; earlier rows win.
    pub signs: &'static [&'static str],
    open: &'static str,
    close: &'static str,
    /// The opening mark may be missing: an answer begins with reasoning.
    begins_inside: bool,
}

pub const ROWS: &[ReasoningRow] = &[
    ReasoningRow {
        name: c"mistral",
        signs: &["[THINK]"],
        open: "[THINK]",
        close: "[/THINK]",
        begins_inside: false,
    },
    ReasoningRow {
        name: c"deepseek_r1",
        signs: &["<｜Assistant｜><think>"],
        open: "<think>",
        close: "</think>",
        begins_inside: true,
    },
    ReasoningRow {
        name: c"qwen3",
        signs: &["<think>", "</think>"],
        open: "<think>",
        close: "</think>",
        begins_inside: false,
    },
];

enum State {
    /// Nothing but blanks so far; without an opening mark what follows is reasoning or not.
    Begin {
        is_inside: bool,
    },
    Inside,
    After,
}

pub struct Reasoning {
    row: &'static ReasoningRow,
    state: State,
    pending: String,
}

impl Reasoning {
    pub fn new(row: &'static ReasoningRow, starts_inside: bool) -> Self {
        let is_inside = starts_inside || row.begins_inside;
        Reasoning { row, state: State::Begin { is_inside }, pending: String::new() }
    }

    /// Takes text, adds what is reasoning to deltas and returns what is content.
    pub fn push(&mut self, text: &str, is_last: bool, deltas: &mut Vec<Delta>) -> String {
        self.pending.push_str(text);
        if let State::Begin { is_inside } = self.state {
            self.begin(is_inside, is_last);
        }
        if let State::Inside = self.state {
            self.inside(is_last, deltas);
        }
        match self.state {
            State::After => std::mem::take(&mut self.pending),
            _ => String::new(),
        }
    }

    fn begin(&mut self, is_inside: bool, is_last: bool) {
        let words = self.pending.trim_start();
        if let Some(rest) = words.strip_prefix(self.row.open) {
            self.pending = rest.to_owned();
            self.state = State::Inside;
        } else if is_last || !self.row.open.starts_with(words) {
            self.state = if is_inside { State::Inside } else { State::After };
        }
    }

    fn inside(&mut self, is_last: bool, deltas: &mut Vec<Delta>) {
        if let Some(end) = self.pending.find(self.row.close) {
            push_delta(deltas, DeltaKind::Reasoning, 0, &self.pending[..end]);
            self.pending.drain(..end + self.row.close.len());
            self.state = State::After;
            return;
        }
        let kept = if is_last { 0 } else { held(&self.pending, &[self.row.close]) };
        let settled = self.pending.len() - kept;
        push_delta(deltas, DeltaKind::Reasoning, 0, &self.pending[..settled]);
        self.pending.drain(..settled);
    }
}
