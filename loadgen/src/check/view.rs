//! Answers of the API, as far as the check reads them.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::check::CheckError;
use crate::http::Target;
use crate::http::once::{Asker, Reply};

/// A redemption.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Redemption {
    pub id: String,
    pub sale: String,
    pub sku: String,
    pub quantity: u32,
    pub points: u64,
    pub state: String,
}

impl Redemption {
    /// Whether its units and points are spent or set aside.
    pub fn is_live(&self) -> bool {
        matches!(&*self.state, "held" | "confirmed")
    }
}

#[derive(Deserialize)]
pub struct Redemptions {
    pub redemptions: Vec<Redemption>,
}

/// A member's points.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Points {
    pub free: u64,
    pub held: u64,
}

/// A sale; the admin listener says more than the public one.
#[derive(Clone, Debug, Deserialize)]
pub struct Sale {
    pub items: Vec<SaleItem>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct SaleItem {
    pub sku: String,
    pub limit_per_member: Option<u64>,
    pub free: Option<u64>,
    pub total: Option<u64>,
    pub held: Option<u64>,
    pub confirmed: Option<u64>,
}

/// Asks for the sale, of the admin listener where there is one.
pub fn sale(
    public: &Target,
    admin: Option<&Target>,
    id: &str,
    timeout: Duration,
) -> Result<Sale, CheckError> {
    let path = format!("/v1/sales/{id}");
    let reply = Asker::new(admin.unwrap_or(public), timeout).get(&path, None)?;
    parse(&path, &reply)
}

/// Reads a 200's body.
pub fn parse<T: DeserializeOwned>(path: &str, reply: &Reply) -> Result<T, CheckError> {
    if reply.status != 200 {
        let body = String::from_utf8_lossy(&reply.body[..reply.body.len().min(300)]).into_owned();
        return Err(CheckError::Status { path: path.into(), status: reply.status, body });
    }
    serde_json::from_slice(&reply.body)
        .map_err(|e| CheckError::Answer { path: path.into(), detail: e.to_string() })
}
