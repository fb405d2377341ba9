//! The stock authority that the settings name, and how leases are taken from it.

use std::sync::Arc;

use super::StartError;
use crate::cluster::nodes::Cluster;
use crate::config::{StockConfig, StockKind};
use crate::kernel::control::ControlState;
use crate::shard::control::{ControlHandle, LeaseParts};
use crate::stock::authority::{Embedded, StockAuthority};
use crate::stock::lease::{Halt, LeaseRules};
use crate::stock::redis::RedisStockError;
use crate::stock::redis::driver::{Delivery, RedisStock};
use crate::stock::redis::endpoint::Endpoint;
use crate::stock::redis::link::check;
use crate::stock::redis::stats::RedisStats;
use crate::units::JournalId;

/// Units of one grant at most; the pool's size decides long before.
const GRANT_MAX: u64 = 10_000_000;
/// The exit code of a process that must not go on with its data folder.
const EXIT_NOT_OURS: i32 = 76;

/// What the control thread leases from.
pub struct Stock {
    pub authority: Box<dyn StockAuthority>,
    pub lease: LeaseParts,
    /// Where it is Redis.
    pub stats: Option<Arc<RedisStats>>,
}

/// Starts the authority. Redis that does not answer is no reason not to start: what the node holds
/// can be sold.
///
/// Errors: settings that cannot be used, a login or certificate among them; a folder whose units
/// came from a pool that others share, with settings that know of no others.
pub fn start(
    config: &StockConfig,
    cluster: &Arc<Cluster>,
    journal: JournalId,
    state: &ControlState,
    control: &ControlHandle,
) -> Result<Stock, StartError> {
    match config.kind {
        StockKind::Journal => {
            if let Some(item) = state.items().iter().position(|item| item.epoch > 0) {
                let sale = state.sale_of_item(crate::units::ItemIndex::new(item as u32));
                let sale = sale.and_then(|sale| state.sale(sale));
                let sale = sale.map_or_else(String::new, |s| s.sale.definition().id.clone());
                return Err(StartError::StockShared { sale });
            }
            let (authority, lease) = (Box::new(Embedded::default()), LeaseParts::alone(journal));
            Ok(Stock { authority, lease, stats: None })
        }
        StockKind::Redis => {
            let endpoint = Endpoint::new(&config.redis)?;
            match check(&endpoint) {
                Ok(_) => {}
                Err(error @ RedisStockError::Refused { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!("starting without Redis: {error}"),
            }
            let control = control.clone();
            let redis = RedisStock::start(endpoint, move |delivery| match delivery {
                Delivery::Answer(answer) => control.stock_answer(answer),
                Delivery::News(news) => control.stock_news(news),
            })?;
            let nodes = u32::try_from(cluster.node_count()).unwrap_or(u32::MAX);
            let cluster = Arc::clone(cluster);
            let lease = LeaseParts {
                rules: LeaseRules { nodes, max: GRANT_MAX },
                fixed_epoch: None,
                journals: Box::new(move || cluster.journals().map(|known| known.to_vec())),
                halt: Box::new(halt),
            };
            let stats = Some(Arc::clone(redis.stats()));
            Ok(Stock { authority: Box::new(redis), lease, stats })
        }
    }
}

/// Ends the process: what it would sell may be sold by another.
fn halt(item: &str, why: Halt) {
    let line = match why {
        Halt::Fenced { incarnation } => format!(
            "{item}: start {incarnation} of this data folder, or of a copy of it, has joined the \
             pool: this process ends. Run one process per folder, and never a copy"
        ),
        Halt::OldCopy { accepted, returned, known } => format!(
            "{item}: the pool was told of {accepted} accepted and {returned} returned units, this \
             data folder knows {} and {}: it is an old copy. Start the newest one",
            known.accepted, known.returned
        ),
    };
    tracing::error!("{line}");
    std::process::exit(EXIT_NOT_OURS);
}
