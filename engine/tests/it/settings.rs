//! `config/onrush.toml` is the documentation of the settings, so it must be all of them, and true.

use std::path::{Path, PathBuf};

use onrush::config::{Config, Overrides};

fn settings_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/onrush.toml")
}

#[test]
fn the_settings_file_states_the_built_in_values() {
    let written = Config::load(Some(&settings_file()), Overrides::default()).expect("it loads");
    assert_eq!(written, Config::default());
}

#[test]
fn every_setting_is_in_the_settings_file() {
    let text = std::fs::read_to_string(settings_file()).expect("it is there");
    let mut config = Config::default();
    config.http.gateway_secret = Some(onrush::config::Secret::new("a".into()));
    config.store.mysql.password_file = Some("a".into());
    config.store.mysql.password = Some(onrush::config::Secret::new("a".into()));
    config.stock.redis.user = Some("a".into());
    config.stock.redis.password = Some(onrush::config::Secret::new("a".into()));
    config.stock.redis.password_file = Some("a".into());
    config.stock.redis.ca_file = Some("a".into());
    config.cluster.self_name = Some("a".into());
    config.cluster.secret = Some(onrush::config::Secret::new("a".into()));
    config.cluster.secret_file = Some("a".into());
    for line in config.print().lines().filter(|line| line.contains(" = ")) {
        let key = line.split(" = ").next().expect("a key");
        let is_there = text
            .lines()
            .any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
        assert!(is_there, "config/onrush.toml does not say what {key} does");
    }
}

#[test]
fn the_demo_sale_is_a_sale() {
    let sales = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/sales");
    for entry in std::fs::read_dir(sales).expect("it is there") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let sale: onrush::kernel::definition::SaleDefinition =
            toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        sale.validate().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
