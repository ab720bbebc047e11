// SPDX-License-Identifier: Apache-2.0
//! The way across text.h: pointers in, owned memory out, panics kept on this side.

use std::any::Any;
use std::ffi::{c_char, c_int, CStr, CString};
use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::slice;
use std::sync::Once;

use crate::error::{fail, Error, Result, Status};

/// weft_diag_t, only ever passed on to base/diag.c.
#[repr(C)]
pub struct Diag {
    _opaque: [u8; 0],
}

/// weft_status_t as C gives it back: any of its values, of which Status has some.
type StatusC = c_int;

extern "C" {
    fn weft_diag(diag: *mut Diag, status: StatusC, format: *const c_char, ...) -> StatusC;
}

#[repr(C)]
pub struct Bytes {
    pub data: *mut c_char,
    pub length: usize,
}

#[repr(C)]
pub struct Ids {
    pub data: *mut i32,
    pub length: usize,
}

/// Runs a call. Errors become a status and a line in diag; so does a panic.
pub fn guard(diag: *mut Diag, call: impl FnOnce() -> Result<()>) -> Status {
    match quietly(call) {
        Ok(()) => Status::Ok,
        Err(error) => {
            let line = CString::new(error.line.replace('\0', "?")).unwrap_or_default();
            // SAFETY: diag is NULL or the caller's; the format takes one string.
            unsafe { weft_diag(diag, error.status as StatusC, c"%s".as_ptr(), line.as_ptr()) };
            error.status
        }
    }
}

/// Runs a call that cannot say why it failed.
pub fn guard_or<T>(fallback: T, call: impl FnOnce() -> T) -> T {
    quietly(|| Ok(call())).unwrap_or(fallback)
}

fn quietly<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    static SILENCE: Once = Once::new();
    // The default hook writes a backtrace to stderr; our callers answer with a line instead.
    SILENCE.call_once(|| set_hook(Box::new(|_| {})));
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| Err(panic_error(&*payload)))
}

fn panic_error(payload: &(dyn Any + Send)) -> Error {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::new(Status::Internal, format!("text: internal error: {text}"))
}

/// # Safety
/// data points to length items, or length is 0.
pub unsafe fn items<'a, T>(data: *const T, length: usize) -> &'a [T] {
    if data.is_null() || length == 0 {
        &[]
    } else {
        slice::from_raw_parts(data, length)
    }
}

/// # Safety
/// As `items`, and writable by nobody else.
pub unsafe fn items_mut<'a, T>(data: *mut T, length: usize) -> &'a mut [T] {
    if data.is_null() || length == 0 {
        &mut []
    } else {
        slice::from_raw_parts_mut(data, length)
    }
}

/// # Safety
/// As `items`.
pub unsafe fn bytes<'a>(data: *const c_char, length: usize) -> &'a [u8] {
    items(data.cast(), length)
}

/// # Safety
/// As `items`.
pub unsafe fn text<'a>(data: *const c_char, length: usize, what: &str) -> Result<&'a str> {
    match std::str::from_utf8(bytes(data, length)) {
        Ok(text) => Ok(text),
        Err(e) => fail!(Malformed, "{what}: invalid UTF-8 at byte {}", e.valid_up_to()),
    }
}

/// A terminated string; "" for NULL.
///
/// # Safety
/// data is NULL or terminated.
pub unsafe fn c_text<'a>(data: *const c_char, what: &str) -> Result<&'a str> {
    if data.is_null() {
        return Ok("");
    }
    match CStr::from_ptr(data).to_str() {
        Ok(text) => Ok(text),
        Err(e) => fail!(Malformed, "{what}: invalid UTF-8 at byte {}", e.valid_up_to()),
    }
}

impl Bytes {
    pub fn give(data: Vec<u8>) -> Self {
        let data = Box::leak(data.into_boxed_slice());
        Bytes { data: data.as_mut_ptr().cast(), length: data.len() }
    }
}

impl Ids {
    pub fn give(data: Vec<i32>) -> Self {
        let data = Box::leak(data.into_boxed_slice());
        Ids { data: data.as_mut_ptr(), length: data.len() }
    }
}

/// # Safety
/// out is writable.
pub unsafe fn give<T>(value: T, out: *mut *mut T) {
    *out = Box::into_raw(Box::new(value));
}

/// # Safety
/// object came from `give` or is NULL.
pub unsafe fn destroy<T>(object: *mut T) {
    if !object.is_null() {
        guard_or((), || drop(Box::from_raw(object)));
    }
}

/// # Safety
/// bytes came from `Bytes::give` or are zeroed.
#[no_mangle]
pub unsafe extern "C" fn text_bytes_free(bytes: Bytes) {
    if !bytes.data.is_null() {
        drop(Box::from_raw(slice::from_raw_parts_mut(bytes.data.cast::<u8>(), bytes.length)));
    }
}

/// # Safety
/// ids came from `Ids::give` or are zeroed.
#[no_mangle]
pub unsafe extern "C" fn text_ids_free(ids: Ids) {
    if !ids.data.is_null() {
        drop(Box::from_raw(slice::from_raw_parts_mut(ids.data, ids.length)));
    }
}
