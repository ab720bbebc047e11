// SPDX-License-Identifier: Apache-2.0
//! text.h: chat templates.

use std::ffi::c_char;

use crate::border::{self, guard, Bytes, Diag};
use crate::error::Status;
use crate::template::Template;

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_template_create(
    source: *const c_char,
    length: usize,
    bos: *const c_char,
    eos: *const c_char,
    diag: *mut Diag,
    template_out: *mut *mut Template,
) -> Status {
    guard(diag, || {
        let source = border::text(source, length, "chat template")?;
        let bos = border::c_text(bos, "bos token")?;
        let eos = border::c_text(eos, "eos token")?;
        border::give(Template::new(source, bos, eos)?, template_out);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_template_destroy(chat_template: *mut Template) {
    border::destroy(chat_template);
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_template_render(
    chat_template: &Template,
    request: *const c_char,
    length: usize,
    diag: *mut Diag,
    text_out: *mut Bytes,
) -> Status {
    guard(diag, || {
        let text = chat_template.render(border::bytes(request, length))?;
        text_out.write(Bytes::give(text.into_bytes()));
        Ok(())
    })
}
