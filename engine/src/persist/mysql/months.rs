//! Months, and where they begin in the time-ordered ids that tables are partitioned by.

use std::fmt;

use jiff::civil::{Date, date};
use jiff::tz::Offset;

use crate::units::NodeTime;

/// A month of the calendar, UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Month {
    year: i16,
    month: i8,
}

impl Month {
    /// `YYYY-MM`.
    pub fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        if year.len() != 4 || month.len() != 2 {
            return None;
        }
        let (year, month) = (year.parse().ok()?, month.parse().ok()?);
        (1..=12).contains(&month).then_some(Self { year, month })
    }

    /// The month of a time. Times beyond the calendar fall into its last month.
    pub fn of(at: NodeTime) -> Self {
        let ms = i64::try_from(at.get()).unwrap_or(i64::MAX);
        let date = jiff::Timestamp::from_millisecond(ms)
            .map_or(Date::MAX, |t| Offset::UTC.to_datetime(t).date());
        Self { year: date.year(), month: date.month() }
    }

    #[must_use]
    pub fn next(self) -> Self {
        match self.month {
            12 => Self { year: self.year.saturating_add(1).min(9998), month: 1 },
            month => Self { year: self.year, month: month + 1 },
        }
    }

    #[must_use]
    pub fn plus(self, months: u8) -> Self {
        (0..months).fold(self, |month, _| month.next())
    }

    /// The first millisecond.
    pub fn first_ms(self) -> u64 {
        let first = date(self.year, self.month, 1).at(0, 0, 0, 0);
        let ms = Offset::UTC.to_timestamp(first).map_or(0, jiff::Timestamp::as_millisecond);
        ms.try_into().unwrap_or(0)
    }

    /// The lowest id of the month, as a literal: 48 bits of milliseconds, then zeros.
    pub fn first_id(self) -> String {
        format!("0x{:012x}{:020x}", self.first_ms(), 0)
    }

    /// The name of its partition.
    pub fn partition(self) -> String {
        format!("p{:04}{:02}", self.year, self.month)
    }

    /// The month of a partition by its name; `None` for `p_future`.
    pub fn of_partition(name: &str) -> Option<Self> {
        let digits = name.strip_prefix('p')?;
        let (year, month) = digits.split_at_checked(4)?;
        Self::parse(&format!("{year}-{month}"))
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_where_the_calendar_says() {
        let month = Month::parse("2026-01").unwrap();
        assert_eq!(month.first_ms(), 1_767_225_600_000);
        assert_eq!(month.first_id(), "0x019b76daa80000000000000000000000");
        assert_eq!(Month::of(NodeTime::new(1_767_225_600_000)), month);
        assert_eq!(Month::of(NodeTime::new(1_767_225_599_999)).to_string(), "2025-12");
        assert_eq!(Month::parse("2025-12").unwrap().next(), month);
        assert_eq!(Month::parse("2025-11").unwrap().plus(2), month);
    }

    #[test]
    fn a_partition_names_its_month() {
        let month = Month::parse("2026-11").unwrap();
        assert_eq!(month.partition(), "p202611");
        assert_eq!(Month::of_partition("p202611"), Some(month));
        for name in ["p_future", "p2026", "x202611", "p202613", "p2026111"] {
            assert_eq!(Month::of_partition(name), None, "{name}");
        }
        for text in ["2026-13", "2026-1", "26-01", "2026", "2026-00"] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_beyond_the_calendar_has_a_month_too() {
        assert_eq!(Month::of(NodeTime::new(u64::MAX)).to_string(), "9999-12");
        assert_eq!(Month::of(NodeTime::new(5)).to_string(), "1970-01");
    }
}
