//! Who is asking: the seam between the door and whatever authenticates members.

use hyper::HeaderMap;
use hyper::header::HeaderName;

use super::problem::{Kind, Problem};
use crate::units::MemberId;

pub const X_MEMBER_ID: HeaderName = HeaderName::from_static("x-member-id");

/// How the public listener learns which member a request acts for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Identity {
    /// A gateway in front has authenticated the member, and names it in `X-Member-Id`.
    #[default]
    GatewayHeader,
    // Tokens that the node checks by itself become a variant of their own here.
}

impl Identity {
    /// The member that a request acts for.
    ///
    /// Errors: `identity-missing` (401), `identity-malformed` (400), a repeated header included:
    /// whoever could add a second one could pick a member.
    pub fn member(self, headers: &HeaderMap) -> Result<MemberId, Problem> {
        match self {
            Self::GatewayHeader => {
                let mut values = headers.get_all(X_MEMBER_ID).iter();
                let value = values.next().ok_or(Kind::IdentityMissing)?;
                if values.next().is_some() {
                    return Err(Kind::IdentityMalformed.into());
                }
                parse_member(value.as_bytes()).ok_or_else(|| Kind::IdentityMalformed.into())
            }
        }
    }
}

/// A member id as decimal digits without a sign; each member has one spelling.
pub fn parse_member(text: &[u8]) -> Option<MemberId> {
    let is_decimal = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if !is_decimal || (text[0] == b'0' && text.len() > 1) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().map(MemberId::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_named_once_in_plain_decimal() {
        for (values, expected) in [
            (&["42"][..], Ok(42)),
            (&["0"], Ok(0)),
            (&["18446744073709551615"], Ok(u64::MAX)),
            (&[], Err(Kind::IdentityMissing)),
            (&["1", "1"], Err(Kind::IdentityMalformed)),
            (&["1", "2"], Err(Kind::IdentityMalformed)),
            (&["1,2"], Err(Kind::IdentityMalformed)),
            (&["18446744073709551616"], Err(Kind::IdentityMalformed)),
            (&["-1"], Err(Kind::IdentityMalformed)),
            (&["+1"], Err(Kind::IdentityMalformed)),
            (&["01"], Err(Kind::IdentityMalformed)),
            (&["1.0"], Err(Kind::IdentityMalformed)),
            (&[" "], Err(Kind::IdentityMalformed)),
            (&[""], Err(Kind::IdentityMalformed)),
            (&["0x10"], Err(Kind::IdentityMalformed)),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(X_MEMBER_ID, value.parse().unwrap());
            }
            let got = Identity::GatewayHeader.member(&headers).map(MemberId::get);
            assert_eq!(got.map_err(|p| p.kind), expected, "{values:?}");
        }
    }
}
