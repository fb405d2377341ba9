//! `/metrics`: everything is read at the scrape, so nothing on a request's path knows of it.
//!
//! Names are `onrush_…` in base units; `outcome` is the answer's label; no label names a member.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::cells::{Cells, Sums};
use crate::cluster::nodes::{Cluster, Health};
use crate::shard::core::{Core, NodeView};
use crate::telemetry::figures::{NodeFigures, PersistFigures};
use crate::telemetry::histogram::Buckets;

/// What a scrape reads.
pub struct Metrics {
    view: Arc<NodeView>,
    figures: Arc<dyn NodeFigures>,
    cells: Vec<Arc<Cells>>,
    cluster: Arc<Cluster>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

type Labels<'a> = &'a [(&'a str, &'a str)];

/// Writes one family of metrics after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        write(&mut self.0.encode_descriptor(name, help, unit, kind)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, |metric| {
            metric.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
        })
    }

    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], u64)>,
    ) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, |metric| {
            for (labels, value) in values {
                let labels: Labels<'_> = &labels;
                metric
                    .encode_family(&labels)?
                    .encode_counter::<[(&str, &str); 0], _, u64>(&value, None)?;
            }
            Ok(())
        })
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> fmt::Result {
        self.family(name, help, unit, MetricType::Gauge, |metric| metric.encode_gauge(&value))
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], f64)>,
    ) -> fmt::Result {
        self.family(name, help, unit, MetricType::Gauge, |metric| {
            for (labels, value) in values {
                let labels: Labels<'_> = &labels;
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
            Ok(())
        })
    }

    /// A histogram whose values are `scale` base units each.
    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        buckets: &Buckets,
        scale: f64,
    ) -> fmt::Result {
        self.family(name, help, Some(unit), MetricType::Histogram, |metric| {
            encode_buckets(metric, buckets, scale)
        })
    }
}

fn encode_buckets(metric: &mut MetricEncoder<'_>, buckets: &Buckets, scale: f64) -> fmt::Result {
    let bounds = buckets.bounds.iter().map(|&bound| bound as f64 * scale).chain([f64::MAX]);
    let pairs: Vec<(f64, u64)> = bounds.zip(buckets.counts.iter().copied()).collect();
    let sum = buckets.sum as f64 * scale;
    metric.encode_histogram::<[(&str, &str); 0]>(sum, buckets.count(), &pairs, None)
}

const NS: f64 = 1e-9;
const MS: f64 = 1e-3;

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        let build: [(&str, &str); 1] = [("version", env!("CARGO_PKG_VERSION"))];
        out.gauges("build_info", "The build that runs", None, [(build, 1.0)])?;
        self.encode_door(&mut out)?;
        let (done, of) = self.view.readiness.progress();
        out.gauge(
            "ready",
            "Whether the node takes requests",
            None,
            f64::from(u8::from(self.view.readiness.stage() == crate::shard::core::Stage::Ready)),
        )?;
        let ratio = if of == 0 { 0.0 } else { done as f64 / of as f64 };
        out.gauge("start_progress", "Part of the current stage done", Some(&Unit::Ratios), ratio)?;
        if let Some(core) = self.view.core.get() {
            encode_shards(&mut out, core)?;
            self.encode_stock(&mut out, core)?;
        }
        self.encode_cluster(&mut out)?;
        self.encode_parts(&mut out)
    }
}

impl Metrics {
    fn encode_door(&self, out: &mut Families<'_>) -> fmt::Result {
        let sums = Sums(&self.cells);
        let durations = sums.durations();
        out.counters(
            "http_requests",
            "Requests answered, by call and outcome",
            durations.iter().map(|(call, outcome, buckets)| {
                ([("call", *call), ("outcome", *outcome)], buckets.count())
            }),
        )?;
        out.family(
            "http_request_duration",
            "Time from a request's head to its answer",
            Some(&Unit::Seconds),
            MetricType::Histogram,
            |metric| {
                for (call, outcome, buckets) in &durations {
                    let labels: Labels<'_> = &[("call", call), ("outcome", outcome)];
                    encode_buckets(&mut metric.encode_family(&labels)?, buckets, NS)?;
                }
                Ok(())
            },
        )?;
        out.counters(
            "decisions",
            "Decisions about redemptions, the items of batches included",
            sums.decisions().into_iter().map(|(outcome, count)| ([("outcome", outcome)], count)),
        )?;
        let open = sums.sum(|cells| &cells.connections_open);
        out.gauge("http_connections", "Connections open now", None, open as f64)?;
        let watchers = sums.sum(|cells| &cells.watchers);
        out.gauge("http_watchers", "Connections that watch a sale now", None, watchers as f64)?;
        out.counters(
            "http_connections_taken",
            "Connections by what became of them at the door",
            [
                ([("outcome", "accepted")], sums.sum(|cells| &cells.connections_accepted)),
                ([("outcome", "refused")], sums.sum(|cells| &cells.connections_refused)),
                ([("outcome", "timed-out")], sums.sum(|cells| &cells.connections_timed_out)),
            ],
        )
    }

    fn encode_cluster(&self, out: &mut Families<'_>) -> fmt::Result {
        let Some(map) = self.cluster.map() else { return Ok(()) };
        let help = "Version of the slot map that this node goes by";
        out.gauge("cluster_map_version", help, None, map.version() as f64)?;
        let peers = || map.others().map(|(node, of)| (self.cluster.peer(node), of.name.as_str()));
        out.gauges(
            "cluster_node_up",
            "Whether the other node takes requests, as seen from here",
            None,
            peers().map(|(peer, name)| {
                ([("node", name)], f64::from(u8::from(peer.health() == Health::Up)))
            }),
        )?;
        out.counters(
            "cluster_node_falls",
            "Times the other node was found to be down",
            peers().map(|(peer, name)| ([("node", name)], peer.falls())),
        )
    }

    fn encode_stock(&self, out: &mut Families<'_>, core: &Core) -> fmt::Result {
        let (mut units, mut totals) = (Vec::new(), Vec::new());
        let (mut leases, mut opens, mut epochs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut asks, mut looks, mut dry) = (Vec::new(), Vec::new(), Vec::new());
        let sales = core.catalog.sales();
        for sale in &sales {
            for item in sale.items() {
                let (id, sku) = (sale.definition().id.as_str(), sale.sku(item));
                let figures = self.figures.item(item);
                let free = core.stock.line(item).free();
                for (state, count) in
                    [("free", free), ("held", figures.held), ("confirmed", figures.confirmed)]
                {
                    let labels = [("sale", id), ("sku", sku), ("state", state)];
                    units.push((labels, count as f64));
                }
                let labels = [("sale", id), ("sku", sku)];
                totals.push((labels, core.stock.total(item) as f64));
                let Some(lease) = self.figures.lease(item) else { continue };
                for (figure, count) in [
                    ("granted", lease.granted),
                    ("returned", lease.returned),
                    ("pool", lease.pool),
                    ("wanted", lease.wanted),
                ] {
                    let labels = [("sale", id), ("sku", sku), ("figure", figure)];
                    leases.push((labels, count as f64));
                }
                opens.push((labels, f64::from(u8::from(lease.is_open))));
                epochs.push((labels, f64::from(lease.epoch)));
                asks.push((labels, lease.asks));
                looks.push((labels, lease.looks));
                dry.push((labels, lease.dry_ms as f64 * MS));
            }
        }
        out.gauges("stock_units", "Units on this node, by state", None, units)?;
        out.gauges("stock_total_units", "Units in the sale", None, totals)?;
        let help = "Units of the item's lease: granted and returned by this node, and the pool's";
        out.gauges("stock_lease_units", help, None, leases)?;
        let help = "Whether the item's pool takes asks of this node";
        out.gauges("stock_lease_open", help, None, opens)?;
        let help = "Epoch of the item's pool, as recorded here; 0: a node alone";
        out.gauges("stock_lease_epoch", help, None, epochs)?;
        out.counters("stock_asks", "Asks to the stock authority", asks)?;
        let help = "Those of the asks that nothing but the time caused";
        out.counters("stock_looks", help, looks)?;
        let help = "Time in which units were asked for here and there were none";
        out.gauges("stock_dry", help, Some(&Unit::Seconds), dry)
    }

    fn encode_parts(&self, out: &mut Families<'_>) -> fmt::Result {
        if let Some(journal) = self.figures.journal() {
            let help = "Time that one frame took to be durable";
            out.histogram("journal_sync_duration", help, &Unit::Seconds, &journal.syncs, NS)?;
            let help = "Size of frames";
            out.histogram("journal_frame_size", help, &Unit::Bytes, &journal.frames, 1.0)?;
            out.counter("journal_written_bytes", "Bytes written", journal.bytes_written)?;
            out.counter("journal_records", "Records written", journal.records_written)?;
            let lag = journal.lag_records as f64;
            out.gauge("journal_lag_records", "Records not durable yet", None, lag)?;
            let disk = journal.disk_bytes as f64;
            out.gauge("journal_disk", "Bytes of the journal", Some(&Unit::Bytes), disk)?;
            let bound = journal.disk_bytes_max as f64;
            out.gauge("journal_disk_max", "Bound of the journal", Some(&Unit::Bytes), bound)?;
        }
        let shards = self.figures.persist();
        let names: Vec<String> = shards.iter().map(|s| s.database_shard.to_string()).collect();
        let by_shard = |of: fn(&PersistFigures) -> f64| {
            let labels = names.iter().map(|name| [("database_shard", name.as_str())]);
            labels.zip(shards.iter().map(of)).collect::<Vec<_>>()
        };
        let help = "Durable records that the database shard does not have yet";
        out.gauges("persist_lag_records", help, None, by_shard(|s| s.lag_records as f64))?;
        let help = "Time since the database shard had everything";
        let lags = by_shard(|s| s.lag_ms as f64 * MS);
        out.gauges("persist_lag", help, Some(&Unit::Seconds), lags)?;
        let help = "Records set aside because the database shard cannot take them";
        out.gauges("persist_dead_letters", help, None, by_shard(|s| s.dead_letters as f64))?;
        if let Some(ship) = self.figures.ship() {
            let help = "Durable records that Kafka does not have yet";
            out.gauge("ship_lag_records", help, None, ship.lag_records as f64)?;
            let help = "Records handed to Kafka, those sent again included";
            out.counter("ship_records", help, ship.records)?;
            let help = "Partitions sent again because a consumer missed records";
            out.counter("ship_rewinds", help, ship.rewinds)?;
            let help = "Kafka producers made since the start";
            out.counter("ship_producers", help, ship.producers)?;
            let help =
                "Partitions whose database shard lacks records that the journal no longer has";
            out.gauge("ship_partitions_gone", help, None, ship.partitions_gone as f64)?;
            let help = "Whether nothing gets to Kafka just now";
            out.gauge("ship_held_up", help, None, f64::from(u8::from(ship.is_held_up)))?;
        }
        if let Some(redis) = self.figures.stock_redis() {
            let help = "Calls of scripts on Redis";
            let calls = redis.calls.iter().map(|(script, count)| ([("script", *script)], *count));
            out.counters("stock_redis_calls", help, calls)?;
            let help = "Time that Redis took to answer";
            out.histogram("stock_redis_duration", help, &Unit::Seconds, &redis.durations, NS)?;
            let help = "Calls that Redis answered with an error, or whose connection broke";
            out.counter("stock_redis_errors", help, redis.errors)?;
            let help = "Calls that Redis did not answer in time";
            out.counter("stock_redis_timeouts", help, redis.timeouts)?;
            let help = "Calls given up because too many waited";
            out.counter("stock_redis_turned_away", help, redis.turned_away)?;
            let help = "Connections to Redis made since the start";
            out.counter("stock_redis_links", help, redis.links)?;
            let help = "News of pools heard";
            out.counter("stock_redis_news", help, redis.news)?;
            let help = "Whether Redis is connected";
            out.gauge("stock_redis_up", help, None, f64::from(u8::from(redis.is_up)))?;
        }
        if let Some(age) = self.figures.snapshot_age_ms() {
            let help = "Age of the newest snapshot";
            out.gauge("snapshot_age", help, Some(&Unit::Seconds), age as f64 * MS)?;
        }
        if let Some(members) = self.figures.member_count() {
            out.gauge("members", "Accounts on this node", None, members as f64)?;
        }
        Ok(())
    }
}

fn encode_shards(out: &mut Families<'_>, core: &Core) -> fmt::Result {
    let names: Vec<String> = (0..core.inboxes.shard_count()).map(|s| format!("{s:02}")).collect();
    let labels = || names.iter().map(|name| [("shard", name.as_str())]);
    out.gauges(
        "inbox_depth",
        "Commands waiting for a shard",
        None,
        labels().zip(core.inboxes.iter().map(|inbox| inbox.depth() as f64)),
    )?;
    out.counters(
        "inbox_refused",
        "Commands turned away because the inbox was full",
        labels().zip(core.inboxes.iter().map(crate::shard::inbox::Inbox::refused)),
    )
}

/// Renders a scrape.
pub struct Scrape {
    registry: Registry,
}

impl Scrape {
    pub fn new(
        view: Arc<NodeView>,
        figures: Arc<dyn NodeFigures>,
        cells: Vec<Arc<Cells>>,
        cluster: Arc<Cluster>,
    ) -> Self {
        let mut registry = Registry::with_prefix("onrush");
        registry.register_collector(Box::new(Metrics { view, figures, cells, cluster }));
        Self { registry }
    }

    /// The exposition, in the `OpenMetrics` text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("a string takes every write");
        text
    }
}
