//! Operations on feature maps, channels last.

use super::{CandleBuffer, CandleVector, require};
use crate::{MapShape, Result};

/// `x` holds exactly `map`.
fn holds_map(op: &'static str, x: &CandleBuffer, map: MapShape) -> Result<()> {
    require(x.rows == map.positions(), op, || format!("{} rows for {map:?}", x.rows))
}

/// As a sum of shifted maps, one per tap: candle's grouped convolution runs a whole convolution per channel, which is
/// three to five times slower on its CPU device and two launches per channel on a GPU.
pub(super) fn conv_depthwise(
    x: &CandleBuffer,
    map: MapShape,
    kernel: &CandleVector,
    bias: &CandleVector,
    out: &mut CandleBuffer,
) -> Result<()> {
    let op = "conv_depthwise";
    let channels = x.width();
    let side = (kernel.len() / channels.max(1)).isqrt();
    require(side % 2 == 1 && kernel.len() == side * side * channels, op, || {
        format!("a kernel of {} elements is no odd square of {channels} channels", kernel.len())
    })?;
    bias.is_long(op, "the bias", channels)?;
    holds_map(op, x, map)?;
    out.is_wide(op, "out", channels)?;
    out.resize(op, x.rows)?;

    let MapShape { batch, height, width } = map;
    let (rows, reach) = (height * width, side / 2);
    if rows == 0 {
        return Ok(());
    }
    let taps = kernel.tensor.reshape((side * side, 1, 1, channels))?;
    let bias = bias.tensor.reshape((1, 1, channels))?;
    for picture in 0..batch {
        let x = x.current()?.narrow(0, picture * rows, rows)?.reshape((height, width, channels))?;
        let x = x.pad_with_zeros(0, reach, reach)?.pad_with_zeros(1, reach, reach)?.contiguous()?;
        let mut y = bias.broadcast_as((height, width, channels))?.contiguous()?;
        for tap in 0..side * side {
            let shifted = x.narrow(0, tap / side, height)?.narrow(1, tap % side, width)?.contiguous()?;
            y = (y + shifted.broadcast_mul(&taps.get(tap)?)?)?;
        }
        out.put(y.reshape((rows, channels))?, picture * rows, 0)?;
    }
    Ok(())
}

pub(super) fn fold_2x2(x: &CandleBuffer, map: MapShape, out: &mut CandleBuffer) -> Result<()> {
    let MapShape { batch, height, width } = map;
    require(height.is_multiple_of(2) && width.is_multiple_of(2), "fold_2x2", || format!("odd sides of {map:?}"))?;
    holds_map("fold_2x2", x, map)?;
    out.is_wide("fold_2x2", "out", 4 * x.width())?;
    out.resize("fold_2x2", x.rows / 4)?;
    if x.rows == 0 {
        return Ok(());
    }
    let folded = x.current()?.reshape(vec![batch, height / 2, 2, width / 2, 2, x.width()])?.permute((0, 1, 3, 2, 4, 5))?;
    // Where nothing changes places, `folded` is the input itself.
    let folded = if folded.is_contiguous() { folded.copy()? } else { folded };
    out.put(folded.reshape((x.rows / 4, 4 * x.width()))?, 0, 0)
}

pub(super) fn pool_2x2(x: &CandleBuffer, map: MapShape, out: &mut CandleBuffer) -> Result<()> {
    let MapShape { batch, height, width } = map;
    require(height.is_multiple_of(2) && width.is_multiple_of(2), "pool_2x2", || format!("odd sides of {map:?}"))?;
    holds_map("pool_2x2", x, map)?;
    out.is_wide("pool_2x2", "out", x.width())?;
    out.resize("pool_2x2", x.rows / 4)?;
    if x.rows == 0 {
        return Ok(());
    }
    let pairs = x.current()?.reshape(vec![batch * height / 2, 2, width / 2, 2, x.width()])?;
    out.put(pairs.mean(3)?.mean(1)?.reshape((x.rows / 4, x.width()))?, 0, 0)
}

pub(super) fn mean_rows(x: &CandleBuffer, group: usize, out: &mut CandleBuffer) -> Result<()> {
    require(group > 0 && x.rows.is_multiple_of(group), "mean_rows", || format!("{} rows in runs of {group}", x.rows))?;
    out.is_wide("mean_rows", "out", x.width())?;
    out.resize("mean_rows", x.rows / group)?;
    if x.rows == 0 {
        return Ok(());
    }
    out.put(x.current()?.reshape((x.rows / group, group, x.width()))?.mean(1)?, 0, 0)
}
