//! SPHINX models: a picture and text in, text out.

pub mod vision;
