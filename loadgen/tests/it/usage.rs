//! The command line refuses what it cannot do, in words, with exit 1.

use crate::tool::tool;

#[test]
fn wrong_usage_is_exit_1_with_a_clear_line() {
    let url = "http://127.0.0.1:9";
    let cases: &[(&[&str], &str)] = &[
        (&["run"], "--target"),
        (&["run", "--target", url, "--no-such-flag"], "--no-such-flag"),
        (&["run", "--target", "127.0.0.1:9"], "http://"),
        (&["run", "--target", "http://no-such-host.invalid"], "does not resolve"),
        (&["run", "--target", url, "--rate", "0"], "no request"),
        (&["run", "--target", url, "--rate", "-5"], "rate"),
        (&["run", "--target", url, "--seconds", "0"], "not a duration"),
        (&["run", "--target", url, "--seconds", "1e300"], "not a duration"),
        (&["run", "--target", url, "--rate", "1e8", "--seconds", "1e6"], "2^40"),
        (&["run", "--target", url, "--phase", "a:b"], "expected NAME:SECONDS:RATE"),
        (&["run", "--target", url, "--connections", "0"], "--connections"),
        (&["run", "--target", url, "--header", "no colon"], "NAME: VALUE"),
        (&["run", "--target", url, "--header", "A: b\r\nC: d"], "NAME: VALUE"),
        (&["run", "--target", url, "--method", "GE T"], "not an HTTP method"),
        (&["run", "--target", url, "--sale", "a/b"], "--sale"),
        (&["run", "--target", url, "--sale", "a", "--items", "x", "--members", "9-1"], "--members"),
        (&["run", "--target", url, "--sale", "a", "--members", "/no/such.csv"], "/no/such.csv"),
        (&["run", "--target", url, "--sale", "a", "--items", "x:y"], "--items"),
        (&["run", "--target", url, "--sale", "a", "--items", "x", "--holds", "1.5"], "--holds"),
        (&["run", "--target", url, "--retry-on", "503"], "need --attempts"),
        (&["run", "--target", url, "--attempts", "2", "--retry-on", "200"], "--retry-on"),
        (&["run", "--target", url, "--attempts", "2", "--retry-wait", "1"], "FIRST-LONGEST"),
        (&["run", "--target", url, "--attempts", "2", "--retry-wait", "2-1"], "FIRST-LONGEST"),
        (&["run", "--target", url, "--mark", "x"], "NAME=SECONDS"),
        (
            &["run", "hot-item", "--check", "--balances", "ask", "--members", "1-9000000000000"],
            "--balances ask",
        ),
        (&["run", "--target", url, "--body-file", "/no/such/file"], "/no/such/file"),
        (&["run", "--target", url, "--holds", "0.5"], "needs --sale"),
        (&["run", "--target", url, "--check"], "needs --sale"),
        (&["run", "--target", url, "--sale", "a", "--store", "sqlite:x"], "need --check"),
        (&["run", "--target", url, "--sale", "a", "--method", "PUT"], "its own requests"),
        (&["run", "--target", url, "--sale", "a", "--items", "x", "--choice", "zipf"], "--choice"),
        (&["run", "--target", url, "--threshold", "p99<5"], "unit"),
        (&["run", "--target", url, "--threshold", "p99{phase=x}<5ms"], "no phase x"),
        (&["run", "--target", url, "--phase", "a:1:1", "--phase", "a:1:1"], "same name"),
        (&["run", "--target", url, "--replay", "/no/such/log"], "/no/such/log"),
        (&["run", "--target", url, "--replay-speed", "2"], "needs --replay"),
        (&["run", "--target", url, "--data", "/no/such.csv"], "/no/such.csv"),
        (&["run", "--target", url, "--body", "{{name}}"], "{{name}}"),
        (&["run", "--target", url, "--slow-readers", "2"], "--slow-readers"),
        (&["run", "--target", url, "--reopen=-1"], "--reopen"),
        (&["run", "--target", url, "--bots", "0.5"], "needs --sale"),
        (&["run", "--target", url, "--sale", "a", "--items", "x", "--hammer", "0"], "--hammer"),
        (&["run", "--target", url, "--repeat", "0"], "--repeat"),
        (&["run", "--target", url, "--out", "x", "--baseline", "/no/such"], "/no/such"),
        (&["report", "/no/such"], "/no/such"),
        (&["merge", "/no/such"], "at least two"),
        (&["compare", "/no/such", "/no/such"], "/no/such"),
        (&["calibrate", "--seconds", "0"], "--seconds"),
        (&["run", "no-such-preset"], "double-eleven"),
        (&["run", "/no/such.toml"], "/no/such.toml"),
        (&["check", "/no/such.toml"], "/no/such.toml"),
        (&["preset", "no-such-preset"], "no such preset"),
    ];
    for (args, expected) in cases {
        let ran = tool(args);
        assert_eq!(ran.code, 1, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{args:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn help_has_examples_and_exit_codes() {
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["completions", "--help"],
        &["check", "--help"],
        &["preset", "--help"],
        &["report", "--help"],
        &["merge", "--help"],
        &["compare", "--help"],
        &["calibrate", "--help"],
        &["agent", "--help"],
    ] {
        let ran = tool(args);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("Usage"), "{}", ran.stdout);
    }
    assert!(tool(&["--help"]).stdout.contains("ledger is violated"));
    assert!(tool(&["run", "--help"]).stdout.contains("Examples:"));
    assert!(tool(&["completions", "bash"]).stdout.contains("onrush-load"));
    let man = tool(&["man"]).stdout;
    for text in [".TH", "onrush\\-load run", "abort\\-on\\-fail", "calibrate"] {
        assert!(man.contains(text), "{text}");
    }
    assert_eq!(tool(&["--version"]).code, 0);
}
