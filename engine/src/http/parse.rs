//! What requests say, read strictly: unknown and repeated fields, wrong types, and numbers that
//! are not written as integers are refused, because a wrong guess here would cost points.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use hyper::HeaderMap;
use hyper::header::HeaderName;
use serde::de::value::{CowStrDeserializer, MapAccessDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::identity::parse_member;
use super::problem::{Kind, Problem};
use crate::kernel::record::AdminNote;
use crate::units::{KeyHash, MemberId};

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub const X_OPERATOR: HeaderName = HeaderName::from_static("x-operator");
pub const X_REASON: HeaderName = HeaderName::from_static("x-reason");
pub const X_REFERENCE: HeaderName = HeaderName::from_static("x-reference");

/// Bytes of the longest request key.
const KEY_LEN_MAX: usize = 255;

/// The body of `POST /v1/sales/{sale}/redemptions`.
#[derive(Deserialize, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RedeemBody<'a> {
    #[serde(borrow)]
    pub sku: Text<'a>,
    pub quantity: u64,
    #[serde(default)]
    pub hold: bool,
}

/// The body of `POST /v1/redemptions:batch`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct BatchBody<'a> {
    #[serde(borrow)]
    pub items: Vec<Object<BatchItem<'a>>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct BatchItem<'a> {
    pub member: Member,
    #[serde(borrow)]
    pub key: Text<'a>,
    #[serde(borrow)]
    pub sale: Text<'a>,
    #[serde(borrow)]
    pub sku: Text<'a>,
    pub quantity: u64,
    #[serde(default)]
    pub hold: bool,
}

/// The body of `POST /v1/sales/{id}/items/{sku}/stock`.
#[derive(Deserialize, Serialize, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum StockBody {
    Add(u64),
    Withdraw(u64),
}

/// The body of `POST /v1/members/{id}/points`.
#[derive(Deserialize, Serialize, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum PointsBody {
    Credit(u64),
    Debit(u64),
}

/// A body that says nothing.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct EmptyBody {}

/// A JSON object and nothing else: serde's own structs would take an array of their fields too.
#[derive(Debug, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// The body of an operator's change: its own fields, and beside them why it is made.
#[derive(Debug, PartialEq, Eq)]
pub struct Noted<T> {
    pub change: T,
    pub reason: Option<String>,
    pub reference: Option<String>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Noted<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Noted<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Noted<T>, A::Error> {
                let mut rest = WithoutNote { map, reason: None, reference: None };
                let change = T::deserialize(MapAccessDeserializer::new(&mut rest))?;
                // A change that is one of several fields reads one, and would leave a second.
                if rest.next_key::<IgnoredAny>()?.is_some() {
                    return Err(A::Error::custom("more than one change"));
                }
                Ok(Noted { change, reason: rest.reason, reference: rest.reference })
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// An object's fields but for `reason` and `reference`, which are kept aside.
struct WithoutNote<A> {
    map: A,
    reason: Option<String>,
    reference: Option<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for WithoutNote<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(Text(name)) = self.map.next_key()? {
            let (field, place) = match &*name {
                "reason" => ("reason", &mut self.reason),
                "reference" => ("reference", &mut self.reference),
                _ => return seed.deserialize(CowStrDeserializer::new(name)).map(Some),
            };
            let text: String = self.map.next_value()?;
            if place.is_some() {
                return Err(A::Error::duplicate_field(field));
            }
            if text.len() > AdminNote::PART_LEN_MAX {
                let most = AdminNote::PART_LEN_MAX;
                return Err(A::Error::custom(format!("{field} is longer than {most} bytes")));
            }
            *place = Some(text);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

impl<T> Noted<T> {
    /// The change, and its note: a header's words give way to the body's.
    pub fn split(self, mut note: AdminNote) -> (T, AdminNote) {
        note.reason = self.reason.unwrap_or(note.reason);
        note.reference = self.reference.unwrap_or(note.reference);
        (self.change, note)
    }
}

/// A string of the request, borrowed unless it holds escapes.
#[derive(Deserialize, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// A member id: a string or an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member(pub MemberId);

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringOrInteger;
        impl Visitor<'_> for StringOrInteger {
            type Value = Member;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member id as an integer or a decimal string")
            }
            fn visit_u64<E: Error>(self, id: u64) -> Result<Member, E> {
                Ok(Member(MemberId::new(id)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Member, E> {
                parse_member(text.as_bytes())
                    .map(Member)
                    .ok_or_else(|| E::custom("a member id is one decimal number below 2^64"))
            }
        }
        deserializer.deserialize_any(StringOrInteger)
    }
}

/// Reads a JSON body.
///
/// Errors: `malformed`, with the parser's words: the caller wrote the bytes that they quote.
pub fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|e| Problem::malformed(format!("The body: {e}.")))
}

/// Whether a text may be a request key.
pub fn is_key(text: &[u8]) -> bool {
    (1..=KEY_LEN_MAX).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
}

/// The request's `Idempotency-Key`.
///
/// Errors: `key-missing`, `key-malformed` (a repeated header included).
pub fn request_key(headers: &HeaderMap) -> Result<&[u8], Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let value = values.next().ok_or(Kind::KeyMissing)?;
    if values.next().is_some() || !is_key(value.as_bytes()) {
        return Err(Kind::KeyMalformed.into());
    }
    Ok(value.as_bytes())
}

/// The fingerprint of an admin call's key, scoped by what it acts on.
pub fn admin_key(path: &str, key: &[u8]) -> KeyHash {
    let scope = b"admin\0";
    let mut text = Vec::with_capacity(scope.len() + path.len() + 1 + key.len());
    text.extend_from_slice(scope);
    text.extend_from_slice(path.as_bytes());
    text.push(0);
    text.extend_from_slice(key);
    KeyHash::of(&text)
}

/// Who asked for an admin change, why, and where that is written down.
pub fn admin_note(headers: &HeaderMap) -> Result<AdminNote, Problem> {
    let part = |name: HeaderName| -> Result<String, Problem> {
        let mut values = headers.get_all(&name).iter();
        let Some(value) = values.next() else { return Ok(String::new()) };
        let text = std::str::from_utf8(value.as_bytes()).ok();
        match (text, values.next()) {
            (Some(text), None) if text.len() <= AdminNote::PART_LEN_MAX => Ok(text.to_owned()),
            _ => Err(Problem::malformed(format!(
                "{name} is one header of at most {} bytes of UTF-8.",
                AdminNote::PART_LEN_MAX
            ))),
        }
    };
    Ok(AdminNote {
        operator: part(X_OPERATOR)?,
        reason: part(X_REASON)?,
        reference: part(X_REFERENCE)?,
    })
}

/// A parameter's name and value.
type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// A query whose only parameter is this one, `true` or `false`; `false` where it is not there.
pub fn flag(text: Option<&str>, only: &str) -> Result<bool, Problem> {
    let mut is_set = false;
    for (name, value) in query(text)? {
        is_set = match value.as_ref() {
            "true" if name == only => true,
            "false" if name == only => false,
            _ => {
                let detail = format!("The query takes {only}=true or {only}=false.");
                return Err(Problem::malformed(detail));
            }
        };
    }
    Ok(is_set)
}

/// The pairs of a query string, percent-decoded. `+` stays what it is: no value here has spaces.
///
/// Errors: `malformed` on a broken escape.
pub fn query(query: Option<&str>) -> Result<Vec<Pair<'_>>, Problem> {
    let mut pairs = Vec::new();
    for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((decode(name)?, decode(value)?));
    }
    Ok(pairs)
}

fn decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let broken = || Problem::malformed("The query has a broken percent escape.");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit(bytes.next()), digit(bytes.next()));
        let (high, low) = high.zip(low).ok_or_else(broken)?;
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_redeem(body: &str) -> bool {
        json::<Object<RedeemBody<'_>>>(body.as_bytes()).is_ok()
    }

    #[test]
    fn redeem_bodies_are_read_strictly() {
        for good in [
            r#"{"sku":"a","quantity":1}"#,
            r#" {"quantity":1 , "sku":"a","hold":true}"#,
            r#"{"sku":"\u0061","quantity":0}"#,
            r#"{"sku":"a","quantity":9007199254740993}"#,
            r#"{"sku":"a","quantity":18446744073709551615}"#,
        ] {
            assert!(is_redeem(good), "{good}");
        }
        for bad in [
            "",
            "{}",
            "[]",
            "null",
            "\"a\"",
            "{",
            r#"{"sku":"a"}"#,
            r#"{"quantity":1}"#,
            r#"{"sku":"a","quantity":1"#,
            r#"{"sku":"a","quantity":1}x"#,
            r#"{"sku":"a","quantity":1}{}"#,
            r#"{"sku":"a","quantity":1,"extra":1}"#,
            r#"{"sku":"a","quantity":1,"quantity":1}"#,
            r#"{"sku":"a","sku":"a","quantity":1}"#,
            r#"{"sku":1,"quantity":1}"#,
            r#"{"sku":null,"quantity":1}"#,
            r#"{"sku":"a","quantity":null}"#,
            r#"{"sku":"a","quantity":"1"}"#,
            r#"{"sku":"a","quantity":-1}"#,
            r#"{"sku":"a","quantity":1.0}"#,
            r#"{"sku":"a","quantity":1.5}"#,
            r#"{"sku":"a","quantity":1e2}"#,
            r#"{"sku":"a","quantity":01}"#,
            r#"{"sku":"a","quantity":18446744073709551616}"#,
            r#"{"sku":"a","quantity":true}"#,
            r#"{"sku":"a","quantity":1,"hold":"true"}"#,
            r#"{"sku":"a","quantity":1,"hold":1}"#,
            r#"{"sku":"a","quantity":1,"hold":null}"#,
            r#"["a",1,true]"#,
        ] {
            assert!(!is_redeem(bad), "{bad}");
        }
        assert!(json::<Object<RedeemBody<'_>>>(b"{\"sku\":\"\xff\",\"quantity\":1}").is_err());
    }

    #[test]
    fn members_in_bodies_are_strings_or_integers() {
        for (text, expected) in [
            ("7", Some(7)),
            ("\"7\"", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("\"18446744073709551615\"", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("\"18446744073709551616\"", None),
            ("-1", None),
            ("1.0", None),
            ("1e2", None),
            ("\"1e2\"", None),
            ("\"07\"", None),
            ("\"\"", None),
            ("null", None),
            ("[7]", None),
        ] {
            let got = serde_json::from_str::<Member>(text).ok().map(|m| m.0.get());
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn a_change_is_one_field_with_an_integer() {
        for (body, is_good) in [
            (r#"{"add":1}"#, true),
            (r#"{"withdraw":1}"#, true),
            (r#"{"add":1,"withdraw":1}"#, false),
            (r#"{"add":1,"add":1}"#, false),
            (r#"{"add":-1}"#, false),
            (r#"{"add":1e2}"#, false),
            (r#"{"Add":1}"#, false),
            (r#""add""#, false),
            ("{}", false),
            (r#"{"reason":"r"}"#, false),
            (r#"{"add":1,"reason":"r"}"#, true),
            (r#"{"reference":"T-1","add":1,"reason":"r"}"#, true),
            (r#"{"reason":"r","add":1,"withdraw":1}"#, false),
            (r#"{"add":1,"reason":"r","withdraw":1}"#, false),
            (r#"{"add":1,"reason":"r","reason":"r"}"#, false),
            (r#"{"add":1,"reason":null}"#, false),
            (r#"{"add":1,"operator":"o"}"#, false),
        ] {
            assert_eq!(json::<Noted<StockBody>>(body.as_bytes()).is_ok(), is_good, "{body}");
        }
        for (length, is_good) in [(255, true), (256, false)] {
            let body = format!(r#"{{"credit":1,"reason":"{}"}}"#, "r".repeat(length));
            assert_eq!(json::<Noted<PointsBody>>(body.as_bytes()).is_ok(), is_good, "{length}");
        }
    }

    #[test]
    fn a_bodys_reason_goes_before_a_headers() {
        let header = AdminNote {
            operator: "o".into(),
            reason: "of the header".into(),
            reference: "H-1".into(),
        };
        let noted: Noted<EmptyBody> = json(br#"{"reason":"of the body"}"#).unwrap();
        let (EmptyBody {}, note) = noted.split(header);
        assert_eq!(
            (note.operator.as_str(), note.reason.as_str(), note.reference.as_str()),
            ("o", "of the body", "H-1")
        );
        for bad in [r#"{"reason":"r","a":1}"#, "[]", r#"["r"]"#, r#"{"reason":1}"#] {
            assert!(json::<Noted<EmptyBody>>(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_keep_to_their_alphabet_and_length() {
        assert!(is_key(b"!~") && is_key("k".repeat(255).as_bytes()));
        for bad in [&b""[..], b" ", b"a b", b"\x7f", "ä".as_bytes(), "k".repeat(256).as_bytes()] {
            assert!(!is_key(bad), "{bad:?}");
        }
    }

    #[test]
    fn queries_are_decoded_once() {
        let pairs = query(Some("key=a%26b+c&limit=5&&flag")).unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_ref(), v.as_ref())).collect();
        assert_eq!(pairs, [("key", "a&b+c"), ("limit", "5"), ("flag", "")]);
        for bad in ["a=%", "a=%1", "a=%zz", "a=%ff"] {
            assert!(query(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn admin_keys_of_different_targets_never_meet() {
        assert_ne!(
            admin_key("/v1/members/1/points", b"k"),
            admin_key("/v1/members/2/points", b"k")
        );
        assert_ne!(admin_key("/a", b"k"), KeyHash::of(b"k"));
    }
}
