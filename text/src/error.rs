// SPDX-License-Identifier: Apache-2.0
//! What a call came to: the subset of base/status.def that this crate answers with.

/// The values are those of weft_status_t.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok = 0,
    Invalid = -1,
    NoMemory = -2,
    NotFound = -4,
    TooLarge = -6,
    Unsupported = -7,
    Malformed = -8,
    Internal = -41,
}

/// A status and the one line that explains it.
#[derive(Clone, Debug)]
pub struct Error {
    pub status: Status,
    pub line: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(status: Status, line: impl Into<String>) -> Self {
        Error { status, line: line.into() }
    }

    /// Says where the fault is: "prefix: line".
    pub fn within(mut self, prefix: &str) -> Self {
        self.line = format!("{prefix}: {}", self.line);
        self
    }
}

macro_rules! fail {
    ($status:ident, $($format:tt)*) => {
        Err($crate::error::Error::new($crate::error::Status::$status, format!($($format)*)))
    };
}
pub(crate) use fail;
