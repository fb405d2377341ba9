//! A byte buffer whose start is aligned to a block, as direct I/O demands.

use super::format::BLOCK_LEN;

/// Bytes of fixed length, zero at first, aligned to [`BLOCK_LEN`].
///
/// A plain vector, a block longer than needed, used from its first aligned byte on: alignment
/// without unsafe code. It never grows, so the aligned byte never moves.
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK_LEN];
        let start = bytes.as_ptr().align_offset(BLOCK_LEN);
        assert!(start <= BLOCK_LEN, "an aligned byte lies within one block");
        Self { bytes, start, len }
    }
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_starts_on_a_block() {
        for len in [0, 1, 512, BLOCK_LEN, 3 * BLOCK_LEN + 7] {
            let buffer = AlignedBuffer::new(len);
            assert_eq!(buffer.as_slice().as_ptr().align_offset(BLOCK_LEN), 0);
            assert_eq!(buffer.as_slice().len(), len);
        }
    }
}
