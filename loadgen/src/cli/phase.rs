//! A phase as flags and files write it.

use std::str::FromStr;

use serde::Deserialize;

use crate::schedule::Phase;

/// In a flag `NAME:SECONDS:RATE` or `NAME:SECONDS:FROM-TO`, with `:polls=SHARE` behind it where
/// that differs; in a file that, or a table.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct PhaseArg {
    pub phase: Phase,
    /// Share of requests that only look at the sale, where it differs from the run's.
    pub polls: Option<f64>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a phase is NAME:SECONDS:RATE, or a table with name, seconds, and \
                               rate or from and to; and polls"
)]
enum Written {
    Text(String),
    Table(Table),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    seconds: f64,
    rate: Option<f64>,
    from: Option<f64>,
    to: Option<f64>,
    polls: Option<f64>,
}

impl TryFrom<Written> for PhaseArg {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let t = match written {
            Written::Text(text) => return text.parse(),
            Written::Table(t) => t,
        };
        let (from_rate, to_rate) = match (t.rate, t.from, t.to) {
            (Some(rate), None, None) => (rate, rate),
            (None, Some(from), Some(to)) => (from, to),
            _ => return Err(format!("phase {}: either rate, or from and to", t.name)),
        };
        let phase = Phase { name: t.name, seconds: t.seconds, from_rate, to_rate };
        Ok(Self { phase, polls: t.polls })
    }
}

impl FromStr for PhaseArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text}: expected NAME:SECONDS:RATE or NAME:SECONDS:FROM-TO, and :polls=SHARE")
        };
        let number = |s: &str| s.parse::<f64>().map_err(|_| wrong());
        let (plain, polls) = match text.rsplit_once(":polls=") {
            Some((plain, polls)) => (plain, Some(number(polls)?)),
            None => (text, None),
        };
        let parts: Vec<_> = plain.split(':').collect();
        let [name, seconds, rate] = parts[..] else { return Err(wrong()) };
        let (from, to) = rate.split_once('-').unwrap_or((rate, rate));
        if name.is_empty() {
            return Err(wrong());
        }
        let phase = Phase {
            name: name.into(),
            seconds: number(seconds)?,
            from_rate: number(from)?,
            to_rate: number(to)?,
        };
        Ok(Self { phase, polls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        phase: Vec<PhaseArg>,
    }

    fn phase(name: &str, seconds: f64, from_rate: f64, to_rate: f64) -> Phase {
        Phase { name: name.into(), seconds, from_rate, to_rate }
    }

    #[test]
    fn phases_are_read_from_flags_and_tables() {
        let flag: PhaseArg = "up:2.5:0-100".parse().unwrap();
        assert_eq!(flag.phase, phase("up", 2.5, 0.0, 100.0));
        let flag: PhaseArg = "flat:1:7".parse().unwrap();
        assert_eq!(flag.phase, phase("flat", 1.0, 7.0, 7.0));
        assert_eq!(flag.polls, None);
        let flag: PhaseArg = "wait:1:2-7:polls=0.5".parse().unwrap();
        assert_eq!((flag.phase, flag.polls), (phase("wait", 1.0, 2.0, 7.0), Some(0.5)));
        for wrong in ["", "a", "a:1", ":1:1", "a:x:1", "a:1:1-x", "a:1:1:1", "a:1:1:polls=x"] {
            assert!(wrong.parse::<PhaseArg>().is_err(), "{wrong}");
        }
        let text = "phase = ['a:1:2', {name='b', seconds=3, rate=4, polls=0.5}]";
        let file: File = toml::from_str(text).unwrap();
        assert_eq!(file.phase[1].phase, phase("b", 3.0, 4.0, 4.0));
        assert_eq!(file.phase[1].polls, Some(0.5));
        for wrong in ["{name='b', seconds=3}", "{name='b', seconds=3, rate=1, x=1}", "'a'"] {
            assert!(toml::from_str::<File>(&format!("phase = [{wrong}]")).is_err(), "{wrong}");
        }
    }
}
