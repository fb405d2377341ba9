//! Result codes of refusals, in the order in which the kernel checks.
//!
//! The numbers are stable: part of records, metrics and the API's `code`. They come in bands with
//! room between, are never renumbered and never reused. Where several refusals apply, the one
//! that stands first here is the answer.

/// Why a command was refused. A refusal is a value, not an error.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u16)]
pub enum Code {
    // 100: the request key
    /// The key was used before with another body.
    KeyReused = 100,
    /// The sale's keys have been dropped: whether this one was used, the store knows.
    KeyExpired = 110,
    // 200: the sale and the item
    SaleNotFound = 200,
    ItemNotFound = 210,
    SaleNotOpen = 220,
    SaleEnded = 230,
    SalePaused = 240,
    // 300: the member
    NotEligible = 300,
    // 400: the quantity
    QuantityInvalid = 400,
    LimitReached = 410,
    /// Too many holds of this item were given up by this member: no further *holds*.
    HoldAllowanceSpent = 420,
    // 500: points
    InsufficientPoints = 500,
    // 600: stock, last, so that nothing is taken in vain
    SoldOut = 600,
    // 700: what exists already
    RedemptionNotFound = 700,
    WrongState = 710,
    // 800: admin calls
    MemberNotFound = 800,
    /// The account or its total would pass [`crate::units::Points::MAX`].
    BalanceTooLarge = 810,
    /// Another sale has this id.
    SaleExists = 820,
    /// A definition, a quantity or an amount that no state would accept.
    Invalid = 830,
}

impl Code {
    /// Every code, in precedence order.
    pub const ALL: [Self; 19] = [
        Self::KeyReused,
        Self::KeyExpired,
        Self::SaleNotFound,
        Self::ItemNotFound,
        Self::SaleNotOpen,
        Self::SaleEnded,
        Self::SalePaused,
        Self::NotEligible,
        Self::QuantityInvalid,
        Self::LimitReached,
        Self::HoldAllowanceSpent,
        Self::InsufficientPoints,
        Self::SoldOut,
        Self::RedemptionNotFound,
        Self::WrongState,
        Self::MemberNotFound,
        Self::BalanceTooLarge,
        Self::SaleExists,
        Self::Invalid,
    ];

    /// The API's `code` and the metrics' `outcome`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeyReused => "key-reused",
            Self::KeyExpired => "key-expired",
            Self::SaleNotFound => "sale-not-found",
            Self::ItemNotFound => "item-not-found",
            Self::SaleNotOpen => "sale-not-open",
            Self::SaleEnded => "sale-ended",
            Self::SalePaused => "sale-paused",
            Self::NotEligible => "not-eligible",
            Self::QuantityInvalid => "quantity-invalid",
            Self::LimitReached => "limit-reached",
            Self::HoldAllowanceSpent => "hold-allowance-spent",
            Self::InsufficientPoints => "insufficient-points",
            Self::SoldOut => "sold-out",
            Self::RedemptionNotFound => "redemption-not-found",
            Self::WrongState => "wrong-state",
            Self::MemberNotFound => "member-not-found",
            Self::BalanceTooLarge => "balance-too-large",
            Self::SaleExists => "sale-exists",
            Self::Invalid => "invalid",
        }
    }

    /// Whether the same request, sent again, may be answered otherwise.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::SaleNotOpen
                | Self::SalePaused
                | Self::LimitReached
                | Self::InsufficientPoints
                | Self::SoldOut
        )
    }

    /// Whether the refusal shows or depends on a member's state, and so may leave the node only
    /// once that state is durable (invariant I4). † A key that expired, too: its slot has forgotten
    /// it by a record, and remembers it again should that record be lost.
    pub const fn shows_member(self) -> bool {
        !matches!(
            self,
            Self::SaleNotFound
                | Self::ItemNotFound
                | Self::SaleNotOpen
                | Self::SaleEnded
                | Self::SalePaused
                | Self::SoldOut
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_in_precedence_order_with_rising_numbers_and_one_name_each() {
        assert!(Code::ALL.windows(2).all(|w| (w[0] as u16) < (w[1] as u16)));
        let mut names: Vec<_> = Code::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
    }
}
