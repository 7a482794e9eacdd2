//! candle behind the same trait: the second witness of every result, and the way to GPUs.
//!
//! Nothing here calls our kernels. Weights are handed to candle as the file has them, candle takes their blocks
//! apart, and products are formed in `f32`; so an agreement with [`cpu`](crate::cpu) vouches for our reading of the
//! formats, for our 8-bit dot products and for our order of operations at once.
//!
//! What a model should know about this target:
//!
//! * On candle's CPU device weights stay in the mapped file. A tile of rows is copied and taken apart when it is used
//!   and dropped after it, so memory is bounded by the tile and speed is that of de-quantising the whole model for
//!   every pass. On other devices the blocks are copied there when a matrix is first used, and only their taking apart
//!   happens per use. Experts that are streamed are copied by the threads that read them, beside the computing.
//! * [`with_quantized_matmul`](CandleTarget::with_quantized_matmul) trades the witness for speed: candle's own
//!   quantised products, on a copy of the weights.
//! * A row's result may differ in its last bits with the number of rows it is batched with, because candle's matrix
//!   product picks its blocking by shape.
//! * A [`KvType::Q8_0`](crate::KvType::Q8_0) cache holds numbers that went through the block format and back, as `f32`: the values are
//!   those of the compact cache, the size is not.

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod matrix;
mod vision;

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, DeviceLocation, Tensor};
use candle_nn::ops;
use sphinx_quant::Tensor as Stored;

use crate::shape::{check_slots, check_weights};
use crate::{Activation, After, AttendShape, Carrier, Columns, KvShape, Linear, MapShape, Mlp, Pin, Result, Rope, Target, TargetError};

pub use attention::CandleKv;
pub use matrix::CandleMatrix;

/// The hidden map of an MLP is held for at most this many bytes of rows. Little in unit tests, here and for the other
/// tiles, so that they see several.
const HIDDEN_BYTES: usize = if cfg!(test) { 100 } else { 64 << 20 };

/// candle on one of its devices.
#[derive(Clone, Debug)]
pub struct CandleTarget {
    device: Device,
    quantized_matmul: bool,
    copies: bool,
    /// What the last rotation turned by: all layers turn by the same.
    angles: Arc<Mutex<Option<attention::Angles>>>,
}

impl CandleTarget {
    /// On candle's CPU device.
    pub fn cpu() -> Result<CandleTarget> {
        Ok(CandleTarget::on(Device::Cpu))
    }

    /// On the NVIDIA GPU of number `ordinal`, with candle's quantised products. The crate is built with feature `cuda` for it.
    ///
    /// # Errors
    /// Without a driver, or without such a GPU.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<CandleTarget> {
        Ok(CandleTarget::on(cuda::device(ordinal)?).with_quantized_matmul(true))
    }

    /// On the GPU of an Apple machine, with candle's quantised products. The crate is built with feature `metal` for it.
    ///
    /// # Errors
    /// Without such a GPU.
    #[cfg(feature = "metal")]
    pub fn metal() -> Result<CandleTarget> {
        Ok(CandleTarget::on(Device::new_metal(0)?).with_quantized_matmul(true))
    }

    /// On what the environment's `SPHINX_CANDLE` names (`cpu`, `cuda`, `metal`), on candle's CPU device when it names nothing: so that
    /// what is tested there is tested on a GPU where there is one.
    ///
    /// # Errors
    /// [`TargetError::Option`] for another name, or one that the crate was not built for; without such a GPU.
    pub fn from_env() -> Result<CandleTarget> {
        match std::env::var("SPHINX_CANDLE").unwrap_or_default().as_str() {
            "" | "cpu" => CandleTarget::cpu(),
            #[cfg(feature = "cuda")]
            "cuda" => CandleTarget::cuda(0),
            #[cfg(feature = "metal")]
            "metal" => CandleTarget::metal(),
            other => Err(TargetError::Option {
                name: "SPHINX_CANDLE",
                value: other.into(),
                remedy: "use cpu, or cuda or metal with the feature of that name",
            }),
        }
    }

    /// On `device`, which candle was built for.
    pub fn on(device: Device) -> CandleTarget {
        let copies = !device.is_cpu();
        CandleTarget { device, quantized_matmul: false, copies, angles: Arc::default() }
    }

    /// Whether weights are copied although candle could use them where they are: so that its CPU device goes the way that others go.
    /// Of no effect on those.
    pub fn with_copies(mut self, on: bool) -> CandleTarget {
        self.copies = on || !self.device.is_cpu();
        self
    }

    /// Whether quantised weights are multiplied by candle's own quantised kernels (activations in 8 bits, weights
    /// copied, and on x86 repacked into a second copy) rather than taken apart to `f32` first. Off at the start.
    pub fn with_quantized_matmul(mut self, on: bool) -> CandleTarget {
        self.quantized_matmul = on;
        self
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A feed-forward part on `x` `[rows, width]`, some rows and columns at a time: `each` is given the first of both.
    fn feed_forward(&self, x: &Tensor, mlp: &Mlp<Self>, mut each: impl FnMut(usize, usize, Tensor) -> Result<()>) -> Result<()> {
        let (count, hidden) = (x.dim(0)?, mlp.up.weight.outputs());
        let tile = (HIDDEN_BYTES / 4 / hidden.max(1)).max(1);
        for first in (0..count).step_by(tile) {
            let rows = tile.min(count - first);
            let mut h = None;
            mlp.up.project(&x.narrow(0, first, rows)?, &self.device, |col, y| {
                if y.dim(1)? == hidden {
                    h = Some(y);
                    return Ok(());
                }
                let all = match h.take() {
                    Some(all) => all,
                    None => self.zeros(&[rows, hidden], DType::F32, "the hidden map of an MLP")?,
                };
                all.slice_set(&y.contiguous()?, 1, col)?;
                h = Some(all);
                Ok(())
            })?;
            let Some(h) = h else { continue };
            let h = mlp.act.apply(&h)?;
            mlp.down.project(&h, &self.device, |col, y| each(first, col, y))?;
        }
        Ok(())
    }

    /// A zeroed tensor, refused rather than attempted when its size cannot be had.
    fn zeros(&self, dims: &[usize], dtype: DType, what: &'static str) -> Result<Tensor> {
        let bytes = dims.iter().try_fold(dtype.size_in_bytes(), |n, &d| n.checked_mul(d));
        let fits = |n: usize| Vec::<u8>::new().try_reserve_exact(n).is_ok();
        match bytes {
            Some(n) if !self.device.is_cpu() || fits(n) => Ok(Tensor::zeros(dims, dtype, &self.device)?),
            _ => Err(TargetError::Memory { bytes: bytes.unwrap_or(usize::MAX), what }),
        }
    }
}

/// Rows of activations.
#[derive(Debug)]
pub struct CandleBuffer {
    /// `[capacity, width]`, contiguous and nobody else's: results are copied into it.
    room: Tensor,
    rows: usize,
    /// The current rows `[rows, width]` when they are one result, which need not be copied: what `room` has of them is out of date.
    result: Option<Tensor>,
}

impl CandleBuffer {
    fn capacity(&self) -> usize {
        self.room.dims()[0]
    }

    fn width(&self) -> usize {
        self.room.dims()[1]
    }

    /// The current rows.
    fn current(&self) -> Result<Tensor> {
        match &self.result {
            Some(result) => Ok(result.clone()),
            None => Ok(self.room.narrow(0, 0, self.rows)?),
        }
    }

    /// Rows and columns; the caller has checked that they exist.
    fn block(&self, row: usize, rows: usize, col: usize, cols: usize) -> Result<Tensor> {
        Ok(self.current()?.narrow(0, row, rows)?.narrow(1, col, cols)?)
    }

    /// Sets rows `row..` and columns `col..` to `y` `[rows, cols]`, a result that lies in no buffer.
    fn put(&mut self, y: Tensor, row: usize, col: usize) -> Result<()> {
        let (rows, cols) = y.dims2()?;
        if rows == self.rows && cols == self.width() && rows > 0 {
            self.result = Some(y.contiguous()?);
            return Ok(());
        }
        Ok(self.room()?.narrow(0, row, rows)?.slice_set(&y.contiguous()?, 1, col)?)
    }

    /// Where all rows are, to be written to.
    fn room(&mut self) -> Result<&Tensor> {
        if let Some(result) = self.result.take() {
            self.room.narrow(0, 0, self.rows)?.slice_set(&result, 0, 0)?;
        }
        Ok(&self.room)
    }

    fn resize(&mut self, op: &'static str, rows: usize) -> Result<()> {
        require(rows <= self.capacity(), op, || format!("{rows} rows in a buffer for {}", self.capacity()))?;
        if rows != self.rows {
            self.room()?;
            self.rows = rows;
        }
        Ok(())
    }

    /// `first..first + rows` lies in the current rows.
    fn holds(&self, op: &'static str, first: usize, rows: usize) -> Result<()> {
        let inside = first.checked_add(rows).is_some_and(|end| end <= self.rows);
        require(inside, op, || format!("rows {first}..{} of {}", first.saturating_add(rows), self.rows))
    }

    fn is_wide(&self, op: &'static str, what: &str, width: usize) -> Result<()> {
        require(self.width() == width, op, || format!("{what} is {} wide, not {width}", self.width()))
    }
}

/// Parameters used element by element: one dimension, `f32`.
#[derive(Debug)]
pub struct CandleVector {
    tensor: Tensor,
}

impl CandleVector {
    fn len(&self) -> usize {
        self.tensor.elem_count()
    }

    fn is_long(&self, op: &'static str, what: &str, len: usize) -> Result<()> {
        require(self.len() == len, op, || format!("{what} has {} elements, not {len}", self.len()))
    }
}

/// `Err(Shape)` unless `ok`.
fn require(ok: bool, op: &'static str, what: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(refused(op, what())) }
}

fn refused(op: &'static str, what: impl Into<String>) -> TargetError {
    TargetError::Shape { op, what: what.into() }
}

/// `x · sigmoid(1.702 x)`.
fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    let gate = ((x * -1.702)?.exp()? + 1.0)?.recip()?;
    Ok((x * gate)?)
}

impl Activation {
    /// Columns of the first layer's result per column of the second layer's input.
    fn fan(self) -> usize {
        match self {
            Activation::SiluGate => 2,
            Activation::Gelu | Activation::QuickGelu => 1,
        }
    }

    fn apply(self, h: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::Gelu => h.gelu_erf()?,
            Activation::QuickGelu => quick_gelu(h)?,
            Activation::SiluGate => {
                let hidden = h.dim(1)? / 2;
                (h.narrow(1, 0, hidden)?.silu()? * h.narrow(1, hidden, hidden)?)?
            }
        })
    }
}

impl Mlp<CandleTarget> {
    /// `width` columns go in, and the layers fit each other.
    fn fits(&self, op: &'static str, width: usize) -> Result<()> {
        let (hidden, inputs) = (self.up.weight.outputs(), self.down.weight.inputs());
        self.up.fits(op, width)?;
        self.down.fits(op, inputs)?;
        let agree = hidden == self.act.fan() * inputs;
        require(agree, op, || format!("{:?} from {hidden} columns, where the second layer takes {inputs}", self.act))
    }
}

/// What `after` makes of columns `col..` of rows `row..` of a result `y`, stored in `out`.
fn finish(y: Tensor, after: After<'_, CandleVector>, out: &mut CandleBuffer, row: usize, col: usize) -> Result<()> {
    let (rows, cols) = y.dims2()?;
    let y = match after {
        After::Nothing => y,
        After::Gelu => y.gelu_erf()?,
        After::QuickGelu => quick_gelu(&y)?,
        After::Add => (out.block(row, rows, col, cols)? + y)?,
        After::ScaleAdd(scale) => (out.block(row, rows, col, cols)? + y.broadcast_mul(&scale.tensor.narrow(0, col, cols)?)?)?,
    };
    out.put(y, row, col)
}

/// A linear layer fits its input, its output and what follows, and `out` has `x`'s rows.
fn prepare(
    op: &'static str,
    x: &CandleBuffer,
    layer: &Linear<CandleTarget>,
    after: After<'_, CandleVector>,
    out: &mut CandleBuffer,
) -> Result<()> {
    out.is_wide(op, "out", layer.weight.outputs())?;
    if let After::ScaleAdd(scale) = after {
        scale.is_long(op, "the scale", out.width())?;
    }
    if matches!(after, After::Add | After::ScaleAdd(_)) {
        require(out.rows == x.rows, op, || format!("{} rows are added to {}", x.rows, out.rows))?;
    }
    out.resize(op, x.rows)
}

impl Target for CandleTarget {
    type Buffer = CandleBuffer;
    type Matrix = CandleMatrix;
    type Vector = CandleVector;
    type Kv = CandleKv;

    fn name(&self) -> String {
        let device = match self.device.location() {
            DeviceLocation::Cpu => format!("cpu, {} threads", candle_core::utils::get_num_threads()),
            DeviceLocation::Cuda { gpu_id } => format!("cuda {gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal {gpu_id}"),
        };
        format!("candle {device}{}", if self.quantized_matmul { ", quantized products" } else { "" })
    }

    fn carrier(&self) -> Option<Box<dyn Carrier<CandleTarget>>> {
        self.copies.then(|| Box::new(CandleCarrier::new(&self.device)) as Box<dyn Carrier<CandleTarget>>)
    }

    fn free_bytes(&self) -> Option<u64> {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::free_bytes(device),
            _ => None,
        }
    }

    fn matrix(&self, parts: &[Stored]) -> Result<CandleMatrix> {
        CandleMatrix::new(parts, self.quantized_matmul, self.copies)
    }

    fn matrix_fine(&self, parts: &[Stored]) -> Result<CandleMatrix> {
        CandleMatrix::fine(parts, &self.device, self.copies)
    }

    fn matrix_shape(&self, matrix: &CandleMatrix) -> (usize, usize) {
        (matrix.outputs(), matrix.inputs())
    }

    fn vector(&self, tensor: &Stored) -> Result<CandleVector> {
        if !tensor.ty().is_float() {
            return Err(TargetError::Type { op: "vector", tensor: tensor.name().into(), ty: tensor.ty() });
        }
        Ok(CandleVector { tensor: matrix::dequantized(tensor.ty(), tensor.bytes(), 1, tensor.len(), &self.device)?.flatten_all()? })
    }

    fn vector_from(&self, values: &[f32]) -> Result<CandleVector> {
        Ok(CandleVector { tensor: Tensor::from_slice(values, values.len(), &self.device)? })
    }

    fn buffer(&self, capacity: usize, width: usize) -> Result<CandleBuffer> {
        let room = self.zeros(&[capacity, width], DType::F32, "an activation buffer")?;
        Ok(CandleBuffer { room, rows: capacity, result: None })
    }

    fn rows(&self, buffer: &CandleBuffer) -> usize {
        buffer.rows
    }

    fn width(&self, buffer: &CandleBuffer) -> usize {
        buffer.width()
    }

    fn set_rows(&self, buffer: &mut CandleBuffer, rows: usize) -> Result<()> {
        buffer.resize("set_rows", rows)
    }

    fn write(&self, values: &[f32], buffer: &mut CandleBuffer, first: usize) -> Result<()> {
        let rows = whole_rows("write", values.len(), buffer.width())?;
        buffer.holds("write", first, rows)?;
        if rows == 0 {
            return Ok(());
        }
        buffer.put(Tensor::from_slice(values, (rows, buffer.width()), &self.device)?, first, 0)
    }

    fn read(&self, buffer: &CandleBuffer, first: usize, values: &mut [f32]) -> Result<()> {
        let rows = whole_rows("read", values.len(), buffer.width())?;
        buffer.holds("read", first, rows)?;
        if rows == 0 {
            return Ok(());
        }
        values.copy_from_slice(&buffer.current()?.narrow(0, first, rows)?.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    fn copy(&self, src: &CandleBuffer, src_row: usize, rows: usize, dst: &mut CandleBuffer, dst_row: usize, dst_col: usize) -> Result<()> {
        src.holds("copy", src_row, rows)?;
        dst.holds("copy", dst_row, rows)?;
        let inside = dst_col.checked_add(src.width()).is_some_and(|end| end <= dst.width());
        require(inside, "copy", || format!("{} columns from {dst_col} on, of {}", src.width(), dst.width()))?;
        if rows == 0 {
            return Ok(());
        }
        let rows = src.current()?.narrow(0, src_row, rows)?;
        Ok(dst.room()?.narrow(0, dst_row, rows.dim(0)?)?.slice_set(&rows.contiguous()?, 1, dst_col)?)
    }

    fn embed(&self, table: &CandleMatrix, ids: &[u32], out: &mut CandleBuffer, first: usize) -> Result<()> {
        out.is_wide("embed", "out", table.inputs())?;
        out.holds("embed", first, ids.len())?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= table.outputs()) {
            return Err(refused("embed", format!("id {id} of a table with {} rows", table.outputs())));
        }
        for (i, &id) in ids.iter().enumerate() {
            out.put(table.row(id as usize, &self.device)?, first + i, 0)?;
        }
        Ok(())
    }

    fn rms_norm(&self, x: &CandleBuffer, weight: &CandleVector, eps: f32, out: &mut CandleBuffer) -> Result<()> {
        weight.is_long("rms_norm", "the weight", x.width())?;
        out.is_wide("rms_norm", "out", x.width())?;
        out.resize("rms_norm", x.rows)?;
        if x.rows == 0 {
            return Ok(());
        }
        out.put(ops::rms_norm(&x.current()?, &weight.tensor, eps)?, 0, 0)
    }

    fn layer_norm(&self, x: &CandleBuffer, weight: &CandleVector, bias: &CandleVector, eps: f32, out: &mut CandleBuffer) -> Result<()> {
        weight.is_long("layer_norm", "the weight", x.width())?;
        bias.is_long("layer_norm", "the bias", x.width())?;
        out.is_wide("layer_norm", "out", x.width())?;
        out.resize("layer_norm", x.rows)?;
        if x.rows == 0 {
            return Ok(());
        }
        let x = x.current()?;
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let std = (centred.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
        out.put(centred.broadcast_div(&std)?.broadcast_mul(&weight.tensor)?.broadcast_add(&bias.tensor)?, 0, 0)
    }

    fn linear(&self, x: &CandleBuffer, layer: &Linear<Self>, after: After<'_, CandleVector>, out: &mut CandleBuffer) -> Result<()> {
        layer.fits("linear", x.width())?;
        prepare("linear", x, layer, after, out)?;
        if x.rows == 0 {
            return Ok(());
        }
        layer.project(&x.current()?, &self.device, |col, y| finish(y, after, out, 0, col))
    }

    fn mlp(&self, x: &CandleBuffer, mlp: &Mlp<Self>, after: After<'_, CandleVector>, out: &mut CandleBuffer) -> Result<()> {
        mlp.fits("mlp", x.width())?;
        prepare("mlp", x, &mlp.down, after, out)?;
        self.feed_forward(&x.current()?, mlp, |row, col, y| finish(y, after, out, row, col))
    }

    fn expert_mlp(&self, x: &CandleBuffer, slots: &[u32], used: usize, expert: &Mlp<Self>, out: &mut CandleBuffer) -> Result<()> {
        let op = "expert_mlp";
        expert.fits(op, x.width())?;
        let n = expert.down.weight.outputs();
        out.is_wide(op, "out", n)?;
        check_slots(op, x.rows, slots, used, out.rows)?;
        if slots.is_empty() {
            return Ok(());
        }
        if let &[slot] = slots {
            let token = x.current()?.narrow(0, slot as usize / used, 1)?;
            return self.feed_forward(&token, expert, |_, col, part| {
                Ok(out.room()?.narrow(0, slot as usize, 1)?.slice_set(&part.contiguous()?, 1, col)?)
            });
        }
        let tokens: Vec<u32> = slots.iter().map(|s| s / used as u32).collect();
        let tokens = Tensor::from_vec(tokens, slots.len(), &self.device)?;
        let y = self.zeros(&[slots.len(), n], DType::F32, "the results of an expert")?;
        self.feed_forward(&x.current()?.index_select(&tokens, 0)?, expert, |row, col, part| {
            let rows = y.narrow(0, row, part.dim(0)?)?;
            Ok(rows.slice_set(&part.contiguous()?, 1, col)?)
        })?;
        let places = Tensor::from_slice(slots, (slots.len(), 1), &self.device)?.broadcast_as((slots.len(), n))?;
        Ok(out.room()?.scatter_set(&places.contiguous()?, &y, 0)?)
    }

    fn mix_experts(&self, y: &CandleBuffer, weights: &[f32], used: usize, out: &mut CandleBuffer) -> Result<()> {
        let op = "mix_experts";
        out.is_wide(op, "out", y.width())?;
        check_weights(op, out.rows, weights.len(), used, y.rows)?;
        if out.rows == 0 {
            return Ok(());
        }
        let weights = Tensor::from_slice(weights, (out.rows, used, 1), &self.device)?;
        let y = y.current()?.reshape((out.rows, used, y.width()))?.broadcast_mul(&weights)?;
        let mut sum = y.narrow(1, 0, 1)?;
        for j in 1..used {
            sum = (sum + y.narrow(1, j, 1)?)?;
        }
        out.put((out.current()? + sum.squeeze(1)?)?, 0, 0)
    }

    fn add_table(&self, x: &mut CandleBuffer, table: &CandleVector) -> Result<()> {
        let tokens = whole_rows("add_table", table.len(), x.width())?;
        let fits = tokens > 0 && x.rows.is_multiple_of(tokens);
        require(fits, "add_table", || format!("a table of {tokens} rows to {}", x.rows))?;
        if x.rows == 0 {
            return Ok(());
        }
        let table = table.tensor.reshape((tokens, x.width()))?;
        let sum = x.current()?.reshape((x.rows / tokens, tokens, x.width()))?.broadcast_add(&table)?;
        x.put(sum.reshape((x.rows, x.width()))?, 0, 0)
    }

    fn attend(
        &self,
        q: Columns<'_, CandleBuffer>,
        k: Columns<'_, CandleBuffer>,
        v: Columns<'_, CandleBuffer>,
        shape: AttendShape,
        out: &mut CandleBuffer,
    ) -> Result<()> {
        attention::attend(q, k, v, shape, out)
    }

    fn conv_depthwise(
        &self,
        x: &CandleBuffer,
        map: MapShape,
        kernel: &CandleVector,
        bias: &CandleVector,
        out: &mut CandleBuffer,
    ) -> Result<()> {
        vision::conv_depthwise(x, map, kernel, bias, out)
    }

    fn fold_2x2(&self, x: &CandleBuffer, map: MapShape, out: &mut CandleBuffer) -> Result<()> {
        vision::fold_2x2(x, map, out)
    }

    fn pool_2x2(&self, x: &CandleBuffer, map: MapShape, out: &mut CandleBuffer) -> Result<()> {
        vision::pool_2x2(x, map, out)
    }

    fn mean_rows(&self, x: &CandleBuffer, group: usize, out: &mut CandleBuffer) -> Result<()> {
        vision::mean_rows(x, group, out)
    }

    fn kv(&self, shape: KvShape) -> Result<CandleKv> {
        CandleKv::new(self, shape)
    }

    fn kv_bytes(&self, kv: &CandleKv) -> usize {
        kv.bytes()
    }

    fn rope_append(&self, qkv: &mut CandleBuffer, rope: &Rope, kv: &mut CandleKv, pos: usize) -> Result<()> {
        attention::rope_append(self, qkv, rope, kv, pos)
    }

    fn attend_cached(&self, qkv: &CandleBuffer, kv: &CandleKv, pos: usize, out: &mut CandleBuffer) -> Result<()> {
        attention::attend_cached(qkv, kv, pos, out)
    }
}

/// Copies weights to a device, from any thread.
struct CandleCarrier {
    device: Device,
    #[cfg(feature = "cuda")]
    lane: Option<cuda::Lane>,
}

impl CandleCarrier {
    fn new(device: &Device) -> CandleCarrier {
        CandleCarrier {
            #[cfg(feature = "cuda")]
            lane: match device {
                Device::Cuda(device) => cuda::Lane::new(device).inspect_err(|e| tracing::warn!("copies wait for computing: {e}")).ok(),
                _ => None,
            },
            device: device.clone(),
        }
    }
}

impl Carrier<CandleTarget> for CandleCarrier {
    fn matrix_fine(&self, parts: &[Stored]) -> Result<CandleMatrix> {
        CandleMatrix::fine(parts, &self.device, true)?.brought(&self.device, |tiles, cols, ty| {
            #[cfg(feature = "cuda")]
            if let Some(lane) = &self.lane {
                return lane.bring(tiles, cols, matrix::dtype(ty));
            }
            tiles.iter().map(|tile| tile.blocks(ty, cols, &self.device)).collect()
        })
    }

    fn pin(&self, memory: &mut [u8]) -> Option<Pin> {
        #[cfg(feature = "cuda")]
        if let Some(lane) = &self.lane {
            return lane.pin(memory);
        }
        let _ = memory;
        None
    }
}

/// How many rows of `width` make up `len` numbers.
fn whole_rows(op: &'static str, len: usize, width: usize) -> Result<usize> {
    require(width > 0 && len.is_multiple_of(width), op, || format!("{len} numbers are no whole rows of {width}"))?;
    Ok(len / width)
}

#[cfg(test)]
mod tests;
