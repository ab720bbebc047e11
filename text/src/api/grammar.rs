// SPDX-License-Identifier: Apache-2.0
//! text.h: constrained decoding.

use std::ffi::{c_char, c_int};
use std::ptr;

use super::tokenizer::Tokenizer;
use crate::border::{self, guard, guard_or, Diag};
use crate::error::{fail, Result, Status};
use crate::grammar::{Factory, Grammar, GrammarKind, Matcher, Options};

/// text_grammar_kind_t as it arrives: C may pass any value.
type GrammarKindC = c_int;

fn kind_of(kind: GrammarKindC) -> Result<GrammarKind> {
    use GrammarKind::*;
    match [JsonSchema, JsonObject, Regex, Choice, Lark].into_iter().find(|k| *k as c_int == kind) {
        Some(kind) => Ok(kind),
        None => fail!(Invalid, "grammar: unknown kind {kind}"),
    }
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_grammar_factory_create(
    tokenizer: &Tokenizer,
    vocab: u32,
    eos: *const i32,
    n_eos: usize,
    diag: *mut Diag,
    factory_out: *mut *mut Factory,
) -> Status {
    guard(diag, || {
        let factory = Factory::new(tokenizer.0.clone(), vocab, border::items(eos, n_eos))?;
        border::give(factory, factory_out);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_grammar_factory_destroy(factory: *mut Factory) {
    border::destroy(factory);
}

/// text_grammar_options_t.
#[repr(C)]
pub struct GrammarOptions {
    disable_any_whitespace: bool,
    disable_additional_properties: bool,
    whitespace_pattern: *const c_char,
}

unsafe fn options_of(options: Option<&GrammarOptions>) -> Result<Options<'_>> {
    let Some(options) = options else {
        return Ok(Options::default());
    };
    let pattern = border::c_text(options.whitespace_pattern, "whitespace_pattern")?;
    Ok(Options {
        is_compact: options.disable_any_whitespace,
        is_closed: options.disable_additional_properties,
        whitespace: (!options.whitespace_pattern.is_null()).then_some(pattern),
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_grammar_create(
    factory: &Factory,
    kind: GrammarKindC,
    source: *const c_char,
    length: usize,
    options: Option<&GrammarOptions>,
    diag: *mut Diag,
    grammar_out: *mut *mut Grammar,
) -> Status {
    guard(diag, || {
        let kind = kind_of(kind)?;
        let source = border::text(source, length, "grammar")?;
        border::give(factory.compile(kind, source, &options_of(options)?)?, grammar_out);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_grammar_destroy(grammar: *mut Grammar) {
    border::destroy(grammar);
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_matcher_create(
    grammar: &Grammar,
    matcher_out: *mut *mut Matcher,
) -> Status {
    guard(ptr::null_mut(), || {
        border::give(grammar.matcher(), matcher_out);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_matcher_destroy(matcher: *mut Matcher) {
    border::destroy(matcher);
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_matcher_mask(
    matcher: &mut Matcher,
    mask: *mut u32,
    words: usize,
    diag: *mut Diag,
) -> Status {
    guard(diag, || matcher.mask(border::items_mut(mask, words)))
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_matcher_advance(
    matcher: &mut Matcher,
    id: i32,
    diag: *mut Diag,
) -> Status {
    guard(diag, || matcher.advance(id))
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_matcher_is_finished(matcher: &Matcher) -> bool {
    guard_or(true, || matcher.is_finished())
}
