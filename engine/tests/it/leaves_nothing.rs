//! `scripts/leaves-nothing`: what it is run for, it finds.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::e2e::run;

/// A clone of its own that has this script, a file, and a folder that git ignores.
fn clone() -> tempfile::TempDir {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let clone = tempfile::tempdir().unwrap();
    fs::create_dir(clone.path().join("scripts")).unwrap();
    for name in ["lib.sh", "leaves-nothing"] {
        let name = Path::new("scripts").join(name);
        fs::copy(scripts.join(name.file_name().unwrap()), clone.path().join(&name)).unwrap();
    }
    fs::write(clone.path().join("file"), "as committed\n").unwrap();
    fs::write(clone.path().join(".gitignore"), "/ignored/\n").unwrap();
    for words in [&["init", "-q"][..], &["add", "-A"], &["commit", "-qm", "all"]] {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=x", "-c", "user.email=x@localhost"]).args(words);
        let (code, _, err) = run(git.current_dir(clone.path()));
        assert_eq!(code, Some(0), "git {words:?}: {err}");
    }
    clone
}

#[test]
fn what_a_command_leaves_behind_is_named_and_what_it_cleans_up_is_not() {
    let processes = "setsid sleep 61 & cd $TMPDIR; env -i sleep 62 & cp $(command -v sleep) nap; \
                     cd /; env -i $TMPDIR/nap 63 & disown -a";
    let cases: [(&str, i32, &[&str]); 9] = [
        ("true", 0, &[]),
        ("sleep 60 & kill $!; wait; touch $TMPDIR/x new; rm $TMPDIR/x new", 0, &[]),
        ("exit 3", 3, &[]),
        (processes, 1, &["sleep 61", "sleep 62", "nap 63", "temporary files: nap"]),
        ("mkdir $TMPDIR/more; exit 4", 4, &["temporary files: more"]),
        ("echo more >> file", 1, &["in the clone: file"]),
        // Changed before, and changed again.
        ("echo more >> file", 1, &["in the clone: file"]),
        ("mkdir ignored; touch ignored/x", 1, &["in the clone: ignored/"]),
        ("rm file; touch new", 1, &["in the clone: file", "in the clone: new"]),
    ];
    let clone = clone();
    for (words, exit_code, named) in cases {
        let mut command = Command::new("scripts/leaves-nothing");
        command.args(["bash", "-c", words]).current_dir(clone.path());
        let (code, out, err) = run(&mut command);
        assert_eq!(code, Some(exit_code), "{words}: {out}{err}");
        assert_eq!(err.contains("left something behind"), !named.is_empty(), "{words}: {err}");
        assert_eq!(err.matches("\n  ").count(), named.len(), "{words}: {err}");
        for name in named {
            assert!(err.contains(name), "{words}: {name} is not in: {err}");
        }
        assert_eq!(out.contains("left no process and no file"), named.is_empty(), "{words}: {out}");
    }
}
