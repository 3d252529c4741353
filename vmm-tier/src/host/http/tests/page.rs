//! The page's files, history, orders and agents, as a client asks for them.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::host::http::token::Token;

/// A site with an operator, a control socket and a daemon's thread that refuses every order but one.
struct Operated {
    address: SocketAddr,
    token: String,
    published: Arc<Published>,
    _folder: TempDir,
}

impl Operated {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let published = Arc::new(Published::default());
        published.put(host(2));
        let (operator, requests) = crate::host::control::tests_operator();
        thread::spawn(move || {
            for request in requests {
                request.answer(|order| {
                    Err(qmp::QmpError::generic(format!("The daemon got {order:?}")))
                });
            }
        });
        let token = Token::of(folder.path()).unwrap();
        let text = std::fs::read_to_string(folder.path().join("http.token")).unwrap();
        let site = Site {
            published: published.clone(),
            recorder: Some(Arc::default()),
            played: None,
            operator: Some((token, operator)),
        };
        let address = serve("0".parse().unwrap(), vec!["host1.example".to_owned()], site);
        Self {
            address: address.unwrap(),
            token: text.trim().to_owned(),
            published,
            _folder: folder,
        }
    }

    fn post(&self, more: &str, body: &str) -> String {
        let length = body.len();
        ask(
            self.address,
            &format!(
                "POST /api/command HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}\r\n{body}"
            ),
        )
    }

    fn order(&self, order: &Value) -> String {
        let more = format!(
            "Authorization: Bearer {}\r\nContent-Type: application/json\r\n",
            self.token
        );
        self.post(&more, &order.to_string())
    }
}

#[test]
fn page_when_a_browser_asks_comes_with_its_files_and_may_do_nothing_else() {
    let (address, _) = started(1);
    let page = ask(
        address,
        "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html,*/*\r\n\r\n",
    );
    assert!(body(&page).starts_with("<!doctype html>"), "{page}");
    let policy =
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; ";
    for path in ["/page.js", "/draw.js", "/page.css", "/icon.svg"] {
        let answer = get(address, path);
        assert_eq!(status(&answer), "200", "{path}");
        assert!(answer.contains(policy), "{answer}");
        assert!(!answer.contains("unsafe"), "{path}");
    }
    // Nothing of the page needs what the policy forbids, and no text becomes markup.
    for word in [
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "new Function",
    ] {
        for path in ["/page.js", "/draw.js"] {
            assert!(!get(address, path).contains(word), "{path} has {word}");
        }
    }
    assert!(!body(&page).contains(" style=") && !body(&page).contains("<style"));
    assert!(!body(&page).contains(" onclick") && !body(&page).contains("http://"));
}

#[test]
fn history_when_asked_for_is_that_of_the_socket() {
    let operated = Operated::start();
    let answer = get(operated.address, "/api/history?since-s=60&step-s=1");
    assert_eq!(status(&answer), "200", "{answer}");
    let told: Value = serde_json::from_str(body(&answer)).unwrap();
    assert_eq!(told["step-s"], 1);
    let answer = get(operated.address, "/api/history?name=nobody");
    assert_eq!(status(&answer), "422", "{answer}");
    assert!(body(&answer).contains("There is no VM nobody"), "{answer}");
    assert_eq!(
        status(&get(operated.address, "/api/history?since-s=x")),
        "400"
    );
    let (address, _) = started(1);
    assert_eq!(status(&get(address, "/api/history")), "404", "none is kept");
}

#[test]
fn order_when_the_token_is_right_reaches_the_daemon() {
    let operated = Operated::start();
    let answer = operated.order(&json!({
        "execute": "host-set-vm", "arguments": {"name": "vm1", "weight": 2.5},
    }));
    assert_eq!(status(&answer), "422", "{answer}");
    assert!(body(&answer).contains("The daemon got SetVm"), "{answer}");
    for (order, says) in [
        (
            json!({"execute": "host-set-vm"}),
            "Parameter 'name' is missing",
        ),
        (
            json!({"execute": "host-set-vm", "arguments": {"name": "a", "weight": "x"}}),
            "weight",
        ),
        (json!({"execute": "host-register"}), "not been found"),
        (json!({"execute": "query-host"}), "not been found"),
        (json!({"execute": "tier-drain", "vm": "vm1"}), "tier-pause"),
        (
            json!({"execute": "tier-pause", "vm": "nobody"}),
            "no such VM",
        ),
        (
            json!({"execute": "tier-pause", "vm": "vm1"}),
            "no control socket",
        ),
        (json!({"run": "host-set-vm"}), "no order"),
    ] {
        let answer = operated.order(&order);
        assert_ne!(status(&answer), "200", "{order}");
        assert!(body(&answer).contains(says), "{order}: {answer}");
    }
}

#[test]
fn order_when_anything_is_wrong_with_the_request_is_refused_before_it_is_read() {
    let operated = Operated::start();
    let good = format!("Authorization: Bearer {}\r\n", operated.token);
    let json = "Content-Type: application/json\r\n";
    let order = r#"{"execute": "host-set-mode"}"#;
    let statuses = |more: &str, body: &str| status(&operated.post(more, body)).to_owned();
    assert_eq!(statuses(json, order), "401");
    let wrong = format!("Authorization: Bearer {}\r\n", "0".repeat(64));
    assert_eq!(statuses(&format!("{wrong}{json}"), order), "401");
    assert_eq!(statuses(&good, order), "415");
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    assert_eq!(statuses(&format!("{good}{form}"), order), "415");
    assert_eq!(
        statuses(&format!("{good}Content-Type: text/plain\r\n"), order),
        "415"
    );
    let long = format!("{{\"execute\": \"{}\"}}", "x".repeat(5000));
    assert_eq!(statuses(&format!("{good}{json}"), &long), "413");
    assert_eq!(statuses(&format!("{good}{json}"), "{"), "400");
    // Pages of other sites.
    let port = operated.address.port();
    for (origin, expected) in [
        ("http://localhost", "422"),
        ("https://localhost", "422"),
        ("http://evil.example", "403"),
        ("null", "403"),
        (&format!("http://localhost:{port}"), "403"),
        ("http://localhost.evil.example", "403"),
    ] {
        let more = format!("{good}{json}Origin: {origin}\r\n");
        assert_eq!(statuses(&more, order), expected, "{origin}");
    }
    let more = format!("{good}{json}Sec-Fetch-Site: cross-site\r\n");
    assert_eq!(statuses(&more, order), "403");
    // A site without an operator.
    let (address, _) = started(1);
    let answer = ask(
        address,
        &format!(
            "POST /api/command HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{good}\r\n"
        ),
    );
    assert_eq!(status(&answer), "403");
}

#[test]
fn page_of_another_site_when_it_asks_gets_nothing() {
    let (address, _) = started(1);
    let asked = |path: &str, more: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
        status(&ask(address, &request)).to_owned()
    };
    for path in ["/metrics", "/events", "/api/vm/vm1", "/page.js"] {
        assert_eq!(
            asked(path, "Origin: http://evil.example\r\n"),
            "403",
            "{path}"
        );
        assert_eq!(
            asked(path, "Sec-Fetch-Site: cross-site\r\n"),
            "403",
            "{path}"
        );
    }
    // A link to the page from another site.
    assert_eq!(asked("/", "Sec-Fetch-Site: cross-site\r\n"), "200");
    assert_eq!(asked("/metrics", "Sec-Fetch-Site: same-origin\r\n"), "200");
}

#[test]
fn agent_when_it_is_not_the_process_that_registered_is_not_asked() {
    let operated = Operated::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let put = |control: Option<String>, pid| {
        let mut next = host(1);
        next.vms[0].control = control;
        next.vms[0].agent_pid = Some(pid);
        operated.published.put(next);
        get(operated.address, "/api/vm/vm1")
    };
    let whole = path.display().to_string();
    let answer = put(Some(whole.clone()), std::process::id() + 1);
    assert_eq!(status(&answer), "502", "{answer}");
    assert!(body(&answer).contains("not by the agent"), "{answer}");
    // Nothing was said to it.
    let (mut peer, _) = listener.accept().unwrap();
    assert_eq!(peer.read(&mut [0; 16]).unwrap(), 0);
    for (control, says) in [
        (None, "no control socket"),
        (Some("relative".to_owned()), "no whole path"),
        (Some(format!("/{}", "x".repeat(200))), "no whole path"),
        (Some("/nowhere/at/all".to_owned()), "can't be asked"),
    ] {
        let answer = put(control, 1);
        assert!(body(&answer).contains(says), "{answer}");
    }
    // It is the process, but says nothing: the daemon goes on meanwhile, and tells so.
    let silent = {
        let mut next = host(1);
        next.vms[0].control = Some(whole);
        next.vms[0].agent_pid = Some(std::process::id());
        operated.published.put(next);
        let address = operated.address;
        thread::spawn(move || get(address, "/api/vm/vm1"))
    };
    let begin = Instant::now();
    assert_eq!(body(&get(operated.address, "/health")), "ok\n");
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(status(&silent.join().unwrap()), "502");
    drop(listener);
}
