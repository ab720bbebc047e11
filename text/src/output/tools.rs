// SPDX-License-Identifier: Apache-2.0
//! Finds tool calls in content. Until a call's name and the beginning of its arguments are there it
//! may still turn out to be content; from then on it is a call, and its arguments are given out as
//! they come, as the model writes them.

use super::calls::Nesting;
use super::{held, push_delta, Delta, DeltaKind};

#[derive(Debug, PartialEq)]
pub struct Call {
    pub name: String,
    /// JSON of an object, as the model wrote it.
    pub arguments: String,
}

/// Reads on behind a call, as parse does at a mark; must not say Text.
pub type Next = fn(&str, bool) -> Step;

/// What stands at a mark. A length is in bytes, from the mark's first. None: no call follows.
#[derive(Debug)]
pub enum Step {
    More,
    Calls(usize, Vec<Call>, Option<Next>),
    /// The call of this name, whose arguments' object begins here; Next reads behind that.
    Begin(usize, String, Option<Next>),
    /// No call: this much is content.
    Text(usize),
}

impl Step {
    /// Nothing more belongs to the calls.
    pub fn end(length: usize) -> Self {
        Step::Calls(length, Vec::new(), None)
    }

    /// The same, said of a text with this many bytes in front.
    pub fn behind(self, front: usize) -> Self {
        match self {
            Step::More => Step::More,
            Step::Calls(length, calls, next) => Step::Calls(front + length, calls, next),
            Step::Begin(length, name, next) => Step::Begin(front + length, name, next),
            Step::Text(length) => Step::Text(front + length),
        }
    }
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

enum State {
    /// Words, and perhaps the beginning of a mark at their end.
    Text,
    /// `pending` begins with a mark.
    Mark,
    /// `pending` is of a call's arguments.
    Arguments(Nesting, Option<Next>),
    /// `pending` follows a call.
    Behind(Next),
}

pub struct Tools {
    format: &'static dyn ToolFormat,
    state: State,
    /// Text that is not yet given out.
    pending: String,
    /// No words so far, or none after a call; the blanks are in `blanks`.
    is_begin: bool,
    blanks: String,
    calls: u32,
}

impl Tools {
    pub fn new(format: &'static dyn ToolFormat) -> Self {
        Tools {
            format,
            state: State::Text,
            pending: String::new(),
            is_begin: true,
            blanks: String::new(),
            calls: 0,
        }
    }

    pub fn push(&mut self, text: &str, is_last: bool, deltas: &mut Vec<Delta>) {
        self.pending.push_str(text);
        let is_waiting = matches!(self.state, State::Mark);
        if is_waiting && !is_last && !text.contains(self.format.ends()) {
            return;
        }
        while !self.pending.is_empty() && self.settle(is_last, deltas) {}
        if is_last && self.calls == 0 {
            push_delta(deltas, DeltaKind::Content, 0, &std::mem::take(&mut self.blanks));
        }
    }

    /// False: more text has to come.
    fn settle(&mut self, is_last: bool, deltas: &mut Vec<Delta>) -> bool {
        let step = match &mut self.state {
            State::Text => return self.take_text(is_last, deltas),
            State::Mark => self.format.parse(&self.pending, is_last),
            State::Behind(next) => next(&self.pending, is_last),
            State::Arguments(nesting, next) => {
                let (end, next) = (nesting.end(&self.pending), *next);
                let length = end.unwrap_or(self.pending.len());
                push_delta(
                    deltas,
                    DeltaKind::ToolArguments,
                    self.calls - 1,
                    &self.pending[..length],
                );
                self.pending.drain(..length);
                if end.is_some() {
                    self.go_on(next);
                }
                return true;
            }
        };
        self.take_step(step, is_last, deltas)
    }

    fn take_text(&mut self, is_last: bool, deltas: &mut Vec<Delta>) -> bool {
        match self.find_mark() {
            Some(at) => {
                self.give_text(at, deltas);
                self.state = State::Mark;
                true
            }
            None => {
                let settled = if is_last { self.pending.len() } else { self.settled() };
                self.give_text(settled, deltas);
                false
            }
        }
    }

    fn take_step(&mut self, step: Step, is_last: bool, deltas: &mut Vec<Delta>) -> bool {
        match step {
            Step::More if is_last => self.give_words(self.pending.len(), deltas),
            Step::More => return false,
            Step::Text(length) => self.give_words(length, deltas),
            Step::Calls(length, calls, next) => {
                for call in calls {
                    self.begin_call(&call.name, deltas);
                    push_delta(deltas, DeltaKind::ToolArguments, self.calls - 1, &call.arguments);
                }
                self.pending.drain(..length);
                self.blanks.clear();
                self.go_on(next);
            }
            Step::Begin(length, name, next) => {
                self.begin_call(&name, deltas);
                self.pending.drain(..length);
                self.blanks.clear();
                self.state = State::Arguments(Nesting::default(), next);
            }
        }
        true
    }

    fn begin_call(&mut self, name: &str, deltas: &mut Vec<Delta>) {
        push_delta(deltas, DeltaKind::ToolBegin, self.calls, name);
        self.calls += 1;
    }

    /// Behind a call.
    fn go_on(&mut self, next: Option<Next>) {
        self.is_begin = true;
        self.state = next.map_or(State::Text, State::Behind);
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
        self.state = State::Text;
    }
}
