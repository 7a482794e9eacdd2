//! The experts of a mixture in a file: per layer three stacks, each whole or cut into runs.

use sphinx_quant::error::printable;
use sphinx_quant::gguf::{Gguf, names};
use sphinx_quant::{QuantError, Tensor};

use super::params::DAMAGED;

/// One of the three matrices that every expert has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// `[experts, hidden, dim]`.
    Gate,
    /// `[experts, hidden, dim]`.
    Up,
    /// `[experts, dim, hidden]`.
    Down,
}

impl Stack {
    /// All of them.
    pub const ALL: [Stack; 3] = [Stack::Gate, Stack::Up, Stack::Down];

    /// Name of the stack in one tensor.
    pub fn whole(self) -> &'static str {
        match self {
            Stack::Gate => names::FFN_GATE_EXPS,
            Stack::Up => names::FFN_UP_EXPS,
            Stack::Down => names::FFN_DOWN_EXPS,
        }
    }

    /// Name of a run of the stack, `{j}` being its first expert.
    pub fn from(self) -> &'static str {
        match self {
            Stack::Gate => names::FFN_GATE_EXPS_FROM,
            Stack::Up => names::FFN_UP_EXPS_FROM,
            Stack::Down => names::FFN_DOWN_EXPS_FROM,
        }
    }

    /// Name of the matrix in a dense model.
    pub fn dense(self) -> &'static str {
        match self {
            Stack::Gate => names::FFN_GATE,
            Stack::Up => names::FFN_UP,
            Stack::Down => names::FFN_DOWN,
        }
    }

    /// Which stack the tensor `name` is, or is a run of, with its layer and first expert.
    pub fn of(name: &str) -> Option<(Stack, usize, usize)> {
        Stack::ALL.into_iter().find_map(|stack| {
            let (layer, first) = names::numbers(stack.whole(), name).or_else(|| names::numbers(stack.from(), name))?;
            Some((stack, layer, first))
        })
    }

    /// The layer and expert of a tensor that holds one expert alone, as mixtures were once written.
    pub fn single(name: &str) -> Option<(usize, usize)> {
        Stack::ALL.into_iter().find_map(|stack| names::numbers(&stack.dense().replace(".weight", ".{j}.weight"), name))
    }
}

/// Experts that lie in one tensor.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The first of them.
    pub first: usize,
    /// How many.
    pub experts: usize,
    /// `[experts, out, in]`.
    pub tensor: &'a Tensor,
}

impl Run<'_> {
    /// The matrix `[out, in]` of expert `expert`; `None` when it is not in this run.
    pub fn expert(&self, expert: usize) -> Option<Tensor> {
        let at = expert.checked_sub(self.first).filter(|&at| at < self.experts)?;
        let rows = self.tensor.rows() / self.experts;
        self.tensor.part(at * rows..(at + 1) * rows)
    }
}

/// The tensors in which the `experts` experts of `stack` in layer `layer` lie, in order and without gaps. Shapes are the
/// caller's to check.
///
/// # Errors
/// When experts are in no tensor, or a tensor holds more than there are.
pub fn runs(file: &Gguf, stack: Stack, layer: usize, experts: usize) -> Result<Vec<Run<'_>>, QuantError> {
    let whole = names::at(stack.whole(), layer, 0);
    if let Some(tensor) = file.find(&whole) {
        return Ok(vec![Run { first: 0, experts, tensor }]);
    }
    let mut all = Vec::new();
    let mut next = 0;
    while next < experts {
        let name = names::at(stack.from(), layer, next);
        let Some(tensor) = file.find(&name) else {
            if next == 0 {
                file.tensor(&whole)?; // the usual words for a tensor that is missing
            }
            let what = format!("the tensor is missing, and so experts {next} to {} of {experts}", experts - 1);
            return Err(file.invalid(what, Some(&name), DAMAGED));
        };
        let held = match tensor.dims() {
            [_, _] => 1,
            [_, _, held] => *held,
            _ => 0,
        };
        if held == 0 || held > experts - next {
            let what = format!("the tensor holds {held} experts from {next} on, but there are {experts} in all");
            return Err(file.invalid(what, Some(&printable(&name)), DAMAGED));
        }
        all.push(Run { first: next, experts: held, tensor });
        next += held;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_stacks_runs_and_single_experts() {
        assert_eq!(Stack::of("blk.3.ffn_up_exps.weight"), Some((Stack::Up, 3, 0)));
        assert_eq!(Stack::of("blk.3.ffn_down_exps.6.weight"), Some((Stack::Down, 3, 6)));
        assert_eq!(Stack::of("blk.3.ffn_down.weight"), None);
        assert_eq!(Stack::of("blk.3.ffn_down_exps.06.weight"), None);
        assert_eq!(Stack::single("blk.3.ffn_gate.7.weight"), Some((3, 7)));
        assert_eq!(Stack::single("blk.3.ffn_gate.weight"), None);
        assert_eq!(Stack::single("blk.3.ffn_gate_exps.7.weight"), None);
    }
}
