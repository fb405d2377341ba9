//! Redis over TLS with an ACL user: it works with the rights that the settings file names, and
//! what is wrong is said in one line that shows no password.

use std::fs;
use std::path::PathBuf;

use onrush::stock::redis::inspect;
use onrush::stock::redis::link::check;

use super::*;
use crate::e2e::{Site, run, turn};
use crate::e2e_client::Wish;

/// Certificates of an authority that lives for this test: the server's, and another authority.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        install();
        let authority = Self { dir: tempfile::tempdir().unwrap() };
        for ca in ["ca", "other-ca"] {
            authority.openssl(&format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} \
                 -keyout {ca}.key -out {ca}.pem"
            ));
        }
        fs::write(authority.path("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        authority.openssl("req -newkey rsa:2048 -nodes -subj /CN=redis -keyout key -out request");
        authority.openssl(
            "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile san -out cert",
        );
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn openssl(&self, args: &str) {
        let mut command = Command::new("openssl");
        let output =
            command.args(args.split_whitespace()).current_dir(self.dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {args}: {said}");
    }
}

const PASSWORD: &str = "hush-hush";

/// The rights that `config/onrush.toml` names.
fn rights() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/onrush.toml");
    let text = fs::read_to_string(path).unwrap();
    let section = text.split("[stock.redis]").nth(1).unwrap();
    let begin = section.find("~PREFIX").unwrap();
    let end = begin + section[begin..].find("Neither").unwrap();
    let is_right = |word: &&str| word.starts_with(['~', '&', '+']);
    let words = section[begin..end].split([' ', '\n', ',', ';']).filter(is_right);
    let words: Vec<_> = words.map(|word| word.trim_end_matches('.')).collect();
    words.join(" ").replace("PREFIX", "onrush")
}

fn secure_server(authority: &Authority) -> (Server, RedisConfig) {
    let path = |name: &str| authority.path(name).to_str().unwrap().to_owned();
    let (plain, tls) = (free_port(), free_port());
    let port = tls.to_string();
    let (cert, key, ca) = (path("cert"), path("key"), path("ca.pem"));
    let server = Server::on(
        plain,
        &[
            "--tls-port",
            &port,
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            "no",
        ],
    );
    let mut order = redis::cmd("ACL");
    order.arg("SETUSER").arg("mall").arg("on").arg(format!(">{PASSWORD}")).arg("resetchannels");
    for right in rights().split(' ') {
        order.arg(right);
    }
    let () = order.query(&mut server.connection()).unwrap();
    fs::write(authority.path("password"), format!("{PASSWORD}\n")).unwrap();
    let config = RedisConfig {
        user: Some("mall".into()),
        password_file: Some(authority.path("password")),
        ca_file: Some(authority.path("ca.pem")),
        ..settings(&format!("rediss://127.0.0.1:{tls}"))
    };
    (server, config)
}

#[track_caller]
fn turned_away(config: &RedisConfig) -> String {
    let error = check(&Endpoint::new(config).unwrap()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!error.contains("hush"), "a password is shown: {error}");
    error
}

#[test]
fn pools_are_asked_over_tls_by_a_user_with_no_more_rights_than_it_needs() {
    let authority = Authority::new();
    let (server, config) = secure_server(&authority);
    // Nobody else gets in.
    server.order(&["ACL", "SETUSER", "default", "off"]);
    let epoch = check(&Endpoint::new(&config).unwrap()).unwrap();
    assert_eq!(epoch.number, 0);
    let mut one = Asking::new(&config);
    let mut a = asker(item(1), 1);
    one.create(&mut a, 10, &[1]);
    assert_eq!(view(one.ask(&a, &grant(0, 10))).granted, 10);
    one.wait_for(PoolNews::Reconnected);
    one.news.clear();
    a.standing.accepted = 10;
    one.ask(&a, &grant(10, 11));
    one.wait_for(news(item(1), Change::Wanted));
    let found = inspect::pools(&Endpoint::new(&config).unwrap(), None, None).unwrap();
    assert_eq!(found.len(), 1);
    let shown = format!("{config:?}");
    assert!(!shown.contains(PASSWORD));

    fs::write(authority.path("wrong"), "hush\n").unwrap();
    let wrong = RedisConfig { password_file: Some(authority.path("wrong")), ..config.clone() };
    assert!(turned_away(&wrong).contains("does not let us in"));
    let nobody = RedisConfig { user: None, password_file: None, ..config.clone() };
    let error = turned_away(&nobody);
    assert!(error.contains("does not let us in"), "{error}");

    // A node that is let in no longer says so, and goes on asking.
    let mut barred = Asking::new(&wrong);
    let answer = barred.ask(&a, &PoolAsk::Tell);
    let Some(PoolRefusal::Unavailable(why)) = answer.refusal else { panic!("{answer:?}") };
    assert!(!why.contains("hush"), "{why}");
}

#[test]
fn a_wrong_certificate_authority_is_said_in_one_line() {
    let authority = Authority::new();
    let (_server, config) = secure_server(&authority);
    let wrong = RedisConfig { ca_file: Some(authority.path("other-ca.pem")), ..config };
    let error = turned_away(&wrong);
    assert!(error.contains("does not let us in") && error.contains("certificate"), "{error}");
}

#[test]
fn a_node_sells_from_redis_over_tls_and_does_not_start_with_a_wrong_password() {
    let _turn = turn();
    let authority = Authority::new();
    let (_server, config) = secure_server(&authority);
    let mut site = Site::new();
    let text = |path: PathBuf| format!("\"{}\"", path.display());
    site.set("stock.kind", "\"redis\"");
    site.set("stock.redis.urls", &format!("[\"{}\"]", config.urls[0]));
    site.set("stock.redis.user", "\"mall\"");
    site.set("stock.redis.password_file", &text(authority.path("password")));
    site.set("stock.redis.ca_file", &text(authority.path("ca.pem")));
    let node = site.start();
    node.import_members(1, 10, 100);
    node.open_sale("sale", 3_600_000, &[("thing", 10, 50, 10)]);
    let mut client = node.client();
    wait_until("a unit is sold", PATIENCE, || {
        let reply = client.try_redeem(&Wish::new(1, "k", "sale", "thing"));
        reply.is_ok_and(|reply| reply.status == 201)
    });
    assert!(!node.log_tail().contains(PASSWORD));
    assert!(node.stop().success());
    let endpoint = Endpoint::new(&config).unwrap();
    let found = inspect::pools(&endpoint, Some("sale"), Some("thing")).unwrap();
    assert_eq!((found.len(), found[0].added), (1, 50));

    fs::write(authority.path("password"), "hush\n").unwrap();
    let (code, out, err) = run(site.serve().env("RUST_LOG", "off"));
    assert_eq!((code, err.lines().count()), (Some(2), 1), "{out}\n{err}");
    assert!(err.contains("does not let us in") && !err.contains("hush"), "{err}");
}

#[test]
fn a_server_that_is_not_there_is_said_in_one_line() {
    let error = turned_away(&settings(&format!("redis://127.0.0.1:{}", free_port())));
    assert!(error.contains("no answer from Redis"), "{error}");
}
