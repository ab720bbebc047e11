// SPDX-License-Identifier: Apache-2.0
//! The clock of templates.

use std::ffi::CString;
use std::mem::MaybeUninit;

/// Local time, as Python's datetime.now().strftime(format).
pub fn strftime_now(format: &str) -> String {
    let Ok(format) = CString::new(format) else {
        return String::new();
    };
    let mut text = [0u8; 1024];
    // SAFETY: the structures are ours; strftime writes at most text.len() bytes.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts = MaybeUninit::<libc::tm>::zeroed();
        if libc::localtime_r(&now, parts.as_mut_ptr()).is_null() {
            return String::new();
        }
        libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), parts.as_ptr())
    };
    String::from_utf8_lossy(&text[..length]).into_owned()
}
