//! Files that grow with the run: `seconds.csv`, and `latency.hlog` for `HdrHistogram`'s own tools.
//!
//! A row is written when its second is over, so a run that is cut off leaves what it had.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

use crate::stats::Second;

const CSV_HEAD: &str =
    "second,planned,sent,good,refused,errors,retries,p50_us,p90_us,p99_us,p99_9_us,max_us\n";

/// Histograms are in microseconds, the log's maxima in milliseconds.
const US_PER_MS: f64 = 1000.0;

pub struct SecondFiles {
    csv: BufWriter<File>,
    hlog: BufWriter<File>,
    serializer: V2DeflateSerializer,
    started: SystemTime,
    has_head: bool,
    failed: Option<io::Error>,
}

impl SecondFiles {
    /// Creates both files; `started` is the wall clock's time of the start, as far as it is known.
    pub fn create(dir: &Path, started: SystemTime) -> io::Result<Self> {
        let mut csv = BufWriter::new(File::create(dir.join("seconds.csv"))?);
        csv.write_all(CSV_HEAD.as_bytes())?;
        Ok(Self {
            csv,
            hlog: BufWriter::new(File::create(dir.join("latency.hlog"))?),
            serializer: V2DeflateSerializer::new(),
            started,
            has_head: false,
            failed: None,
        })
    }

    /// When the schedule's first second begins, by the wall clock.
    pub const fn starts(&mut self, at: SystemTime) {
        self.started = at;
    }

    /// Appends a second. After the first error nothing more is tried: [`Self::finish`] gives it.
    pub fn second(&mut self, s: &Second) {
        if self.failed.is_none() {
            self.failed = self.append(s).err();
        }
    }

    /// Writes what was added up from several runs.
    pub fn write_all(mut self, seconds: &[Second]) -> io::Result<()> {
        for second in seconds {
            self.second(second);
        }
        self.finish()
    }

    pub fn finish(mut self) -> io::Result<()> {
        match self.failed.take() {
            Some(e) => Err(e),
            None => self.csv.flush().and_then(|()| self.hlog.flush()),
        }
    }

    fn append(&mut self, s: &Second) -> io::Result<()> {
        let at = |q| s.response.value_at_quantile(q);
        writeln!(
            self.csv,
            "{},{},{},{},{},{},{},{},{},{},{},{}",
            s.second,
            s.planned,
            s.sent,
            s.good,
            s.refused,
            s.errors,
            s.retries,
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            at(1.0)
        )?;
        let log = self.log_of(s)?;
        self.hlog.write_all(&log)
    }

    /// The log's lines of one second; the first has the log's head before it.
    fn log_of(&mut self, s: &Second) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut builder = IntervalLogWriterBuilder::new();
        builder.with_max_value_divisor(US_PER_MS);
        if !self.has_head {
            builder.add_comment("onrush-load: response times in microseconds, per second");
            builder.with_start_time(self.started).with_base_time(self.started);
        }
        let mut log = builder.begin_log_with(&mut bytes, &mut self.serializer)?;
        let start = Duration::from_secs(u64::from(s.second));
        log.write_histogram(&s.response, start, Duration::from_secs(1), None)
            .map_err(|e| io::Error::other(e.to_string()))?;
        if std::mem::replace(&mut self.has_head, true) {
            bytes = keep_intervals(&bytes);
        }
        Ok(bytes)
    }
}

/// Drops what begins a log: comments and the legend.
fn keep_intervals(bytes: &[u8]) -> Vec<u8> {
    bytes
        .split_inclusive(|&b| b == b'\n')
        .filter(|line| !line.starts_with(b"#") && !line.starts_with(b"\""))
        .flatten()
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::record;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn the_log_is_read_back_by_the_histogram_library() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = SecondFiles::create(dir.path(), SystemTime::UNIX_EPOCH).unwrap();
        for second in 0..3 {
            let mut s = Second::new(second);
            s.planned = 10;
            for ms in 1..=10u64 {
                record(&mut s.response, ms * 1_000_000 * u64::from(second + 1));
            }
            files.second(&s);
        }
        files.finish().unwrap();
        let log = std::fs::read(dir.path().join("latency.hlog")).unwrap();
        let entries: Vec<_> = IntervalLogIterator::new(&log).map(Result::unwrap).collect();
        let intervals: Vec<_> = entries
            .iter()
            .filter_map(|e| match e {
                LogEntry::Interval(i) => Some((i.start_timestamp().as_secs(), i.max())),
                _ => None,
            })
            .collect();
        assert_eq!(intervals.iter().map(|i| i.0).collect::<Vec<_>>(), [0, 1, 2]);
        assert!((intervals[2].1 - 30.0).abs() < 0.1, "{intervals:?}");
        let heads = entries.iter().filter(|e| matches!(e, LogEntry::BaseTime(_))).count();
        assert_eq!(heads, 1);
        let csv = std::fs::read_to_string(dir.path().join("seconds.csv")).unwrap();
        assert_eq!(csv.lines().count(), 4);
        assert!(csv.lines().nth(1).unwrap().starts_with("0,10,0,0,0,0,0,5"), "{csv}");
    }
}
