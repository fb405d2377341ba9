//! Sales, items and stock in the model: the control records.

use serde_json::Value;

use super::member::ADMIN_KEY_RETENTION_MS;
use super::times::Stand;
use super::{ControlMark, Model, Place};
use crate::audit::finding::{Check, Where};
use crate::kernel::record::{
    ChangeSeen, EpochSeen, Granted, Record, Returned, SaleChange, SaleChanged, SaleDefined,
    StockChanged, TotalSeen,
};
use crate::units::{ItemIndex, KeyHash, MemberId, NodeTime, SaleIndex, Seq};

/// A sale.
#[derive(Clone, Default, Debug)]
pub struct Sale {
    pub id: String,
    pub first_item: u32,
    pub item_count: u32,
    pub stand: Stand,
}

/// An item and its units. Signed: what a damaged journal gives may lie below zero.
#[derive(Clone, Default, Debug)]
pub struct Item {
    pub sku: String,
    pub sale: SaleIndex,
    pub price: u64,
    /// Units per member; `None`: any number.
    pub limit: Option<u64>,
    /// Inclusive ranges of members; `None`: everybody.
    pub eligible: Option<Vec<(u64, u64)>>,
    /// The sum of what this journal changed it by: 0 where it is not the sale's home.
    pub total: i128,
    /// The total that it learned from the pool, where it is not the home.
    pub total_seen: Option<i128>,
    pub epoch: u32,
    /// The server that the epoch belongs to.
    pub server: KeyHash,
    pub granted: i128,
    pub returned: i128,
    pub held: i128,
    pub confirmed: i128,
    pub retired: i128,
}

impl Item {
    /// Units that are neither free nor returned.
    pub fn taken(&self) -> i128 {
        self.held + self.confirmed + self.retired
    }
    /// Units in the sale, as this journal knows.
    pub fn in_sale(&self) -> i128 {
        self.total_seen.unwrap_or(self.total)
    }
    pub fn free(&self) -> i128 {
        self.granted - self.returned - self.taken()
    }
    pub fn is_eligible(&self, member: MemberId) -> bool {
        let within = |&(first, last): &(u64, u64)| (first..=last).contains(&member.get());
        self.eligible.as_ref().is_none_or(|ranges| ranges.iter().any(within))
    }
}

/// A number that may travel as a string.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// A range of members as a definition writes it: `"7"` or `"20-29"`, both ends included.
fn range(value: &Value) -> Option<(u64, u64)> {
    let text = value.as_str()?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// The items of a definition, read without the engine's types.
///
/// Errors: what is missing, in words.
pub fn items_of(definition: &str, sale: SaleIndex) -> Result<(String, Vec<Item>), String> {
    let json: Value = serde_json::from_str(definition).map_err(|e| format!("is no JSON: {e}"))?;
    let id = json.get("id").and_then(Value::as_str).ok_or("has no id")?.to_owned();
    let list = json.get("items").and_then(Value::as_array).ok_or("has no items")?;
    let item = |value: &Value| {
        let sku = value.get("sku").and_then(Value::as_str).ok_or("has an item without sku")?;
        let price = value.get("points").and_then(number).ok_or("has an item without points")?;
        let limit = value.get("limit_per_member").and_then(number);
        let eligible = match value.get("eligible") {
            None | Some(Value::Null) => None,
            Some(Value::Array(ranges)) => {
                let ranges: Option<Vec<_>> = ranges.iter().map(range).collect();
                Some(ranges.ok_or("has ranges of members that do not read")?)
            }
            Some(_) => return Err("has ranges of members that do not read"),
        };
        Ok(Item { sku: sku.to_owned(), sale, price, limit, eligible, ..Item::default() })
    };
    Ok((id, list.iter().map(item).collect::<Result<_, &str>>()?))
}

impl Model {
    /// Begins with the sales and items of a snapshot, as they were at `cut`.
    pub fn seed_control(
        &mut self,
        cut: Seq,
        sales: Vec<Sale>,
        items: Vec<Item>,
        keys: impl IntoIterator<Item = (KeyHash, NodeTime)>,
    ) {
        self.has_base = true;
        self.control_cut = cut;
        self.exact_behind = self.exact_behind.max(cut);
        self.sales = sales;
        // Slots may have been seeded before: their units stay.
        for (index, item) in items.into_iter().enumerate() {
            let Item { held, confirmed, retired, .. } =
                self.items.get(index).cloned().unwrap_or_default();
            let seeded = Item { held, confirmed, retired, ..item };
            match self.items.get_mut(index) {
                Some(known) => *known = seeded,
                None => self.items.push(seeded),
            }
        }
        self.control_keys.extend(keys.into_iter().map(|(key, at)| (key.get(), at)));
    }

    /// Notes what the journal has claimed; what is no set of slots is said where it stands.
    pub fn claim(&mut self, place: Place, slots: &str) {
        self.seed_claim(slots);
        if self.claim.is_none() {
            let sentence = format!("a claim of slots that are none: {slots}");
            self.findings.violation(Check::Journal, Where::seq(place.seq), sentence);
        }
    }

    /// Begins with the claim of a snapshot.
    pub fn seed_claim(&mut self, slots: &str) {
        self.claim = slots.parse().ok();
    }

    /// Gives the item whose units changed.
    pub(super) fn fold_control(&mut self, place: Place, record: &Record) -> Option<ItemIndex> {
        match record {
            Record::SaleDefined(r) => self.define(place, r),
            Record::SaleChanged(r) => self.change(place, r),
            Record::StockChanged(r) => return self.change_stock(place, r),
            Record::Granted(r) => return self.grant(place, r),
            Record::Returned(r) => return self.give_back(place, r),
            Record::ChangeSeen(r) => self.see_change(place, r),
            Record::EpochSeen(r) => self.see_epoch(place, r),
            Record::TotalSeen(r) => return self.see_total(place, r),
            // Whether the slots are this journal's to use, its node's start decides.
            Record::SlotsClaimed(r) => self.claim(place, &r.slots),
            Record::Imported(r) => {
                if r.opened.checked_add(r.existing) != Some(r.rows) {
                    let sentence = format!(
                        "an import of {} rows opened {} accounts and found {}",
                        r.rows, r.opened, r.existing
                    );
                    self.findings.violation(Check::Journal, Where::seq(place.seq), sentence);
                }
            }
            other => {
                let sentence = format!("a {} record names no member's slot", other.name());
                self.findings.violation(Check::Journal, Where::seq(place.seq), sentence);
            }
        }
        None
    }

    fn define(&mut self, place: Place, r: &SaleDefined) {
        let at = Where::seq(place.seq);
        let expected = (self.sales.len() as u32, self.items.len() as u32);
        if (r.sale.get(), r.first_item.get()) != expected {
            let sentence = format!(
                "sale {} begins with item {}, where sale {} and item {} come next",
                r.sale, r.first_item, expected.0, expected.1
            );
            return self.findings.violation(Check::Journal, at, sentence);
        }
        match items_of(&r.definition, r.sale) {
            Ok((id, items)) => {
                if self.sales.iter().any(|sale| sale.id == id) {
                    let sentence = format!("sale {id:?} was defined a second time");
                    self.findings.violation(Check::I6, at, sentence);
                }
                let item_count = items.len() as u32;
                let stand = Stand::default();
                self.sales.push(Sale { id, first_item: expected.1, item_count, stand });
                self.items.extend(items);
                self.times.define();
            }
            Err(why) => {
                let sentence = format!("the definition of sale {} {why}", r.sale);
                self.findings.violation(Check::Journal, at, sentence);
            }
        }
    }

    fn change(&mut self, place: Place, r: &SaleChanged) {
        let at = Where::seq(place.seq);
        let Some(sale) = self.sales.get_mut(r.sale.get() as usize) else {
            let sentence = format!("a change of sale {}, which is not defined", r.sale);
            return self.findings.violation(Check::Journal, at, sentence);
        };
        if sale.stand.is_ended && r.change == SaleChange::Opened {
            let sentence = format!("sale {:?} was opened after its end", sale.id);
            self.findings.violation(Check::SaleTimes, at, sentence);
        }
        sale.stand.change(r.change);
        self.times.change(place);
    }

    fn see_change(&mut self, place: Place, r: &ChangeSeen) {
        let Some(sale) = self.sales.get(r.sale.get() as usize) else {
            let sentence = format!("shard {} saw sale {}, which is not defined", r.shard, r.sale);
            return self.findings.violation(Check::Journal, Where::seq(place.seq), sentence);
        };
        let was_recorded = match r.change {
            SaleChange::Opened => sale.stand.is_opened,
            SaleChange::Paused => sale.stand.is_paused,
            SaleChange::Resumed => !sale.stand.is_paused,
            SaleChange::Ended => sale.stand.is_ended,
        };
        if !was_recorded {
            let sentence = format!(
                "shard {} decides by \"{}\" of sale {:?}, which is not on record",
                r.shard,
                r.change.name(),
                sale.id
            );
            self.findings.violation(Check::SaleTimes, Where::seq(place.seq), sentence);
        }
        self.times.seen(r);
    }

    fn change_stock(&mut self, place: Place, r: &StockChanged) -> Option<ItemIndex> {
        let at = Where::item(r.item).with_seq(place.seq);
        if r.key != KeyHash::default() {
            self.figures.admin_keys += 1;
            let before = self.control_keys.insert(r.key.get(), r.at);
            if before.is_some_and(|then| then.plus_ms(ADMIN_KEY_RETENTION_MS) > r.at) {
                let sentence = "a key that had changed stock before did so again";
                self.findings.violation(Check::I6, at, sentence);
            }
        }
        let Some(item) = self.items.get_mut(r.item.get() as usize) else {
            self.findings.violation(Check::Journal, at, "stock of an item that is not defined");
            return None;
        };
        let quantity = i128::from(r.quantity.get());
        item.total += if r.added { quantity } else { -quantity };
        if item.total != i128::from(r.total_after) {
            let sentence = format!(
                "the total is said to be {} afterwards, the sum is {}",
                r.total_after, item.total
            );
            item.total = i128::from(r.total_after);
            self.findings.violation(Check::I1, at, sentence);
        }
        if r.quantity > r.asked {
            let sentence = format!("{} units moved where {} were asked for", r.quantity, r.asked);
            self.findings.violation(Check::I1, at, sentence);
        }
        self.check_granted(place, r.item);
        Some(r.item)
    }

    fn grant(&mut self, place: Place, r: &Granted) -> Option<ItemIndex> {
        let at = Where::item(r.item).with_seq(place.seq);
        let Some(item) = self.items.get_mut(r.item.get() as usize) else {
            self.findings.violation(Check::Journal, at, "a grant of an item that is not defined");
            return None;
        };
        let granted = i128::from(r.granted);
        if r.epoch < item.epoch {
            let sentence = format!(
                "a grant of epoch {} was accepted behind epoch {}, where others may have it too",
                r.epoch, item.epoch
            );
            self.findings.violation(Check::I1, at, sentence);
        }
        if granted < item.granted {
            let sentence = format!("granted in all fell from {} to {granted}", item.granted);
            self.findings.violation(Check::I1, at, sentence);
        }
        item.granted = granted;
        self.check_granted(place, r.item);
        Some(r.item)
    }

    fn give_back(&mut self, place: Place, r: &Returned) -> Option<ItemIndex> {
        let at = Where::item(r.item).with_seq(place.seq);
        let Some(item) = self.items.get_mut(r.item.get() as usize) else {
            self.findings.violation(Check::Journal, at, "a return of an item that is not defined");
            return None;
        };
        let returned = i128::from(r.returned);
        if returned < item.returned || returned > item.granted {
            let sentence = format!(
                "returned in all went from {} to {returned}, of {} granted",
                item.returned, item.granted
            );
            self.findings.violation(Check::I1, at, sentence);
        }
        item.returned = returned;
        self.check_granted(place, r.item);
        Some(r.item)
    }

    fn see_epoch(&mut self, place: Place, r: &EpochSeen) {
        let at = Where::item(r.item).with_seq(place.seq);
        let Some(item) = self.items.get_mut(r.item.get() as usize) else {
            let sentence = "an epoch of an item that is not defined";
            return self.findings.violation(Check::Journal, at, sentence);
        };
        if r.epoch <= item.epoch {
            let sentence = format!("epoch {} was seen behind epoch {}", r.epoch, item.epoch);
            self.findings.violation(Check::Journal, at, sentence);
        }
        (item.epoch, item.server) = (r.epoch, r.server);
    }

    fn see_total(&mut self, place: Place, r: &TotalSeen) -> Option<ItemIndex> {
        let at = Where::item(r.item).with_seq(place.seq);
        let Some(item) = self.items.get_mut(r.item.get() as usize) else {
            self.findings.violation(Check::Journal, at, "a total of an item that is not defined");
            return None;
        };
        if item.total != 0 {
            let sentence = "the home of a sale learned its total from elsewhere";
            self.findings.violation(Check::Journal, at, sentence);
        }
        item.total_seen = Some(i128::from(r.total));
        self.check_granted(place, r.item);
        Some(r.item)
    }

    /// I1, on one journal: what it holds is no more than what is in the sale.
    fn check_granted(&mut self, place: Place, index: ItemIndex) {
        let Some(item) = self.items.get(index.get() as usize) else { return };
        if place.seq > self.exact_behind && item.granted - item.returned > item.in_sale() {
            let sentence = format!(
                "{} units granted − {} returned are more than the sale's {}",
                item.granted,
                item.returned,
                item.in_sale()
            );
            self.findings.violation(Check::I1, Where::item(index).with_seq(place.seq), sentence);
        }
    }

    pub(super) fn compare_control(&mut self, mark: &ControlMark) {
        if mark.cut < self.control_cut {
            return;
        }
        self.figures.marks += 1;
        for (index, theirs) in mark.items.iter().enumerate() {
            let at = Where::item(ItemIndex::new(index as u32)).with_seq(mark.cut);
            let Some(item) = self.items.get(index) else {
                let sentence = format!("{} has an item that no record defines", mark.by);
                self.findings.violation(Check::I1, at, sentence);
                continue;
            };
            let mine = [item.in_sale(), item.granted, item.returned];
            if mine != theirs.map(i128::from) {
                let sentence = format!(
                    "{} says {} in the sale, {} granted, {} returned; the records give {}, {}, {}",
                    mark.by, theirs[0], theirs[1], theirs[2], mine[0], mine[1], mine[2],
                );
                self.findings.violation(Check::I1, at, sentence);
            }
        }
    }
}
