// SPDX-License-Identifier: Apache-2.0
//! text.h: incremental detokenization.

use std::ffi::c_char;
use std::ptr;
use std::sync::Arc;

use super::tokenizer::Tokenizer;
use crate::border::{self, guard, Diag};
use crate::error::{Result, Status};
use crate::stops;
use crate::stream::{Stream, StreamConfig};

/// text_stops_t; every stream that is made with it holds it too.
pub struct Stops(Arc<stops::Stops>);

#[repr(C)]
pub struct StreamConfigC {
    pub skip_special: bool,
    pub include_stop: bool,
    pub starts_text: bool,
    pub stops: *const Stops,
    pub min_tokens: u32,
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_stops_create(
    stops: *const *const c_char,
    n: usize,
    diag: *mut Diag,
    stops_out: *mut *mut Stops,
) -> Status {
    guard(diag, || {
        let texts = border::items(stops, n).iter();
        let texts = texts.map(|&text| border::c_text(text, "stop")).collect::<Result<Vec<_>>>()?;
        border::give(Stops(Arc::new(stops::Stops::new(&texts)?)), stops_out);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_stops_destroy(stops: *mut Stops) {
    border::destroy(stops);
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_stream_create(
    tokenizer: &Tokenizer,
    config: &StreamConfigC,
    stream_out: *mut *mut Stream,
) -> Status {
    guard(ptr::null_mut::<Diag>(), || {
        let stops = match config.stops.as_ref() {
            Some(stops) => stops.0.clone(),
            None => Arc::new(stops::Stops::new(&[])?),
        };
        let stream = Stream::new(
            tokenizer.0.clone(),
            StreamConfig {
                skip_special: config.skip_special,
                include_stop: config.include_stop,
                starts_text: config.starts_text,
                stops,
                min_tokens: config.min_tokens,
            },
        );
        border::give(stream, stream_out);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_stream_destroy(stream: *mut Stream) {
    border::destroy(stream);
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_stream_push(
    stream: &mut Stream,
    id: i32,
    text_out: *mut *const c_char,
    length_out: *mut usize,
    stop_out: *mut i32,
) -> Status {
    guard(ptr::null_mut(), || {
        let (text, stop) = stream.push(id)?;
        *text_out = text.as_ptr().cast();
        *length_out = text.len();
        *stop_out = stop.map_or(-1, |index| index as i32);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_stream_finish(
    stream: &mut Stream,
    text_out: *mut *const c_char,
    length_out: *mut usize,
) -> Status {
    guard(ptr::null_mut(), || {
        let text = stream.finish();
        *text_out = text.as_ptr().cast();
        *length_out = text.len();
        Ok(())
    })
}
