// SPDX-License-Identifier: Apache-2.0
//! Finds tool calls in content. A call is given out when it is complete, because only then it is
//! known to be one.

use super::{held, push_delta, Delta, DeltaKind};

#[derive(Debug, PartialEq)]
pub struct Call {
    pub name: String,
    /// JSON of an object, as the model wrote it.
    pub arguments: String,
}

/// What stands at a mark. A length is in bytes, from the mark's first.
#[derive(Debug, PartialEq)]
pub enum Step {
    More,
    Calls(usize, Vec<Call>),
    /// No call: this much is content.
    Text(usize),
}

/// A way of writing tool calls. What parse says of a text it must also say of every longer one,
/// unless it says More; of the last text it must not say More.
pub trait ToolFormat: Sync {
    /// Where calls begin.
    fn marks(&self) -> &'static [&'static str];
    /// Where calls begin only at the beginning of the content.
    fn first_marks(&self) -> &'static [&'static str] {
        &[]
    }
    /// parse is asked again when one of these came.
    fn ends(&self) -> &'static [char];
    fn parse(&self, text: &str, is_last: bool) -> Step;
}

pub struct Tools {
    format: &'static dyn ToolFormat,
    /// Text that is not yet given out; begins with a mark when `is_waiting`.
    pending: String,
    is_waiting: bool,
    /// No words so far, or none after a call; the blanks are in `blanks`.
    is_begin: bool,
    blanks: String,
    calls: u32,
}

impl Tools {
    pub fn new(format: &'static dyn ToolFormat) -> Self {
        Tools {
            format,
            pending: String::new(),
            is_waiting: false,
            is_begin: true,
            blanks: String::new(),
            calls: 0,
        }
    }

    pub fn push(&mut self, text: &str, is_last: bool, deltas: &mut Vec<Delta>) {
        self.pending.push_str(text);
        if self.is_waiting && !is_last && !text.contains(self.format.ends()) {
            return;
        }
        self.is_waiting = false;
        while !self.pending.is_empty() && !self.is_waiting {
            match self.find_mark() {
                Some(at) => {
                    self.give_text(at, deltas);
                    self.take_mark(is_last, deltas);
                }
                None => {
                    let settled = if is_last { self.pending.len() } else { self.settled() };
                    self.give_text(settled, deltas);
                    break;
                }
            }
        }
        if is_last && self.calls == 0 {
            push_delta(deltas, DeltaKind::Content, 0, &std::mem::take(&mut self.blanks));
        }
    }

    fn find_mark(&self) -> Option<usize> {
        let words = self.pending.trim_start();
        if self.is_begin && self.format.first_marks().iter().any(|mark| words.starts_with(mark)) {
            return Some(self.pending.len() - words.len());
        }
        self.format.marks().iter().filter_map(|mark| self.pending.find(mark)).min()
    }

    /// Bytes that cannot belong to a mark whose rest is still to come.
    fn settled(&self) -> usize {
        let words = self.pending.trim_start();
        let may_be_first = |mark: &&str| mark.starts_with(words);
        if self.is_begin && self.format.first_marks().iter().any(may_be_first) {
            return self.pending.len() - words.len();
        }
        self.pending.len() - held(&self.pending, self.format.marks())
    }

    fn take_mark(&mut self, is_last: bool, deltas: &mut Vec<Delta>) {
        match self.format.parse(&self.pending, is_last) {
            Step::More if is_last => self.give_words(self.pending.len(), deltas),
            Step::More => self.is_waiting = true,
            Step::Text(length) => self.give_words(length, deltas),
            Step::Calls(length, calls) => {
                for call in calls {
                    push_delta(deltas, DeltaKind::ToolBegin, self.calls, &call.name);
                    push_delta(deltas, DeltaKind::ToolArguments, self.calls, &call.arguments);
                    self.calls += 1;
                }
                self.pending.drain(..length);
                self.blanks.clear();
                self.is_begin = true;
            }
        }
    }

    /// Blanks before and between calls are nobody's words; they come out with words that follow.
    fn give_text(&mut self, length: usize, deltas: &mut Vec<Delta>) {
        if self.is_begin && self.pending[..length].trim().is_empty() {
            self.blanks.extend(self.pending.drain(..length));
            return;
        }
        self.give_words(length, deltas);
    }

    fn give_words(&mut self, length: usize, deltas: &mut Vec<Delta>) {
        push_delta(deltas, DeltaKind::Content, 0, &std::mem::take(&mut self.blanks));
        push_delta(deltas, DeltaKind::Content, 0, &self.pending[..length]);
        self.pending.drain(..length);
        self.is_begin = false;
    }
}
