//! What a run keeps: files that other tools read, and errors when they cannot be written.

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use base64::Engine as _;

use crate::mall::{Mall, open};
use crate::server::{Say, Server};
use crate::tool::{number, run, tool};

#[test]
fn a_folder_gets_the_summary_the_seconds_the_log_and_the_page() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 60)]));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/folder");
    let ran = run(
        &server.url(),
        &[
            "--sale",
            "s1",
            "--members",
            "1-5000",
            "--phase",
            "one:1:100",
            "--phase",
            "<two>:1:200",
            "--mark",
            "middle=0.5",
            "--check",
            "--out",
            out.to_str().unwrap(),
        ],
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!(summary, ran.summary);
    let csv = read("seconds.csv");
    let planned: u64 =
        csv.lines().skip(1).map(|l| l.split(',').nth(1).unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(planned, 300);
    assert!(read("latency.hlog").lines().filter(|l| l.contains(",HISTF")).count() >= 2);
    let page = read("report.html");
    assert_eq!(page.matches("<svg").count(), 3);
    assert_eq!(page.matches("<polyline").count(), 5 + 4 + 3);
    for text in ["The ledger adds up", "middle", "409 sold-out", "&lt;two&gt;"] {
        assert!(page.contains(text), "{text}");
    }
    // Nothing is fetched, and nothing runs.
    for forbidden in ["<script", "<link", "<img", "src=", "href=", "url(", "@import", "NaN", "inf"]
    {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn a_full_disk_is_said_and_the_figures_are_out_before() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 60)]));
    let ran = run(
        &server.url(),
        &["--sale", "s1", "--rate", "100", "--seconds", "0.5", "--accepted", "/dev/full"],
    );
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
    assert_eq!(ran.summary["requests"]["answered"], 50);
}

#[test]
fn a_folder_that_cannot_be_made_is_said_before_the_run() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let url = server.url();
    let ran = tool(&["run", "--target", &url, "--out", "/dev/null/x"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("/dev/null/x"), "{}", ran.stderr);
    assert_eq!(server.served(), 0);
}

#[test]
fn the_report_of_a_person_has_what_counts() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 60)]));
    let ran = tool(&[
        "run",
        "--quiet",
        "--max-own-lag",
        "60",
        "--target",
        &server.url(),
        "--sale",
        "s1",
        "--rate",
        "200",
        "--seconds",
        "1",
        "--check",
        "--threshold",
        "p99<60s",
    ]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    for text in [
        "200 planned",
        "409 sold-out",
        "60 accepted in sale s1",
        "nothing is wrong",
        "passed: p99<60s",
    ] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
    assert!(ran.stdout.lines().count() < 25, "it fits a screen: {}", ran.stdout);
}

/// Whatever happened in the run, its report has no more lines than a screen.
#[test]
fn the_report_fits_a_screen_and_says_what_it_leaves_out() {
    let server = Server::start(|ask| Say::json(400 + (ask.number % 40) as u16, "{}"));
    let url = server.url();
    let mut args: Vec<String> =
        ["run", "--quiet", "--max-own-lag", "60", "--target", &url].map(Into::into).into();
    for n in 0..20 {
        args.extend(["--phase".into(), format!("phase-{n}:0.1:200")]);
        args.extend(["--mark".into(), format!("mark-{n}={}", f64::from(n) / 10.0 + 0.05)]);
        args.extend(["--threshold".into(), format!("p{}<60s", 70 + n)]);
    }
    args.extend(["--threshold", "p50<1us"].map(Into::into));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ran = tool(&args);
    assert_eq!(ran.code, 99, "{} {}", ran.stdout, ran.stderr);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines.len() <= 50, "{} lines: {}", lines.len(), ran.stdout);
    assert!(lines.iter().all(|l| l.chars().count() <= 130), "{}", ran.stdout);
    for left_out in ["and 32 more", "and 14 more", "and 16 more"] {
        assert!(ran.stdout.contains(left_out), "{left_out}: {}", ran.stdout);
    }
    assert!(ran.stdout.contains("threshold MISSED: p50<1us"), "{}", ran.stdout);
}

/// An interval log, taken apart by what `HdrHistogram`'s own documents say of the format, and by
/// nothing that wrote it.
struct Log {
    start: f64,
    /// Seconds after the start, length, maximum in milliseconds; and (highest value of a bucket in
    /// microseconds, its count).
    intervals: Vec<([f64; 3], Buckets)>,
}

type Buckets = Vec<(u64, u64)>;

fn read_log(text: &str) -> Log {
    let number = |t: &str| t.parse::<f64>().unwrap();
    let head = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("#[{name}: "))).unwrap();
        number(line.split(' ').next().unwrap())
    };
    let rows = text.lines().filter(|l| !l.starts_with(['#', '"']));
    let interval = |row: &str| {
        let fields: Vec<_> = row.splitn(4, ',').collect();
        let [start, length, max] = [0, 1, 2].map(|i| number(fields[i]));
        ([start, length, max], buckets(fields[3]))
    };
    assert!((head("BaseTime") - head("StartTime")).abs() < 0.01);
    Log { start: head("StartTime"), intervals: rows.map(interval).collect() }
}

/// The counts of a V2 histogram: zlib around big-endian fields, then runs of zeros and counts as
/// `ZigZag` LEB128.
fn buckets(text: &str) -> Buckets {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(&bytes, 0) & !0xF0, 0x1c84_9304);
    let mut plain = Vec::new();
    flate2::read::ZlibDecoder::new(&bytes[8..]).read_to_end(&mut plain).unwrap();
    assert_eq!((word(&plain, 0) & !0xF0, word(&plain, 12)), (0x1c84_9303, 3), "V2, three digits");
    let mut rest = plain[40..].iter();
    let (mut index, mut all) = (0u64, Vec::new());
    while let Some(&first) = rest.next() {
        let (mut value, mut byte, mut shift) = (u64::from(first & 0x7F), first, 7);
        while byte & 0x80 != 0 {
            byte = *rest.next().unwrap();
            // The ninth byte has all eight of its bits.
            let bits = if shift == 56 { u64::from(byte) } else { u64::from(byte & 0x7F) };
            value |= bits << shift;
            shift += 7;
            if shift > 56 {
                break;
            }
        }
        let count = (value >> 1).cast_signed() ^ -(value & 1).cast_signed();
        if count < 0 {
            index += count.unsigned_abs();
            continue;
        }
        // 2048 buckets of a unit each, then 1024 for each doubling.
        let doubled = (index >> 10).saturating_sub(1);
        let within = if index < 2048 { index } else { (index & 1023) + 1024 };
        if count > 0 {
            all.push((((within + 1) << doubled) - 1, count.unsigned_abs()));
        }
        index += 1;
    }
    all
}

#[test]
fn the_log_is_what_others_read_and_begins_when_the_schedule_does() {
    let (_server, mall) = open(Mall::with_stock(&[("a", 9000)]));
    let first = Arc::new(Mutex::new(None));
    let seen = first.clone();
    // What is asked before the load takes its time.
    let server = Server::start(move |ask| {
        if ask.method == "GET" {
            thread::sleep(Duration::from_secs(1));
        } else {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            seen.lock().unwrap().get_or_insert(now.as_secs_f64());
            thread::sleep(Duration::from_millis(5));
        }
        mall.lock().unwrap().handle(ask)
    });
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let load = ["--sale", "s1", "--members", "1-9000", "--rate", "200", "--seconds", "2.5"];
    let ran = run(&server.url(), &[&load[..], &["--out", out]].concat());
    let log = read_log(&std::fs::read_to_string(dir.path().join("latency.hlog")).unwrap());
    let late = first.lock().unwrap().unwrap() - log.start;
    assert!((-0.05..0.5).contains(&late), "the first request came {late} s after StartTime");
    let starts: Vec<_> = log.intervals.iter().map(|(head, _)| head[0] as u32).collect();
    assert_eq!(starts, [0, 1, 2]);
    let all: Vec<_> = log.intervals.iter().flat_map(|(_, buckets)| buckets).collect();
    assert_eq!(all.iter().map(|(_, count)| count).sum::<u64>(), 500);
    assert!(all.iter().all(|(value, _)| *value >= 5000), "every answer took 5 ms");
    let max = all.iter().map(|(value, _)| *value).max().unwrap();
    assert_eq!(max, number(&ran, "/latency/response_us/max") as u64);
    for ([_, length, max], buckets) in &log.intervals {
        assert!((length - 1.0).abs() < 1e-3);
        let highest = buckets.last().unwrap().0 as f64 / 1000.0;
        assert!((max - highest).abs() < highest / 500.0, "{max} {highest}");
    }
}
