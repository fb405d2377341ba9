//! Records: what the journal holds. Effects, not commands: replay applies them, and never decides.
//!
//! Every consumer (replay, shipper, persist, auditor) reads them through this decoder.
//!
//! # Byte map (little-endian, no padding between fields)
//! ```text
//!  0       1         2        4        8
//! ┌───────┬─────────┬────────┬────────┬────────────────────┐
//! │ kind  │ version │ slot   │ length │ fields of the kind │
//! │ u8    │ u8 = 1  │ u16    │ u32    │ in their order     │
//! └───────┴─────────┴────────┴────────┴────────────────────┘
//! ```
//! `length` counts the whole record. `slot` is [`CONTROL`] for records that belong to no member.
//! Amounts after the step (`free_after`, `held_after`) stand beside each move, so that every
//! consumer can check its own arithmetic against the kernel's.

use thiserror::Error;

use crate::units::{
    Incarnation, ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex,
    Slot,
};

/// The `slot` of a record about sales, stock and leases.
pub const CONTROL: Slot = Slot::new(u16::MAX);
/// Bytes before a record's fields.
pub const HEADER_LEN: usize = 8;
/// Bytes of the longest record; a sale's definition must fit.
pub const RECORD_LEN_MAX: usize = 512 * 1024;
/// The version this code writes, and the newest that it reads.
pub const VERSION: u8 = 1;

/// Bytes that are not a record of ours.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum RecordError {
    #[error("a record is cut off: {have} bytes of {need}")]
    Short { have: usize, need: usize },
    #[error("unknown record kind {0}: written by a newer version? Use that version to read it")]
    Kind(u8),
    #[error("record version {found} is newer than {VERSION}: use the version that wrote it")]
    Version { found: u8 },
    #[error("a {kind} record has a field out of range: {field}")]
    Field { kind: &'static str, field: &'static str },
    #[error("a {kind} record is {length} bytes long, its fields take {used}")]
    Length { kind: &'static str, length: usize, used: usize },
}

/// Who asked for an admin change, why, and where that is written down.
/// Each at most [`AdminNote::PART_LEN_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AdminNote {
    pub operator: String,
    pub reason: String,
    pub reference: String,
}

impl AdminNote {
    pub const PART_LEN_MAX: usize = 255;
}

/// How a sale changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum SaleChange {
    /// One way.
    Opened = 1,
    Paused = 2,
    Resumed = 3,
    /// One way, by its time or by an operator.
    Ended = 4,
}

impl SaleChange {
    pub const ALL: [Self; 4] = [Self::Opened, Self::Paused, Self::Resumed, Self::Ended];
    fn from_u8(raw: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|c| *c as u8 == raw)
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Ended => "ended",
        }
    }
}

/// A field's place in the bytes.
trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// `None`: the bytes run out, or the value is out of range.
    fn take(bytes: &mut &[u8]) -> Option<Self>;
}

macro_rules! int_field {
    ($($int:ty),*) => {$(
        impl Field for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                let (head, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(<$int>::from_le_bytes(*head))
            }
        }
    )*};
}
int_field!(u8, u16, u32, u64, u128);

macro_rules! unit_field {
    ($($unit:ty),*) => {$(
        impl Field for $unit {
            fn put(&self, out: &mut Vec<u8>) {
                self.get().put(out);
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                Field::take(bytes).map(Self::new)
            }
        }
    )*};
}
unit_field!(MemberId, Points, Quantity, ItemIndex, SaleIndex, KeyHash, NodeTime, Incarnation);

impl Field for RedemptionId {
    fn put(&self, out: &mut Vec<u8>) {
        self.get().put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Self::from_u128(Field::take(bytes)?)
    }
}

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        match u8::take(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Field for SaleChange {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Self::from_u8(u8::take(bytes)?)
    }
}

/// A u32 length, then that many bytes of UTF-8.
impl Field for String {
    fn put(&self, out: &mut Vec<u8>) {
        let len = u32::try_from(self.len()).expect("texts in records are bounded at the door");
        len.put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let len = usize::try_from(u32::take(bytes)?).ok()?;
        let (text, rest) = bytes.split_at_checked(len)?;
        *bytes = rest;
        std::str::from_utf8(text).ok().map(String::from)
    }
}

impl Field for AdminNote {
    fn put(&self, out: &mut Vec<u8>) {
        self.operator.put(out);
        self.reason.put(out);
        self.reference.put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self {
            operator: Field::take(bytes)?,
            reason: Field::take(bytes)?,
            reference: Field::take(bytes)?,
        })
    }
}

macro_rules! records {
    ($($(#[$doc:meta])* $number:literal $name:ident $text:literal {
        $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)?
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, PartialEq, Eq, Debug)]
            pub struct $name { $($(#[$field_doc])* pub $field: $ty),* }
        )*

        /// One record.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Record { $($name($name)),* }

        $(
            impl From<$name> for Record {
                fn from(record: $name) -> Self {
                    Self::$name(record)
                }
            }
            impl $name {
                /// Appends this record's bytes.
                pub fn encode(&self, slot: Slot, out: &mut Vec<u8>) {
                    let start = begin($number, slot, out);
                    $(self.$field.put(out);)*
                    finish(start, out);
                }
            }
        )*

        impl Record {
            /// The kind's name, as `inspect` and the auditor print it.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => $text),* }
            }
            /// Appends this record's bytes.
            pub fn encode(&self, slot: Slot, out: &mut Vec<u8>) {
                match self { $(Self::$name(record) => record.encode(slot, out)),* }
            }
            fn decode_fields(kind: u8, length: usize, fields: &mut &[u8])
                -> Result<Self, RecordError>
            {
                match kind {
                    $($number => {
                        $(let $field = <$ty as Field>::take(fields).ok_or(
                            RecordError::Field { kind: $text, field: stringify!($field) })?;)*
                        if !fields.is_empty() {
                            return Err(RecordError::Length {
                                kind: $text, length, used: length - fields.len() });
                        }
                        Ok(Self::$name($name { $($field),* }))
                    })*
                    other => Err(RecordError::Kind(other)),
                }
            }
        }
    };
}

records! {
    /// An account was opened with one opening credit.
    1 Opened "opened" { member: MemberId, points: Points, at: NodeTime }
    /// Points were credited by an operator; double entry against the mall's issued points.
    2 Credited "credited" {
        member: MemberId, amount: Points, free_after: Points, held_after: Points,
        key: KeyHash, at: NodeTime, note: AdminNote,
    }
    /// Free points were debited by an operator.
    3 Debited "debited" {
        member: MemberId, amount: Points, free_after: Points, held_after: Points,
        key: KeyHash, at: NodeTime, note: AdminNote,
    }
    /// Points and units were set aside. The decision's time stands in the id.
    4 Held "held" {
        member: MemberId, id: RedemptionId, key: KeyHash, item: ItemIndex, quantity: Quantity,
        points: Points, free_after: Points, held_after: Points, expires_at: NodeTime,
    }
    /// Points were exchanged in one step. The decision's time stands in the id.
    5 Redeemed "redeemed" {
        member: MemberId, id: RedemptionId, key: KeyHash, item: ItemIndex, quantity: Quantity,
        points: Points, free_after: Points, held_after: Points,
    }
    /// A hold was confirmed.
    6 Confirmed "confirmed" {
        member: MemberId, id: RedemptionId, item: ItemIndex, quantity: Quantity, points: Points,
        free_after: Points, held_after: Points, at: NodeTime,
    }
    /// A hold was released: by the member, or (`expired`) by time.
    7 Released "released" {
        member: MemberId, id: RedemptionId, item: ItemIndex, quantity: Quantity, points: Points,
        free_after: Points, held_after: Points, expired: bool, at: NodeTime,
    }
    /// A confirmed redemption was taken back: points returned, and units where `units_back`;
    /// else the units are retired with their ended sale.
    8 Reversed "reversed" {
        member: MemberId, id: RedemptionId, item: ItemIndex, quantity: Quantity, points: Points,
        free_after: Points, held_after: Points, units_back: bool, key: KeyHash, at: NodeTime,
        note: AdminNote,
    }
    /// A slot forgot an ended sale's request keys, finished redemptions and limit counters. The
    /// sale's items stand in the record, so that replay of a slot needs nothing but its records.
    9 KeysDropped "keys-dropped" {
        sale: SaleIndex, first_item: ItemIndex, item_count: u32, at: NodeTime,
    }

    /// A sale was defined. `definition` is its canonical JSON; its items take the numbers from
    /// `first_item` on, in their order. Its units come by `StockChanged`.
    32 SaleDefined "sale-defined" {
        sale: SaleIndex, first_item: ItemIndex, definition: String, at: NodeTime, note: AdminNote,
    }
    /// A sale opened, paused, resumed or ended.
    33 SaleChanged "sale-changed" {
        sale: SaleIndex, change: SaleChange, at: NodeTime, note: AdminNote,
    }
    /// An item's total was raised (`added`) or lowered to `total_after`, by `quantity` units of
    /// `asked` ones.
    34 StockChanged "stock-changed" {
        item: ItemIndex, added: bool, asked: Quantity, quantity: Quantity, total_after: u64,
        key: KeyHash, at: NodeTime, note: AdminNote,
    }
    /// This journal accepted units from the stock authority, `granted` in all so far.
    35 Granted "granted" { item: ItemIndex, granted: u64, epoch: u32, at: NodeTime }
    /// This journal gave units back to the stock authority, `returned` in all so far.
    36 Returned "returned" { item: ItemIndex, returned: u64, epoch: u32, at: NodeTime }
    /// A shard will decide by this change of a sale from here on.
    37 ChangeSeen "change-seen" { shard: u16, sale: SaleIndex, change: SaleChange, at: NodeTime }
    /// An import of members was applied: `opened` accounts; `existing` ones were left as they are.
    38 Imported "imported" {
        rows: u64, opened: u64, existing: u64, content: KeyHash, at: NodeTime, note: AdminNote,
    }
    /// The item's pool stands at this epoch, on the server with this fingerprint: from here on
    /// this journal takes no grant of an older one.
    39 EpochSeen "epoch-seen" { item: ItemIndex, epoch: u32, server: KeyHash, at: NodeTime }
    /// The item's total, as a journal that is not its sale's home learned it from the pool.
    40 TotalSeen "total-seen" { item: ItemIndex, total: u64, at: NodeTime }
    /// This journal owns these slots, for good: claimed in the database before, as the node of
    /// this name by this version of the map. The slots are in the settings' spelling.
    41 SlotsClaimed "slots-claimed" {
        node: String, version: u64, slots: String, at: NodeTime,
    }
}

fn begin(kind: u8, slot: Slot, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[kind, VERSION]);
    slot.get().put(out);
    0u32.put(out);
    start
}

fn finish(start: usize, out: &mut [u8]) {
    let length = out.len() - start;
    assert!(length <= RECORD_LEN_MAX, "a record's parts are bounded at the door");
    out[start + 4..start + 8].copy_from_slice(&(length as u32).to_le_bytes());
}

/// The member that an encoded record is about; `None` where it is about none.
pub fn member_of(record: &[u8]) -> Option<MemberId> {
    // Kinds 1 to 8 are a member's, and name it first.
    let kind = *record.first()?;
    let field = record.get(HEADER_LEN..HEADER_LEN + 8)?;
    let id = u64::from_le_bytes(field.try_into().expect("eight bytes"));
    (1..=8).contains(&kind).then_some(MemberId::new(id))
}

/// A record's frame in a run of records: its slot and length, without its fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHead {
    pub kind: u8,
    pub slot: Slot,
    /// Bytes of the whole record.
    pub length: usize,
}

impl RecordHead {
    /// Reads the head of the record that `bytes` begin with.
    ///
    /// Errors: `Short` when the record is cut off, `Version` when it is too new.
    pub fn peek(bytes: &[u8]) -> Result<Self, RecordError> {
        let short = |need| RecordError::Short { have: bytes.len(), need };
        let head = bytes.first_chunk::<HEADER_LEN>().ok_or(short(HEADER_LEN))?;
        if head[1] > VERSION {
            return Err(RecordError::Version { found: head[1] });
        }
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length < HEADER_LEN || length > bytes.len() {
            return Err(short(length.max(HEADER_LEN)));
        }
        let slot = Slot::new(u16::from_le_bytes([head[2], head[3]]));
        Ok(Self { kind: head[0], slot, length })
    }
}

impl Record {
    /// Takes the record that `bytes` begin with, and moves `bytes` behind it.
    pub fn take(bytes: &mut &[u8]) -> Result<(Slot, Self), RecordError> {
        let head = RecordHead::peek(bytes)?;
        let (record, rest) = bytes.split_at(head.length);
        let mut fields = &record[HEADER_LEN..];
        let decoded = Self::decode_fields(head.kind, head.length, &mut fields)?;
        *bytes = rest;
        Ok((head.slot, decoded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<Record> {
        let member = MemberId::new(42);
        let (slot, at) = (Slot::of(member), NodeTime::new(1_700_000_000_123));
        let id = RedemptionId::new(at, slot, crate::units::JournalId::new(5), 7);
        let (item, quantity) = (ItemIndex::new(3), Quantity::new(2));
        let (points, free_after, held_after) =
            (Points::new(500), Points::new(1000), Points::new(500));
        let note = AdminNote {
            operator: "ops".into(),
            reason: "goodwill ☂".into(),
            reference: String::new(),
        };
        let key = KeyHash::of(b"key");
        vec![
            Opened { member, points, at }.into(),
            Credited {
                member,
                amount: points,
                free_after,
                held_after,
                key,
                at,
                note: note.clone(),
            }
            .into(),
            Held {
                member,
                id,
                key,
                item,
                quantity,
                points,
                free_after,
                held_after,
                expires_at: at,
            }
            .into(),
            Redeemed { member, id, key, item, quantity, points, free_after, held_after }.into(),
            Released {
                member,
                id,
                item,
                quantity,
                points,
                free_after,
                held_after,
                expired: true,
                at,
            }
            .into(),
            SaleChanged { sale: SaleIndex::new(1), change: SaleChange::Paused, at, note }.into(),
        ]
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let mut bytes = Vec::new();
        for record in examples() {
            record.encode(Slot::new(9), &mut bytes);
        }
        let mut rest = &bytes[..];
        for record in examples() {
            assert_eq!(Record::take(&mut rest), Ok((Slot::new(9), record)));
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_record_cut_at_any_byte_is_an_error_and_never_a_panic() {
        for record in examples() {
            let mut bytes = Vec::new();
            record.encode(CONTROL, &mut bytes);
            for cut in 0..bytes.len() {
                assert!(Record::take(&mut &bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_record_with_any_byte_changed_never_panics() {
        for record in examples() {
            let mut bytes = Vec::new();
            record.encode(CONTROL, &mut bytes);
            for at in 0..bytes.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    let _ = Record::take(&mut &changed[..]);
                }
            }
        }
    }
}
