//! Reads frames out of one segment, block by block, with a bounded buffer.

use std::io;

use super::buffer::AlignedBuffer;
use super::disk::DiskFile;
use super::format::{BLOCK_LEN, FRAME_HEADER_LEN, Flaw, Frame, FrameHeader, Unverified};
use crate::units::JournalId;

/// What stands at an offset of a segment.
pub enum Found<'a> {
    Frame(Frame<'a>),
    /// A block of zeros.
    Blank,
    Flawed(Flaw),
    /// The segment ends here.
    End,
}

/// A window on one segment's bytes.
///
/// Shape: one buffer of what is read at once, or of the largest frame so far.
pub struct FrameReader {
    buffer: AlignedBuffer,
    /// Where in the file the window begins, and how much of the buffer it fills.
    window_at: u64,
    window_len: usize,
    /// How much is read at once; a window grows beyond it only for a larger frame.
    chunk_len: usize,
}

impl FrameReader {
    /// Reads at least `chunk_len` bytes (whole blocks) at a time.
    pub fn new(chunk_len: usize) -> Self {
        let chunk_len = chunk_len.next_multiple_of(BLOCK_LEN);
        Self { buffer: AlignedBuffer::new(chunk_len), window_at: 0, window_len: 0, chunk_len }
    }

    /// Drops the window: the file may have changed, or another one is read next.
    pub fn forget(&mut self) {
        self.window_len = 0;
    }

    /// Reads this much at a time from now on.
    pub fn set_chunk_len(&mut self, chunk_len: usize) {
        self.chunk_len = chunk_len.next_multiple_of(BLOCK_LEN);
    }

    /// Doubles what is read at a time, up to a bound.
    pub fn grow_chunk_len(&mut self, chunk_len_max: usize) {
        self.set_chunk_len((self.chunk_len * 2).min(chunk_len_max));
    }

    /// Looks at the frame that begins at `offset`, a multiple of a block.
    pub fn at<F: DiskFile>(
        &mut self,
        file: &F,
        journal: JournalId,
        segment: u64,
        offset: u64,
    ) -> io::Result<Found<'_>> {
        let have = self.fill(file, offset, BLOCK_LEN)?;
        if have < BLOCK_LEN {
            return Ok(Found::End);
        }
        let block = self.window(offset, BLOCK_LEN);
        let len = match Unverified::claimed_len(block) {
            Ok(len) => len,
            Err(_) if is_blank(block) => return Ok(Found::Blank),
            Err(flaw) => return Ok(Found::Flawed(flaw)),
        };
        if self.fill(file, offset, len)? < len {
            return Ok(Found::Flawed(Flaw::Length));
        }
        let frame = Unverified::take(self.window(offset, len));
        Ok(match frame.and_then(|f| f.verify(journal, segment)) {
            Ok(frame) => Found::Frame(frame),
            Err(flaw) => Found::Flawed(flaw),
        })
    }

    /// The records of the frame that was last looked at and found valid: `header` is its own.
    pub fn records(&self, offset: u64, header: &FrameHeader) -> &[u8] {
        let frame = self.window(offset, header.frame_len());
        &frame[FRAME_HEADER_LEN..FRAME_HEADER_LEN + header.record_bytes as usize]
    }

    /// Makes the window hold `len` bytes from `offset` on; returns how many the file had.
    fn fill<F: DiskFile>(&mut self, file: &F, offset: u64, len: usize) -> io::Result<usize> {
        let window_end = self.window_at + self.window_len as u64;
        if offset < self.window_at || offset + len as u64 > window_end {
            self.window_len = 0;
            let len = len.max(self.chunk_len);
            if self.buffer.len() < len {
                self.buffer = AlignedBuffer::new(len.max(2 * self.buffer.len()));
            }
            self.window_len = file.read_at(offset, &mut self.buffer.as_mut_slice()[..len])?;
            self.window_at = offset;
        }
        let window_end = self.window_at + self.window_len as u64;
        Ok(len.min((window_end - offset) as usize))
    }

    fn window(&self, offset: u64, len: usize) -> &[u8] {
        let start = (offset - self.window_at) as usize;
        &self.buffer.as_slice()[start..start + len]
    }
}

/// Whether all bytes are zero.
pub fn is_blank(bytes: &[u8]) -> bool {
    // Sixteen at a time: whole spare segments are looked through at every start.
    let (head, words, tail) = (bytes, bytes.chunks_exact(16), bytes.len() % 16);
    words.clone().all(|w| w == [0; 16]) && head[bytes.len() - tail..].iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_means_every_byte() {
        for len in [0, 1, 15, 16, 17, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_blank(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_blank(&bytes));
                bytes[at] = 0;
            }
        }
    }
}
