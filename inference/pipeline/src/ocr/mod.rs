//! The arithmetic around the two OCR models, compatible with rapidocr 3.10: input sizes, boxes from the probability map, line
//! order, crops, batches and characters.

pub mod batch;
pub mod crop;
pub mod ctc;
pub mod db;
pub mod order;
pub mod prepare;
mod quad;
