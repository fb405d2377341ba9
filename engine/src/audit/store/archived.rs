//! What was taken out of the database shards into files: of that, they keep sums.
//!
//! Rows of a month that was taken out are not missed. Its points and units are added to those of
//! the rows that are left, so balances and stock are still held against all there ever was. The
//! sums stay where the rows were, also when their members move to another database shard.

use std::collections::BTreeMap;

use super::ledger::Balances;
use crate::audit::finding::{Check, Findings, Where};
use crate::audit::stores::OpenShard;
use crate::persist::rows::{ArchivedBalance, LedgerAccount, StockSums};
use crate::persist::store::StoreError;
use crate::ship::partition::DatabaseShard;
use crate::units::{ItemIndex, JournalId, NodeTime};

/// The sums of all database shards.
#[derive(Default)]
pub struct Archived {
    /// Ledger rows of an earlier time may be in files.
    pub ledger_before: NodeTime,
    /// Redemptions that began earlier may be.
    pub redemptions_before: NodeTime,
    /// By member: free and held points.
    pub balances: Balances,
    pub units: BTreeMap<(DatabaseShard, ItemIndex), StockSums>,
}

impl Archived {
    /// Errors: a database cannot be read.
    pub fn read(
        stores: &[OpenShard<'_>],
        own: JournalId,
        findings: &mut Findings,
    ) -> Result<Self, StoreError> {
        let mut all = Self::default();
        for (shard, read) in stores {
            let at = Where::database(shard.get());
            for (table, until) in read.archived_months()? {
                match table.as_str() {
                    "ledger" => all.ledger_before = all.ledger_before.max(until),
                    "redemptions" => all.redemptions_before = all.redemptions_before.max(until),
                    other => {
                        let sentence = format!("a month of a table {other} was taken out");
                        findings.violation(Check::StoreLedger, at, sentence);
                    }
                }
            }
            let mut sum = 0i128;
            read.each_archived_balance(&mut |row| {
                let ArchivedBalance { journal, member, account, amount } = row;
                if journal != own {
                    let sentence = format!("an archived sum of journal {:016x}", journal.get());
                    findings.violation(Check::StoreLedger, at.with_member(member), sentence);
                    return;
                }
                sum += i128::from(amount);
                let balance = all.balances.entry(member.get()).or_default();
                match account {
                    LedgerAccount::Free => balance.0 = balance.0.wrapping_add(amount),
                    LedgerAccount::Held => balance.1 = balance.1.wrapping_add(amount),
                    LedgerAccount::Issued | LedgerAccount::Redeemed => {}
                }
            })?;
            if sum != 0 {
                let sentence = format!("the archived amounts sum to {sum}, not to zero");
                findings.violation(Check::StoreLedger, at, sentence);
            }
            for (journal, item, sums) in read.archived_stock()? {
                if journal == own {
                    all.units.insert((*shard, item), sums);
                } else {
                    let sentence = format!("an archived sum of journal {:016x}", journal.get());
                    findings.violation(Check::StoreStock, at.with_item(item), sentence);
                }
            }
        }
        Ok(all)
    }
}
