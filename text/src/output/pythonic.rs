// SPDX-License-Identifier: Apache-2.0
//! Llama 3.2 and 4: an answer that is a Python list of calls, [f(a="x", b=[1, True])].

use serde_json::{Map, Number, Value};

use super::calls;
use super::tools::{Call, Step, ToolFormat};

const MAX_DEPTH: usize = 64;

pub struct Pythonic;

impl ToolFormat for Pythonic {
    fn marks(&self) -> &'static [&'static str] {
        &[]
    }

    fn first_marks(&self) -> &'static [&'static str] {
        &["["]
    }

    fn ends(&self) -> &'static [char] {
        &[']']
    }

    fn parse(&self, text: &str, is_last: bool) -> Step {
        // A list is over where its bracket closes; quotes may hold brackets, so each is tried.
        for (at, _) in text.match_indices(']') {
            let mut parser = Parser { rest: &text[..=at] };
            if let Some(calls) = parser.calls().filter(|_| parser.rest.is_empty()) {
                return Step::Calls(at + 1, calls, None);
            }
        }
        if is_last {
            Step::Text(text.len())
        } else {
            Step::More
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, word: &str) -> bool {
        let rest = self.rest.trim_start();
        match rest.strip_prefix(word) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn name(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c| !calls::is_name_char(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        calls::is_name(name).then(|| name.to_owned())
    }

    fn calls(&mut self) -> Option<Vec<Call>> {
        let mut calls = Vec::new();
        if !self.eat("[") {
            return None;
        }
        loop {
            calls.push(self.call()?);
            if !self.eat(",") {
                return self.eat("]").then_some(calls);
            }
        }
    }

    fn call(&mut self) -> Option<Call> {
        let name = self.name()?;
        let mut arguments = Map::new();
        if !self.eat("(") {
            return None;
        }
        while !self.eat(")") {
            if !arguments.is_empty() && !self.eat(",") {
                return None;
            }
            let key = self.name()?;
            if !self.eat("=") {
                return None;
            }
            arguments.insert(key, self.value(0)?);
        }
        Some(Call { name, arguments: Value::Object(arguments).to_string() })
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            _ if depth > MAX_DEPTH => None,
            '"' | '\'' => self.string().map(Value::String),
            '[' => {
                self.eat("[");
                self.items("]", |parser| parser.value(depth + 1)).map(Value::Array)
            }
            '{' => {
                self.eat("{");
                let members = self.items("}", |parser| {
                    let key = parser.string()?;
                    parser.eat(":").then(|| parser.value(depth + 1)).flatten().map(|v| (key, v))
                })?;
                Some(Value::Object(members.into_iter().collect()))
            }
            _ => self.word(),
        }
    }

    fn items<T>(
        &mut self,
        end: &str,
        mut item: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut items = Vec::new();
        while !self.eat(end) {
            if !items.is_empty() && !self.eat(",") {
                return None;
            }
            items.push(item(self)?);
        }
        Some(items)
    }

    fn word(&mut self) -> Option<Value> {
        let end = self.rest.find([',', ')', ']', '}', ':']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word.trim() {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            word => word.parse::<Number>().ok().map(Value::Number),
        }
    }

    fn string(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let mut text = String::new();
        let mut characters = self.rest[1..].char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => match characters.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    c @ ('\\' | '\'' | '"') => text.push(c),
                    c => text.extend(['\\', c]),
                },
                c if c == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        None
    }
}
