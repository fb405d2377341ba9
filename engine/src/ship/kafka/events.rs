//! Events for the mall's other services: journal records told as `CloudEvents` 1.0, in JSON.
//!
//! Pure: records in, events out. What a record does not say itself (an item's SKU, whether its last
//! unit is gone) is folded from the records before it, and kept with the restart point; so its size
//! is that of the catalog, whatever the traffic. The schema: `config/schema/events.schema.json`.
//!
//! **What is promised.** Each event at least once; all events of one member, and of one sale, in
//! the order in which they happened (they share a key, and so a partition), but after a restart the
//! last ones may come again. `id` is the same each time: of a redemption journal, sequence number,
//! and what it is; of a sale what cannot happen to it twice.
//!
//! **Several nodes.** Every node's journal has the openings and ends of all sales: the sale's home
//! alone tells them. An item is sold out once no unit of it can come back. Where all of the stock
//! is one journal's that journal proves it; where it is shared the pool does, to the sale's home.

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
    /// Units in the sale, as its home has them.
    total: u64,
    /// Held or confirmed here, or reversed for good; and those of them that are held.
    taken: u64,
    #[serde(default)]
    held: u64,
    /// By this journal alone.
    is_sold_out: bool,
    /// The pool's stock generation in which that was told last.
    #[serde(default)]
    told_generation: Option<u64>,
}

/// What a node knows of its sales that its journal does not say.
pub trait Home: Send {
    /// Whether this node is the one that tells of the sale.
    fn is_home(&self, sale: &str) -> bool;

    /// Whether other nodes sell from the same stock: then no journal alone says what is sold out.
    fn is_shared(&self) -> bool;

    /// The stock generation of the pool in which no unit of the item can come back, if so now.
    fn sold_out(&self, item: ItemIndex) -> Option<u64>;
}

/// An item as a recovered node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownItem {
    pub sku: String,
    pub total: u64,
    pub taken: u64,
    pub held: u64,
}

impl ItemStory {
    /// No unit can come back: all of them are confirmed here.
    fn has_sold_out(&self) -> bool {
        self.total > 0 && self.taken.saturating_sub(self.held) == self.total
    }
    fn sold_out(&self, number: u64, time: NodeTime) -> Event {
        let Self { sale, sku, .. } = self;
        let subject = format!("{sale}/{sku}");
        let id = format!("{subject}-item.sold-out-{number}");
        let data = json!({ "sale": sale, "sku": sku });
        event_of_sale(&id, "item.sold-out", &subject, sale, time, &data)
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

/// An event of a sale, by its home. Its id names no journal, so that it is one wherever it is told.
fn event_of_sale(
    id: &str,
    what: &str,
    subject: &str,
    sale: &str,
    time: NodeTime,
    data: &Value,
) -> Event {
    let body = json!({
        "specversion": "1.0",
        "id": id,
        "source": "/onrush/sales",
        "type": format!("onrush.{what}.v1"),
        "subject": subject,
        "time": time.rfc3339(),
        "datacontenttype": "application/json",
        "data": data,
    });
    Event { key: sale.to_owned(), body }
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
            let KnownItem { sku, total, taken, held } = item;
            let sale = id.to_owned();
            let mut story = ItemStory {
                sale,
                sku,
                total,
                taken,
                held,
                is_sold_out: false,
                told_generation: None,
            };
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
        home: &dyn Home,
        events: &mut Vec<Event>,
    ) -> Result<(), RecordError> {
        let (_, record) = Record::take(&mut &bytes[..])?;
        let at = At { journal, seq };
        match record {
            Record::Held(r) => {
                let units = u64::from(r.quantity.get());
                self.change(r.item, |story| {
                    story.taken += units;
                    story.held += units;
                });
            }
            Record::Redeemed(r) => {
                let data = json!({ "free_after": r.free_after.get() });
                let told = (r.member.get(), r.id.to_string(), r.quantity, r.points.get());
                events.push(self.redemption(at, "confirmed", r.item, told, r.id.at(), data));
                let units = u64::from(r.quantity.get());
                self.confirm(at, r.item, r.id.at(), home, events, |story| story.taken += units);
            }
            Record::Confirmed(r) => {
                let data = json!({ "free_after": r.free_after.get() });
                let told = (r.member.get(), r.id.to_string(), r.quantity, r.points.get());
                events.push(self.redemption(at, "confirmed", r.item, told, r.at, data));
                let units = u64::from(r.quantity.get());
                self.confirm(at, r.item, r.at, home, events, |story| {
                    story.held = story.held.saturating_sub(units);
                });
            }
            Record::Released(r) => {
                let why = if r.expired { "expired" } else { "cancelled" };
                let data = json!({ "free_after": r.free_after.get(), "reason": why });
                let told = (r.member.get(), r.id.to_string(), r.quantity, r.points.get());
                events.push(self.redemption(at, "released", r.item, told, r.at, data));
                let units = u64::from(r.quantity.get());
                self.change(r.item, |story| {
                    story.taken = story.taken.saturating_sub(units);
                    story.held = story.held.saturating_sub(units);
                });
            }
            Record::Reversed(r) => {
                let data = json!({ "free_after": r.free_after.get(), "units_back": r.units_back });
                let told = (r.member.get(), r.id.to_string(), r.quantity, r.points.get());
                events.push(self.redemption(at, "reversed", r.item, told, r.at, data));
                if r.units_back {
                    let units = u64::from(r.quantity.get());
                    self.change(r.item, |story| story.taken = story.taken.saturating_sub(units));
                }
            }
            Record::SaleDefined(r) => {
                if let Ok(Definition { id, items }) = serde_json::from_str(&r.definition) {
                    let known = items.into_iter().map(|item| KnownItem {
                        sku: item.sku,
                        total: 0,
                        taken: 0,
                        held: 0,
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
                if home.is_home(&sale) {
                    // Each happens once in a sale's life.
                    let id = format!("{sale}-{what}");
                    let data = json!({ "sale": sale });
                    events.push(event_of_sale(&id, what, &sale, &sale, r.at, &data));
                }
            }
            Record::StockChanged(r) => self.change(r.item, |story| story.total = r.total_after),
            // A total learned from the pool is its home's to compare with.
            _ => {}
        }
        Ok(())
    }

    /// Tells what the pool says now and no record does: which items of this node's sales are sold
    /// out for good. Each stock generation of an item once.
    pub fn look(&mut self, home: &dyn Home, now: NodeTime, events: &mut Vec<Event>) {
        if !home.is_shared() {
            return;
        }
        for (&index, story) in &mut self.items {
            let Some(generation) = home.sold_out(ItemIndex::new(index)) else { continue };
            if story.told_generation != Some(generation) && home.is_home(&story.sale) {
                story.told_generation = Some(generation);
                events.push(story.sold_out(generation, now));
            }
        }
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

    /// Units are confirmed; where they were the last ones, that is an event of its own.
    fn confirm(
        &mut self,
        at: At,
        item: ItemIndex,
        time: NodeTime,
        home: &dyn Home,
        events: &mut Vec<Event>,
        change: impl FnOnce(&mut ItemStory),
    ) {
        let was_sold_out = self.items.get(&item.get()).is_some_and(|story| story.is_sold_out);
        self.change(item, change);
        let Some(story) = self.items.get(&item.get()) else { return };
        if story.is_sold_out && !was_sold_out && !home.is_shared() && home.is_home(&story.sale) {
            events.push(story.sold_out(at.seq.get(), time));
        }
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
        AdminNote, CONTROL, Confirmed, Granted, Held, Redeemed, Released, Reversed, SaleChanged,
        SaleDefined, StockChanged,
    };
    use crate::units::{KeyHash, MemberId, Points, RedemptionId, Slot};

    const JOURNAL: JournalId = JournalId::new(7);

    /// A node alone; or one of several, with what the pool says.
    #[derive(Default)]
    struct Node {
        is_elsewhere: bool,
        is_shared: bool,
        sold_out: Option<u64>,
    }

    impl Home for Node {
        fn is_home(&self, sale: &str) -> bool {
            assert_eq!(sale, "spring");
            !self.is_elsewhere
        }
        fn is_shared(&self) -> bool {
            self.is_shared
        }
        fn sold_out(&self, item: ItemIndex) -> Option<u64> {
            assert_eq!(item, ItemIndex::new(0));
            self.sold_out
        }
    }

    #[derive(Default)]
    struct Story {
        teller: Teller,
        node: Node,
        seq: u64,
    }

    impl Story {
        fn tell(&mut self, record: impl Into<Record>) -> Vec<Value> {
            let (mut bytes, mut events) = (Vec::new(), Vec::new());
            record.into().encode(CONTROL, &mut bytes);
            self.seq += 1;
            let seq = Seq::new(self.seq);
            self.teller.tell(JOURNAL, seq, &bytes, &self.node, &mut events).unwrap();
            events.into_iter().map(|e| e.body).collect()
        }
        fn look(&mut self) -> Vec<Value> {
            let mut events = Vec::new();
            self.teller.look(&self.node, NodeTime::new(2_000), &mut events);
            events.into_iter().map(|e| e.body).collect()
        }
        /// A sale of one item with so many units, open.
        fn with_sale(units: u64) -> Self {
            let mut story = Self::default();
            let opened = story.begin(units);
            assert_eq!(opened[0]["type"], "onrush.sale.opened.v1");
            assert_eq!(opened[0]["subject"], "spring");
            story
        }
        fn begin(&mut self, units: u64) -> Vec<Value> {
            let story = self;
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
            story.tell(SaleChanged { sale, change: SaleChange::Opened, at, note })
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
    fn sold_out_is_told_once_no_unit_can_come_back_and_again_only_after_some_came() {
        let mut story = Story::with_sale(3);
        assert_eq!(types(&story.redeem(2)), ["onrush.redemption.confirmed.v1"]);
        let (member, id) = (MemberId::new(5), story.id());
        let (points, free_after, held_after) = (Points::new(5), Points::new(95), Points::new(5));
        let (item, quantity) = (ItemIndex::new(0), Quantity::new(1));
        let expires_at = NodeTime::new(9);
        let (key, at) = (KeyHash::default(), NodeTime::new(10));
        let held =
            Held { member, id, key, item, quantity, points, free_after, held_after, expires_at };
        // The last unit is held: it may come back.
        assert!(story.tell(held.clone()).is_empty());
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
        assert!(story.tell(held).is_empty());
        let confirmed =
            Confirmed { member, id, item, quantity, points, free_after, held_after, at };
        let both = ["onrush.redemption.confirmed.v1", "onrush.item.sold-out.v1"];
        let first = story.tell(confirmed);
        assert_eq!(types(&first), both);
        assert_eq!(first[1]["id"], format!("spring/tea-item.sold-out-{}", story.seq));
        // One that ends with its sale does not come back; one that is for sale again does.
        let (note, key) = (AdminNote::default(), KeyHash::default());
        let reversed = |units_back| Reversed {
            member,
            id,
            item,
            quantity,
            points,
            free_after,
            held_after,
            units_back,
            key,
            at,
            note: note.clone(),
        };
        assert_eq!(types(&story.tell(reversed(false))), ["onrush.redemption.reversed.v1"]);
        assert_eq!(types(&story.tell(reversed(true))), ["onrush.redemption.reversed.v1"]);
        let second = story.redeem(1);
        assert_eq!(types(&second), both);
        assert_ne!(second[1]["id"], first[1]["id"]);
    }

    /// [Every node told of a sale's opening, under an id of its own.]
    #[test]
    fn of_several_nodes_the_home_alone_tells_of_a_sale() {
        let mut home = Story::default();
        home.node.is_shared = true;
        let opened = home.begin(3);
        assert_eq!((opened.len(), &opened[0]["id"]), (1, &json!("spring-sale.opened")));
        let node = Node { is_elsewhere: true, is_shared: true, sold_out: None };
        let mut other = Story { seq: 77, node, ..Story::default() };
        assert!(other.begin(3).is_empty());
        // Redemptions are told by whoever decided them.
        assert_eq!(types(&other.redeem(1)), ["onrush.redemption.confirmed.v1"]);
        let (sale, at, note) = (SaleIndex::new(0), NodeTime::new(9), AdminNote::default());
        let ended = SaleChanged { sale, change: SaleChange::Ended, at, note };
        assert_eq!(home.tell(ended.clone())[0]["id"], "spring-sale.closed");
        assert!(other.tell(ended).is_empty());
    }

    /// [An item was sold out only where its home held all of it: with shared stock, never.]
    #[test]
    fn of_several_nodes_the_home_tells_what_the_pool_proves_sold_out_once_a_generation() {
        let mut home = Story::default();
        home.node.is_shared = true;
        home.begin(3);
        // All of it was confirmed here, and units may be on their way in.
        assert_eq!(types(&home.redeem(3)), ["onrush.redemption.confirmed.v1"]);
        assert!(home.look().is_empty());
        home.node.sold_out = Some(4);
        let told = home.look();
        assert_eq!((told.len(), &told[0]["id"]), (1, &json!("spring/tea-item.sold-out-4")));
        assert_eq!(told[0]["subject"], "spring/tea");
        // The same generation once, whatever is seen in between, and also by a copy.
        for seen in [Some(4), None, Some(4)] {
            home.node.sold_out = seen;
            assert!(home.look().is_empty());
        }
        let text = serde_json::to_string(&home.teller).unwrap();
        home.teller = serde_json::from_str(&text).unwrap();
        assert!(home.look().is_empty());
        home.node.sold_out = Some(5);
        assert_eq!(home.look()[0]["id"], "spring/tea-item.sold-out-5");
        // Another node sees the same, and leaves it to the home.
        let node = Node { is_elsewhere: true, is_shared: true, sold_out: None };
        let mut other = Story { node, ..Story::default() };
        other.begin(3);
        other.node.sold_out = Some(4);
        assert!(other.look().is_empty());
    }

    #[test]
    fn a_teller_goes_on_where_its_written_copy_stands() {
        let mut story = Story::with_sale(3);
        story.redeem(1);
        let text = serde_json::to_string(&story.teller).unwrap();
        let teller = serde_json::from_str(&text).unwrap();
        let mut again = Story { teller, seq: story.seq, ..Story::default() };
        assert_eq!(again.redeem(2), story.redeem(2));
    }

    #[test]
    fn an_item_that_a_recovered_node_knows_needs_none_of_its_history() {
        let mut story = Story::default();
        let item = KnownItem { sku: "tea".into(), total: 9, taken: 8, held: 0 };
        story.teller.know_sale("spring", ItemIndex::new(0), vec![item]);
        let expected = ["onrush.redemption.confirmed.v1", "onrush.item.sold-out.v1"];
        assert_eq!(types(&story.redeem(1)), expected);
    }
}
