//! Rows of a database shard, as values. The same for every store; `config/schema/README.md`
//! describes the tables that they go to.

use crate::kernel::command::RedemptionState;
use crate::units::{
    ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex,
    Seq, Slot,
};

/// The four ledger accounts; those of a member, then the mall's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum LedgerAccount {
    /// A member's points to spend.
    Free = 1,
    /// A member's points set aside.
    Held = 2,
    /// The mall's: minus all that was ever given out, plus what was taken back by debit.
    Issued = 3,
    /// The mall's: what was exchanged for units.
    Redeemed = 4,
}

impl LedgerAccount {
    pub const ALL: [Self; 4] = [Self::Free, Self::Held, Self::Issued, Self::Redeemed];

    pub fn from_u8(raw: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|a| *a as u8 == raw)
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held => "held",
            Self::Issued => "issued",
            Self::Redeemed => "redeemed",
        }
    }
}

/// Why points moved: the kind of the record that moved them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum MoveKind {
    Opened = 1,
    Credited = 2,
    Debited = 3,
    Held = 4,
    Redeemed = 5,
    Confirmed = 6,
    Released = 7,
    Reversed = 8,
}

impl MoveKind {
    pub const ALL: [Self; 8] = [
        Self::Opened,
        Self::Credited,
        Self::Debited,
        Self::Held,
        Self::Redeemed,
        Self::Confirmed,
        Self::Released,
        Self::Reversed,
    ];

    pub fn from_u8(raw: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == raw)
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Credited => "credited",
            Self::Debited => "debited",
            Self::Held => "held",
            Self::Redeemed => "redeemed",
            Self::Confirmed => "confirmed",
            Self::Released => "released",
            Self::Reversed => "reversed",
        }
    }
    /// The account that points leave, and the one they enter.
    pub const fn accounts(self) -> (LedgerAccount, LedgerAccount) {
        use LedgerAccount::{Free, Held, Issued, Redeemed};
        match self {
            Self::Opened | Self::Credited => (Issued, Free),
            Self::Debited => (Free, Issued),
            Self::Held => (Free, Held),
            Self::Redeemed => (Free, Redeemed),
            Self::Confirmed => (Held, Redeemed),
            Self::Released => (Held, Free),
            Self::Reversed => (Redeemed, Free),
        }
    }
}

/// One of the two entries of a move. `(journal, seq, leg)` is its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LedgerRow {
    pub journal: JournalId,
    pub seq: Seq,
    /// 0: the account that points leave; 1: the one they enter.
    pub leg: u8,
    pub account: LedgerAccount,
    /// Whose points moved, also beside the mall's accounts.
    pub member: MemberId,
    /// Negative where points leave.
    pub amount: i64,
    pub kind: MoveKind,
    pub redemption: Option<RedemptionId>,
    pub at: NodeTime,
}

/// What was taken out of the ledger into files, of one member and account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArchivedBalance {
    pub journal: JournalId,
    pub member: MemberId,
    pub account: LedgerAccount,
    pub amount: i64,
}

/// A redemption as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedemptionRow {
    pub id: RedemptionId,
    pub member: MemberId,
    /// The journal that decided it, which also numbered `item`.
    pub journal: JournalId,
    pub item: ItemIndex,
    pub quantity: Quantity,
    pub points: Points,
    pub state: RedemptionState,
    pub key: KeyHash,
    /// When the hold ends; zero where there was none.
    pub expires_at: NodeTime,
    pub updated_at: NodeTime,
    /// A reversal gave the units back to the sale; else they are retired.
    pub units_back: bool,
    /// The record that brought it to this state.
    pub seq: Seq,
}

/// A redemption that goes from one state to another, and what must be so before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedemptionMove {
    pub id: RedemptionId,
    pub member: MemberId,
    pub item: ItemIndex,
    pub quantity: Quantity,
    pub points: Points,
    pub from: RedemptionState,
    pub to: RedemptionState,
    pub updated_at: NodeTime,
    pub units_back: bool,
    pub seq: Seq,
}

/// A member's balance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccountRow {
    pub member: MemberId,
    pub free: Points,
    pub held: Points,
    pub journal: JournalId,
    pub last_seq: Seq,
}

/// A balance after a batch, and before it: `None` opens the account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccountChange {
    pub before: Option<(Points, Points)>,
    pub after: AccountRow,
}

/// What a batch adds to an item's partial sums on this database shard. Units: units of stock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StockSums {
    /// In redemptions that are held now.
    pub held: i64,
    /// In redemptions that are confirmed now.
    pub confirmed: i64,
    /// Of holds cancelled or expired, so far.
    pub released: i64,
    /// Of redemptions reversed, so far.
    pub reversed: i64,
    /// Of the reversed ones: those that did not come back to the sale.
    pub retired: i64,
}

/// What the control partition says of an item; kept by the home database shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StockTotals {
    pub total: Option<u64>,
    pub granted: Option<u64>,
    pub returned: Option<u64>,
}

/// An item's row: partial sums of this database shard, and at home the totals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StockRow {
    pub journal: JournalId,
    pub item: ItemIndex,
    pub sums: StockSums,
    pub total: u64,
    pub granted: u64,
    pub returned: u64,
}

/// Records of a slot: how many, and the wrapping sum of XXH3-64 over their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotSum {
    pub journal: JournalId,
    pub slot: Slot,
    pub records: u64,
    pub checksum: u64,
}

/// A sale as it was defined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaleRow {
    pub journal: JournalId,
    pub sale: SaleIndex,
    pub id: String,
    pub name: String,
    pub defined_at: NodeTime,
    /// The canonical JSON.
    pub definition: String,
}

/// A sale as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredSale {
    pub row: SaleRow,
    pub state: SaleState,
    pub changed_at: NodeTime,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ItemRow {
    pub journal: JournalId,
    pub item: ItemIndex,
    pub sale: SaleIndex,
    pub sku: String,
    pub name: String,
    pub points: u64,
    pub limit_per_member: u64,
}

/// A sale's state after a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SaleMove {
    pub journal: JournalId,
    pub sale: SaleIndex,
    pub state: SaleState,
    pub at: NodeTime,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SaleState {
    Defined,
    Open,
    Paused,
    Ended,
}

impl SaleState {
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Defined, Self::Open, Self::Paused, Self::Ended];
        all.into_iter().find(|state| state.name() == name)
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Defined => "defined",
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Ended => "ended",
        }
    }
}

/// What an operator (or a sale's own time) changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AdminChange {
    pub journal: JournalId,
    pub seq: Seq,
    pub at: NodeTime,
    /// The record's kind; for a sale, how it changed.
    pub what: &'static str,
    pub operator: String,
    pub reason: String,
    pub reference: String,
    pub member: Option<MemberId>,
    pub redemption: Option<RedemptionId>,
    pub sale: Option<SaleIndex>,
    pub item: Option<ItemIndex>,
    /// Points, units or accounts, as `what` says; negative where they were taken.
    pub amount: Option<i64>,
}

impl AdminChange {
    /// Everything that `what` may say.
    pub const WHATS: [&'static str; 11] = [
        "credited",
        "debited",
        "reversed",
        "sale-defined",
        "sale-opened",
        "sale-paused",
        "sale-resumed",
        "sale-ended",
        "stock-added",
        "stock-withdrawn",
        "imported",
    ];

    pub fn what_from_name(name: &str) -> Option<&'static str> {
        Self::WHATS.into_iter().find(|what| *what == name)
    }
}
