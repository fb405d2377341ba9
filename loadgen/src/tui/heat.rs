//! The heat strip: a column per second, a row per class of response times; the darker a cell, the
//! more of its second's requests took so long.

use crate::stats::Latency;

/// Units: microseconds; a class ends with its bound, and the last one has none.
const BOUNDS: [u64; 16] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];
pub const CLASSES: usize = BOUNDS.len() + 1;

const NAMES: [&str; CLASSES] = [
    "≤100µs",
    "200µs",
    "500µs",
    "1ms",
    "2ms",
    "5ms",
    "10ms",
    "20ms",
    "50ms",
    "100ms",
    "200ms",
    "500ms",
    "1s",
    "2s",
    "5s",
    "10s",
    ">10s",
];

/// A second's requests by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Column {
    counts: [u64; CLASSES],
}

impl Column {
    pub fn of(h: &Latency) -> Self {
        let mut column = Self::default();
        for value in h.iter_recorded() {
            let class = BOUNDS.partition_point(|b| *b < value.value_iterated_to());
            column.counts[class] += value.count_at_value();
        }
        column
    }

    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// How much of its second a cell has: 0 nothing, 4 the most.
pub type Heat = u8;

/// A row of the strip: its class by name, and a heat for each column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub name: String,
    pub heats: Vec<Heat>,
}

fn heat(count: u64, total: u64) -> Heat {
    let share = count as f64 / total.max(1) as f64;
    match share {
        _ if count == 0 => 0,
        // One slow request in a thousand must be seen.
        ..0.01 => 1,
        ..0.1 => 2,
        ..0.4 => 3,
        _ => 4,
    }
}

/// The strip, slowest class first, in at most `most` rows: from the slowest class in use down, with
/// all that is faster than the last row in that row.
pub fn rows(columns: &[Column], most: usize) -> Vec<Row> {
    let used = |class: &usize| columns.iter().any(|c| c.counts[*class] > 0);
    let (Some(first), Some(last)) = ((0..CLASSES).find(used), (0..CLASSES).rfind(used)) else {
        return Vec::new();
    };
    if most == 0 {
        return Vec::new();
    }
    let lowest = first.max((last + 1).saturating_sub(most));
    (lowest..=last)
        .rev()
        .map(|class| {
            let from = if class == lowest { first } else { class };
            let count = |c: &Column| c.counts[from..=class].iter().sum();
            let at_most = if from < class { "≤" } else { "" };
            Row {
                name: format!("{at_most}{}", NAMES[class]),
                heats: columns.iter().map(|c| heat(count(c), c.total())).collect(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats;

    fn column(microseconds: &[(u64, u64)]) -> Column {
        let mut h = stats::latency();
        for (us, count) in microseconds {
            h.record_n(*us, *count).unwrap();
        }
        Column::of(&h)
    }

    #[test]
    fn a_cell_is_as_dark_as_its_share_of_the_second() {
        let columns = [
            column(&[(80, 900), (150, 80), (300_000, 1)]),
            column(&[]),
            column(&[(90, 70), (180, 30)]),
        ];
        let rows = rows(&columns, 20);
        let names: Vec<_> = rows.iter().map(|r| &*r.name).collect();
        assert_eq!((names[0], names[names.len() - 1]), ("500ms", "≤100µs"));
        assert_eq!(rows[0].heats, [1, 0, 0], "one slow request is seen");
        assert_eq!(rows[rows.len() - 2].heats, [2, 0, 3]);
        assert_eq!(rows[rows.len() - 1].heats, [4, 0, 4]);
    }

    #[test]
    fn a_low_screen_keeps_the_slow_rows() {
        let columns = [column(&[(80, 1), (150, 1), (700, 1), (90_000, 1)])];
        let rows = rows(&columns, 3);
        let names: Vec<_> = rows.iter().map(|r| &*r.name).collect();
        assert_eq!(names, ["100ms", "50ms", "≤20ms"]);
        assert_eq!(rows[2].heats, [4], "what is faster counts into the last row");
        assert_eq!(super::rows(&columns, 0), []);
        assert_eq!(super::rows(&[], 5), []);
    }
}
