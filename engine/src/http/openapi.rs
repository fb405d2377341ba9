//! The API's description: written as YAML beside the code, served as JSON.

use std::sync::LazyLock;

/// `engine/openapi.yaml`, as it was built in.
pub const YAML: &str = include_str!("../../openapi.yaml");

static JSON: LazyLock<String> = LazyLock::new(|| {
    let document: serde_json::Value =
        serde_saphyr::from_str(YAML).expect("a test reads the very same bytes");
    document.to_string()
});

/// The description as JSON; converted at the first call.
pub fn json() -> &'static str {
    &JSON
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_description_converts() {
        let document: serde_json::Value = serde_json::from_str(super::json()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
