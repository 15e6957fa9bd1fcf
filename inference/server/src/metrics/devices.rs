//! What the devices do, and what waits for them.

use super::Seconds;
use hawkeye_pipeline::model::DeviceMemory;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The number of a device, from 0: as many series as the machine has devices.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    device: u32,
}

/// Metrics of the device threads.
#[derive(Debug)]
pub struct DeviceMetrics {
    /// Seconds at work; the rate is the devices' utilisation.
    pub busy: Seconds,
    /// Panics that were caught.
    pub panics: Counter,
    /// Stages of parses that were left out because their client had left.
    pub abandoned: Counter,
    /// Decoded screenshots that wait for a device.
    pub waiting_screenshots: Gauge,
    /// Crops that wait for a device.
    pub waiting_crops: Gauge,
    /// Times that a batch became smaller for want of memory.
    pub batch_shrinks: Counter,
    /// Icons whose caption was known.
    pub cache_hits: Counter,
    /// Icons that had to be described.
    pub cache_misses: Counter,
    crops: Counter,
    batch_crops: Histogram,
    batch_fill: Histogram,
    memory_used: Family<DeviceLabels, Gauge>,
    memory_total: Family<DeviceLabels, Gauge>,
}

impl DeviceMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            busy: Seconds::default(),
            panics: Counter::default(),
            abandoned: Counter::default(),
            waiting_screenshots: Gauge::default(),
            waiting_crops: Gauge::default(),
            batch_shrinks: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            crops: Counter::default(),
            batch_crops: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            batch_fill: Histogram::new(linear_buckets(0.1, 0.1, 10)),
            memory_used: Family::default(),
            memory_total: Family::default(),
        };
        let mut counter = |name, help, counter: &Counter| registry.register(name, help, counter.clone());
        counter("device_panics", "Panics caught on device threads", &new.panics);
        counter(
            "parse_abandoned",
            "Stages left out because the client had left",
            &new.abandoned,
        );
        counter(
            "captioner_batch_shrinks",
            "Times that batches became smaller because the device's memory did not hold them",
            &new.batch_shrinks,
        );
        counter("crop_cache_hits", "Icons whose caption was known", &new.cache_hits);
        counter(
            "crop_cache_misses",
            "Icons whose caption was not known",
            &new.cache_misses,
        );
        counter("captioner_crops", "Crops that devices described", &new.crops);
        let mut gauge = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge(
            "device_queue_screenshots",
            "Decoded screenshots that wait for a device",
            &new.waiting_screenshots,
        );
        gauge("device_queue_crops", "Crops that wait for a device", &new.waiting_crops);
        registry.register("captioner_batch_crops", "Crops in a batch", new.batch_crops.clone());
        registry.register_with_unit(
            "captioner_batch_fill",
            "Crops in a batch, as a share of what fits into one",
            Unit::Ratios,
            new.batch_fill.clone(),
        );
        registry.register_with_unit(
            "device_busy",
            "Time that the devices were at work, in sum",
            Unit::Seconds,
            new.busy.clone(),
        );
        registry.register_with_unit(
            "device_memory_used",
            "Memory of the device in use, by whomever",
            Unit::Bytes,
            new.memory_used.clone(),
        );
        registry.register_with_unit(
            "device_memory_total",
            "Memory of the device",
            Unit::Bytes,
            new.memory_total.clone(),
        );
        new
    }

    /// Records a batch of `crops` where `size` would fit into one.
    pub fn batch(&self, crops: usize, size: usize) {
        self.crops.inc_by(crops as u64);
        self.batch_crops.observe(crops as f64);
        self.batch_fill.observe(crops as f64 / size as f64);
    }

    /// Records the memory of the device with this number.
    pub fn memory(&self, device: usize, memory: DeviceMemory) {
        let labels = DeviceLabels { device: device as u32 };
        self.memory_used.get_or_create(&labels).set(memory.used as i64);
        self.memory_total.get_or_create(&labels).set(memory.total as i64);
    }
}
