// SPDX-License-Identifier: Apache-2.0
//! GBNF (llama.cpp's grammars/README.md) and the EBNF of its kin, translated to Lark. What does not
//! recurse becomes one regular expression, however many rules it is written in; only the recursive
//! rules remain rules.

use std::collections::{HashMap, HashSet};

use crate::error::{fail, Result};

#[derive(Debug)]
enum Node {
    /// A regular expression of one character class or literal.
    Regex(String),
    Rule(String),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    /// (node, least, most)
    Repeat(Box<Node>, u32, Option<u32>),
}

const MAX_REGEX_BYTES: usize = 1 << 20;
const MAX_REPEAT: u32 = 100_000;
/// Of repetitions of repetitions, and of rules that use rules.
const MAX_DEPTH: usize = 400;

pub fn is_gbnf(source: &str) -> bool {
    source.contains("::=")
}

pub fn to_lark(source: &str) -> Result<String> {
    let rules = Parser::new(source).rules()?;
    let names: HashMap<&str, usize> =
        rules.iter().enumerate().map(|(index, (name, _))| (name.as_str(), index)).collect();
    let Some(&root) = names.get("root") else {
        return fail!(Invalid, "grammar: no rule \"root\"");
    };
    for (name, body) in &rules {
        check_names(name, body, &names)?;
    }
    let mut writer =
        Writer { rules: &rules, names: &names, recursive: HashSet::new(), used: 0, depth: 0 };
    writer.recursive = writer.find_recursive();
    let mut lark = format!("start: {}\n", writer.lark(&Node::Rule(rules[root].0.clone()))?);
    let mut recursive: Vec<usize> = writer.recursive.iter().copied().collect();
    recursive.sort_unstable();
    for index in recursive {
        lark += &format!("r{index}: {}\n", writer.lark(&rules[index].1)?);
    }
    Ok(lark)
}

fn check_names(rule: &str, node: &Node, names: &HashMap<&str, usize>) -> Result<()> {
    match node {
        Node::Rule(name) if !names.contains_key(name.as_str()) => {
            fail!(Invalid, "grammar: rule {rule:?} names {name:?}, which does not exist")
        }
        Node::Regex(_) | Node::Rule(_) => Ok(()),
        Node::Sequence(nodes) | Node::Choice(nodes) => {
            nodes.iter().try_for_each(|node| check_names(rule, node, names))
        }
        Node::Repeat(node, ..) => check_names(rule, node, names),
    }
}

/// Literal text as a regular expression.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        push_escaped(character, &mut out);
    }
    out
}

fn push_escaped(character: char, out: &mut String) {
    match character {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c.is_ascii_alphanumeric() || !c.is_ascii() => out.push(c),
        c => out.push_str(&format!("\\x{:02X}", c as u32)),
    }
}

struct Writer<'a> {
    rules: &'a [(String, Node)],
    names: &'a HashMap<&'a str, usize>,
    recursive: HashSet<usize>,
    /// Bytes of regular expressions written so far.
    used: usize,
    depth: usize,
}

impl Writer<'_> {
    /// Rules that reach themselves, or a rule that does.
    fn find_recursive(&self) -> HashSet<usize> {
        let uses: Vec<HashSet<usize>> = self
            .rules
            .iter()
            .map(|(_, body)| {
                let mut used = HashSet::new();
                self.collect(body, &mut used);
                used
            })
            .collect();
        // What is left when rules that use none of the remaining ones are taken away, over and over.
        let mut users = vec![Vec::new(); uses.len()];
        let mut open: Vec<usize> = uses.iter().map(HashSet::len).collect();
        for (index, used) in uses.iter().enumerate() {
            for &rule in used {
                users[rule].push(index);
            }
        }
        let mut flat: Vec<usize> = (0..uses.len()).filter(|&index| open[index] == 0).collect();
        let mut remaining: HashSet<usize> = (0..uses.len()).collect();
        while let Some(index) = flat.pop() {
            remaining.remove(&index);
            for &user in &users[index] {
                open[user] -= 1;
                if open[user] == 0 {
                    flat.push(user);
                }
            }
        }
        remaining
    }

    fn collect(&self, node: &Node, used: &mut HashSet<usize>) {
        match node {
            Node::Regex(_) => {}
            Node::Rule(name) => drop(used.insert(self.names[name.as_str()])),
            Node::Sequence(nodes) | Node::Choice(nodes) => {
                nodes.iter().for_each(|node| self.collect(node, used));
            }
            Node::Repeat(node, ..) => self.collect(node, used),
        }
    }

    fn is_flat(&self, node: &Node) -> bool {
        let mut used = HashSet::new();
        self.collect(node, &mut used);
        used.is_disjoint(&self.recursive)
    }

    fn lark(&mut self, node: &Node) -> Result<String> {
        if self.is_flat(node) {
            let regex = self.regex(node)?;
            return Ok(if regex.is_empty() { "\"\"".into() } else { format!("/{regex}/") });
        }
        match node {
            Node::Regex(_) => self.regex(node),
            Node::Rule(name) => Ok(format!("r{}", self.names[name.as_str()])),
            Node::Choice(nodes) => {
                let parts = nodes.iter().map(|node| self.lark(node)).collect::<Result<Vec<_>>>()?;
                Ok(format!("({})", parts.join(" | ")))
            }
            Node::Sequence(nodes) => self.sequence(nodes),
            Node::Repeat(node, least, most) => {
                let body = self.lark(node)?;
                Ok(format!("({body}){}", bounds(*least, *most)))
            }
        }
    }

    /// Neighbours that do not recurse go into one regular expression.
    fn sequence(&mut self, nodes: &[Node]) -> Result<String> {
        let mut parts = Vec::new();
        let mut run = String::new();
        for node in nodes {
            if self.is_flat(node) {
                run += &self.regex(node)?;
                continue;
            }
            if !run.is_empty() {
                parts.push(format!("/{}/", std::mem::take(&mut run)));
            }
            parts.push(self.lark(node)?);
        }
        if !run.is_empty() {
            parts.push(format!("/{run}/"));
        }
        Ok(parts.join(" "))
    }

    fn regex(&mut self, node: &Node) -> Result<String> {
        let regex = match node {
            Node::Regex(regex) => regex.clone(),
            Node::Rule(name) => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return fail!(TooLarge, "grammar: rules use rules more than {MAX_DEPTH} deep");
                }
                let rules = self.rules;
                let regex = self.regex(&rules[self.names[name.as_str()]].1)?;
                self.depth -= 1;
                regex
            }
            Node::Sequence(nodes) => {
                nodes.iter().map(|node| self.regex(node)).collect::<Result<Vec<_>>>()?.concat()
            }
            Node::Choice(nodes) => {
                let parts =
                    nodes.iter().map(|node| self.regex(node)).collect::<Result<Vec<_>>>()?;
                format!("({})", parts.join("|"))
            }
            Node::Repeat(node, least, most) => {
                format!("({}){}", self.regex(node)?, bounds(*least, *most))
            }
        };
        // Rules that use others twice grow exponentially when written out.
        self.used += regex.len();
        if self.used > 8 * MAX_REGEX_BYTES || regex.len() > MAX_REGEX_BYTES {
            return fail!(TooLarge, "grammar: too large once its rules are written out");
        }
        Ok(regex)
    }
}

fn bounds(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Parser<'a> {
    fn new(source: &'a str) -> Self {
        Parser { rest: source, line: 1 }
    }

    fn wrong<T>(&self, what: &str) -> Result<T> {
        fail!(Invalid, "grammar: line {}: {what}", self.line)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.line += usize::from(character == '\n');
        self.rest = &self.rest[character.len_utf8()..];
        Some(character)
    }

    /// Blanks and comments; line ends only when `lines`.
    fn skip(&mut self, lines: bool) {
        while let Some(character) = self.peek() {
            match character {
                '#' => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                '\n' if !lines => return,
                c if c.is_whitespace() => drop(self.next()),
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
            .unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn rules(&mut self) -> Result<Vec<(String, Node)>> {
        let mut rules: Vec<(String, Node)> = Vec::new();
        let mut seen = HashSet::new();
        loop {
            self.skip(true);
            if self.rest.is_empty() {
                return Ok(rules);
            }
            let Some(name) = self.name() else {
                return self.wrong("a rule begins with its name");
            };
            self.skip(true);
            match self.rest.strip_prefix("::=") {
                Some(rest) => self.rest = rest,
                None => return self.wrong("\"::=\" is missing after the rule's name"),
            }
            if !seen.insert(name.clone()) {
                return self.wrong("a rule of this name exists already");
            }
            self.skip(true);
            let body = self.choice(false)?;
            rules.push((name, body));
        }
    }

    fn choice(&mut self, nested: bool) -> Result<Node> {
        let mut nodes = vec![self.sequence(nested)?];
        loop {
            self.skip(nested);
            if self.peek() != Some('|') && !self.continues(nested) {
                break;
            }
            self.next();
            self.skip(true);
            nodes.push(self.sequence(nested)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Choice(nodes) })
    }

    /// A line that begins with "|" goes on with the rule above.
    fn continues(&mut self, nested: bool) -> bool {
        if nested || self.peek() != Some('\n') {
            return false;
        }
        let mut ahead = Parser { rest: self.rest, line: self.line };
        ahead.skip(true);
        if ahead.peek() != Some('|') {
            return false;
        }
        *self = ahead;
        true
    }

    fn sequence(&mut self, nested: bool) -> Result<Node> {
        let mut nodes = Vec::new();
        loop {
            self.skip(nested);
            match self.item()? {
                Some(node) => nodes.push(self.repeated(node)?),
                None => break,
            }
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Sequence(nodes) })
    }

    fn item(&mut self) -> Result<Option<Node>> {
        match self.peek() {
            Some('"') => self.literal().map(Some),
            Some('[') => self.class().map(Some),
            Some('.') => {
                self.next();
                Ok(Some(Node::Regex("(?s:.)".into())))
            }
            Some('(') => {
                self.next();
                self.skip(true);
                let node = self.choice(true)?;
                self.skip(true);
                match self.next() {
                    Some(')') => Ok(Some(node)),
                    _ => self.wrong("\")\" is missing"),
                }
            }
            Some(c) if c.is_ascii_alphanumeric() || c == '_' => {
                let name = self.name().unwrap_or_default();
                Ok(Some(Node::Rule(name)))
            }
            Some(c) if !matches!(c, '|' | ')' | '\n') => {
                self.wrong(&format!("{c:?} does not belong here"))
            }
            _ => Ok(None),
        }
    }

    fn repeated(&mut self, mut node: Node) -> Result<Node> {
        for _ in 0..MAX_DEPTH {
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let (least, most) = self.counts()?;
                    node = Node::Repeat(Box::new(node), least, most);
                    continue;
                }
                _ => return Ok(node),
            };
            self.next();
            node = Node::Repeat(Box::new(node), least, most);
        }
        self.wrong("too many repetitions of one item")
    }

    fn counts(&mut self) -> Result<(u32, Option<u32>)> {
        let end = self.rest.find('}').unwrap_or(0);
        let inside = self.rest.get(1..end).unwrap_or_default();
        let (least, most) = match inside.split_once(',') {
            Some((least, most)) => (least.trim(), most.trim()),
            None => (inside.trim(), inside.trim()),
        };
        let parsed = (
            if least.is_empty() { Ok(0) } else { least.parse::<u32>() },
            if most.is_empty() { Ok(MAX_REPEAT) } else { most.parse::<u32>() },
        );
        match parsed {
            (Ok(least), Ok(limit)) if least <= limit && limit <= MAX_REPEAT && end > 1 => {
                self.rest = &self.rest[end + 1..];
                Ok((least, (!most.is_empty()).then_some(limit)))
            }
            _ => self.wrong("unusable repetition"),
        }
    }

    fn literal(&mut self) -> Result<Node> {
        self.next();
        let mut regex = String::new();
        loop {
            match self.next() {
                Some('"') => break,
                Some('\\') => push_escaped(self.escaped()?, &mut regex),
                Some('\n') | None => return self.wrong("a string does not end"),
                Some(character) => push_escaped(character, &mut regex),
            }
        }
        // A group, so that a repetition that follows takes all of it.
        Ok(Node::Sequence(vec![Node::Regex(regex)]))
    }

    fn class(&mut self) -> Result<Node> {
        let mut regex = String::new();
        regex.extend(self.next());
        if self.peek() == Some('^') {
            regex.extend(self.next());
        }
        let empty = regex.len();
        loop {
            match self.next() {
                Some(']') if regex.len() == empty => return self.wrong("a class is empty"),
                Some(']') => break,
                Some('-') if regex.len() > empty && self.peek() != Some(']') => regex.push('-'),
                Some('\\') => push_escaped(self.escaped()?, &mut regex),
                Some('\n') | None => return self.wrong("a class does not end"),
                Some(character) => push_escaped(character, &mut regex),
            }
        }
        regex.push(']');
        Ok(Node::Regex(regex))
    }

    fn escaped(&mut self) -> Result<char> {
        let digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(c) if !c.is_alphanumeric() => return Ok(c),
            _ => return self.wrong("unknown escape"),
        };
        let code = self.rest.get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match code.and_then(char::from_u32) {
            Some(character) => {
                self.rest = &self.rest[digits..];
                Ok(character)
            }
            None => self.wrong("an escape names no character"),
        }
    }
}
