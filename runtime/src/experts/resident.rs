//! Experts that stay where they are: in the mapped file, or wherever the target puts matrices.

use sphinx_quant::Tensor;
use sphinx_quant::gguf::{Gguf, names};
use sphinx_targets::{Activation, Linear, Mlp, Target, TargetError};

use super::{Asked, Experts};
use crate::Result;
use crate::source::LanguageParams;
use crate::source::stacks::{self, Run, Stack};

/// All experts of all layers.
pub struct Resident<T: Target> {
    layers: Vec<Vec<Mlp<T>>>,
}

impl<T: Target> Resident<T> {
    /// The experts in `file`, which `params` were read from; none for a dense model.
    ///
    /// # Errors
    /// When a tensor is missing or of a type the target does not compute with.
    pub fn load(t: &T, file: &Gguf, params: &LanguageParams) -> Result<Resident<T>> {
        let layers = if params.is_mixture() { params.layers } else { 0 };
        let layer = |layer| {
            let [gate, up, down] = Stack::ALL.map(|stack| stacks::runs(file, stack, layer, params.experts));
            let (gate, up, down) = (gate?, up?, down?);
            // Fine, because routers further up choose by what experts make.
            let linear = |parts: &[Tensor]| t.matrix_fine(parts).map(|weight| Linear { weight, bias: None });
            let expert = |e| {
                let part = |stack, runs| part(file, stack, layer, runs, e);
                Ok(Mlp {
                    up: linear(&[part(Stack::Gate, &gate)?, part(Stack::Up, &up)?])?,
                    act: Activation::SiluGate,
                    down: linear(&[part(Stack::Down, &down)?])?,
                })
            };
            (0..params.experts).map(expert).collect::<Result<Vec<_>>>()
        };
        Ok(Resident { layers: (0..layers).map(layer).collect::<Result<Vec<_>>>()? })
    }
}

/// The matrix of expert `expert`, wherever in `runs` it lies.
pub(super) fn part(file: &Gguf, stack: Stack, layer: usize, runs: &[Run<'_>], expert: usize) -> Result<Tensor> {
    runs.iter().find_map(|run| run.expert(expert)).ok_or_else(|| {
        let name = names::at(stack.whole(), layer, 0);
        file.invalid(format!("expert {expert} cannot be read from it"), Some(&name), "the file is damaged; convert it again").into()
    })
}

impl<T: Target> Experts<T> for Resident<T> {
    fn visit(&self, _: &T, asked: Asked<'_>, work: &mut dyn FnMut(u32, &Mlp<T>) -> Result<()>) -> Result<()> {
        let layer = asked.layer;
        for &id in asked.ids {
            let Some(expert) = self.layers.get(layer).and_then(|experts| experts.get(id as usize)) else {
                return Err(TargetError::Shape { op: "experts", what: format!("there is no expert {id} in layer {layer}") }.into());
            };
            work(id, expert)?;
        }
        Ok(())
    }
}
