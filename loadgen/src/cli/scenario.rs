//! Scenario files: the flags' names in TOML tables, unknown keys refused; and the presets.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cli::args::ScenarioArgs;

/// A scenario that comes with the tool.
#[derive(Debug)]
pub struct Preset {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! presets {
    ($($name:literal),*) => {
        &[$(Preset {
            name: $name,
            text: include_str!(concat!("../../../config/load/", $name, ".toml")),
        }),*]
    };
}

/// All of them, the most used first.
pub const PRESETS: &[Preset] =
    presets!["double-eleven", "hot-item", "steady", "retry-storm", "holds", "soak"];

impl Preset {
    pub fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|p| p.name == name)
    }

    /// Its first line of comment.
    pub fn about(&self) -> &'static str {
        self.text.lines().next().unwrap_or("").trim_start_matches(['#', ' '])
    }
}

/// Reads a file; where there is none of this name, the preset.
pub fn read(path: &Path) -> Result<ScenarioArgs> {
    let name = path.to_string_lossy();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => match Preset::named(&name) {
            Some(preset) => preset.text.into(),
            None if name.contains(['/', '.']) => return Err(e).context(name.into_owned()),
            None => {
                let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
                bail!("{name}: no such file, and no preset (there are {})", names.join(", "))
            }
        },
    };
    toml::from_str(&text).with_context(|| name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_scenario_and_says_what_it_is_for() {
        for preset in PRESETS {
            let scenario: ScenarioArgs =
                toml::from_str(preset.text).unwrap_or_else(|e| panic!("{}: {e}", preset.name));
            assert!(!scenario.schedule.phase.is_empty(), "{}", preset.name);
            assert!(preset.about().len() > 20, "{}", preset.name);
        }
    }

    const EVERY_KEY: &str = include_str!("../../../config/load/every-key.toml");

    #[test]
    fn every_key_is_explained_in_one_file() {
        use clap::Args as _;
        let as_it_is: ScenarioArgs = toml::from_str(EVERY_KEY).unwrap();
        crate::cli::resolve::Offline::of(&as_it_is).unwrap();
        let whole = EVERY_KEY.replace("#? ", "");
        toml::from_str::<ScenarioArgs>(&whole).unwrap();
        let keys: Vec<_> =
            whole.lines().filter_map(|l| l.split_once(" = ")).map(|(key, _)| key).collect();
        let flags = ScenarioArgs::augment_args(clap::Command::new("run"));
        for flag in flags.get_arguments().filter_map(clap::Arg::get_long) {
            let key = if flag == "check" { "ledger" } else { flag };
            assert!(keys.contains(&key), "{key} is in no table of every-key.toml");
        }
    }

    #[test]
    fn unknown_keys_are_refused_in_every_table() {
        for table in ["", "[schedule]", "[client]", "[http]", "[redeem]", "[check]"] {
            let text = format!("{table}\nno-such-key = 1\n");
            let error = toml::from_str::<ScenarioArgs>(&text).unwrap_err().to_string();
            assert!(error.contains("no-such-key"), "{table}: {error}");
        }
    }

    #[test]
    fn flags_go_over_files() {
        let file: ScenarioArgs = toml::from_str(
            "target = ['http://a']\n[schedule]\nphase = ['a:1:1', 'b:1:1']\nseed = 5\n\
             [client]\nconnections = 7\n[redeem]\nsale = 's'\nholds = 0.5\n[check]\nledger = true",
        )
        .unwrap();
        let mut flags = ScenarioArgs::default();
        flags.schedule.rate = Some(9.0);
        flags.redeem.sale = Some("t".into());
        flags.check.check = Some(false);
        let merged = flags.over(file);
        assert_eq!(merged.target, ["http://a"]);
        assert_eq!((merged.schedule.rate, merged.schedule.phase.len()), (Some(9.0), 0));
        assert_eq!((merged.schedule.seed, merged.client.connections), (Some(5), Some(7)));
        assert_eq!(merged.redeem.sale.as_deref(), Some("t"));
        assert_eq!((merged.redeem.holds, merged.check.check), (Some(0.5), Some(false)));
    }

    #[test]
    fn a_flag_for_the_connections_goes_over_a_file_with_a_closed_loop() {
        let file = || toml::from_str::<ScenarioArgs>("[schedule]\nclosed = 64").unwrap();
        let mut flags = ScenarioArgs::default();
        flags.client.connections = Some(3);
        assert_eq!(flags.clone().over(file()).schedule.closed, Some(3));
        flags.schedule.rate = Some(1.0);
        assert_eq!(flags.over(file()).schedule.closed, None);
    }

    #[test]
    fn a_length_stretches_or_shortens_phases_together() {
        use crate::plan::Load;
        let text = "target = ['http://127.0.0.1:1']\n[schedule]\nphase = ['a:30:5-9', 'b:10:1']";
        let mut scenario: ScenarioArgs = toml::from_str(text).unwrap();
        scenario.schedule.seconds = Some(4.0);
        let offline = crate::cli::resolve::Offline::of(&scenario).unwrap();
        let Load::Open { phases, .. } = offline.load else { panic!() };
        let all: Vec<_> = phases.iter().map(|p| (p.seconds, p.from_rate, p.to_rate)).collect();
        assert_eq!(all, [(3.0, 5.0, 9.0), (1.0, 1.0, 1.0)]);
    }
}
