//! The command line, as a person or a script calls it.

use std::fs::{self, File};
use std::io::Read;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::e2e::{Site, onrush, run, turn};

/// The subcommands that a help page lists.
fn listed(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let indented = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?;
        indented.split_whitespace().next().map(ToOwned::to_owned)
    });
    names.filter(|name| name != "help").collect()
}

#[test]
fn every_command_has_a_help_with_an_example() {
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(words) = open.pop() {
        let (code, help, err) = run(onrush().args(&words).arg("--help"));
        assert_eq!(code, Some(0), "{words:?}: {err}");
        assert!(help.contains("Example"), "{words:?} shows none:\n{help}");
        seen += 1;
        open.extend(listed(&help).into_iter().map(|name| [&words[..], &[name]].concat()));
    }
    assert!(seen > 20, "{seen} commands");
}

#[test]
fn version_and_completions_are_printed_and_wrong_usage_is_exit_2() {
    let (code, out, _) = run(onrush().arg("--version"));
    assert_eq!((code, out), (Some(0), format!("onrush {}\n", env!("CARGO_PKG_VERSION"))));
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(onrush().args(["completions", shell]));
        assert!(code == Some(0) && out.contains("import"), "{shell}: {out}");
    }
    for words in [&["serve", "--no-such-flag"][..], &["import"], &["no-such-command"]] {
        let (code, out, err) = run(onrush().args(words));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{words:?}: {err}");
    }
}

#[test]
fn settings_are_checked_with_a_clear_line_and_printed_so_that_they_load_again() {
    let site = Site::new();
    let (good, bad) = (site.path("good.toml"), site.path("bad.toml"));
    fs::write(&good, "[shards]\ncount = 3\n").expect("writable");
    fs::write(&bad, "[shards]\ncount = 0\n").expect("writable");
    let config = |word: &str, file: &std::path::Path| {
        run(onrush().args(["config", word, "--config"]).arg(file))
    };
    assert_eq!(config("check", &good).0, Some(0));
    let (code, _, err) = config("check", &bad);
    assert_eq!(code, Some(2));
    assert!(err.contains("shards.count") && err.contains("from 1 to 64"), "{err}");
    let (_, printed, _) = config("print", &good);
    fs::write(&bad, &printed).expect("writable");
    let (code, again, err) = config("print", &bad);
    assert_eq!((code, again), (Some(0), printed), "{err}");
}

#[test]
fn bad_rows_of_members_are_all_named_and_skipped_only_where_that_is_asked_for() {
    let _turn = turn();
    let site = Site::new();
    let node = site.start();
    let csv = site.path("members.csv");
    fs::write(&csv, "member,points\n1,5\nx,6\n2,-7\n3,8\n").expect("writable");
    let admin = format!("http://{}", node.admin);
    let import = |more: &[&str]| {
        let mut command = onrush();
        command.args(["import", "members"]).arg(&csv).args(["--admin", &admin]).args(more);
        run(&mut command)
    };
    let (code, _, err) = import(&[]);
    assert_eq!(code, Some(1));
    for line in ["members.csv:3:", "members.csv:4:", "nothing of"] {
        assert!(err.contains(line), "{line} is not in: {err}");
    }
    node.admin().get("/v1/members/1").expect(404);
    let (code, out, err) = import(&["--skip-bad-rows"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("2 accounts opened") && out.contains("2 bad rows skipped"), "{out}");
    let (code, out, _) = import(&["--skip-bad-rows"]);
    assert!(code == Some(0) && out.contains("0 accounts opened, 2 were there"), "{out}");
    assert_eq!(node.points(3), [8, 0]);
}

#[test]
fn an_import_shows_how_far_it_is_on_a_terminal_and_nothing_in_a_pipe() {
    let _turn = turn();
    let site = Site::new();
    let node = site.start();
    let csv = site.path("members.csv");
    let rows = (1..=20_000).map(|member| format!("{member},5\n"));
    fs::write(&csv, rows.fold(String::from("member,points\n"), |all, row| all + &row))
        .expect("writable");
    let admin = format!("http://{}", node.admin);
    let import = || {
        let mut command = onrush();
        command.args(["import", "members"]).arg(&csv).args(["--admin", &admin]);
        command
    };
    let (code, out, err) = run(&mut import());
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("20000 accounts opened") && !out.contains('\x1b'), "{out}");

    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    unlockpt(&terminal).expect("unlocked");
    let name = ptsname(&terminal, Vec::new()).expect("its name").into_string().expect("a path");
    let inside = File::options().read(true).write(true).open(name).expect("its other end");
    let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&inside, size).expect("a size");
    let mut command = import();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(inside).spawn();
    // The last one to have the other end is the child: reading ends with it.
    drop(command);
    let child = child.expect("onrush starts");
    let mut shown = Vec::new();
    // How reading ends on Linux once nobody has the other end.
    let _ = File::from(terminal).read_to_end(&mut shown);
    let output = child.wait_with_output().expect("our child");
    let shown = String::from_utf8_lossy(&shown);
    assert!(output.status.success(), "{shown}");
    for words in ["sending", "KiB/", "[="] {
        assert!(shown.contains(words), "{words} is not in: {shown:?}");
    }
    // What is shown while it runs is gone afterwards, and is not what it says at the end.
    assert!(shown.ends_with("\x1b[2K"), "{shown:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("20000 were there"), "{shown}");
}

#[test]
fn a_sale_is_imported_once_and_a_wrong_one_not_at_all() {
    let _turn = turn();
    let site = Site::new();
    let node = site.start();
    let file = site.path("sale.toml");
    let admin = format!("http://{}", node.admin);
    let import = |text: &str| {
        fs::write(&file, text).expect("writable");
        run(onrush().args(["import", "sale"]).arg(&file).args(["--admin", &admin]))
    };
    let good = "id = \"s\"\nname = \"S\"\nopens_at = \"2020-01-01T00:00:00Z\"\n\
                closes_at = \"2100-01-01T00:00:00Z\"\nhold_ttl_ms = 5000\n[[items]]\n\
                sku = \"cup\"\nname = \"Cup\"\npoints = 1\nstock = 5\nlimit_per_member = 1\n";
    let (code, out, err) = import(good);
    assert!(code == Some(0) && out.contains("is defined"), "{out}{err}");
    let (code, out, _) = import(good);
    assert!(code == Some(0) && out.contains("was there"), "{out}");
    let (code, _, err) = import(&good.replace("stock = 5", "stock = 6"));
    assert!(code == Some(1) && err.contains("sale.toml"), "{err}");
    // With its line, whether it is the syntax or a value.
    for (bad, line, word) in [
        (String::from("id = \"t\"\nname = "), 2, "string"),
        (good.replace("stock = 5", "stock = -5"), 10, "-5"),
        (good.replace("\"s\"", "\"a b\""), 1, "sale id"),
        (good.replace("\"cup\"", "\"a b\""), 7, "sku"),
        (String::from(good) + &good[good.find("[[").expect("an item")..], 13, "two items"),
    ] {
        let (code, _, err) = import(&bad);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(&format!("sale.toml:{line}: ")) && err.contains(word), "{err}");
        assert!(err.contains("nothing of"), "{err}");
    }
    assert_eq!(node.units("s", "cup"), [5, 0, 0]);
}

#[test]
fn a_journal_is_printed_and_verified_and_a_flipped_bit_is_named() {
    let _turn = turn();
    let site = Site::new();
    let node = site.start();
    node.import_members(1, 3, 100);
    node.kill();
    let journal =
        |words: &[&str]| run(onrush().arg("journal").args(words).arg("--data").arg(site.data()));
    let (code, out, err) = journal(&["inspect"]);
    assert!(code == Some(0) && out.contains("Opened { member: MemberId(3)"), "{out}{err}");
    let (_, few, _) = journal(&["inspect", "--from", "2", "--limit", "1"]);
    assert!(few.len() < out.len(), "{few}");
    assert_eq!(journal(&["verify"]).0, Some(0));
    let segment = fs::read_dir(site.data().join("journal")).expect("a folder");
    let mut files: Vec<_> = segment.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|of| of == "segment"));
    files.sort();
    let mut bytes = fs::read(&files[0]).expect("readable");
    bytes[4096 + 200] ^= 1;
    fs::write(&files[0], bytes).expect("writable");
    let (code, out, err) = journal(&["verify"]);
    assert_eq!(code, Some(1), "{out}{err}");
    let said = out + &err;
    assert!(said.contains(&*files[0].file_name().expect("a name").to_string_lossy()), "{said}");
}

#[test]
fn the_demo_says_fail_and_why_where_it_cannot_even_begin() {
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo");
    for (words, reason) in [
        (&["--no-such-option"][..], "no such option: --no-such-option"),
        (&["--members"], "--members needs a value"),
        (&["--members", "7"], "--members takes a number above 100"),
        (&["--rate", "fast"], "not a number from 1 on: fast"),
    ] {
        let (code, out, err) = run(std::process::Command::new(&demo).args(words));
        let last = out.lines().last().unwrap_or_default();
        assert!(code == Some(1) && last.starts_with(&format!("FAIL: {reason}")), "{out}{err}");
    }
}
