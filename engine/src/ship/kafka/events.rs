//! Events for the mall's other services: journal records told as `CloudEvents` 1.0, in JSON.
//!
//! Pure: records in, events out. What a record does not say itself (an item's SKU, whether its last
//! unit is gone) is folded from the records before it, and kept with the restart point; so its size
//! is that of the catalog, whatever the traffic. The schema: `config/schema/events.schema.json`.
//!
//! **What is promised.** Each event at least once; all events of one member, and of one sale, in
//! the order in which they happened (they share a key, and so a partition), but after a restart the
//! last ones may come again. `id` is the same each time: journal, sequence number, and what it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kernel::record::{Record, RecordError, SaleChange};
use crate::units::{ItemIndex, JournalId, NodeTime, Quantity, SaleIndex, Seq};

/// One event, ready to be sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// What keeps its order: a member's id, or a sale's.
    pub key: String,
    pub body: Value,
}

/// What the records so far say of sales and items.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Teller {
    /// Ids, in the order of the sales' numbers.
    sales: Vec<String>,
    items: BTreeMap<u32, ItemStory>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct ItemStory {
    sale: String,
    sku: String,
    /// Units in the sale; accepted by this journal; given back by it; neither free nor given back.
    total: u64,
    granted: u64,
    returned: u64,
    taken: u64,
    is_sold_out: bool,
}

/// An item as a recovered node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownItem {
    pub sku: String,
    pub total: u64,
    pub granted: u64,
    pub returned: u64,
    pub taken: u64,
}

impl ItemStory {
    fn free(&self) -> u64 {
        self.granted.saturating_sub(self.returned).saturating_sub(self.taken)
    }
    /// No unit can be had: all of the sale's are here, and none is free.
    fn has_sold_out(&self) -> bool {
        self.total > 0
            && self.granted.saturating_sub(self.returned) == self.total
            && self.free() == 0
    }
}

/// Just what is needed of a sale's definition.
#[derive(Deserialize)]
struct Definition {
    id: String,
    items: Vec<ItemName>,
}

#[derive(Deserialize)]
struct ItemName {
    sku: String,
}

/// Where a record stands.
#[derive(Clone, Copy)]
struct At {
    journal: JournalId,
    seq: Seq,
}

impl At {
    fn event(self, what: &str, subject: &str, key: String, time: NodeTime, data: &Value) -> Event {
        let (journal, seq) = (self.journal.get(), self.seq);
        let body = json!({
            "specversion": "1.0",
            "id": format!("{journal:016x}-{seq}-{what}"),
            "source": format!("/onrush/{journal:016x}"),
            "type": format!("onrush.{what}.v1"),
            "subject": subject,
            "time": time.rfc3339(),
            "datacontenttype": "application/json",
            "data": data,
        });
        Event { key, body }
    }
}

impl Teller {
    /// Adds a sale that a recovered node knows; in the order of their numbers.
    pub fn know_sale(&mut self, id: &str, first_item: ItemIndex, items: Vec<KnownItem>) {
        for (index, item) in (first_item.get()..).zip(items) {
            let KnownItem { sku, total, granted, returned, taken } = item;
            let sale = id.to_owned();
            let mut story =
                ItemStory { sale, sku, total, granted, returned, taken, is_sold_out: false };
            story.is_sold_out = story.has_sold_out();
            self.items.insert(index, story);
        }
        self.sales.push(id.to_owned());
    }

    /// Tells one encoded record; most records of sales and stock are no event.
    ///
    /// Errors: bytes that are no record of ours, or only a newer program's.
    pub fn tell(
        &mut self,
        journal: JournalId,
        seq: Seq,
        bytes: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), RecordError> {
        let (_, record) = Record::take(&mut &bytes[..])?;
        let at = At { journal, seq };
        match record {
            Record::Held(r) => self.take(at, r.item, r.quantity, r.id.at(), events),
            Record::Redeemed(r) => {
                let data = json!({ "free_after": r.free_after.get() });
                let told = (r.member.get(), r.id.to_string(), r.quantity, r.points.get());
                events.push(self.redemption(at, "confirmed", r.item, told, r.id.at(), data));
                self.take(at, r.item, r.quantity, r.id.at(), events);
            }
            Record::Confirmed(r) => {
                let data = json!({ "free_after": r.free_after.get() });
                let told = (r.member.get(), r.id.to_string(), r.quantity, r.points.get());
                events.push(self.redemption(at, "confirmed", r.item, told, r.at, data));
            }
            Record::Released(r) => {
                let why = if r.expired { "expired" } else { "cancelled" };
                let data = json!({ "free_after": r.free_after.get(), "reason": why });
                let told = (r.member.get(), r.id.to_string(), r.quantity, r.points.get());
                events.push(self.redemption(at, "released", r.item, told, r.at, data));
                self.give_back(r.item, r.quantity);
            }
            Record::Reversed(r) => {
                let data = json!({ "free_after": r.free_after.get(), "units_back": r.units_back });
                let told = (r.member.get(), r.id.to_string(), r.quantity, r.points.get());
                events.push(self.redemption(at, "reversed", r.item, told, r.at, data));
                if r.units_back {
                    self.give_back(r.item, r.quantity);
                }
            }
            Record::SaleDefined(r) => {
                if let Ok(Definition { id, items }) = serde_json::from_str(&r.definition) {
                    let known = items.into_iter().map(|item| KnownItem {
                        sku: item.sku,
                        total: 0,
                        granted: 0,
                        returned: 0,
                        taken: 0,
                    });
                    self.know_sale(&id, r.first_item, known.collect());
                }
            }
            Record::SaleChanged(r) => {
                let what = match r.change {
                    SaleChange::Opened => "sale.opened",
                    SaleChange::Ended => "sale.closed",
                    SaleChange::Paused | SaleChange::Resumed => return Ok(()),
                };
                let sale = self.sale(r.sale);
                let data = json!({ "sale": sale });
                events.push(at.event(what, &sale, sale.clone(), r.at, &data));
            }
            Record::StockChanged(r) => self.change(r.item, |story| story.total = r.total_after),
            Record::Granted(r) => self.change(r.item, |story| story.granted = r.granted),
            Record::Returned(r) => self.change(r.item, |story| story.returned = r.returned),
            _ => {}
        }
        Ok(())
    }

    fn sale(&self, sale: SaleIndex) -> String {
        self.sales.get(sale.get() as usize).cloned().unwrap_or_else(|| format!("#{sale}"))
    }

    fn names(&self, item: ItemIndex) -> (String, String) {
        let story = self.items.get(&item.get());
        story.map_or_else(Default::default, |s| (s.sale.clone(), s.sku.clone()))
    }

    fn redemption(
        &self,
        at: At,
        what: &str,
        item: ItemIndex,
        (member, id, quantity, points): (u64, String, Quantity, u64),
        time: NodeTime,
        mut data: Value,
    ) -> Event {
        let (sale, sku) = self.names(item);
        let member = member.to_string();
        data["redemption"] = id.clone().into();
        // As a string: it may exceed 2^53.
        data["member"] = member.clone().into();
        data["sale"] = sale.into();
        data["sku"] = sku.into();
        data["quantity"] = quantity.get().into();
        data["points"] = points.into();
        at.event(&format!("redemption.{what}"), &id, member, time, &data)
    }

    /// Units leave the line; where they were the last ones, that is an event of its own.
    fn take(
        &mut self,
        at: At,
        item: ItemIndex,
        quantity: Quantity,
        time: NodeTime,
        events: &mut Vec<Event>,
    ) {
        let Some(story) = self.items.get_mut(&item.get()) else { return };
        story.taken += u64::from(quantity.get());
        let was_sold_out = story.is_sold_out;
        story.is_sold_out = story.has_sold_out();
        if story.is_sold_out && !was_sold_out {
            let ItemStory { sale, sku, .. } = story.clone();
            let data = json!({ "sale": sale, "sku": sku });
            let subject = format!("{sale}/{sku}");
            events.push(at.event("item.sold-out", &subject, sale, time, &data));
        }
    }

    fn give_back(&mut self, item: ItemIndex, quantity: Quantity) {
        let units = u64::from(quantity.get());
        self.change(item, |story| story.taken = story.taken.saturating_sub(units));
    }

    fn change(&mut self, item: ItemIndex, change: impl FnOnce(&mut ItemStory)) {
        if let Some(story) = self.items.get_mut(&item.get()) {
            change(story);
            story.is_sold_out = story.has_sold_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::record::{
        AdminNote, CONTROL, Granted, Held, Redeemed, Released, SaleChanged, SaleDefined,
        StockChanged,
    };
    use crate::units::{KeyHash, MemberId, Points, RedemptionId, Slot};

    const JOURNAL: JournalId = JournalId::new(7);

    #[derive(Default)]
    struct Story {
        teller: Teller,
        seq: u64,
    }

    impl Story {
        fn tell(&mut self, record: impl Into<Record>) -> Vec<Value> {
            let (mut bytes, mut events) = (Vec::new(), Vec::new());
            record.into().encode(CONTROL, &mut bytes);
            self.seq += 1;
            self.teller.tell(JOURNAL, Seq::new(self.seq), &bytes, &mut events).unwrap();
            events.into_iter().map(|e| e.body).collect()
        }
        /// A sale of one item with so many units, open.
        fn with_sale(units: u64) -> Self {
            let mut story = Self::default();
            let (sale, item, at) = (SaleIndex::new(0), ItemIndex::new(0), NodeTime::new(1_000));
            let note = AdminNote::default();
            let definition = r#"{"id":"spring","items":[{"sku":"tea","name":"Tea"}]}"#.to_owned();
            let defined =
                SaleDefined { sale, first_item: item, definition, at, note: note.clone() };
            assert!(story.tell(defined).is_empty());
            let quantity = Quantity::new(units as u32);
            let (asked, key) = (quantity, KeyHash::default());
            let added = StockChanged {
                item,
                added: true,
                asked,
                quantity,
                total_after: units,
                key,
                at,
                note: note.clone(),
            };
            assert!(story.tell(added).is_empty());
            assert!(story.tell(Granted { item, granted: units, epoch: 1, at }).is_empty());
            let opened = story.tell(SaleChanged { sale, change: SaleChange::Opened, at, note });
            assert_eq!(opened[0]["type"], "onrush.sale.opened.v1");
            assert_eq!(opened[0]["subject"], "spring");
            story
        }
        fn redeem(&mut self, units: u32) -> Vec<Value> {
            let (member, item) = (MemberId::new(u64::MAX), ItemIndex::new(0));
            let id = self.id();
            let (points, free_after, held_after) =
                (Points::new(5), Points::new(95), Points::new(0));
            let (key, quantity) = (KeyHash::default(), Quantity::new(units));
            self.tell(Redeemed { member, id, key, item, quantity, points, free_after, held_after })
        }
        fn id(&self) -> RedemptionId {
            RedemptionId::new(NodeTime::new(1_700_000_000_123), Slot::new(1), JOURNAL, self.seq)
        }
    }

    fn types(events: &[Value]) -> Vec<&str> {
        events.iter().map(|e| e["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_redemption_tells_all_that_a_notification_needs() {
        let mut story = Story::with_sale(10);
        let events = story.redeem(2);
        let event = &events[0];
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], "0000000000000007-5-redemption.confirmed");
        assert_eq!(event["time"], "2023-11-14T22:13:20.123Z");
        let data = &event["data"];
        assert_eq!(data["member"], u64::MAX.to_string());
        assert_eq!((&data["sale"], &data["sku"]), (&json!("spring"), &json!("tea")));
        assert_eq!((&data["quantity"], &data["points"]), (&json!(2), &json!(5)));
    }

    #[test]
    fn the_last_unit_is_told_once_and_again_only_after_units_came_back() {
        let mut story = Story::with_sale(3);
        assert_eq!(types(&story.redeem(2)), ["onrush.redemption.confirmed.v1"]);
        let (member, id) = (MemberId::new(5), story.id());
        let (points, free_after, held_after) = (Points::new(5), Points::new(95), Points::new(5));
        let (item, quantity) = (ItemIndex::new(0), Quantity::new(1));
        let expires_at = NodeTime::new(9);
        let key = KeyHash::default();
        let held =
            Held { member, id, key, item, quantity, points, free_after, held_after, expires_at };
        assert_eq!(types(&story.tell(held.clone())), ["onrush.item.sold-out.v1"]);
        let at = NodeTime::new(10);
        let released = Released {
            member,
            id,
            item,
            quantity,
            points,
            free_after,
            held_after,
            expired: true,
            at,
        };
        let events = story.tell(released);
        assert_eq!(types(&events), ["onrush.redemption.released.v1"]);
        assert_eq!(events[0]["data"]["reason"], "expired");
        assert_eq!(types(&story.tell(held)), ["onrush.item.sold-out.v1"]);
    }

    #[test]
    fn a_teller_goes_on_where_its_written_copy_stands() {
        let mut story = Story::with_sale(3);
        story.redeem(1);
        let text = serde_json::to_string(&story.teller).unwrap();
        let mut again = Story { teller: serde_json::from_str(&text).unwrap(), seq: story.seq };
        assert_eq!(again.redeem(2), story.redeem(2));
    }

    #[test]
    fn an_item_that_a_recovered_node_knows_needs_none_of_its_history() {
        let mut story = Story::default();
        let item = KnownItem { sku: "tea".into(), total: 9, granted: 9, returned: 0, taken: 8 };
        story.teller.know_sale("spring", ItemIndex::new(0), vec![item]);
        let expected = ["onrush.redemption.confirmed.v1", "onrush.item.sold-out.v1"];
        assert_eq!(types(&story.redeem(1)), expected);
    }
}
