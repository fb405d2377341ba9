//! Writing JSON by hand: the hot answers are a few fields in a fixed order.

use bytes::{BufMut, BytesMut};

use crate::units::{NodeTime, RedemptionId};

/// Appends text that is JSON already.
pub fn raw(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
}

/// Appends a number.
pub fn number(out: &mut BytesMut, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// Appends a string, quoted and escaped.
pub fn string(out: &mut BytesMut, text: &str) {
    serde_json::to_writer(out.writer(), text).expect("memory takes every string");
}

/// Appends a redemption id, without quotes.
pub fn id(out: &mut BytesMut, id: RedemptionId) {
    let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
    let text = uuid::Uuid::from_u128(id.get()).as_hyphenated().encode_lower(&mut text);
    out.put_slice(text.as_bytes());
}

/// Appends a time as an RFC 3339 string.
pub fn time(out: &mut BytesMut, at: NodeTime) {
    out.put_u8(b'"');
    out.put_slice(at.rfc3339().as_bytes());
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings_come_out_as_serde_writes_them() {
        for value in [0, 1, 9, 10, 99, 12_345, u64::MAX] {
            let mut out = BytesMut::new();
            number(&mut out, value);
            assert_eq!(out, value.to_string());
        }
        let mut out = BytesMut::new();
        string(&mut out, "a\"b\\\n☂");
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), "a\"b\\\n☂");
    }
}
