//! Weight matrices: blocks in the mapped file, taken apart by candle where they are used.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use sphinx_quant::tensor::Bytes;
use sphinx_quant::{GgmlType, Tensor as Stored};

use super::{CandleTarget, refused, require};
use crate::{Linear, Result};

/// A tile of rows is taken apart into at most about this many bytes of `f32`: in the processor's memory, and in a GPU's, which is
/// asked for little at a time at a loss.
const TILE_BYTES: usize = if cfg!(test) { 200 } else { 32 << 20 };
const GPU_TILE_BYTES: usize = 256 << 20;

/// A matrix `[outputs, inputs]`: tensors of a file, stacked.
#[derive(Debug)]
pub struct CandleMatrix {
    parts: Vec<Part>,
    outputs: usize,
    inputs: usize,
    /// Products are candle's quantised ones.
    product: bool,
    /// Weights are used from the file.
    mapped: bool,
}

/// Rows of one format.
#[derive(Debug)]
struct Part {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    /// The file's tensors, unless the device alone has their bytes.
    stored: Vec<Stored>,
    /// Made at the first use, where weights cannot be used from the file.
    held: OnceLock<Held>,
}

#[derive(Debug)]
enum Held {
    /// Blocks on the device, in tiles.
    Tiles(Vec<Arc<QTensor>>),
    /// Blocks for candle's quantised product.
    Product(QMatMul),
}

impl CandleMatrix {
    /// `copies`: weights are copied to the device.
    pub(super) fn new(parts: &[Stored], quantized_matmul: bool, copies: bool) -> Result<CandleMatrix> {
        let first = parts.first().ok_or_else(|| refused("matrix", "no parts"))?;
        let mut outputs = 0usize;
        for part in parts {
            require(part.cols() == first.cols(), "matrix", || {
                format!("\"{}\" has {} columns, \"{}\" has {}", part.name(), part.cols(), first.name(), first.cols())
            })?;
            require(!part.is_empty(), "matrix", || format!("\"{}\" is empty", part.name()))?;
            outputs += part.rows();
        }
        let inputs = first.cols();
        // Neighbours of one format are multiplied at once.
        let part = |tensors: &[Stored]| Part {
            ty: tensors[0].ty(),
            rows: tensors.iter().map(Stored::rows).sum(),
            cols: inputs,
            stored: tensors.to_vec(),
            held: OnceLock::new(),
        };
        let parts = parts.chunk_by(|a, b| a.ty() == b.ty()).map(part).collect();
        Ok(CandleMatrix { parts, outputs, inputs, product: quantized_matmul, mapped: !copies && !quantized_matmul })
    }

    /// Without quantised products, which round activations to 8 bits; but for single rows on GPUs: there candle has products that leave
    /// the row as it is. On NVIDIA's it has both, and one switch for the whole program, which is set here.
    pub(super) fn fine(parts: &[Stored], device: &Device, copies: bool) -> Result<CandleMatrix> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            candle_core::quantized::cuda::set_force_dmmv(true);
        }
        let _ = device;
        CandleMatrix::new(parts, false, copies)
    }

    /// With its weights on the device, where `bring` takes tiles, their columns and format. The file's bytes are let go.
    pub(super) fn brought(
        mut self,
        device: &Device,
        mut bring: impl FnMut(&[Tile<'_>], usize, GgmlType) -> Result<Vec<QTensor>>,
    ) -> Result<CandleMatrix> {
        for part in &mut self.parts {
            let tiles = bring(&part.tiles(device)?, part.cols, part.ty)?;
            let held = Held::Tiles(tiles.into_iter().map(Arc::new).collect());
            part.held = OnceLock::from(held);
            part.stored.clear();
        }
        Ok(self)
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Row `row` `[1, inputs]`; the caller has checked that it exists.
    pub(super) fn row(&self, mut row: usize, device: &Device) -> Result<Tensor> {
        for part in &self.parts {
            for stored in part.stored()? {
                if row < stored.rows() {
                    return dequantized(part.ty, stored.row(row), 1, self.inputs, device);
                }
                row -= stored.rows();
            }
        }
        Err(refused("embed", "a row past the table"))
    }

    /// `x · selfᵀ`, some columns at a time: `each` is given the first column and `[rows, columns]`.
    fn multiply(&self, x: &Tensor, device: &Device, mut each: impl FnMut(usize, Tensor) -> Result<()>) -> Result<()> {
        let x = x.contiguous()?;
        let mut col = 0;
        for part in &self.parts {
            let mut by_dequantized = |weight: Tensor| -> Result<()> {
                each(col, x.matmul(&weight.t()?)?)?;
                col += weight.dim(0)?;
                Ok(())
            };
            if self.mapped {
                for tile in part.tiles(device)? {
                    by_dequantized(tile.blocks(part.ty, self.inputs, device)?.dequantize(device)?)?;
                }
                continue;
            }
            match part.held(device, self.product)? {
                Held::Tiles(tiles) if x.dim(0)? == 1 && part.takes_a_row(device) => {
                    for tile in tiles {
                        each(col, QMatMul::from_arc(Arc::clone(tile))?.forward(&x)?)?;
                        col += tile.shape().dims2()?.0;
                    }
                }
                Held::Tiles(tiles) => tiles.iter().try_for_each(|tile| by_dequantized(tile.dequantize(device)?))?,
                Held::Product(weight) => {
                    each(col, weight.forward(&x)?)?;
                    col += part.rows;
                }
            }
        }
        Ok(())
    }
}

impl Part {
    /// The file's tensors.
    fn stored(&self) -> Result<&[Stored]> {
        require(!self.stored.is_empty(), "matrix", || "its weights are on the device alone".into())?;
        Ok(&self.stored)
    }

    /// Whether candle's quantised product of one row with these blocks leaves the row as it is, so that it does for weights that must
    /// not meet rounded activations and spares taking them apart.
    fn takes_a_row(&self, device: &Device) -> bool {
        match device {
            Device::Cpu => false,
            // As `fine` has told candle; its kernels go by 64 columns.
            Device::Cuda(_) => !self.ty.is_float() && self.cols.is_multiple_of(64),
            Device::Metal(_) => !self.ty.is_float(),
        }
    }

    /// Its rows in pieces that may be taken apart at once.
    fn tiles(&self, device: &Device) -> Result<Vec<Tile<'_>>> {
        let stored = self.stored()?;
        let bytes = if device.is_cpu() { TILE_BYTES } else { GPU_TILE_BYTES };
        let rows = (bytes / 4 / self.cols).max(1);
        if self.rows <= rows {
            return Ok(vec![self.whole()?]);
        }
        let pieces = stored.iter().flat_map(|tensor| {
            let row_bytes = tensor.row_bytes();
            let tile = move |bytes| Tile { pieces: vec![bytes], rows: bytes.len() / row_bytes };
            tensor.bytes().chunks(rows * row_bytes).map(tile)
        });
        Ok(pieces.collect())
    }

    /// All its rows.
    fn whole(&self) -> Result<Tile<'_>> {
        Ok(Tile { pieces: self.stored()?.iter().map(Stored::bytes).collect(), rows: self.rows })
    }

    fn held(&self, device: &Device, product: bool) -> Result<&Held> {
        if let Some(held) = self.held.get() {
            return Ok(held);
        }
        let (ty, cols) = (self.ty, self.cols);
        let held = if product {
            Held::Product(QMatMul::from_qtensor(self.whole()?.blocks(ty, cols, device)?)?)
        } else {
            let tile = |tile: &Tile<'_>| tile.blocks(ty, cols, device).map(Arc::new);
            Held::Tiles(self.tiles(device)?.iter().map(tile).collect::<Result<_>>()?)
        };
        Ok(self.held.get_or_init(|| held))
    }
}

/// Rows that lie in one or more pieces.
pub(super) struct Tile<'a> {
    pub(super) pieces: Vec<&'a [u8]>,
    pub(super) rows: usize,
}

impl Tile<'_> {
    /// A copy as candle's blocks.
    pub(super) fn blocks(&self, ty: GgmlType, cols: usize, device: &Device) -> Result<QTensor> {
        match self.pieces.as_slice() {
            [bytes] => blocks(ty, bytes, self.rows, cols, device),
            // In words, because candle takes bytes for blocks where they are.
            pieces => blocks(ty, Bytes::owned(&pieces.concat()).as_slice(), self.rows, cols, device),
        }
    }
}

impl Linear<CandleTarget> {
    /// `width` columns go in, and the bias has an element per output.
    pub(super) fn fits(&self, op: &'static str, width: usize) -> Result<()> {
        let inputs = self.weight.inputs();
        require(inputs == width, op, || format!("a layer of {inputs} inputs is given {width} columns"))?;
        self.bias.as_ref().map_or(Ok(()), |bias| bias.is_long(op, "the bias", self.weight.outputs()))
    }

    /// `x · weightᵀ + bias`, some columns at a time.
    pub(super) fn project(&self, x: &Tensor, device: &Device, mut each: impl FnMut(usize, Tensor) -> Result<()>) -> Result<()> {
        self.weight.multiply(x, device, |col, y| match &self.bias {
            None => each(col, y),
            Some(bias) => {
                let cols = y.dim(1)?;
                each(col, y.broadcast_add(&bias.tensor.narrow(0, col, cols)?)?)
            }
        })
    }
}

/// candle's name of a format.
pub(super) fn dtype(ty: GgmlType) -> GgmlDType {
    match ty {
        GgmlType::F32 => GgmlDType::F32,
        GgmlType::F16 => GgmlDType::F16,
        GgmlType::BF16 => GgmlDType::BF16,
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
    }
}

/// A copy of `bytes`, whole rows of a stored tensor and hence aligned for its format, as candle's blocks.
fn blocks(ty: GgmlType, bytes: &[u8], rows: usize, cols: usize, device: &Device) -> Result<QTensor> {
    let storage = QStorage::from_data(Cow::Borrowed(bytes), device, dtype(ty))?;
    Ok(QTensor::new(storage, (rows, cols))?)
}

/// `bytes` as numbers `[rows, cols]`, taken apart by candle.
pub(super) fn dequantized(ty: GgmlType, bytes: &[u8], rows: usize, cols: usize, device: &Device) -> Result<Tensor> {
    Ok(blocks(ty, bytes, rows, cols, device)?.dequantize(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way other devices go, and candle's own products.
    #[test]
    fn held_weights_compute_what_mapped_ones_do() {
        let values: Vec<f32> = (0..7 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut bytes = vec![0; GgmlType::Q8_0.row_bytes(values.len()).unwrap()];
        sphinx_quant::block::quantize(GgmlType::Q8_0, &values, None, &mut bytes);
        let stored = Stored::owned("w", GgmlType::Q8_0, &[64, 7], &bytes).unwrap();
        let parts = [stored.clone(), stored];
        let x = Tensor::from_slice(&values[..3 * 64], (3, 64), &Device::Cpu).unwrap();
        let product = |matrix: &CandleMatrix| {
            let mut columns = Vec::new();
            let each = |col: usize, y: Tensor| {
                assert_eq!(col, columns.iter().map(|y: &Tensor| y.dim(1).unwrap()).sum::<usize>());
                columns.push(y);
                Ok(())
            };
            matrix.multiply(&x, &Device::Cpu, each).unwrap();
            let pieces = columns.len();
            (pieces, Tensor::cat(&columns, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let mapped = CandleMatrix::new(&parts, false, false).unwrap();
        let (pieces, wanted) = product(&mapped);
        assert!(pieces > 2, "{pieces} tiles of two parts");
        let held = CandleMatrix::new(&parts, false, true).unwrap();
        assert_eq!(product(&held), (pieces, wanted.clone()));
        assert_eq!(product(&held).1, wanted, "and again from what is held");
        assert!(held.row(8, &Device::Cpu).is_ok());
        let quantised = CandleMatrix::new(&parts, true, false).unwrap();
        let (pieces, found) = product(&quantised);
        assert_eq!(pieces, 1, "two tensors of one format");
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!((found - wanted).abs() < 0.2, "{found} {wanted}");
        }
    }
}
