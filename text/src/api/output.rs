// SPDX-License-Identifier: Apache-2.0
//! text.h: what the model said.

use std::ffi::{c_char, c_void, CStr};
use std::ptr;

use crate::border::{self, guard, guard_or, Diag};
use crate::error::{Result, Status};
use crate::output::{guess_reasoning, guess_tools, DeltaKind, Output};

/// text_delta_fn.
pub type DeltaFn = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        kind: DeltaKind,
        tool_index: u32,
        text: *const c_char,
        length: usize,
    ),
>;

unsafe fn optional<'a>(name: *const c_char) -> Result<Option<&'a str>> {
    let text = border::c_text(name, "parser")?;
    Ok((!name.is_null()).then_some(text))
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_output_create(
    tool_parser: *const c_char,
    reasoning_parser: *const c_char,
    starts_in_reasoning: bool,
    diag: *mut Diag,
    output_out: *mut *mut Output,
) -> Status {
    guard(diag, || {
        let tools = optional(tool_parser)?;
        let reasoning = optional(reasoning_parser)?;
        border::give(Output::new(tools, reasoning, starts_in_reasoning)?, output_out);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_output_destroy(output: *mut Output) {
    border::destroy(output);
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_output_push(
    output: &mut Output,
    text: *const c_char,
    length: usize,
    is_last: bool,
    on_delta: DeltaFn,
    user: *mut c_void,
) -> Status {
    guard(ptr::null_mut::<Diag>(), || {
        let text = border::text(text, length, "output")?;
        for delta in output.push(text, is_last) {
            if let Some(on_delta) = on_delta {
                let text = delta.text.as_ptr().cast();
                on_delta(user, delta.kind, delta.tool, text, delta.text.len());
            }
        }
        Ok(())
    })
}

unsafe fn guess(
    template: *const c_char,
    length: usize,
    guess: fn(&str) -> Option<&'static CStr>,
) -> *const c_char {
    guard_or(ptr::null(), || {
        let template = String::from_utf8_lossy(border::bytes(template, length));
        guess(&template).map_or(ptr::null(), CStr::as_ptr)
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_output_guess_tool_parser(
    chat_template: *const c_char,
    length: usize,
) -> *const c_char {
    guess(chat_template, length, guess_tools)
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_output_guess_reasoning_parser(
    chat_template: *const c_char,
    length: usize,
) -> *const c_char {
    guess(chat_template, length, guess_reasoning)
}
