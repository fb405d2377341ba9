//! Scenario files and presets, and the flags over them; thresholds.

use crate::mall::{Mall, open};
use crate::server::{Say, Server};
use crate::tool::{number, outcome, tool};

fn write(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("scenario.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn every_preset_is_checked_and_listed() {
    let list = tool(&["preset"]).stdout;
    for name in ["double-eleven", "hot-item", "steady", "retry-storm", "holds", "soak"] {
        assert!(list.contains(name), "{list}");
        let ran = tool(&["check", name]);
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
        assert!(ran.stdout.contains("requests in"), "{}", ran.stdout);
        assert!(tool(&["preset", name]).stdout.contains("[schedule]"));
    }
}

#[test]
fn a_file_with_an_unknown_key_is_refused_by_name_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "target = ['http://127.0.0.1:1']\n[client]\nconections = 5\n");
    for args in [vec!["check", &file], vec!["run", &file]] {
        let ran = tool(&args);
        assert_eq!(ran.code, 1);
        let says = |s: &str| assert!(ran.stderr.contains(s), "{s}: {}", ran.stderr);
        says("conections");
        says("line 3");
        says("scenario.toml");
    }
}

#[test]
fn what_run_would_refuse_check_refuses_too() {
    let dir = tempfile::tempdir().unwrap();
    for (text, wrong) in [
        ("target = ['http://127.0.0.1:1/{{no-column}}']", "{{no-column}}"),
        ("[http]\nbody = '{{no-column}}'", "{{no-column}}"),
        ("target = ['http://a/']\n[http]\nheader = ['X: {{no-column}}']", "{{no-column}}"),
        ("target = ['127.0.0.1:1']", "http://"),
        ("target = ['http://a b/']", "not a host"),
    ] {
        let ran = tool(&["check", &write(&dir, text)]);
        assert_eq!(ran.code, 1, "{text}: {}", ran.stdout);
        assert!(ran.stderr.contains(wrong), "{text}: {}", ran.stderr);
    }
    // Names are not asked for: the scenario may be for another network.
    let elsewhere = write(&dir, "target = ['http://no-such-host.invalid/{{number}}']");
    assert_eq!(tool(&["check", &elsewhere]).code, 0);
}

/// Of a schedule that takes weeks nobody waits for the count.
#[test]
fn the_longest_schedule_is_checked_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[schedule]\nphase = ['a:10000:100000000', 'b:1:0.5']";
    let ran = tool(&["check", &write(&dir, text)]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("  in all 1000000000001 requests in 10001 s"), "{}", ran.stdout);
    let ran = tool(&["check", &write(&dir, &format!("{text}\narrivals = 'poisson'"))]);
    assert!(ran.stdout.contains("  in all about 1000000000001 requests"), "{}", ran.stdout);
}

#[test]
fn the_preset_double_eleven_passes_its_check() {
    let (server, mall) = open(Mall::with_stock(&[("a", 60), ("b", 30)]));
    let url = server.url();
    let ran = tool(&[
        "run",
        "double-eleven",
        "--target",
        &url,
        "--sale",
        "s1",
        "--admin",
        &url,
        "--json",
        "--max-own-lag",
        "60",
        "--quiet",
        "--members",
        "1-5000",
        "--connections",
        "16",
        "--phase",
        "countdown:0.5:100",
        "--phase",
        "spike:0.5:1000",
        "--phase",
        "tail:0.5:200",
    ]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(ran.summary["phases"].as_array().unwrap().len(), 3);
    assert_eq!(number(&ran, "/check/undersold") as u64, 0);
    assert!(mall.lock().unwrap().count("confirmed") > 60);
}

#[test]
fn phases_have_their_own_share_of_polls() {
    let (server, mall) = open(Mall::with_stock(&[("a", 1000)]));
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir,
        &format!(
            "target = ['{}']\n[schedule]\nseed = 3\nphase = [\
             {{ name = 'look', seconds = 0.5, rate = 200, polls = 1.0 }},\
             {{ name = 'buy', seconds = 0.5, rate = 200 }}]\n\
             [redeem]\nsale = 's1'\nmembers = '1-500'\n[check]\nledger = true\n",
            server.url()
        ),
    );
    let ran = tool(&["run", &file, "--json", "--max-own-lag", "60", "--quiet"]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(outcome(&ran, "200")["requests"], 100);
    assert_eq!(outcome(&ran, "201")["requests"], 100);
    assert_eq!(mall.lock().unwrap().count("confirmed"), 100);
    assert_eq!(number(&ran, "/seed") as u64, 3);
    // A flag over the file: only looks.
    let ran = tool(&[
        "run",
        &file,
        "--json",
        "--max-own-lag",
        "60",
        "--quiet",
        "--rate",
        "100",
        "--seconds",
        "0.5",
        "--polls",
        "1",
    ]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(outcome(&ran, "200")["requests"], 50);
}

#[test]
fn a_missed_threshold_is_exit_99_and_an_invalid_run_goes_before_it() {
    let server = Server::start(|ask| {
        if ask.number % 10 == 0 { Say::json(500, "{}") } else { Say::json(200, "{}") }
    });
    let url = server.url();
    let run = |more: &[&str]| {
        let mut args = vec![
            "run",
            "--json",
            "--max-own-lag",
            "60",
            "--quiet",
            "--target",
            &url,
            "--rate",
            "200",
            "--seconds",
            "0.5",
        ];
        args.extend_from_slice(more);
        tool(&args)
    };
    let ran =
        run(&["--threshold", "error-rate<20%", "--threshold", "p99<5s", "--threshold", "rps>10"]);
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    let ran = run(&["--threshold", "error-rate<5%", "--threshold", "p99<5s"]);
    assert_eq!(ran.code, 99);
    assert_eq!(ran.summary["thresholds"][0]["passed"], false);
    assert!((number(&ran, "/thresholds/0/value") - 0.1).abs() < 0.011);
    assert_eq!(ran.summary["thresholds"][1]["passed"], true);
    assert_eq!(run(&["--threshold", "p50{outcome=500}>1us"]).code, 0);
    assert_eq!(run(&["--threshold", "p50{outcome=404}>1us"]).code, 99, "nothing was measured");
    assert_eq!(run(&["--threshold", "p50{time=service,phase=load}>=1us"]).code, 0);
    let slow = Server::start(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        Say::json(200, "{}")
    });
    let url = slow.url();
    let ran = tool(&[
        "run",
        "--json",
        "--max-own-lag",
        "60",
        "--quiet",
        "--target",
        &url,
        "--rate",
        "100",
        "--seconds",
        "0.5",
        "--connections",
        "1",
        "--max-lag",
        "0.1",
        "--threshold",
        "p50<1us",
    ]);
    assert_eq!(ran.code, 2);
}
