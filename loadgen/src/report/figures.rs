//! `figures.json`: all that a run measured, histograms included, so that runs can be shown again,
//! added up and compared. `seconds.csv` and `latency.hlog` beside it have the course of the run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::check::Checked;
use crate::plan::Plan;
use crate::report::summary::{LedgerSummary, Summary};
use crate::report::threshold::Judgement;
use crate::run::{Measured, Outcomes};
use crate::stats::{self, Second, SecondRow};

const FORMAT: &str = "onrush-load/figures";
const VERSION: u32 = 1;

/// A run, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    format: String,
    version: u32,
    pub plan: Plan,
    #[serde(flatten)]
    pub measured: Measured,
    pub started_at: String,
    pub aborted: Option<String>,
    pub invalid_reasons: Vec<String>,
    #[serde(default)]
    pub peak_memory_bytes: u64,
    pub ledger: Option<LedgerSummary>,
    pub check: Option<Checked>,
    pub thresholds: Vec<Judgement>,
}

/// A run that cannot be read back.
#[derive(Debug, Error)]
pub enum FiguresError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: not what `run --out` writes: {detail}")]
    Content { path: PathBuf, detail: String },
    #[error("{path}: version {version} of its format, and this tool reads {VERSION}")]
    Version { path: PathBuf, version: u32 },
    #[error("{path}: no figures.json there, nor in a folder of it: give what `run --out` wrote")]
    None { path: PathBuf },
}

impl Figures {
    pub fn of(run: &Outcomes, summary: &Summary) -> Self {
        let mut plan = (*run.plan).clone();
        plan.forget_data();
        Self {
            format: FORMAT.into(),
            version: VERSION,
            plan,
            measured: Measured::of(run),
            started_at: run.started_at.clone(),
            aborted: run.aborted.clone(),
            invalid_reasons: summary.invalid_reasons.clone(),
            peak_memory_bytes: summary.generator.peak_memory_bytes,
            ledger: summary.ledger.clone(),
            check: summary.check.clone(),
            thresholds: summary.thresholds.clone(),
        }
    }

    /// Reads a run's folder, or its `figures.json`.
    pub fn read(path: &Path) -> Result<Self, FiguresError> {
        let path = if path.is_dir() { path.join("figures.json") } else { path.into() };
        let text = fs::read_to_string(&path)
            .map_err(|source| FiguresError::Io { path: path.clone(), source })?;
        let wrong = |detail: String| FiguresError::Content { path: path.clone(), detail };
        let figures: Self = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if figures.format != FORMAT {
            return Err(wrong(format!("its format is {:?}", figures.format)));
        }
        if figures.version != VERSION {
            return Err(FiguresError::Version { path, version: figures.version });
        }
        Ok(figures)
    }

    /// The run as if it had just ended, and its summary.
    pub fn show(&self, seconds: Vec<SecondRow>) -> (Outcomes, Summary) {
        let run = Outcomes {
            seconds,
            started_at: self.started_at.clone(),
            aborted: self.aborted.clone(),
            ..self.measured.clone().outcomes(Arc::new(self.plan.clone()), 0)
        };
        let mut summary = Summary::of(&run, None);
        summary.ledger.clone_from(&self.ledger);
        summary.check.clone_from(&self.check);
        summary.thresholds.clone_from(&self.thresholds);
        summary.invalid_reasons.clone_from(&self.invalid_reasons);
        summary.valid = self.invalid_reasons.is_empty();
        // Not what showing it takes.
        summary.generator.peak_memory_bytes = self.peak_memory_bytes;
        (run, summary)
    }
}

/// The runs of a folder: itself, or each folder in it that is one, by name.
pub fn runs_of(path: &Path) -> Result<Vec<PathBuf>, FiguresError> {
    if path.is_file() || path.join("figures.json").is_file() {
        return Ok(vec![path.into()]);
    }
    let entries =
        fs::read_dir(path).map_err(|source| FiguresError::Io { path: path.into(), source })?;
    let mut runs: Vec<_> = (entries.flatten().map(|e| e.path()))
        .filter(|p| p.join("figures.json").is_file())
        .collect();
    runs.sort();
    if runs.is_empty() { Err(FiguresError::None { path: path.into() }) } else { Ok(runs) }
}

/// The seconds of a run's folder: counts from `seconds.csv`, histograms from `latency.hlog`.
pub fn read_seconds(dir: &Path) -> Result<Vec<Second>, FiguresError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| FiguresError::Io { path, source }
    };
    let (csv_path, log_path) = (dir.join("seconds.csv"), dir.join("latency.hlog"));
    let bad = |path: &Path, detail: String| FiguresError::Content { path: path.into(), detail };
    let bytes = fs::read(&csv_path).map_err(io(&csv_path))?;
    let mut seconds = Vec::new();
    for row in csv::Reader::from_reader(&*bytes).records() {
        let row = row.map_err(|e| bad(&csv_path, e.to_string()))?;
        let field = |i: usize| row.get(i).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        seconds.push(Second {
            planned: field(1),
            sent: field(2),
            good: field(3),
            refused: field(4),
            errors: field(5),
            retries: field(6),
            ..Second::new(field(0) as u32)
        });
    }
    let log = fs::read(&log_path).map_err(io(&log_path))?;
    let intervals = IntervalLogIterator::new(&log).filter_map(|entry| match entry {
        Ok(LogEntry::Interval(interval)) => Some(interval),
        _ => None,
    });
    for (second, interval) in seconds.iter_mut().zip(intervals) {
        second.response = decode(interval.encoded_histogram())
            .map_err(|detail| bad(&log_path, format!("second {}: {detail}", second.second)))?;
    }
    Ok(seconds)
}

fn decode(text: &str) -> Result<stats::Latency, String> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    let bytes = bytes.map_err(|e| e.to_string())?;
    let read: stats::Latency =
        Deserializer::new().deserialize(&mut &bytes[..]).map_err(|e| e.to_string())?;
    let mut h = stats::latency();
    h.add(&read).map_err(|e| e.to_string())?;
    Ok(h)
}
