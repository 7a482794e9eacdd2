//! Tensors of a vision half, held against the shapes that its metadata call for.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

use sphinx_quant::error::printable;
use sphinx_quant::gguf::Gguf;
use sphinx_quant::{Tensor, block};
use sphinx_targets::{Linear, Target};

use super::params::REMEDY;
use crate::Result;
use crate::source::window::{Window, whole_pages};

/// A LayerNorm's parameters.
pub(super) struct Norm<T: Target> {
    weight: T::Vector,
    bias: T::Vector,
}

impl<T: Target> Norm<T> {
    /// `x` normalised into `out`.
    pub(super) fn apply(&self, t: &T, x: &T::Buffer, eps: f32, out: &mut T::Buffer) -> Result<()> {
        Ok(t.layer_norm(x, &self.weight, &self.bias, eps, out)?)
    }

    /// The norm in front of something else.
    pub(super) fn with_eps(self, eps: f32) -> sphinx_targets::Norm<T> {
        sphinx_targets::Norm { weight: self.weight, bias: self.bias, eps }
    }
}

/// Tensors of a file.
pub(super) struct Tensors<'a, T: Target> {
    target: &'a T,
    file: &'a Gguf,
    /// Whether matrices meet activations of 16 bits.
    fine: bool,
    /// Names that were asked for.
    asked: RefCell<HashSet<&'a str>>,
    /// Whether blocks are in memory only while they run.
    streamed: bool,
    /// Where the matrices lie that were asked for since a block began.
    places: RefCell<Vec<Range<usize>>>,
}

impl<'a, T: Target> Tensors<'a, T> {
    pub(super) fn new(target: &'a T, file: &'a Gguf, fine: bool, streamed: bool) -> Self {
        Tensors { target, file, fine, asked: RefCell::default(), streamed, places: RefCell::default() }
    }

    /// Loads the blocks `0..count` with `load`, and tells what they need to be in memory only while they run; nothing where
    /// all of them stay.
    pub(super) fn blocks<B>(&self, count: usize, load: impl Fn(usize) -> Result<B>) -> Result<(Vec<B>, Option<Window>)> {
        let mut places = Vec::with_capacity(count);
        let one = |i: usize| {
            self.places.borrow_mut().clear();
            let block = load(i)?;
            places.push(whole_pages(self.places.take()));
            Ok(block)
        };
        let blocks = (0..count).map(one).collect::<Result<Vec<_>>>()?;
        let bytes = self.file.tensors().first().filter(|_| self.streamed).map(|t| t.backing().0);
        Ok((blocks, bytes.map(|bytes| Window::new(bytes, places, false))))
    }

    /// Checks that everything in the file was asked for: what belongs to an encoder and is left out would change the result.
    pub(super) fn all_asked(&self) -> Result<()> {
        let asked = self.asked.borrow();
        for tensor in self.file.tensors().iter().filter(|t| !asked.contains(t.name())) {
            if tensor.name().starts_with("v.") {
                let what = "the metadata describe a model without this tensor";
                return Err(self.file.invalid(what, Some(tensor.name()), REMEDY).into());
            }
            tracing::warn!("tensor \"{}\" is not used", printable(tensor.name()));
        }
        Ok(())
    }

    /// The tensor `name` of shape `[rows, cols]`, or `[cols]` when `rows` is 1.
    fn shaped(&self, name: &str, rows: usize, cols: usize) -> Result<&'a Tensor> {
        let tensor = self.file.tensor(name)?;
        self.asked.borrow_mut().insert(tensor.name());
        if (tensor.rows(), tensor.cols()) != (rows, cols) {
            let what = format!("shape [{}, {}], expected [{rows}, {cols}] by the metadata", tensor.rows(), tensor.cols());
            return Err(self.file.invalid(what, Some(name), REMEDY).into());
        }
        Ok(tensor)
    }

    /// Rows of the tensor `name`, whatever they are.
    pub(super) fn rows_of(&self, name: &str) -> Result<usize> {
        Ok(self.file.tensor(name)?.rows())
    }

    /// A table `[rows, cols]` used element by element.
    pub(super) fn table(&self, name: &str, rows: usize, cols: usize) -> Result<T::Vector> {
        Ok(self.target.vector(self.shaped(name, rows, cols)?)?)
    }

    /// A vector.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<T::Vector> {
        self.table(name, 1, len)
    }

    /// A table `[rows, cols]` on the host.
    pub(super) fn values(&self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>> {
        let tensor = self.shaped(name, rows, cols)?;
        let mut values = vec![0.0; tensor.len()];
        block::dequantize(tensor.ty(), tensor.bytes(), &mut values);
        Ok(values)
    }

    /// A linear layer `[out, in]` with its bias.
    pub(super) fn linear(&self, weight: &str, bias: &str, out: usize, inputs: usize) -> Result<Linear<T>> {
        Ok(Linear { bias: Some(self.vector(bias, out)?), ..self.linear_without_bias(weight, out, inputs)? })
    }

    /// A linear layer `[out, in]` that has no bias.
    pub(super) fn linear_without_bias(&self, weight: &str, out: usize, inputs: usize) -> Result<Linear<T>> {
        let tensor = self.shaped(weight, out, inputs)?;
        self.places.borrow_mut().push(tensor.backing().1);
        let parts = std::slice::from_ref(tensor);
        let weight = if self.fine { self.target.matrix_fine(parts)? } else { self.target.matrix(parts)? };
        Ok(Linear { weight, bias: None })
    }

    /// A LayerNorm.
    pub(super) fn norm(&self, weight: &str, bias: &str, len: usize) -> Result<Norm<T>> {
        Ok(Norm { weight: self.vector(weight, len)?, bias: self.vector(bias, len)? })
    }
}
