//! `report.html` in a real browser: its curves are drawn, and nothing is fetched.
//!
//! The page has no script of its own. A copy gets one that measures what the browser laid out, and
//! writes it into the page; the page itself is loaded with a log of everything that the browser
//! asks the network for.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::server::{Say, Server};
use crate::tool::run;

const PROBE: &str = r"<script>
const seen = [...document.querySelectorAll('svg')].map(svg => {
  const frame = svg.getBoundingClientRect();
  return {
    width: frame.width,
    labels: svg.querySelectorAll('text').length,
    label: Math.min(...[...svg.querySelectorAll('text')].map(
      t => t.getBoundingClientRect().height)),
    cut: [...svg.querySelectorAll('text')].filter(
      t => t.getBoundingClientRect().left < frame.left - 1).map(t => t.textContent),
    curves: [...svg.querySelectorAll('polyline')].map(line => {
      const box = line.getBoundingClientRect(), style = getComputedStyle(line);
      return {
        points: line.points.numberOfItems, width: box.width, top: box.top, bottom: box.bottom,
        stroke: style.stroke, inside: box.left >= frame.left - 2 && box.right <= frame.right + 2
          && box.top >= frame.top - 2 && box.bottom <= frame.bottom + 2,
      };
    }),
  };
});
const root = document.documentElement;
const out = document.createElement('pre');
out.id = 'probe';
out.textContent = JSON.stringify({
  charts: seen, fetched: performance.getEntriesByType('resource').length,
  fits: root.scrollWidth <= root.clientWidth,
});
document.body.append(out);
</script></body>";

fn chromium(profile: &Path, args: &[&str]) -> String {
    let profile = format!("--user-data-dir={}", profile.display());
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", &profile])
        // What the browser wants for itself has no name to go to.
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        .args(args)
        .output()
        .expect("chromium is missing: install it (Debian: apt-get install chromium)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the browser made of the page at this width.
fn probe(dir: &Path, page: &str, width: u32) -> Value {
    let copy = dir.join("probe.html");
    std::fs::write(&copy, page.replace("</body>", PROBE)).unwrap();
    let size = format!("--window-size={width},900");
    let url = format!("file://{}", copy.display());
    let dom = chromium(&dir.join("profile"), &[&size, "--dump-dom", &url]);
    read_probe(&dom)
}

/// What the browser made of it in a frame of this width: its own windows are wider than a phone.
fn probe_framed(dir: &Path, page: &str, width: u32) -> Value {
    let inner = page.replace("</body>", PROBE).replace('&', "&amp;").replace('"', "&quot;");
    let outer = dir.join("frame.html");
    let script = "const p = document.createElement('pre'); p.id = 'probe'; \
                  p.textContent = document.querySelector('iframe').contentDocument\
                  .getElementById('probe').textContent; document.body.append(p);";
    let text = format!(
        "<!doctype html><body onload=\"{script}\">\
         <iframe style=\"border:0;height:700px;width:{width}px\" srcdoc=\"{inner}\">\
         </iframe></body>"
    );
    std::fs::write(&outer, text).unwrap();
    let url = format!("file://{}", outer.display());
    read_probe(&chromium(&dir.join("profile"), &["--window-size=800,900", "--dump-dom", &url]))
}

fn read_probe(dom: &str) -> Value {
    // The frame's own text is an attribute, where `<` stays; its probe is the last element.
    let json = dom.rsplit("<pre id=\"probe\">").next().unwrap().split("</pre>").next().unwrap();
    serde_json::from_str(&json.replace("&amp;", "&").replace("&quot;", "\"")).unwrap()
}

#[test]
fn the_page_draws_its_curves_and_fetches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|ask| {
        if ask.number % 20 == 7 { Say::json(500, "{}") } else { Say::json(200, "{}") }
    });
    let out = dir.path().join("out");
    let load = ["--phase", "up:2:10-300", "--phase", "flat:2:300", "--out", out.to_str().unwrap()];
    run(&server.url(), &load);
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();

    for width in [1200, 500] {
        let seen = probe(dir.path(), &page, width);
        let charts = seen["charts"].as_array().unwrap();
        assert_eq!(charts.len(), 3, "{seen:#}");
        let curves: Vec<_> = charts.iter().map(|c| c["curves"].as_array().unwrap()).collect();
        assert_eq!(curves.iter().map(|c| c.len()).collect::<Vec<_>>(), [5, 4, 3], "{seen:#}");
        for (chart, curves) in charts.iter().zip(&curves) {
            let frame = chart["width"].as_f64().unwrap();
            assert!(frame > 300.0 && frame <= f64::from(width.max(640)), "{seen:#}");
            assert!(chart["labels"].as_u64().unwrap() >= 5, "{seen:#}");
            for curve in *curves {
                assert!(curve["points"].as_u64().unwrap() >= 4, "{seen:#}");
                assert!(curve["width"].as_f64().unwrap() > frame * 0.5, "{seen:#}");
                assert_eq!(curve["inside"], true, "{seen:#}");
                assert!(curve["stroke"].as_str().unwrap().starts_with("rgb"), "{seen:#}");
            }
            // Curves that say something are not one flat line.
            let tops = || curves.iter().map(|c| c["top"].as_f64().unwrap());
            let bottoms = || curves.iter().map(|c| c["bottom"].as_f64().unwrap());
            let span = bottoms().fold(0.0, f64::max) - tops().fold(f64::MAX, f64::min);
            assert!(span > frame * 0.02, "{seen:#}");
        }
        assert_eq!(seen["fetched"], 0, "{seen:#}");
        assert_eq!(seen["fits"], true, "at {width}: {seen:#}");
    }

    // On a phone its charts are wider than the screen and scroll, so that labels can be read.
    let seen = probe_framed(dir.path(), &page, 360);
    assert_eq!(seen["fits"], true, "{seen:#}");
    for chart in seen["charts"].as_array().unwrap() {
        assert!(chart["label"].as_f64().unwrap() >= 11.0, "{seen:#}");
        assert_eq!(chart["cut"], serde_json::json!([]), "{seen:#}");
        assert!(chart["width"].as_f64().unwrap() < 700.0, "{seen:#}");
    }

    // On paper it is a few pages, with the curves as lines.
    let pdf = dir.path().join("page.pdf");
    let to = format!("--print-to-pdf={}", pdf.display());
    let file = format!("file://{}", out.join("report.html").display());
    chromium(&dir.path().join("profile"), &[&to, "--no-pdf-header-footer", &file]);
    let bytes = std::fs::read(&pdf).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let pages = text.matches("/Type /Page\n").count();
    assert!(text.starts_with("%PDF") && (1..=3).contains(&pages), "{pages} pages");
    assert!(!text.contains("/Subtype /Image"), "nothing was turned into pixels");

    assert!(asked(dir.path(), &page).is_empty(), "{:?}", asked(dir.path(), &page));
    // And the log would have shown it.
    let nosy = page.replace("</body>", "<img src=\"http://127.0.0.1:1/x.png\"></body>");
    assert_eq!(asked(dir.path(), &nosy), ["http://127.0.0.1:1/x.png"]);
}

/// What a page asked the network for, by the browser's own log.
fn asked(dir: &Path, page: &str) -> Vec<String> {
    let (copy, log) = (dir.join("page.html"), dir.join("net.json"));
    std::fs::write(&copy, page).unwrap();
    let log_flag = format!("--log-net-log={}", log.display());
    let url = format!("file://{}", copy.display());
    chromium(&dir.join("profile"), &[&log_flag, "--dump-dom", &url]);
    let log: Value = serde_json::from_str(&std::fs::read_to_string(&log).unwrap()).unwrap();
    let events = log["events"].as_array().unwrap();
    assert!(!events.is_empty(), "the browser kept a log");
    // A page's requests name it as their initiator; one on disk has the origin `null`.
    let of_page = events.iter().filter(|e| e["params"]["initiator"] == "null");
    let mut urls: Vec<_> =
        of_page.map(|e| e["params"]["url"].as_str().unwrap().to_owned()).collect();
    urls.dedup();
    urls
}
