//! candle behind the same trait.
