//! One audit, from its parts: the model's fold, the stores at their watermarks, the replay.

use std::collections::{BTreeMap, BTreeSet};

use super::claimed;
use super::finding::{Check, Findings, Where};
use super::journal::{CannotRead, Journal};
use super::model::{Figures, Item, Model, SlotModel};
use super::parts::{Base, Claims, base_control, base_slot};
use super::replay::{ReplayFigures, replay};
use super::report::{AuditReport, ItemLine, PointsLine, Subject, counted, grouped};
use super::shipped::Shipped;
use super::store::{
    Archived, Behind, Books, CannotCompare, Changes, Entries, SaleHistory, ShardAudit, ShardFigures,
};
use super::stores::OpenShard;
use crate::kernel::control::ControlState;
use crate::kernel::record::CONTROL;
use crate::kernel::slot::SlotState;
use crate::persist::store::{ConsistentRead, StoreError};
use crate::ship::partition::{Layout, PARTITION_COUNT, Partition};
use crate::units::{ItemIndex, JournalId, SLOT_COUNT, Seq, Slot};

/// How far an audit has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What is being done, for a person.
    pub step: &'static str,
    pub done: u64,
    pub of: u64,
}

/// Records between two calls of the progress callback.
const PROGRESS_EVERY: u64 = 1 << 16;

/// What is audited.
pub struct Inputs<'a> {
    pub subject: Subject,
    pub journal: &'a dyn Journal,
    pub base: Option<&'a dyn Base>,
    /// Of snapshots, or of running shards.
    pub claims: Claims,
    /// How the partitions lie on the database shards.
    pub layout: Option<Layout>,
    /// What Kafka has, where it is to be compared; read before the journal's end was looked up.
    pub shipped: Option<Shipped>,
    /// The database shards, each in an open read transaction; empty: none to compare.
    pub stores: &'a [OpenShard<'a>],
    /// Of a running node: what its stock lines had free, and the durable sequence number just
    /// before they were read.
    pub lines: Option<(Seq, Vec<(ItemIndex, u64)>)>,
    /// What was found on the way here.
    pub findings: Findings,
}

/// Audits.
///
/// Errors: the journal, a snapshot or a database cannot be read.
pub fn run(
    inputs: Inputs<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<AuditReport, CannotCompare> {
    let Inputs { mut subject, journal, base, claims, layout, stores, lines, .. } = inputs;
    let (mut shipped, mut findings) = (inputs.shipped, inputs.findings);
    let bounds = journal.bounds();
    let mut model = Model::new(bounds.journal);
    let mut sales = SaleHistory::default();
    if let Some(base) = base {
        begin(&mut model, &mut sales, base)?;
    }
    model.expect_marks(claims.slots.iter().map(|claim| claim.mark.clone()));
    model.expect_control_marks(claims.control.iter().map(|claim| claim.mark.clone()));
    if let Some((from, _)) = &lines {
        model.open_window(*from);
    }
    let watermarks = watermarks(layout, stores, bounds.journal)?;
    let mut behind = Behind::new(watermarks, set_aside(stores)?);
    let archived = Archived::read(stores, bounds.journal, &mut findings)?;
    let mut entries = Entries::new(bounds.first, archived.ledger_before);
    let mut changes = Changes::new(bounds.journal, bounds.first);
    let lowest = base.map_or(Seq::NONE, Base::lowest_cut);
    // Ledger rows are compared from the journal's first record on, so all of it is read.
    let from = if stores.is_empty() { lowest.next() } else { bounds.first };
    if let Some(shipped) = &mut shipped {
        shipped.seal(from);
    }
    let mut step = Step::new("reading the journal", from, bounds.last, progress);
    journal.each(from, &mut |place, slot, record, bytes| {
        step.at(place.seq);
        behind.note(place.seq, slot, record, bytes, &model);
        entries.note(place.seq, slot, record, &behind);
        changes.note(place.seq, slot, record, &behind);
        sales.note(place.seq, record);
        if let Some(shipped) = &mut shipped {
            shipped.note(place, slot, bytes);
        }
        model.fold(place, slot, record, bytes);
    })?;
    model.finish();
    let line_count = lines.as_ref().map_or(0, |(_, lines)| lines.len() as u64);
    check_lines(&mut model, lines);
    let others = claimed::others(stores, bounds.journal)?;
    subject.others = others.iter().map(|journal| format!("{:016x}", journal.get())).collect();
    let own = claimed::Own {
        journal: bounds.journal,
        claim: model.claim.as_ref(),
        has_members: model.slots.iter().any(|slot| !slot.accounts.is_empty()),
    };
    claimed::check(stores, &own, &mut findings)?;
    let mut shards = Vec::new();
    if let Some(layout) = layout {
        let books = Books {
            layout,
            journal_id: bounds.journal,
            model: &model,
            behind: &behind,
            entries: &entries,
            changes: &changes,
            archived: &archived,
            sales: &sales,
            journal,
        };
        for (shard, read) in stores {
            let done = u64::from(shard.get());
            let of = u64::from(layout.count());
            progress(Progress { step: "comparing the database shards", done, of });
            shards.push(ShardAudit::new(*shard, books, *read, &mut findings).run()?);
        }
    }
    drop((behind, entries, changes, sales));
    let own: BTreeMap<_, _> =
        (0..SLOT_COUNT).map(|n| (Slot::new(n as u16), model.slots[n].sums)).collect();
    let summary = Summary::of(&model, line_count);
    findings.absorb(std::mem::take(&mut model.findings));
    // Its memory goes before the replay takes as much.
    drop(model);
    let mut step = Step::new("replaying", lowest.next(), bounds.last, progress);
    let replayed = replay(journal, base, claims, &own, &mut findings, &mut |seq| step.at(seq))?;
    for (seq, flaw) in journal.flaws() {
        findings.violation(Check::Journal, Where::seq(seq), flaw);
    }
    let mut lines = summary.lines(&replayed, &shards);
    if let Some(shipped) = shipped {
        let (messages, figures) = shipped.finish(bounds.last, &mut findings);
        lines.push((Check::Shipped, messages, figures));
    }
    Ok(AuditReport::new(subject, &lines, summary.points, summary.items, shards, &findings))
}

/// Calls the progress callback now and then.
struct Step<'a> {
    name: &'static str,
    from: u64,
    of: u64,
    next: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl<'a> Step<'a> {
    fn new(
        name: &'static str,
        from: Seq,
        last: Seq,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let of = last.next().get().saturating_sub(from.get());
        progress(Progress { step: name, done: 0, of });
        Self { name, from: from.get(), of, next: from.get() + PROGRESS_EVERY, progress }
    }
    fn at(&mut self, seq: Seq) {
        if seq.get() >= self.next {
            self.next = seq.get() + PROGRESS_EVERY;
            let done = seq.get() - self.from;
            (self.progress)(Progress { step: self.name, done, of: self.of });
        }
    }
}

fn begin(model: &mut Model, history: &mut SaleHistory, base: &dyn Base) -> Result<(), CannotRead> {
    base.each(&mut |slot, cut, bytes| {
        let damaged = |e| CannotRead(format!("the snapshot's slot {slot} does not read: {e}"));
        if slot == CONTROL {
            let state = ControlState::decode(bytes).map_err(damaged)?;
            let (sales, items) = base_control(&state)?;
            history.begin(&state, cut);
            model.seed_control(cut, sales, items, state.dump_keys());
            if let Some(claim) = state.claim() {
                model.seed_claim(&claim.slots);
            }
        } else {
            let state = SlotState::decode(bytes).map_err(damaged)?;
            model.seed_slot(slot, base_slot(&state, cut));
        }
        Ok(())
    })
}

/// Each partition's watermark, as its own database shard has it.
///
/// Errors: a database cannot be read.
fn watermarks(
    layout: Option<Layout>,
    stores: &[OpenShard<'_>],
    journal: JournalId,
) -> Result<[Seq; PARTITION_COUNT], StoreError> {
    let mut watermarks = [Seq::NONE; PARTITION_COUNT];
    let Some(layout) = layout else { return Ok(watermarks) };
    for (shard, read) in stores {
        for partition in layout.partitions(*shard) {
            if layout.shard_of(partition) == *shard {
                let watermark = watermark_in(*read, journal, partition)?;
                watermarks[partition.index()] = watermark;
            }
        }
    }
    Ok(watermarks)
}

/// The lowest watermark of all database shards, each one's of the control partition included.
///
/// Errors: a database cannot be read.
pub fn lowest_watermark(
    layout: Option<Layout>,
    stores: &[OpenShard<'_>],
    journal: JournalId,
) -> Result<Seq, StoreError> {
    let mut lowest = watermarks(layout, stores, journal)?.into_iter().min().unwrap_or_default();
    for (_, read) in stores {
        lowest = lowest.min(watermark_in(*read, journal, Partition::CONTROL)?);
    }
    Ok(lowest)
}

/// One database shard's watermark of a partition.
///
/// Errors: the database cannot be read. A row that cannot be is said where the watermarks
/// themselves are compared.
pub fn watermark_in(
    read: &dyn ConsistentRead,
    journal: JournalId,
    partition: Partition,
) -> Result<Seq, StoreError> {
    let rows = match read.watermarks() {
        Err(StoreError::Corrupt(_)) => return Ok(Seq::NONE),
        rows => rows?,
    };
    let of =
        rows.iter().find(|row| (row.stream.journal, row.stream.partition) == (journal, partition));
    Ok(of.map_or(Seq::NONE, |row| row.watermark.seq))
}

/// Records that the stores have set aside.
fn set_aside(stores: &[OpenShard<'_>]) -> Result<Vec<Seq>, StoreError> {
    let mut all = Vec::new();
    for (_, read) in stores {
        match read.letters() {
            Ok(letters) => all.extend(letters.iter().map(|letter| letter.seq)),
            // Said where the letters are looked at.
            Err(StoreError::Corrupt(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Live I2: what a line has free was free by the books at some moment around its reading.
fn check_lines(model: &mut Model, lines: Option<(Seq, Vec<(ItemIndex, u64)>)>) {
    for (item, free) in lines.into_iter().flat_map(|(_, lines)| lines) {
        let Some(most) = model.window_free_max(item) else { continue };
        if i128::from(free) > most {
            let sentence = format!("the line has {free} units free, the books at most {most}");
            model.findings.violation(Check::I2, Where::item(item), sentence);
        }
    }
}

/// The model's sums, once the model is gone.
struct Summary {
    figures: Figures,
    points: PointsLine,
    items: Vec<ItemLine>,
    units: Item,
    redemptions: u64,
    accounts: u64,
    lines: u64,
    sum: i128,
}

impl Summary {
    fn of(model: &Model, lines: u64) -> Self {
        let units = |n: i128| i64::try_from(n).unwrap_or(i64::MAX);
        let mut put_back = vec![0; model.items.len()];
        for (item, units) in model.slots.iter().flat_map(SlotModel::put_back) {
            if let Some(sum) = put_back.get_mut(item.get() as usize) {
                *sum += units;
            }
        }
        let dropped: BTreeSet<_> =
            model.slots.iter().flat_map(|slot| slot.dropped_sales.iter().copied()).collect();
        let item = |(i, back): (&Item, i64)| ItemLine {
            sale: model.sales.get(i.sale.get() as usize).map_or_else(String::new, |s| s.id.clone()),
            sku: i.sku.clone(),
            total: units(i.total),
            granted: units(i.granted),
            returned: units(i.returned),
            free: units(i.free()),
            held: units(i.held),
            confirmed: units(i.confirmed),
            retired: units(i.retired),
            reversed: (!dropped.contains(&i.sale)).then_some(back),
            epoch: i.epoch,
            server: format!("{:032x}", i.server.get()),
            lease: None,
        };
        let mut all = Item::default();
        for i in &model.items {
            all.total += i.total;
            all.granted += i.granted;
            all.returned += i.returned;
            all.held += i.held;
            all.confirmed += i.confirmed;
            all.retired += i.retired;
        }
        let accounts = model.slots.iter().map(|slot| slot.accounts.len() as u64).sum();
        let l = model.ledgers;
        let points = PointsLine {
            accounts,
            issued: l.issued.to_string(),
            free: l.free.to_string(),
            held: l.held.to_string(),
            redeemed: l.redeemed.to_string(),
        };
        Self {
            figures: model.figures,
            points,
            items: model.items.iter().zip(put_back).map(item).collect(),
            units: all,
            redemptions: model.slots.iter().map(|slot| slot.redemptions.len() as u64).sum(),
            accounts,
            lines,
            sum: l.sum(),
        }
    }

    /// What was checked, and its figures in words.
    fn lines(&self, replay: &ReplayFigures, shards: &[ShardFigures]) -> Vec<(Check, u64, String)> {
        let (f, u) = (&self.figures, &self.units);
        let items = self.items.len() as u64;
        let live = match self.lines {
            0 => String::new(),
            lines => format!("; {} read live", counted(lines, "line", "lines")),
        };
        let mut all = vec![
            (Check::Journal, f.records, counted(f.records, "record", "records")),
            (
                Check::I1,
                items,
                format!(
                    "{}: {} granted − {} returned ≤ {}",
                    counted(items, "item", "items"),
                    grouped(u.granted),
                    grouped(u.returned),
                    grouped(u.total)
                ),
            ),
            (
                Check::I2,
                items,
                format!(
                    "{} − {} = {} free + {} held + {} confirmed + {} retired{live}",
                    grouped(u.granted),
                    grouped(u.returned),
                    grouped(u.free()),
                    grouped(u.held),
                    grouped(u.confirmed),
                    grouped(u.retired)
                ),
            ),
            (
                Check::I3,
                f.moves_of_points,
                format!(
                    "{}, {}: {} issued + {} free + {} held + {} redeemed = {}",
                    counted(f.moves_of_points, "move", "moves"),
                    counted(self.accounts, "account", "accounts"),
                    grouped(&self.points.issued),
                    grouped(&self.points.free),
                    grouped(&self.points.held),
                    grouped(&self.points.redeemed),
                    self.sum
                ),
            ),
            (
                Check::I5,
                replay.digests + replay.slots,
                format!(
                    "{} replayed, {} compared, sums of {}",
                    counted(replay.records, "record", "records"),
                    counted(replay.digests, "digest", "digests"),
                    counted(replay.slots, "slot", "slots")
                ),
            ),
            (
                Check::I6,
                f.keys + f.admin_keys,
                format!(
                    "{}, {} of operators",
                    counted(f.keys, "key of members", "keys of members"),
                    grouped(f.admin_keys)
                ),
            ),
            (Check::I11, f.prefixes, counted(f.prefixes, "prefix", "prefixes")),
            (
                Check::Rules,
                f.redemption_steps,
                format!(
                    "{} of {}",
                    counted(f.redemption_steps, "step", "steps"),
                    counted(self.redemptions, "redemption", "redemptions")
                ),
            ),
            (Check::SaleTimes, f.begins_timed, counted(f.begins_timed, "beginning", "beginnings")),
        ];
        if !shards.is_empty() {
            store_lines(shards, &mut all);
        }
        all
    }
}

fn store_lines(shards: &[ShardFigures], all: &mut Vec<(Check, u64, String)>) {
    let sum = |of: fn(&ShardFigures) -> u64| shards.iter().map(of).sum::<u64>();
    let mut line = |check, count: u64, figures| all.push((check, count, figures));
    let (partitions, lag) = (sum(|s| s.partitions), sum(|s| s.lag_records));
    let figures = format!(
        "{}, {} behind",
        counted(partitions, "watermark", "watermarks"),
        counted(lag, "record", "records")
    );
    line(Check::StoreWatermarks, partitions, figures);
    let accounts = sum(|s| s.accounts);
    line(Check::StoreAccounts, accounts, counted(accounts, "row", "rows"));
    let redemptions = sum(|s| s.redemptions);
    line(Check::StoreRedemptions, redemptions, counted(redemptions, "row", "rows"));
    let rows = sum(|s| s.ledger_rows);
    let total: i128 = shards.iter().map(|s| i128::from(s.ledger_sum)).sum();
    line(Check::StoreLedger, rows, format!("{}, sum {total}", counted(rows, "row", "rows")));
    let stock = sum(|s| s.stock_rows);
    line(Check::StoreStock, stock, counted(stock, "row", "rows"));
    let sales = sum(|s| s.sales);
    line(
        Check::StoreSales,
        sales,
        counted(sales, "row of sales and items", "rows of sales and items"),
    );
    let changes = sum(|s| s.admin_changes);
    line(Check::StoreAdminChanges, changes, counted(changes, "row", "rows"));
    let slots = sum(|s| s.slots);
    line(Check::StoreSlots, slots, counted(slots, "slot", "slots"));
    let letters = sum(|s| s.dead_letters);
    line(Check::StoreDeadLetters, letters, counted(letters, "letter", "letters"));
}
