//! The bytes that snapshots are made of: LEB128 varints and fixed little-endian hashes.

use thiserror::Error;

use crate::units::Points;

/// Bytes that are not a snapshot of ours.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum DecodeError {
    #[error("a snapshot's bytes are cut off in {field}")]
    Short { field: &'static str },
    #[error("snapshot version {found} is not {newest}: use the version that wrote it")]
    Version { found: u8, newest: u8 },
    #[error("a snapshot's bytes have {field} out of range: {value}")]
    Range { field: &'static str, value: u128 },
    #[error("{0} bytes stand behind a snapshot's end")]
    Rest(usize),
}

pub(super) fn put(out: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put64(out: &mut Vec<u8>, value: u64) {
    put(out, u128::from(value));
}

/// Reads fields, and remembers nothing but where it stands.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
    /// Errors: bytes are left.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Rest(self.0.len())) }
    }
    pub fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Short { field })?;
        self.0 = rest;
        Ok(byte)
    }
    pub fn fixed(&mut self, field: &'static str) -> Result<u128, DecodeError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError::Short { field })?;
        self.0 = rest;
        Ok(u128::from_le_bytes(*head))
    }
    pub fn wide(&mut self, field: &'static str) -> Result<u128, DecodeError> {
        let mut value = 0;
        for shift in (0..128).step_by(7) {
            let byte = self.byte(field)?;
            value |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Range { field, value })
    }
    #[inline]
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (shift, &byte) in (0..63).step_by(7).zip(self.0) {
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                self.0 = &self.0[shift / 7 + 1..];
                return Ok(value);
            }
        }
        let value = self.wide(field)?;
        u64::try_from(value).map_err(|_| DecodeError::Range { field, value })
    }
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        let value = self.u64(field)?;
        u32::try_from(value).map_err(|_| DecodeError::Range { field, value: u128::from(value) })
    }
    /// A list's length; each of its entries takes `least` bytes or more.
    pub fn count(&mut self, field: &'static str, least: usize) -> Result<usize, DecodeError> {
        let value = self.u64(field)?;
        match usize::try_from(value) {
            Ok(count) if count <= self.0.len() / least => Ok(count),
            _ => Err(DecodeError::Short { field }),
        }
    }
    pub fn points(&mut self, field: &'static str) -> Result<Points, DecodeError> {
        self.u64(field).map(Points::new)
    }
    pub fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let len = self.count(field, 1)?;
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| DecodeError::Range { field, value: len as u128 })
    }
}
