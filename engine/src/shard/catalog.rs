//! The catalog as every thread reads it: sales by id, items by number, and who has a key.
//!
//! Written by the control thread once the records behind it are durable. dashmap's guards are
//! never held across another call or an await: every reader clones the `Arc` out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use dashmap::{DashMap, DashSet};
use foldhash::fast::RandomState;

use crate::kernel::catalog::{ItemRule, SalePhase, SaleRule};
use crate::kernel::definition::{SaleDefinition, ValidSale};
use crate::kernel::record::SaleChange;
use crate::units::{ItemIndex, MemberId, SaleIndex};

/// A sale as the door sees it.
pub struct SaleEntry {
    pub index: SaleIndex,
    pub first_item: ItemIndex,
    sale: ValidSale,
    by_sku: HashMap<String, u32, RandomState>,
    /// `SalePhase` in the low bits, [`PAUSED`] above. `Relaxed`: a display and a fast refusal;
    /// what counts is each shard's own copy.
    state: AtomicU8,
    /// Members with a remembered request key in this sale. A member is put in before the answer
    /// that made the key can leave, so absence is certain for a key that was ever answered.
    keyed: DashSet<MemberId, RandomState>,
}

const PAUSED: u8 = 0x80;

fn phase_of(raw: u8) -> SalePhase {
    use SalePhase::{Ended, KeysDropped, Open, Scheduled};
    let all = [Scheduled, Open, Ended, KeysDropped];
    all.into_iter().find(|phase| *phase as u8 == raw).expect("only phases are stored")
}

impl SaleEntry {
    pub fn new(
        index: SaleIndex,
        first_item: ItemIndex,
        sale: ValidSale,
        phase: SalePhase,
        paused: bool,
    ) -> Self {
        let items = sale.definition().items.iter().zip(0u32..);
        let by_sku = items.map(|(item, at)| (item.sku.clone(), at)).collect();
        Self {
            index,
            first_item,
            sale,
            by_sku,
            state: AtomicU8::new(phase as u8 | if paused { PAUSED } else { 0 }),
            keyed: DashSet::default(),
        }
    }

    pub fn definition(&self) -> &SaleDefinition {
        self.sale.definition()
    }

    /// What a shard's catalog needs to know, as the sale stands now.
    pub fn rules(&self) -> (SaleRule, Vec<ItemRule>) {
        self.sale.rules(self.index, self.phase(), self.is_paused())
    }

    /// The item's number, or `None` for a SKU that is not in this sale.
    pub fn item(&self, sku: &str) -> Option<ItemIndex> {
        self.by_sku.get(sku).map(|at| ItemIndex::new(self.first_item.get() + at))
    }

    /// Numbers of the sale's items, in the definition's order.
    pub fn items(&self) -> impl Iterator<Item = ItemIndex> + use<> {
        let first = self.first_item.get();
        (first..first + self.definition().items.len() as u32).map(ItemIndex::new)
    }

    /// The SKU of one of this sale's items.
    pub fn sku(&self, item: ItemIndex) -> &str {
        &self.definition().items[(item.get() - self.first_item.get()) as usize].sku
    }

    pub fn phase(&self) -> SalePhase {
        phase_of(self.state.load(Ordering::Relaxed) & !PAUSED)
    }

    pub fn is_paused(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PAUSED != 0
    }

    /// Thread: control.
    pub fn change(&self, change: SaleChange) {
        let paused = self.state.load(Ordering::Relaxed) & PAUSED;
        self.state.store(
            match change {
                SaleChange::Opened => SalePhase::Open as u8 | paused,
                SaleChange::Ended => SalePhase::Ended as u8 | paused,
                SaleChange::Paused => self.phase() as u8 | PAUSED,
                SaleChange::Resumed => self.phase() as u8,
            },
            Ordering::Relaxed,
        );
    }

    /// Thread: control, when every slot has forgotten the sale's keys.
    pub fn keys_dropped(&self) {
        let paused = self.state.load(Ordering::Relaxed) & PAUSED;
        self.state.store(SalePhase::KeysDropped as u8 | paused, Ordering::Relaxed);
        self.keyed.clear();
    }

    /// Thread: the member's shard, before the answer can leave.
    pub fn remember_keyed(&self, member: MemberId) {
        self.keyed.insert(member);
    }

    /// Whether the member may have a remembered key here.
    pub fn is_keyed(&self, member: MemberId) -> bool {
        self.keyed.contains(&member)
    }
}

/// All sales of the node.
#[derive(Default)]
pub struct CatalogView {
    sales: DashMap<String, Arc<SaleEntry>, RandomState>,
    numbered: DashMap<u32, Arc<SaleEntry>, RandomState>,
    items: DashMap<u32, Arc<SaleEntry>, RandomState>,
}

impl CatalogView {
    /// Thread: control and start.
    pub fn insert(&self, sale: &Arc<SaleEntry>) {
        for item in sale.items() {
            self.items.insert(item.get(), Arc::clone(sale));
        }
        self.numbered.insert(sale.index.get(), Arc::clone(sale));
        self.sales.insert(sale.definition().id.clone(), Arc::clone(sale));
    }

    pub fn sale(&self, id: &str) -> Option<Arc<SaleEntry>> {
        self.sales.get(id).map(|sale| Arc::clone(&sale))
    }

    pub fn by_index(&self, sale: SaleIndex) -> Option<Arc<SaleEntry>> {
        self.numbered.get(&sale.get()).map(|sale| Arc::clone(&sale))
    }

    /// The sale that an item belongs to.
    pub fn sale_of(&self, item: ItemIndex) -> Option<Arc<SaleEntry>> {
        self.items.get(&item.get()).map(|sale| Arc::clone(&sale))
    }

    /// All sales, in the order of their definition.
    pub fn sales(&self) -> Vec<Arc<SaleEntry>> {
        let mut sales: Vec<_> = self.numbered.iter().map(|sale| Arc::clone(&sale)).collect();
        sales.sort_by_key(|sale| sale.index);
        sales
    }
}
