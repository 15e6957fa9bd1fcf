//! Screen parsing without torch and HTTP: images, boxes, NMS, merge, overlay, profiles and the model traits.

pub mod batches;
pub mod bundle;
pub mod caption;
pub mod decode;
pub mod device;
pub mod geometry;
pub mod letterbox;
pub mod merge;
pub mod model;
pub mod nms;
pub mod ocr;
pub mod overlay;
pub mod parser;
pub mod profile;
pub mod resize;
