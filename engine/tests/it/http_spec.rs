//! Answers held against `openapi.yaml`: a route, a status, a header or a field that is not in the
//! file fails.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::http_client::{Answer, Ask, TestNode};

/// The description, and what of it has been seen.
pub struct Spec {
    document: Value,
    seen: Mutex<BTreeSet<(String, u16)>>,
}

/// Which listener a request goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listener {
    Public,
    Gateway,
    Admin,
}

impl Listener {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
        }
    }
}

impl Spec {
    pub fn load() -> Self {
        let document = serde_json::from_str(onrush::http::openapi::json()).unwrap();
        Self { document, seen: Mutex::default() }
    }

    /// Sends a request, and holds the answer against the description.
    pub fn send(&self, node: &TestNode, listener: Listener, ask: &Ask) -> Answer {
        let to = match listener {
            Listener::Public => node.public,
            Listener::Gateway => node.gateway,
            Listener::Admin => node.admin,
        };
        let answer = ask.send(to);
        self.check(listener, ask, &answer);
        answer
    }

    #[track_caller]
    pub fn check(&self, listener: Listener, ask: &Ask, answer: &Answer) {
        let path = ask.path.split('?').next().unwrap();
        let said = format!(
            "{} {} on {}: {} {}",
            ask.method,
            ask.path,
            listener.name(),
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        let responses = &self.document["components"]["responses"];
        let response = match self.operation(listener, &ask.method, path) {
            Found::Operation(operation) => {
                let id = operation["operationId"].as_str().unwrap().to_owned();
                self.seen.lock().unwrap().insert((id, answer.status));
                &operation["responses"][answer.status.to_string()]
            }
            Found::OtherMethod if answer.status == 405 => &responses["MethodNotAllowed"],
            Found::Nothing if answer.status == 404 => &responses["RouteNotFound"],
            Found::OtherMethod | Found::Nothing => panic!("no such call, and yet {said}"),
        };
        let response = self.resolve(response);
        assert!(response.is_object(), "a status that the description does not have: {said}");
        self.check_headers(response, answer, &said);
        self.check_body(response, ask, answer, &said);
    }

    /// Statuses that the description has and nothing has shown, as `operation status`.
    pub fn unseen(&self) -> BTreeSet<String> {
        let seen = self.seen.lock().unwrap();
        let mut unseen = BTreeSet::new();
        for operation in self.operations() {
            let id = operation["operationId"].as_str().unwrap();
            for status in operation["responses"].as_object().unwrap().keys() {
                if !seen.contains(&(id.to_owned(), status.parse().unwrap())) {
                    unseen.insert(format!("{id} {status}"));
                }
            }
        }
        unseen
    }

    /// Method and path of every call that a listener has.
    pub fn calls(&self, listener: Listener) -> Vec<(String, String)> {
        let mut calls = Vec::new();
        for (path, item) in self.document["paths"].as_object().unwrap() {
            for method in ["get", "post"] {
                let listeners = item[method]["x-listeners"].as_array();
                if listeners.is_some_and(|here| here.iter().any(|l| l == listener.name())) {
                    calls.push((method.to_ascii_uppercase(), path.clone()));
                }
            }
        }
        calls
    }

    fn operations(&self) -> impl Iterator<Item = &Value> {
        let paths = self.document["paths"].as_object().unwrap().values();
        paths.flat_map(|path| ["get", "post"].iter().filter_map(|method| path.get(*method)))
    }

    /// A path with the most literal segments wins: `/v1/members/me/points` is not a member's.
    fn operation(&self, listener: Listener, method: &str, path: &str) -> Found<'_> {
        let is_here = |operation: &Value| {
            let listeners = operation["x-listeners"].as_array().unwrap();
            listeners.iter().any(|l| l == listener.name())
        };
        let paths = self.document["paths"].as_object().unwrap();
        let best = paths
            .iter()
            .filter(|(template, _)| matches(template, path))
            .filter(|(_, item)| ["get", "post"].iter().filter_map(|m| item.get(*m)).any(is_here))
            .min_by_key(|(template, _)| template.matches('{').count());
        let Some((_, item)) = best else { return Found::Nothing };
        let method = if method == "HEAD" { "get" } else { &method.to_ascii_lowercase() };
        match item.get(method).filter(|operation| is_here(operation)) {
            Some(operation) => Found::Operation(operation),
            None => Found::OtherMethod,
        }
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(pointer) => self.document.pointer(pointer.trim_start_matches('#')).unwrap(),
            None => value,
        }
    }

    fn check_headers(&self, response: &Value, answer: &Answer, said: &str) {
        let Some(headers) = response.get("headers").and_then(Value::as_object) else { return };
        for (name, header) in headers {
            let header = self.resolve(header);
            match answer.header(&name.to_ascii_lowercase()) {
                Some(value) => self.validate(&header["schema"], &json!(value), said),
                None => assert_ne!(header["required"], true, "{name} is missing: {said}"),
            }
        }
    }

    fn check_body(&self, response: &Value, ask: &Ask, answer: &Answer, said: &str) {
        let Some(content) = response.get("content").and_then(Value::as_object) else {
            assert!(answer.body.is_empty(), "a body that the description does not have: {said}");
            return;
        };
        let content_type = answer.header("content-type").unwrap_or_default();
        let essence = content_type.split(';').next().unwrap();
        let content = content.get(essence).unwrap_or_else(|| panic!("{content_type}: {said}"));
        if ask.method == "HEAD" {
            return;
        }
        if essence.ends_with("json") {
            self.validate(&content["schema"], &answer.json(), said);
        }
        if essence == "application/problem+json" {
            assert_eq!(answer.json()["status"], answer.status, "{said}");
            let urn = format!("urn:onrush:problem:{}", answer.code());
            assert_eq!(answer.json()["type"], urn, "{said}");
        }
    }

    /// Holds a value against one of the description's schemas.
    #[track_caller]
    pub fn validate_named(&self, schema: &str, value: &Value) {
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
        self.validate(&schema, value, &value.to_string());
    }

    #[track_caller]
    fn validate(&self, schema: &Value, value: &Value, said: &str) {
        let mut schema = schema.clone();
        schema["components"] = json!({ "schemas": self.document["components"]["schemas"] });
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}\n{said}", errors.join("\n"));
    }
}

enum Found<'a> {
    Operation(&'a Value),
    /// The path has calls here, but not by this method.
    OtherMethod,
    Nothing,
}

fn matches(template: &str, path: &str) -> bool {
    let (template, path) = (template.split('/'), path.split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(t, p)| if t.starts_with('{') { !p.is_empty() } else { t == p })
}

#[test]
fn every_schema_is_closed() {
    fn open_objects(at: &str, value: &Value, found: &mut Vec<String>) {
        if value["type"] == "object" && value["additionalProperties"] != false {
            found.push(at.to_owned());
        }
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, v)| open_objects(&format!("{at}/{name}"), v, found));
            }
            Value::Array(values) => {
                for v in values {
                    open_objects(&format!("{at}/_"), v, found);
                }
            }
            _ => {}
        }
    }
    let spec = Spec::load();
    let mut found = Vec::new();
    open_objects("", &spec.document, &mut found);
    // The description itself is somebody else's format.
    let own = "/paths//openapi.json/get/responses/200/content/application/json/schema";
    assert_eq!(found, [own]);
}

#[test]
fn every_problem_code_is_described_and_no_other() {
    let spec = Spec::load();
    let described =
        &spec.document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
    let described: BTreeSet<&str> =
        described.as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
    let known: BTreeSet<&str> =
        onrush::http::problem::Kind::ALL.iter().map(|kind| kind.code()).collect();
    assert_eq!(described, known);
}
