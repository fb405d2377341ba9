//! Statements over many rows, in a few fixed sizes: each size is prepared once per connection.

/// Rows of one statement: the sizes that are prepared, the largest first. A batch of any length is
/// cut into at most three of each.
pub const SIZES: [usize; 6] = [1024, 256, 64, 16, 4, 1];

/// A statement whose middle repeats once per row.
#[derive(Debug)]
pub struct Bulk {
    pub head: &'static str,
    pub row: &'static str,
    pub tail: &'static str,
    /// Placeholders of one row.
    pub columns: usize,
    /// Bytes of one row on the wire, at most; for rows of a fixed width.
    pub row_bytes: usize,
}

impl Bulk {
    /// The statement for so many rows.
    pub fn text(&self, rows: usize) -> String {
        let mut text =
            String::with_capacity(self.head.len() + rows * (self.row.len() + 2) + self.tail.len());
        text.push_str(self.head);
        for row in 0..rows {
            if row > 0 {
                text.push_str(", ");
            }
            text.push_str(self.row);
        }
        text.push_str(self.tail);
        text
    }

    /// The size to take next of so many rows, for a server that takes packets of so many bytes.
    pub fn size(&self, rows: usize, packet_max: usize) -> usize {
        // Half of it, for the statement's text when it is prepared, and what surrounds the rows.
        let fits = packet_max / 2 / self.row_bytes.max(self.row.len() + 2);
        SIZES.into_iter().find(|size| *size <= rows && *size <= fits).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BULK: Bulk = Bulk {
        head: "INSERT INTO t VALUES ",
        row: "(?, ?)",
        tail: " ON DUPLICATE KEY UPDATE b = VALUES(b)",
        columns: 2,
        row_bytes: 20,
    };

    #[test]
    fn a_statement_repeats_its_row() {
        let expected = "INSERT INTO t VALUES (?, ?), (?, ?) ON DUPLICATE KEY UPDATE b = VALUES(b)";
        assert_eq!(BULK.text(2), expected);
    }

    #[test]
    fn a_batch_is_cut_into_few_statements_that_fit_the_servers_packet() {
        let count = |mut rows: usize, packet_max| {
            let mut statements = 0;
            while rows > 0 {
                rows -= BULK.size(rows, packet_max);
                statements += 1;
            }
            statements
        };
        assert_eq!(count(4096, 1 << 20), 4);
        assert_eq!(count(1023, 1 << 20), 15);
        assert_eq!(BULK.size(5000, 4096), 64);
        assert_eq!(BULK.size(5000, 100), 1);
    }
}
